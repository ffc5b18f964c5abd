"""Where a run is heading: a sigmoid in compute fitted to what has been measured so far, with its uncertainty.

    R(C) = R0 + (A - R0) / (1 + (C_mid / C)^B)          ScaleRL, arXiv 2510.13786 eq. 1

C is the compute spent so far (FLOPs of training and sampling), A the asymptote, B the steepness, C_mid
where half of the gain is made. Fitted are the evaluations of the target and, where the run trains on fresh
tasks drawn like the held-out ones, the pass rate of each training step after the learning-rate warm-up too:
it measures the same thing, more often. (The paper leaves the earliest compute out of its fits as well.) A
measured rate p over n answers, m of them to each task, has the variance p(1-p)/n · (1 + (m-1)ρ), Kish's
design effect; ρ, the correlation within a task, is estimated from the residuals.

Intervals come from a parametric bootstrap: they hold the noise of the measurements and of the final
evaluation, not that a sigmoid may be the wrong shape. Deviation from the paper: R0 is fitted, as step 0 is
noisy too.
Left out: fits over several runs, and targets that are no rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasoner.config import Config
from reasoner.errors import UsageError

Array = np.ndarray
Entries = Sequence[Mapping[str, Any]]

MIN_POINTS = 5  # one more than the sigmoid has parameters
BOOTSTRAP = 300  # refits; the spread of a percentile is then below 1/10 of the interval
LEVEL = 0.95
_FIRST_GUESS_RHO = 0.3
_STEEPNESS = (0.3, 4.0)  # of B: outside it the curve is a step or a straight line


@dataclass(frozen=True)
class Measurement:
    """A rate that was measured after `compute` FLOPs, over `answers` answers to `tasks` tasks."""

    step: int
    compute: float
    rate: float
    answers: int
    tasks: int
    training: bool  # a training step's own pass rate, not an evaluation

    def variance(self, rate: float, rho: float) -> float:
        """Of the measured rate where the true one is `rate` (kept off 0 and 1, where it would vanish)."""
        floor = 0.5 / self.answers
        p = min(max(rate, floor), 1 - floor)
        return p * (1 - p) / self.answers * (1 + (self.answers / self.tasks - 1) * rho)


@dataclass(frozen=True)
class Sigmoid:
    start: float  # R0
    asymptote: float  # A
    steepness: float  # B
    midpoint: float  # C_mid, FLOPs

    def __call__(self, compute: Array | float) -> Array:
        c = np.asarray(compute, float)
        with np.errstate(divide="ignore"):
            return self.start + (self.asymptote - self.start) / (1 + (self.midpoint / c) ** self.steepness)


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """`asymptote` and `final` with intervals of level `LEVEL`; `final` is what the evaluation at the end will
    read, its own noise included. `measured` is that evaluation in a run that has come so far, None where the
    forecast itself saw it."""

    target: str
    fitted_to: str
    step: int  # the last one that was used
    final_step: int
    compute: float
    final_compute: float
    curve: Sigmoid
    asymptote: Interval
    final: Interval
    last_value: float
    asymptote_one: float  # the final value with A fixed to 1
    measured: float | None

    @property
    def errors(self) -> dict[str, float] | None:
        """Forecast minus what happened, of the fit and of the two baselines."""
        if self.measured is None:
            return None
        named = {"sigmoid": self.final.value, "last_value": self.last_value}
        named |= {"asymptote_one": self.asymptote_one}
        return {name: value - self.measured for name, value in named.items()}

    def to_json(self) -> dict[str, Any]:
        covered = None if self.measured is None else self.final.low <= self.measured <= self.final.high
        return {**asdict(self), "level": LEVEL, "errors": self.errors, "covered": covered}


def measurements(
    entries: Entries, target: str, *, with_training: bool, warmup_steps: int = 0
) -> list[Measurement]:
    """Every measurement of `target` ("pass@1", "ood/pass@1" or "pass_rate") in the order of the steps.

    An evaluation of step k comes after its update, the training rate of step k belongs to the weights before
    it; those of the warm-up are left out. UsageError for an unknown target."""
    splits = {"pass@1": "held_out", "ood/pass@1": "ood", "pass_rate": ""}
    if target not in splits:
        raise UsageError(f"cannot forecast {target!r}: choose {', '.join(splits)}")
    found: list[Measurement] = []
    compute = 0.0
    for entry in entries:
        rate, late = entry.get("pass_rate"), entry["step"] > max(1, warmup_steps)
        if (with_training or target == "pass_rate") and rate is not None and late:
            sizes = entry["rollouts"], entry["groups"]
            found.append(Measurement(entry["step"], compute, rate, *sizes, training=True))
        compute += (entry.get("train_flops") or 0.0) + (entry.get("sample_flops") or 0.0)
        split = (entry.get("eval") or {}).get(splits[target]) or {}
        if "pass@1" in split:
            sizes = split["problems"] * split["samples"], split["problems"]
            found.append(Measurement(entry["step"], compute, split["pass@1"], *sizes, training=False))
    return found


def fit(points: Sequence[Measurement], asymptote: float | None = None) -> tuple[Sigmoid, float]:
    """(curve, ρ) of the weighted least-squares fit, A fixed where `asymptote` is given. Two rounds: the
    weights of the second come from the first one's curve and residuals."""
    compute = np.array([p.compute for p in points])
    rates = np.array([p.rate for p in points])
    curve_rates, rho = np.full(len(points), rates.mean()), _FIRST_GUESS_RHO
    for _ in range(2):
        sigma = _sigma(points, curve_rates, rho)
        curve = _least_squares(compute, rates, sigma, asymptote)
        curve_rates = curve(compute)
        rho = _correlation(points, curve_rates)
    return curve, rho


def _sigma(points: Sequence[Measurement], rates: Array, rho: float) -> Array:
    return np.sqrt([p.variance(rate, rho) for p, rate in zip(points, rates, strict=True)])


def _correlation(points: Sequence[Measurement], rates: Array) -> float:
    """ρ by moments: squared residuals in units of their variance at ρ = 0 are 1 + (m-1)ρ on average, with one
    degree of freedom a parameter gone. The guess where hardly any is left."""
    degrees = len(points) - 4
    excess = np.array([p.answers / p.tasks - 1 for p in points])
    if degrees < 4 or excess.sum() <= 0:
        return _FIRST_GUESS_RHO
    squares = [(p.rate - rate) ** 2 / p.variance(rate, 0.0) for p, rate in zip(points, rates, strict=True)]
    inflated = np.sum(squares) / degrees * len(points)
    return float(np.clip((inflated - len(points)) / excess.sum(), 0.0, 1.0))


def _least_squares(
    compute: Array, rates: Array, sigma: Array, asymptote: float | None, start: Sigmoid | None = None
) -> Sigmoid:
    """The best of several starts (of `start` alone, where one is given)."""
    from scipy.optimize import least_squares

    positive = compute[compute > 0]
    scale = float(np.median(positive))  # C_mid is fitted as log(C_mid / scale)
    free = asymptote is None

    def curve_of(theta: Array) -> Sigmoid:
        r0, log_mid, log_b = theta[:3]
        top = theta[3] if asymptote is None else asymptote
        return Sigmoid(float(r0), float(top), float(np.exp(log_b)), float(scale * np.exp(log_mid)))

    def residuals(theta: Array) -> Array:
        return (curve_of(theta)(compute) - rates) / sigma

    low, high = [0.0, -12.0, np.log(_STEEPNESS[0])], [1.0, 12.0, np.log(_STEEPNESS[1])]
    if free:
        low, high = [*low, 0.0], [*high, 1.0]
    if start is not None:
        guesses = [(start.start, np.log(start.midpoint / scale), np.log(start.steepness), start.asymptote)]
    else:
        top = min(1.0, float(rates.max()) + 0.02)
        guesses = [(rates[0], mid, np.log(b), top) for mid in (-2.0, 0.0, 2.0) for b in (0.7, 1.5)]
    margin = 1e-6
    fits = [
        least_squares(
            residuals,
            np.clip(guess[: len(low)], np.add(low, margin), np.subtract(high, margin)),
            bounds=(low, high),
        )
        for guess in guesses
    ]
    return curve_of(min(fits, key=lambda f: f.cost).x)


def bootstrap(
    points: Sequence[Measurement], curve: Sigmoid, rho: float, *, seed: int = 0, repeats: int = BOOTSTRAP
) -> list[Sigmoid]:
    """Fits to measurements drawn anew from `curve` with its noise."""
    rng = np.random.default_rng(seed)
    compute = np.array([p.compute for p in points])
    rates = curve(compute)
    sigma = _sigma(points, rates, rho)
    return [
        _least_squares(compute, np.clip(rng.normal(rates, sigma), 0.0, 1.0), sigma, None, start=curve)
        for _ in range(repeats)
    ]


def planned_compute(entries: Entries, final_step: int) -> float:
    """Compute at `final_step`: what is recorded, or the mean of the last steps carried on."""
    spent = [(e.get("train_flops") or 0.0) + (e.get("sample_flops") or 0.0) for e in entries if e["step"] > 0]
    recent = spent[-max(1, len(spent) // 3) :]
    return float(np.sum(spent[:final_step]) + max(0, final_step - len(spent)) * np.mean(recent))


def forecast(
    entries: Entries,
    *,
    steps: int,
    use: float = 1.0,
    target: str = "pass@1",
    with_training: bool = True,
    warmup_steps: int = 0,
    seed: int = 0,
    repeats: int = BOOTSTRAP,
) -> Forecast:
    """Forecast of `target` at step `steps` from the first `use` (0 to 1] of those steps. Nothing later is
    looked at, not even the compute of later steps. UsageError where there is too little to fit."""
    seen = [e for e in entries if e["step"] <= use * steps]
    points = measurements(seen, target, with_training=with_training, warmup_steps=warmup_steps)
    _check_enough(points, target, seen[-1]["step"] if seen else 0)
    curve, rho = fit(points)
    fixed, _ = fit(points, asymptote=1.0)
    curves = bootstrap(points, curve, rho, seed=seed, repeats=repeats)
    final_compute = planned_compute(seen, steps)
    judged = [p for p in points if not p.training] or points
    expected = float(curve(final_compute))
    noise = np.sqrt(judged[-1].variance(expected, rho))
    rng = np.random.default_rng([seed, 1])
    finals = np.array([c(final_compute) for c in curves]) + rng.normal(0.0, noise, len(curves))
    after = measurements(entries, target, with_training=False)
    measured = [p.rate for p in after if p.step == steps > seen[-1]["step"]]
    trained = sum(p.training for p in points)
    return Forecast(
        target=target,
        fitted_to=f"{len(points) - trained} evaluations"
        + (f" and the pass rates of {trained} training steps" if trained else ""),
        step=seen[-1]["step"],
        final_step=steps,
        compute=points[-1].compute,
        final_compute=final_compute,
        curve=curve,
        asymptote=_interval(curve.asymptote, [c.asymptote for c in curves]),
        final=_interval(expected, finals),
        last_value=judged[-1].rate,
        asymptote_one=float(fixed(final_compute)),
        measured=measured[-1] if measured else None,
    )


def _interval(value: float, draws: Sequence[float] | Array) -> Interval:
    low, high = np.clip(np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]), 0.0, 1.0)
    return Interval(value, float(low), float(high))


def _check_enough(points: Sequence[Measurement], target: str, step: int) -> None:
    distinct = len({p.compute for p in points})
    if distinct >= MIN_POINTS:
        return
    raise UsageError(
        f"{distinct} measurements of {target} up to step {step}: a sigmoid has 4 parameters and needs at "
        f"least {MIN_POINTS} (use a larger --use, train on, or evaluate more often: --eval.every)"
    )


def trains_on_what_it_tests(config: Config) -> bool:
    """Whether a training step's pass rate measures what the held-out evaluation does: fresh tasks."""
    from envs.tasks import load_tasks

    drawn_alike = config.tasks.curriculum == "none"
    return drawn_alike and not load_tasks(config.tasks.source, config.seed).finite


def forecast_run(
    run: str | Path, *, use: float | None = None, target: str = "pass@1"
) -> tuple[Forecast, Entries]:
    """The forecast of a run directory and its metrics. `use` of None: all of a run that goes on, the first
    30 % of a finished one."""
    from reasoner.metrics import read_metrics
    from reasoner.run import reopen

    path, config = reopen(run, {})
    entries = read_metrics(path)
    if not entries:
        raise UsageError(f"{path} has no metrics yet")
    finished = entries[-1]["step"] >= config.steps
    found = forecast(
        entries,
        steps=config.steps,
        use=use or (0.3 if finished else 1.0),
        target=target,
        with_training=target == "pass@1" and trains_on_what_it_tests(config),
        warmup_steps=config.learner.warmup_steps,
        seed=config.seed,
    )
    return found, entries


def summary(found: Forecast) -> str:
    """The forecast in a few lines."""
    c = found.curve
    lines = [
        f"fitted to {found.fitted_to}, up to step {found.step} of {found.final_step} "
        f"({found.compute:.3g} of about {found.final_compute:.3g} FLOPs)",
        f"R(C) = {c.start:.3f} + (A - {c.start:.3f}) / (1 + ({c.midpoint:.3g} / C)^{c.steepness:.2f})",
        f"asymptote A             {_shown(found.asymptote)}",
        f"{found.target} at step {found.final_step:<10} {_shown(found.final)}",
        f"  baseline: last value  {found.last_value:.3f}",
        f"  baseline: A = 1       {found.asymptote_one:.3f}",
    ]
    if found.errors is not None and found.measured is not None:
        inside = "inside" if found.final.low <= found.measured <= found.final.high else "outside"
        lines.append(f"what happened           {found.measured:.3f}  ({inside} the interval)")
        errors = ", ".join(f"{name.replace('_', ' ')} {error:+.3f}" for name, error in found.errors.items())
        lines.append(f"  errors: {errors}")
    return "\n".join(lines)


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f}  ({LEVEL:.0%} interval {interval.low:.3f} to {interval.high:.3f})"


def write_picture(found: Forecast, entries: Entries, out_svg: Path) -> None:
    """The measurements, the fitted curve and the interval of the final value over steps, as one SVG file."""
    from reasoner.charts import Chart, Series, picture
    from reasoner.curves import curve as values
    from reasoner.durable import write_atomically

    spent = {
        s: planned_compute([e for e in entries if e["step"] <= found.step], s)
        for s in range(found.final_step + 1)
    }
    metric = ("pass_rate",) if found.target == "pass_rate" else ("eval", *_eval_path(found.target))
    fitted = tuple((float(s), float(found.curve(c))) for s, c in spent.items())
    end = float(found.final_step)
    series = (
        Series("training", tuple(values(entries, "pass_rate")), "s4", thin=True),
        Series(found.target, tuple(values(entries, *metric)), "s0"),
        Series(f"forecast from step {found.step}", fitted, "s1"),
        Series("interval", ((end, found.final.low), (end, found.final.high)), "s3"),
    )
    chart = Chart(f"Forecast of {found.target}", series, bounds=(0, 1), form=".3f")
    write_atomically(out_svg, picture([chart], f"A = {_shown(found.asymptote)}", columns=1).encode())


def _eval_path(target: str) -> tuple[str, str]:
    split, _, key = target.rpartition("/")
    return split or "held_out", key
