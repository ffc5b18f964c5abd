"""A function of the user's, by name: `module:attribute` or `path/to/file.py:attribute`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reasoner.errors import UsageError


def load_function(kind: str, spec: str) -> Callable[..., Any]:
    """What `spec` names; `kind` ("loss", "estimator") is for messages. Modules are also looked for in the
    current directory. Raises `UsageError` when it cannot be imported or is not callable."""
    home, _, attribute = spec.rpartition(":")
    if not home or not attribute:
        raise UsageError(f"{kind} {spec!r}: expected 'module:function' or 'path/to/file.py:function'")
    try:
        found: Any = import_file(Path(home)) if home.endswith(".py") else import_module(home)
    except UsageError as error:
        raise UsageError(f"{kind} {spec!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # foreign code at import
        raise UsageError(f"{kind} {spec!r} cannot be imported: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{kind} {spec!r}: {home!r} has no attribute {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{kind} {spec!r} is a {type(found).__name__}: expected a function")
    return found


def function_name(kind: str, function: Callable[..., Any]) -> str:
    """The `module:attribute` under which `load_function` finds it again, in another process too.

    Raises `UsageError` for what cannot be found again: lambdas, inner functions, functions of a script."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<lambda>")
    if not module or module == "__main__" or "<" in name:
        raise UsageError(
            f"{kind} {name} cannot be imported by the learner's process, nor when the run is resumed: "
            "define it at the top of a module of its own"
        )
    return f"{module}:{name}"


def import_module(name: str) -> Any:
    """The module `name`, which may lie in the current directory: at the end of the path, since what else
    lies there (a verifiers.py) is nobody else's. Raises `UsageError` without one."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # it is there, and imports what is not
            raise
        raise UsageError(
            f"there is no module {error.name!r} in the current directory ({os.getcwd()}), on PYTHONPATH or "
            "installed"
        ) from None


def import_file(path: Path) -> Any:
    """The module in the file `path`, which may import its neighbours. Raises `UsageError` without one."""
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    home = str(path.resolve().parent)
    if home not in sys.path:
        sys.path.append(home)
    name = f"reasoner_plugin_{path.stem}"  # the stem alone may be the name of a library
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
