"""One rollout token by token: the text of each token and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reasoner.checkpoint import CheckpointStore
from reasoner.errors import UsageError
from reasoner.models import embedded_path

MAX_TOKENS = 20_000  # of one rollout on the page; the middle of a longer one is left out


def tokenizer_file(run_dir: Path, model: str) -> Path | None:
    """`tokenizer.json` of the run's newest checkpoint, else of the base model where it is a directory."""
    latest = CheckpointStore(run_dir).latest()
    homes = [latest] if latest else []
    homes.append(Path(embedded_path()) if model == "embedded" else Path(model))
    return next((file for home in homes if (file := home / "tokenizer.json").is_file()), None)


@lru_cache(maxsize=2)
def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def pieces(path: Path | None, token_ids: Sequence[int]) -> list[str]:
    """The text each token adds. A character that several tokens make up belongs to the last of them.
    Without a tokenizer, the ids."""
    if path is None:
        return [f"‹{token}›" for token in token_ids]
    from tokenizers.decoders import DecodeStream

    tokenizer = _tokenizer(path)
    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer, int(token)) or "" for token in token_ids]


def annotated(row: Mapping[str, Any], tokenizer: Path | None) -> dict[str, Any]:
    """Columns over the tokens of a rollout: `text`, `action` (sampled by the policy), and for those `logprob`
    (behaviour), `learner` (log-probability when trained on), `ratio` exp(learner - behaviour) and `version`;
    null where there is none. `advantage` is one number: every action token of a rollout has the same."""
    ids, mask = row["token_ids"], np.array(row["action_mask"], bool)
    behaviour = np.array(row["behaviour_logprobs"], float)
    learner = row["learner_logprobs"]
    texts = pieces(tokenizer, ids)
    keep = _kept(len(ids))
    ratio = np.exp(np.array(learner, float) - behaviour) if learner is not None else None

    def column(values: Any) -> list[Any]:
        return [None if values is None or not mask[i] else float(values[i]) for i in keep]

    return {
        "text": [texts[i] for i in keep],
        "action": [bool(mask[i]) for i in keep],
        "logprob": column(behaviour),
        "learner": column(learner),
        "ratio": column(ratio),
        "version": [int(row["policy_version"][i]) if mask[i] else None for i in keep],
        "advantage": row["advantage"],
        "left_out": len(ids) - len(keep),
        "left_out_at": MAX_TOKENS // 2 if len(ids) > MAX_TOKENS else None,
    }


def _kept(length: int) -> list[int]:
    if length <= MAX_TOKENS:
        return list(range(length))
    half = MAX_TOKENS // 2
    return [*range(half), *range(length - half, length)]


def rollout_numbers(text: str) -> int:
    """A group index or place in a group from an address; `UsageError` when it is no whole number."""
    if not text.isdecimal() or len(text) > 18:  # the largest that is counted with has 19 digits
        raise UsageError(f"{text!r}: expected a whole number")
    return int(text)
