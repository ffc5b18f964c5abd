"""FLOPs of a decoder-only transformer, attention included; used for every cost the system reports.

2·N a token forward (Kaplan et al., arXiv 2001.08361, section 2.1, with the output head counted and the
embedding look-up not), plus attention: scores and weighted sum cost 2·2·heads·head_dim a key that a query
sees, and a token at position t sees t + 1 keys. Training costs three forwards (one forward, two backward).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reasoner.errors import UsageError


@dataclass(frozen=True)
class FlopCounter:
    matmul_parameters: int  # N: weights that multiply activations, the output head once
    attention_width: int  # layers · heads · head_dim

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FlopCounter:
        """From a Hugging Face `config.json` of the Llama family (Llama, Qwen2, Qwen3, Mistral). Raises
        UsageError for a model of another shape."""
        needed = (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "vocab_size",
        )
        if missing := [name for name in needed if name not in config]:
            raise UsageError(
                f"only models of the Llama family can be used: config.json has no {', '.join(missing)}"
            )
        hidden, layers, heads = (
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
        )
        kv_heads = config.get("num_key_value_heads") or heads
        head_dim = config.get("head_dim") or hidden // heads
        attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
        mlp = 3 * hidden * config["intermediate_size"]
        return cls(
            matmul_parameters=layers * (attention + mlp) + hidden * config["vocab_size"],
            attention_width=layers * heads * head_dim,
        )

    def forward(self, lengths: Iterable[int]) -> float:
        """FLOPs of one forward pass (or of sampling with a KV cache) over sequences of these lengths."""
        total = 0.0
        for length in lengths:
            keys_seen = length * (length + 1) / 2
            total += 2 * self.matmul_parameters * length + 4 * self.attention_width * keys_seen
        return total

    def train(self, lengths: Iterable[int]) -> float:
        """FLOPs of forward and backward."""
        return 3 * self.forward(lengths)
