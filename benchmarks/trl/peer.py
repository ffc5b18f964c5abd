"""TRL's GRPOTrainer as one side of a comparison. Runs in TRL's environment (see `environment`).

    peer update ...   updates on a ready batch on command: TRL's own training step, its own padding and loss
    peer train ...    trains with TRL's own generation, a line of JSON a step, resumable

Nothing of TRL is replaced: ready completions go in through its `rollout_func`, the rest is callbacks. An
update is timed from the step's beginning to its end (forward, backward, clipping, optimizer) less the time
TRL spends on generating and scoring.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from pathlib import Path
from typing import Any, TextIO

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from benchmarks.trl.ragged import GROUP_SIZE, ragged_batch
from benchmarks.trl.worker import Memory, answers, commands
from envs.arithmetic import ArithmeticTasks
from reasoner.types import Task
from verifiers import MathVerifier

CONFIG = Path(__file__).with_name("trl.toml")
LR = 1e-9  # of `update`: the weights stay what they are, every update is the same work


def configuration(**changes: Any) -> GRPOConfig:
    return GRPOConfig(**(tomllib.loads(CONFIG.read_text()) | changes))


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer that knows how long it generated and scored in the present step."""

    generation_s = 0.0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        started = time.perf_counter()
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self.generation_s += time.perf_counter() - started


class OnCommand(TrainerCallback):
    """Each optimizer step waits for a command and is answered with what it took."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.trainer = stream, None
        self.commands = commands()
        self.command = ""
        self.answer: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.parameters = sum(p.numel() * p.element_size() for p in model.parameters())
        print(json.dumps({"parameter_bytes": self.parameters}), file=self.stream)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.command = next(self.commands, "")
        if not self.command:
            raise SystemExit
        self.trainer.generation_s = 0.0
        self.memory, self.started = Memory(), time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = time.perf_counter() - self.started - self.trainer.generation_s
        self.answer = {"seconds": seconds, "activation_bytes": self.memory.peak() - self.parameters}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.answer:
            print(json.dumps(self.answer | {"grad_norm": float(logs["grad_norm"])}), file=self.stream)
            self.answer = {}


def update(args: argparse.Namespace) -> None:
    stream = answers()
    torch.set_num_threads(args.threads)
    batch = ragged_batch(args.rollouts, args.vocabulary)
    batches = {"warm": batch.shortened(), "update": batch}
    waiting = OnCommand(stream)

    def ready(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        chosen = batches[waiting.command]
        none = [[0.0] * len(c) for c in chosen.completions]
        return {"prompt_ids": chosen.prompts, "completion_ids": chosen.completions, "logprobs": none}

    def reward(completions: list[str], **_: Any) -> list[float]:
        return batch.rewards

    config = configuration(
        output_dir=args.out,
        num_generations=GROUP_SIZE,
        generation_batch_size=args.rollouts,
        per_device_train_batch_size=args.per_device,
        gradient_accumulation_steps=args.rollouts // args.per_device,
        max_completion_length=512,
        scale_rewards="none",
        learning_rate=LR,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_steps=10_000,
        bf16=args.dtype == "bfloat16",
        gradient_checkpointing=args.checkpointing,
    )
    trainer = TimedTrainer(
        model=args.model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["x"] * args.rollouts}),
        processing_class=AutoTokenizer.from_pretrained(args.model, padding_side="left"),
        rollout_func=ready,
        callbacks=[waiting],
    )
    waiting.trainer = trainer
    trainer.train()


class Progress(TrainerCallback):
    """A line of JSON a step: seconds of the step, of generation and scoring in it, reward, held-out pass@1
    where it is evaluated (outside of the seconds). Stops at the target."""

    def __init__(self, path: Path, done: int, every: int, target: float, evaluate: Any) -> None:
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= done]
        path.write_text("".join(kept))
        self.path, self.every, self.target, self.evaluate = path, every, target, evaluate
        self.trainer: Any = None
        self.line: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.every and state.global_step == 0:
            self._write({"step": 0, "pass@1": self.evaluate()})

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.generation_s, self.started = 0.0, time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = time.perf_counter() - self.started
        self.line = {"step": state.global_step, "seconds": seconds}
        self.line["generation_seconds"] = self.trainer.generation_s
        if self.every and (state.global_step % self.every == 0 or state.global_step == args.max_steps):
            self.line["pass@1"] = self.evaluate()
            control.should_training_stop = self.line["pass@1"] >= self.target

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.line:
            learned = {"reward": logs["reward"], "response_tokens_mean": logs["completions/mean_length"]}
            self._write(self.line | {key: float(value) for key, value in learned.items()})
            self.line = {}

    def _write(self, line: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def math_reward(completions: list[str], prompts: list[str], reference: list[str], **_: Any) -> list[float]:
    """Our verifier, called directly."""
    verifier = MathVerifier()
    tasks = [Task("", prompt, answer) for prompt, answer in zip(prompts, reference, strict=True)]
    verdicts = [verifier.verify(c, t) for c, t in zip(completions, tasks, strict=True)]
    return [float(v.reward or 0.0) for v in verdicts]


def held_out_pass(trainer: GRPOTrainer, tasks: list[Task], prompts: list[str], samples: int) -> float:
    """pass@1 of the present weights on `tasks`, sampled as in training with transformers' generate."""
    tokenizer, model = trainer.processing_class, trainer.model
    repeated = [p for p in prompts for _ in range(samples)]
    inputs = tokenizer(
        repeated, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    )
    model.eval()
    with torch.no_grad():
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_config=trainer.generation_config,
        )
    model.train()
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    references = [t.references[0] for t in tasks for _ in range(samples)]
    rewards = math_reward(texts, repeated, references)
    return sum(rewards) / len(rewards)


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    source = ArithmeticTasks(seed=args.seed)
    changes: dict[str, Any] = {"output_dir": str(out), "seed": args.seed, "shuffle_dataset": False}
    if args.lr:
        changes["learning_rate"] = args.lr
    if args.per_device:
        size = configuration(output_dir=str(out)).generation_batch_size
        changes["per_device_train_batch_size"] = args.per_device
        changes["gradient_accumulation_steps"] = size // args.per_device
    if args.steps:
        changes["max_steps"] = args.steps
    if args.eval_every:
        changes |= {"save_strategy": "steps", "save_steps": args.eval_every, "save_total_limit": 2}
    config = configuration(**changes)
    needed = config.max_steps * config.generation_batch_size // config.num_generations
    tasks = [source.train(i) for i in range(needed)]
    rows = {
        "prompt": [source.base_template.format(prompt=t.prompt) for t in tasks],
        "reference": [t.references[0] for t in tasks],
    }
    held_out = source.split("held_out", args.problems)
    prompts = [source.base_template.format(prompt=t.prompt) for t in held_out]
    checkpoint = get_last_checkpoint(str(out))
    done = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    progress = Progress(
        out / "progress.jsonl",
        done if checkpoint else -1,
        args.eval_every,
        args.target,
        lambda: held_out_pass(trainer, held_out, prompts, args.samples),
    )
    trainer = TimedTrainer(
        model=args.model,
        reward_funcs=math_reward,
        args=config,
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(args.model, padding_side="left"),
        callbacks=[progress],
    )
    progress.trainer = trainer
    trainer.train(resume_from_checkpoint=checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    sides = parser.add_subparsers(dest="side", required=True)
    on_command = sides.add_parser("update")
    on_command.add_argument("--rollouts", type=int, required=True)
    on_command.add_argument("--vocabulary", type=int, required=True)
    on_command.add_argument("--dtype", default="float32")
    on_command.add_argument("--checkpointing", action="store_true")
    training = sides.add_parser("train")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--steps", type=int, help="[trl.toml's]")
    training.add_argument("--lr", type=float, help="[trl.toml's]")
    training.add_argument("--eval-every", type=int, default=0, help="steps; 0: never, and nothing is saved")
    training.add_argument("--target", type=float, default=1.1, help="stop at this held-out pass@1")
    training.add_argument("--problems", type=int, default=256)
    training.add_argument("--samples", type=int, default=2)
    for side in (on_command, training):
        side.add_argument("--model", required=True)
        side.add_argument("--out", required=True)
        side.add_argument("--per-device", type=int, help="rollouts of a forward pass [trl.toml's]")
        side.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    {"update": update, "train": train}[args.side](args)


if __name__ == "__main__":
    main()
