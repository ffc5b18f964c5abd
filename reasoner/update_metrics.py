"""What one update measures: sums over micro-batches and ranks, and the distance from the sampling policy."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from reasoner.ranks import Ranks
from reasoner.types import TrainBatch


class Tally:
    """Sums over the micro-batches of one update, and over the ranks once `reduce` was called."""

    def __init__(self, num_tokens: int) -> None:
        self.logprobs = np.zeros(num_tokens, dtype=np.float32)
        self.entropy = 0.0
        self.stats: dict[str, float] = {}

    def add(self, index: np.ndarray, logprobs: np.ndarray, entropy: float, stats: dict[str, Tensor]) -> None:
        """The action tokens of a micro-batch: their places in the batch, and what was computed of them."""
        self.logprobs[index] = logprobs
        self.entropy += entropy
        for name, value in stats.items():
            self.stats[name] = self.stats.get(name, 0.0) + float(value)

    def reduce(self, ranks: Ranks) -> None:
        self.logprobs = ranks.sum(self.logprobs)  # each token was computed by one rank, and is 0 elsewhere
        sums = ranks.sum(np.array([self.entropy, *self.stats.values()]))
        self.entropy = float(sums[0])
        self.stats = dict(zip(self.stats, sums[1:].tolist(), strict=True))


def importance_metrics(learner_logprobs: np.ndarray, batch: TrainBatch) -> dict[str, float]:
    """How far the policy that met the batch is from the one that sampled it, over its action tokens.

    With r = pi_prox / pi_mu per token: `kl_behaviour` is the mean of r - 1 - log r (the k3 estimator, never
    negative) of KL(pi_mu || pi_prox), in nats a token; `ess` is (sum r)^2 / (n sum r^2), 1 on policy;
    `ratio_max` the largest r; `logprob_diff_max` and `_p99` are of |log r|.
    """
    mask = batch.action_mask
    log_ratio = (learner_logprobs[mask] - batch.behaviour_logprobs[mask]).astype(np.float64)  # (n,)
    ratio = np.exp(log_ratio)
    return {
        "kl_behaviour": float(np.mean(np.expm1(log_ratio) - log_ratio)),
        "ess": float(ratio.sum() ** 2 / (len(ratio) * np.square(ratio).sum())),
        "ratio_max": float(ratio.max()),
        "logprob_diff_max": float(np.abs(log_ratio).max()),
        "logprob_diff_p99": float(np.quantile(np.abs(log_ratio), 0.99)),
    }
