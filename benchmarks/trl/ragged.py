"""The batch both learners update on: ragged, long-tailed completions, the same numbers on both sides.

Lengths are the quantiles of a log-normal distribution (median 60 tokens, sigma 1) cut to 10..512, so every
batch of a size has the same lengths; tokens are random, rewards are 0 or 1, prompts have 12 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

PROMPT_TOKENS = 12
MEDIAN_TOKENS, SIGMA = 60.0, 1.0
SHORTEST, LONGEST = 10, 512
GROUP_SIZE = 8


@dataclass(frozen=True)
class RaggedBatch:
    """R rollouts; each `GROUP_SIZE` in a row have the same prompt."""

    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: list[float]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.prompts)) + sum(map(len, self.completions))

    @property
    def padded_tokens(self) -> int:
        """What a rectangle takes: the longest prompt and the longest completion, for every rollout."""
        width = max(map(len, self.prompts)) + max(map(len, self.completions))
        return width * len(self.completions)

    def shortened(self) -> RaggedBatch:
        """Two tokens of each completion: enough to make the optimizer's state."""
        return RaggedBatch(self.prompts, [c[:2] for c in self.completions], self.rewards)


def ragged_batch(rollouts: int, vocabulary: int, seed: int = 0) -> RaggedBatch:
    """`rollouts` must be a multiple of `GROUP_SIZE`. Token ids stay below `vocabulary`."""
    if rollouts % GROUP_SIZE:
        raise ValueError(f"{rollouts} rollouts are no whole groups of {GROUP_SIZE}")
    rng = np.random.default_rng(seed)
    normal = NormalDist()
    quantiles = [normal.inv_cdf((i + 0.5) / rollouts) for i in range(rollouts)]
    lengths = np.clip(np.round(MEDIAN_TOKENS * np.exp(SIGMA * np.array(quantiles))), SHORTEST, LONGEST)
    rng.shuffle(lengths)

    def tokens(n: int) -> list[int]:
        return rng.integers(3, vocabulary, n).tolist()

    prompts = [tokens(PROMPT_TOKENS) for _ in range(rollouts // GROUP_SIZE)]
    return RaggedBatch(
        prompts=[prompt for prompt in prompts for _ in range(GROUP_SIZE)],
        completions=[tokens(int(n)) for n in lengths],
        rewards=rng.integers(0, 2, rollouts).astype(float).tolist(),
    )
