"""The estimators of reasoner/scaling.py at full size: 10,000 problems × 1,024 samples by default.

    python -m benchmarks.estimators [--problems P] [--samples N]

The problems are random: the shares of the answers follow a Dirichlet law, concentrated for half of the
problems and flat for the others, one of 40 answers is no answer at all, and the right one is the most common
answer for 60 % of the problems. Closed forms are pass@k, G-pass@k and best-of-k; k = 1, 2, 4 … N for all.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks.figures import Figure, report
from reasoner.scaling import ProblemSamples, closed_forms, powers_of_two, votes

ANSWERS = 40


def random_problem(index: int, n: int, rng: np.random.Generator) -> ProblemSamples:
    """One problem as the docstring above describes."""
    shares = rng.dirichlet(np.full(ANSWERS, 0.05 if index % 2 else 0.3))
    answers = rng.choice(ANSWERS, n, p=shares).astype(np.int16)
    right = shares[:-1].argmax() if rng.random() < 0.6 else rng.integers(ANSWERS - 1)
    names = [str(answer) for answer in range(ANSWERS - 1)] + [None]
    return ProblemSamples(
        task_id=str(index),
        correct=answers == right,
        keys=tuple(names[answer] for answer in answers),
        tokens=np.full(n, 100, np.int16),
        mean_logprob=-rng.random(n, np.float32),
        scores=rng.random(n, np.float32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=1024)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    problems = [random_problem(i, args.samples, rng) for i in range(args.problems)]
    ks = powers_of_two(args.samples)
    begun = time.perf_counter()
    closed_forms(problems, ks)
    closed_s = time.perf_counter() - begun
    begun = time.perf_counter()
    values, errors = votes(problems, ks, rng)
    votes_s = time.perf_counter() - begun
    report(
        "estimators",
        [
            Figure("estimators_closed_forms_s", closed_s, "s"),
            Figure("estimators_maj_s", votes_s, "s"),
            Figure("estimators_maj_error", max(errors.values()), "accuracy"),
        ],
        {"problems": args.problems, "samples": args.samples, "maj_error": errors}
        | {"maj@k": {name: float(v.mean()) for name, v in values.items()}},
    )


if __name__ == "__main__":
    main()
