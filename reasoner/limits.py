"""A rollout that one learner rank cannot hold is refused at the start, not by a crash in the first update.

There is no sequence parallelism: a rollout is trained on by one rank as a whole. The estimate is a lower
bound of what the backward pass needs: what it lets through may be too much, but nothing that fits is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasoner.config import Config
from reasoner.errors import UsageError


def activation_bytes(model: Mapping[str, Any], tokens: int, *, value_bytes: int, checkpointing: bool) -> int:
    """Least bytes kept for the backward pass of one rollout through a model with this config.json.

    A layer keeps at least its input, what its norms see, q and the output of attention (4 vectors of the
    hidden size), and both factors of the gated MLP (2 of its size, none counted for experts). With gradient
    checkpointing it keeps its input only."""
    text = model.get("text_config", model)
    experts = any("experts" in key for key in text)
    hidden, ffn = text["hidden_size"], 0 if experts else text["intermediate_size"]
    layer = hidden if checkpointing else 4 * hidden + 2 * ffn
    return tokens * text["num_hidden_layers"] * layer * value_bytes


def check_rollout_fits(model_path: str | Path, config: Config, memory_bytes: int) -> None:
    """Raises UsageError when the longest rollout's activations alone exceed the memory of a rank's device."""
    keys = config.learner
    model = json.loads((Path(model_path) / "config.json").read_text())
    needed = activation_bytes(
        model,
        config.rollout.max_tokens,
        value_bytes=2 if keys.dtype == "bfloat16" else 4,
        checkpointing=keys.gradient_checkpointing,
    )
    if needed <= memory_bytes:
        return
    remedy = "lower rollout.max_tokens"
    if not keys.gradient_checkpointing:
        remedy += ", or set learner.gradient_checkpointing"
    raise UsageError(
        f"one rollout of rollout.max_tokens = {config.rollout.max_tokens} tokens needs at least "
        f"{needed / 2**30:.0f} GiB in the learner, but the device has {memory_bytes / 2**30:.0f} GiB and a "
        f"rollout cannot be split over ranks: {remedy}"
    )
