"""Verifiers: what decides whether a completion is right, and the killable processes they run in.

Importing this package loads nothing heavy; sympy and mpmath load when a verdict first needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifiers.audit import validate
    from verifiers.base import Verifier, load_verifier
    from verifiers.math import MathVerifier
    from verifiers.pool import VerifierPool

__all__ = ["MathVerifier", "Verifier", "VerifierPool", "load_verifier", "validate"]

_HOMES = {
    "Verifier": "verifiers.base",
    "load_verifier": "verifiers.base",
    "MathVerifier": "verifiers.math",
    "VerifierPool": "verifiers.pool",
    "validate": "verifiers.audit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'verifiers' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
