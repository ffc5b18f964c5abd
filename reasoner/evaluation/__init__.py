"""Test-time compute as a measured quantity: `evaluate`, and what the training loop needs of it.

| module | what |
|---|---|
| `splits` | evaluation inside the training loop |
| `run` | `evaluate`: checks, samples, grades, summarises, writes |
| `plan` | what is evaluated, and the fingerprint and directory that follow from it |
| `store` | every finished sample, durable at once; Parquet at the end |
| `generate` | where samples come from: servers of ours, or an endpoint |
| `collect` | samples what is missing: chains, then cuts and extensions of them |
| `grade` | verdicts, answer classes and candidates of stored samples |
| `summary`, `budgets`, `costs` | from stored samples to eval.json |
"""

from reasoner.evaluation.run import EvalOptions, evaluate
from reasoner.evaluation.splits import SPLITS, check_scored, evaluate_split, summarise, verifier_failed

__all__ = [
    "SPLITS",
    "EvalOptions",
    "check_scored",
    "evaluate",
    "evaluate_split",
    "summarise",
    "verifier_failed",
]
