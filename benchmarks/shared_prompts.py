"""What an update gains from computing the prompt of a group once: seconds without it over seconds with it.

The batch is a step of the default configuration, 32 groups of 16 rollouts, with prompts of 6 to 20 tokens
(the default task's) and answers of exponential length with the given means, up to 128. Both kinds of updates
are of one learner, in turn; the ratio is the median over the pairs. Beside it the share of the tokens that
need not be computed.

    python -m benchmarks.shared_prompts [--answers 8 30 100] [--pairs 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import time
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.figures import Figure, ratio, report

GROUPS, GROUP_SIZE = 32, 16
PROMPT = (6, 20)  # tokens
LONGEST = 128
VOCABULARY = 256


def batch_of(mean_answer: float, seed: int = 0) -> Any:
    """A TrainBatch of random tokens and advantages."""
    from reasoner.types import TrainBatch

    rng = np.random.default_rng(seed)
    ids, masks = [], []
    for _ in range(GROUPS):
        prompt = rng.integers(2, VOCABULARY, rng.integers(PROMPT[0], PROMPT[1] + 1))
        for _ in range(GROUP_SIZE):
            answer = rng.integers(2, VOCABULARY, min(LONGEST, 1 + int(rng.exponential(mean_answer))))
            ids.append(np.concatenate([prompt, answer]))
            masks.append(np.arange(len(ids[-1])) >= len(prompt))
    mask = np.concatenate(masks)
    return TrainBatch(
        token_ids=np.concatenate(ids).astype(np.int32),
        cu_seqlens=np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int32),
        action_mask=mask,
        behaviour_logprobs=np.where(mask, -np.log(VOCABULARY), 0).astype(np.float32),
        advantages=np.where(mask, rng.standard_normal(len(mask)), 0).astype(np.float32),
        loss_weight=(mask / mask.sum()).astype(np.float32),
        group=np.repeat(np.arange(GROUPS), GROUP_SIZE),
    )


def update_s(learner: Any, batch: Any, shares: bool) -> float:
    from reasoner import policy

    nothing = mock.patch.object(policy, "prompts_of", lambda batch: ())
    started = time.perf_counter()
    if shares:
        learner.update(batch)
    else:
        with nothing:
            learner.update(batch)
    return time.perf_counter() - started


def run(mean_answer: int, pairs: int, threads: int) -> tuple[list[Figure], dict[str, Any]]:
    from reasoner.batch import prompts_of
    from reasoner.learner import Learner, LearnerConfig
    from reasoner.models import embedded_path

    learner = Learner(embedded_path(), LearnerConfig(lr=1e-9, threads=threads))
    batch = batch_of(mean_answer)
    prompts = {prompt.tobytes(): len(prompt) for prompt in prompts_of(batch)}
    saved = 1 - (batch.num_action_tokens + sum(prompts.values())) / batch.num_tokens
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(pairs + 1):  # the first pair allocates
        for shares in (True, False):
            seconds[shares].append(update_s(learner, batch, shares))
    figures = [
        ratio(f"shared_prompts_speedup_{mean_answer}", seconds[False][1:], seconds[True][1:]),
        Figure(f"shared_prompts_tokens_saved_{mean_answer}", saved, "share"),
    ]
    return figures, {"with_s": seconds[True][1:], "without_s": seconds[False][1:], "tokens": batch.num_tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--answers", type=int, nargs="+", default=[8, 30, 100], help="mean tokens")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    figures, details = [], {}
    for mean_answer in args.answers:
        found, details[str(mean_answer)] = run(mean_answer, args.pairs, args.threads)
        figures += found
    report("shared_prompts", figures, {"threads": args.threads, **details})


if __name__ == "__main__":
    main()
