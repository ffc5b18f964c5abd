"""reasoner: outcome-reward reinforcement learning for reasoning models, on a laptop or a cluster.

    from reasoner import Config, Task, Verdict, train, evaluate

Importing this package loads neither torch, Ray nor vLLM: what needs them is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reasoner.config import Config as Config
    from reasoner.evaluation import evaluate as evaluate
    from reasoner.training import train as train
    from reasoner.types import Task as Task
    from reasoner.types import Verdict as Verdict

# The modules are not called train and evaluate, since a submodule would hide the function of its name.
_HOMES = {
    "Config": "reasoner.config",
    "Task": "reasoner.types",
    "Verdict": "reasoner.types",
    "train": "reasoner.training",
    "evaluate": "reasoner.evaluation",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'reasoner' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
