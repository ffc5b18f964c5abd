"""Comparing numbers that stand for amounts: with units, percent signs, as ratios and times of day."""

from __future__ import annotations

from fractions import Fraction

from verifiers.budget import Budget
from verifiers.forms import left_to_do, scaled
from verifiers.nodes import Clock, Const, Div, Mul, Node, Num, Ratio, Unit, symbols, walk
from verifiers.scalar import Match, same_scalar
from verifiers.shapes import as_quantity, is_angle, kind_of, split_quantity


class Amounts:
    """Mixin of `verifiers.compare.Comparison`: a missing unit is forgiven, a different one is not."""

    budget: Budget
    percent_asked: bool

    def ratio(self, gold: Ratio, pred: Node) -> Match:
        if isinstance(pred, Ratio):
            if len(gold.items) != len(pred.items):
                return Match(False, "another number of parts")
            first, other = gold.items[0], pred.items[0]
            agree = all(
                same_scalar(Mul((a, other)), Mul((b, first)), self.budget)
                for a, b in zip(gold.items, pred.items, strict=True)
            )
            return Match(agree, "ratio, part by part")
        if len(gold.items) == 2 and isinstance(pred, Div):
            return self.quantity(Div(*gold.items), pred)
        return Match(False, f"{kind_of(pred)} is not a ratio")

    def clock(self, gold: Clock, pred: Clock) -> Match:
        a, b = gold.text, pred.text
        if (a[-1] in "ap") != (b[-1] in "ap"):
            a, b = a.rstrip("ap"), b.rstrip("ap")
        return Match(a == b, "time of day")

    # -- numbers with and without units ----------------------------------------------------------------

    def quantity(self, gold: Node, pred: Node, evaluated: bool = True) -> Match:
        """Scalars, with percent and units: a missing unit is forgiven, a different one is not."""
        gold_value, gold_unit, gold_percent = split_quantity(gold)
        pred_value, pred_unit, pred_percent = split_quantity(pred)
        if gold_unit is not None and pred_unit is None and not pred_percent and not symbols(gold_value):
            pred_value, pred_unit, pred_percent = split_quantity(as_quantity(pred_value))
        elif pred_unit is not None and gold_unit is None and not gold_percent and symbols(gold_value):
            gold_value, gold_unit, gold_percent = split_quantity(as_quantity(gold_value))
        if (gold_unit is None) != (pred_unit is None) and is_angle(gold_unit or pred_unit):
            bare = gold_value if gold_unit is None else pred_value
            if Const("pi") in walk(bare):
                return self.radians(gold_value, gold_unit, pred_value, pred_unit)
        if evaluated:
            undone = left_to_do(gold_value, pred_value)
            if undone:
                return Match(False, f"not evaluated: {', '.join(sorted(undone))}")
        if (gold_percent and pred_unit) or (pred_percent and gold_unit):
            return Match(False, "a percentage is no quantity with a unit")
        if gold_percent or pred_percent:
            return self.percent(gold_value, pred_value, gold_percent, pred_percent)
        if gold_unit is None or pred_unit is None:
            return same_scalar(gold_value, pred_value, self.budget)
        if is_angle(gold_unit) and is_angle(pred_unit) and gold_unit.dims != pred_unit.dims:
            return self.radians(gold_value, gold_unit, pred_value, pred_unit)
        if gold_unit.dims != pred_unit.dims:
            return Match(False, f"{pred_unit.name} is not {gold_unit.name}")
        if gold_unit.factor == pred_unit.factor:
            return same_scalar(gold_value, pred_value, self.budget)
        return same_scalar(
            scaled(gold_value, gold_unit.factor), scaled(pred_value, pred_unit.factor), self.budget
        )

    def percent(self, gold: Node, pred: Node, gold_percent: bool, pred_percent: bool) -> Match:
        hundredth = Fraction(1, 100)
        if gold_percent and pred_percent:
            return same_scalar(gold, pred, self.budget)
        if gold_percent:
            match = same_scalar(scaled(gold, hundredth), pred, self.budget)
            return match or same_scalar(gold, pred, self.budget)
        match = same_scalar(gold, scaled(pred, hundredth), self.budget)
        return match or (same_scalar(gold, pred, self.budget) if self.percent_asked else match)

    def radians(self, gold: Node, gold_unit: Unit | None, pred: Node, pred_unit: Unit | None) -> Match:
        """An angle in degrees against one in radians (a bare multiple of π is one)."""
        sides = []
        for value, unit in ((gold, gold_unit), (pred, pred_unit)):
            in_degrees = unit is not None and unit.dims[0][0] == "angle"
            sides.append(Div(Mul((value, Const("pi"))), Num(Fraction(180))) if in_degrees else value)
        return same_scalar(sides[0], sides[1], self.budget)
