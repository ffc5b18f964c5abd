"""A budget of operations: what is too expensive to decide is decided by counting, so a busy machine gives
the same verdicts as an idle one.
"""

from __future__ import annotations

MAX_OPERATIONS = 150_000  # some tenths of a second on a 2020s core


class TooExpensive(Exception):
    """The answer cannot be decided within its budget, or needs numbers too big to hold."""


class Undefined(Exception):
    """The expression has no value: a division by zero, 0/0, ∞ − ∞."""


class Budget:
    """Counts elementary operations (term products, multiprecision calls weighted by their digits)."""

    def __init__(self, operations: int = MAX_OPERATIONS) -> None:
        self.left = operations

    def spend(self, operations: int) -> None:
        self.left -= operations
        if self.left < 0:
            raise TooExpensive("the budget of operations is used up")
