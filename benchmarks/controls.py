"""Two rewards that say nothing about the answer: the same run with them must not gain.

reasoner train --name constant --verifier benchmarks/controls.py:constant
reasoner train --name random --verifier benchmarks/controls.py:coin
"""

from __future__ import annotations

import random

from reasoner.types import Task

_RANDOM = random.Random(0)


def constant(completion: str, task: Task) -> float:
    """The same for everything: no group has a signal, so nothing is learned."""
    return 1.0


def coin(completion: str, task: Task) -> float:
    """A fair coin: groups have variance, advantages are pure noise."""
    return float(_RANDOM.random() < 0.5)
