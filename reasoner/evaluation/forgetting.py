"""Forgetting: how well the base and the evaluated model predict the text the base was pre-trained on.

Prediction is compression, so the measure is bits a byte, which models with different tokenizers share. The
text is fresh pages of the embedded model's corpus (`reasoner.pretrain_corpus`), pages it has not seen; for
another base model its pre-training text is not known, and nothing is measured.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from reasoner.models import embedded_path
from reasoner.pretrain_corpus import document

PAGES = 512
_FIRST_FRESH = 10**7  # far beyond the pages pre-training read


def forgetting(base: Path, model: Path) -> dict[str, Any] | None:
    """Bits a byte of both models on the same text; None unless the base is the embedded model."""
    if base.resolve() != Path(embedded_path()).resolve():
        return None
    seed = json.loads((Path(embedded_path()) / "pretraining.json").read_text())["settings"]["seed"]
    texts = [document(seed, _FIRST_FRESH + i).text for i in range(PAGES)]
    before, after = bits_per_byte(base, texts), bits_per_byte(model, texts)
    return {
        "pages": PAGES,
        "bytes": sum(len(text.encode()) for text in texts),
        "bits_per_byte": {"base": before, "evaluated": after},
        "increase": after - before,
    }


def bits_per_byte(path: Path, texts: list[str]) -> float:
    """-log2 of the probability of every token but the first of each text, over the bytes of the texts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path))
    model = AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32).eval()
    nats = 0.0
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])  # (1, T)
            logp = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1)  # (T - 1, V)
            nats -= float(logp.gather(1, ids[0, 1:, None]).sum())
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)
