"""How often the forecast from the first part of a finished run was right, beside two simpler guesses.

Mean absolute errors at the last step of the sigmoid, of the last value seen and of a fit with asymptote 1,
and how many 95 % intervals held what happened (docs/results.md). Nothing is trained: RUNS are directories.

    python -m benchmarks.forecast RUNS... [--shares 0.2,0.3,0.5,0.7]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.figures import Figure, report
from reasoner.forecast import Forecast, forecast_run

GUESSES = ("sigmoid", "last_value", "asymptote_one")


def figures(share: float, found: Sequence[Forecast]) -> list[Figure]:
    """Of the forecasts of several finished runs from the same share of each."""
    percent = f"{share:.0%}".rstrip("%")
    errors = [f.errors for f in found if f.errors is not None]
    sizes = {guess: [abs(e[guess]) for e in errors] for guess in GUESSES}
    covered = [f.to_json()["covered"] for f in found]
    return [
        *(
            Figure(f"forecast_error_{guess}_{percent}", float(np.mean(s)), "rate", min(s), max(s))
            for guess, s in sizes.items()
        ),
        Figure(f"forecast_intervals_held_{percent}", float(np.mean(covered)), "share"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS")
    parser.add_argument("--shares", type=_numbers, default=(0.2, 0.3, 0.5, 0.7))
    args = parser.parse_args()
    result, details = [], {}
    print("| share used | " + " | ".join(GUESSES) + " | intervals that held it |\n" + "|---" * 5 + "|")
    for share in args.shares:
        found = [forecast_run(run, use=share)[0] for run in args.runs]
        if any(f.measured is None for f in found):
            parser.error("a forecast is compared with the last evaluation: give finished runs")
        of_share = figures(share, found)
        *errors, held = [figure.value for figure in of_share]
        row = [f"{error:.3f}" for error in errors]
        print(f"| {share:.0%} | {' | '.join(row)} | {held * len(found):.0f} of {len(found)} |", flush=True)
        result += of_share
        details[f"{share:g}"] = [f.to_json() for f in found]
    report("forecast", result, details)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    main()
