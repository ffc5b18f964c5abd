"""`results.json`: the same numbers in the layout that users of lighteval and lm-evaluation-harness know.

lighteval: `config_general`, `results` by `suite|task|shots` and `all`; lm-eval: `n-shot`, `n-samples` and
`configs` by task. Both read metrics with their standard errors beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from reasoner.evaluation.summary import SplitSamples, problems_of

SUITE = "reasoner"


def standard_results(result: Mapping[str, Any], splits: list[SplitSamples]) -> dict[str, Any]:
    """From the contents of eval.json and the samples behind it."""
    metrics = {f"{SUITE}|{s.name}|0": _metrics(result["splits"][s.name], s) for s in splits}
    names = {name for found in metrics.values() for name in found}
    overall = {
        name: float(np.mean([found[name] for found in metrics.values()]))
        for name in sorted(names)
        if all(name in found for found in metrics.values()) and not name.endswith("_stderr")
    }
    return {
        "config_general": {
            "model_name": result["model"],
            "seed": result["seed"],
            "generation_parameters": dict(result["sampling"]),
            "versions": dict(result["versions"]),
        },
        "results": metrics | {"all": overall},
        "versions": dict.fromkeys(metrics, 1),
        "n-shot": {s.name: 0 for s in splits},
        "n-samples": {s.name: {"original": len(s.tasks), "effective": len(s.tasks)} for s in splits},
        "configs": {s.name: {"task": s.name, "verifier": result["verifier"]} for s in splits},
    }


def _metrics(split: Mapping[str, Any], samples: SplitSamples) -> dict[str, float]:
    found: dict[str, float] = {}
    for curve, name in (("pass@k", "pass@k:k={}"), ("maj@k", "maj@k:k={}")):
        found |= {name.format(k): value for k, value in (split[curve] or {}).items()}
    rates = np.array([p.c / p.n for p in problems_of(samples)])
    if len(rates):
        found |= {"acc": float(rates.mean())}
    if len(rates) > 1:
        found |= {"acc_stderr": float(rates.std(ddof=1) / np.sqrt(len(rates)))}
    return found
