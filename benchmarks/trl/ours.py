"""Our learner as one side of the comparison: a process that updates on command (see `worker`)."""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks.trl.ragged import GROUP_SIZE, RaggedBatch, ragged_batch
from benchmarks.trl.worker import Memory, answers, commands

LR = 1e-9  # the weights stay what they are: every update is the same work


def train_batch(learner, batch: RaggedBatch):
    """Packed, on policy, advantages reward - mean of the group, averaged over tokens (as TRL's CISPO)."""
    from reasoner.types import TrainBatch

    ids = [np.array(p + c, np.int32) for p, c in zip(batch.prompts, batch.completions, strict=True)]
    masks = [np.arange(len(i)) >= len(p) for i, p in zip(ids, batch.prompts, strict=True)]
    lengths = np.array([len(i) for i in ids])
    mask = np.concatenate(masks)
    rewards = np.array(batch.rewards).reshape(-1, GROUP_SIZE)
    advantages = (rewards - rewards.mean(1, keepdims=True)).ravel()
    return TrainBatch(
        token_ids=np.concatenate(ids),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        action_mask=mask,
        behaviour_logprobs=(np.concatenate(learner.score(ids)) * mask).astype(np.float32),
        advantages=(np.repeat(advantages, lengths) * mask).astype(np.float32),
        loss_weight=(mask / mask.sum()).astype(np.float32),
        group=np.arange(len(ids)) // GROUP_SIZE,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    stream = answers()
    from reasoner.learner import Learner, LearnerConfig

    config = LearnerConfig(
        lr=LR,
        loss="cispo",
        dtype=args.dtype,
        threads=args.threads,
        micro_batch_tokens=args.micro_batch_tokens,
        gradient_checkpointing=args.checkpointing,
    )
    learner = Learner(args.model, config)
    parameters = sum(p.numel() * p.element_size() for p in learner.model.parameters())
    batch = ragged_batch(args.rollouts, args.vocabulary)
    packed = {"warm": train_batch(learner, batch.shortened()), "update": train_batch(learner, batch)}
    print(_json(parameter_bytes=parameters), file=stream)
    for command in commands():
        memory, started = Memory(), time.perf_counter()
        metrics = learner.update(packed[command]).metrics
        seconds = time.perf_counter() - started
        found = {"seconds": seconds, "grad_norm": metrics["grad_norm"], "flops": metrics["flops"]}
        print(_json(**found, activation_bytes=memory.peak() - parameters), file=stream)


def _json(**values: float) -> str:
    import json

    return json.dumps(values)


if __name__ == "__main__":
    main()
