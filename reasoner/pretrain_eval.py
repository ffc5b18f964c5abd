"""What a base model can do and what it is inclined to do: pass rates, forced working, shares of styles.

A quick measurement for pre-training, in plain transformers; `reasoner eval` is the real evaluation. Answers
are graded by comparing the last complete `\\boxed{}` with the reference as text, which is enough for the
integers of the corpus.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from envs.arithmetic import ArithmeticTasks, first_step
from reasoner.types import Task

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def is_right(completion: str, task: Task) -> bool:
    boxes = _BOXED.findall(completion)
    return bool(boxes) and boxes[-1] == task.reference


def style(completion: str) -> str:
    """`corrected` if a line begins with "no,", `working` if there is a line at all, else `direct`."""
    if "no," in completion:
        return "corrected"
    return "working" if "=" in completion else "direct"


@dataclass(frozen=True)
class BaseModel:
    """A model directory loaded for sampling on CPU."""

    model: Qwen3ForCausalLM
    tokenizer: Any

    @classmethod
    def load(cls, path: Path) -> BaseModel:
        return cls(Qwen3ForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path))

    @torch.inference_mode()
    def complete(
        self, prompts: Sequence[str], *, greedy: bool = False, max_tokens: int = 112, batch: int = 512
    ) -> list[str]:
        """Completions of the prompts, one each, at temperature 1 from the whole distribution (or greedy)."""
        tokenizer = self.tokenizer
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        completions = [""] * len(prompts)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = tokenizer(
                [prompts[i] for i in chosen], return_tensors="pt", padding=True, padding_side="left"
            )
            how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0}
            ids = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=max_tokens,
                **how,
            )  # (B, prompt + T)
            texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(chosen, texts, strict=True):
                completions[i] = text
        return completions


def pass_at_k(right: int, samples: int, k: int) -> float:
    """Unbiased pass@k, arXiv 2107.03374 eq. 1."""
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def _forced_prompts(tasks: Sequence[Task], template: str) -> list[str]:
    return [template.format(prompt=t.prompt) + first_step(str(t.prompt)) for t in tasks]


def measure(
    path: Path,
    *,
    problems: int = 256,
    samples: int = 4,
    hard_problems: int = 64,
    hard_samples: int = 64,
    seed: int = 0,
) -> dict:
    """Held-out and out-of-distribution pass rates of the model in `path` (temperature 1 unless greedy).

    `pass@1` and the forced rates use `problems` x `samples`, pass@64 `hard_problems` x `hard_samples`."""
    torch.manual_seed(seed)
    base, source = BaseModel.load(path), ArithmeticTasks()
    tasks = source.split("held_out", problems)
    many = [t for t in tasks for _ in range(samples)]
    free = base.complete([source.base_template.format(prompt=t.prompt) for t in many])
    forced = base.complete(_forced_prompts(many, source.base_template))
    certain = base.complete(_forced_prompts(tasks, source.base_template), greedy=True)
    report = {
        "pass@1": _rate(free, many),
        "pass@1 forced": _rate(forced, many),
        "greedy forced": _rate(certain, tasks),
        "pass@1 by level": _by(free, many, lambda t, _: str(int(t.difficulty))),
        "pass@1 by style": _by(free, many, lambda _, c: style(c)),
        "style shares": {s: round(n / len(free), 4) for s, n in Counter(map(style, free)).items()},
        "forced by level": _by(forced, many, lambda t, _: str(int(t.difficulty))),
        "greedy forced by level": _by(certain, tasks, lambda t, _: str(int(t.difficulty))),
        "greedy forced by family": _by(certain, tasks, lambda t, _: t.family),
    }
    if hard_problems:
        hard = source.split("held_out", hard_problems)
        texts = base.complete(
            [source.base_template.format(prompt=t.prompt) for t in hard for _ in range(hard_samples)]
        )
        right = [
            sum(is_right(c, t) for c in texts[i * hard_samples : (i + 1) * hard_samples])
            for i, t in enumerate(hard)
        ]
        for k in (4, 16, hard_samples):
            report[f"pass@{k}"] = round(sum(pass_at_k(r, hard_samples, k) for r in right) / len(right), 4)
        ood = source.split("ood", hard_problems)
        report["ood greedy forced"] = _rate(
            base.complete(_forced_prompts(ood, source.base_template), greedy=True, max_tokens=160), ood
        )
    return report


def _rate(completions: Sequence[str], tasks: Sequence[Task]) -> float:
    return round(sum(map(is_right, completions, tasks)) / len(tasks), 4)


def _by(completions: Sequence[str], tasks: Sequence[Task], key) -> dict[str, float]:
    cells: dict[str, list[bool]] = defaultdict(list)
    for completion, task in zip(completions, tasks, strict=True):
        cells[key(task, completion)].append(is_right(completion, task))
    return {name: round(sum(c) / len(c), 4) for name, c in sorted(cells.items())}
