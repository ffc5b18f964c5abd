"""A tiny random tied Qwen3 with a byte tokenizer, and the learner's way of scoring with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

VOCAB = 300
END = 1
#: What "the server computes what the learner computes" means in fp32.
MAX_DIFF, P99_DIFF = 1e-3, 1e-4


def start_ray() -> None:
    """A Ray for one test module, with the small agent: the full one may need longer to import on a loaded
    machine than Ray is ready to wait."""
    import ray
    import ray._private.utils

    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    ray._private.utils.get_dashboard_dependency_error = lambda: ImportError("not needed here")
    ray.shutdown()  # any Ray call of an earlier test, or of a thread it left, may have connected this process
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)


def make_model(path: Path, end: int | None = END) -> str:
    """Write the model to `path`. Its distribution is far from uniform, so that faults show. Without an
    `end` token its completions are as long as they may be."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=256,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        initializer_range=0.1,
        eos_token_id=end,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).float().save_pretrained(path)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<end>": END} | {letter: i + 2 for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>").save_pretrained(
        path
    )
    return str(path)


def load_model(path: str) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@torch.no_grad()
def learner_logprobs(
    model: torch.nn.Module, token_ids: Sequence[Sequence[int]], temperature: float = 1.0
) -> list[np.ndarray]:
    """(T,) logprobs of each sequence from the whole softmax; entry t describes token t, entry 0 is 0."""
    scores = []
    for ids in token_ids:
        row = torch.tensor(np.asarray(ids), dtype=torch.long)
        logp = torch.log_softmax(model(row[None]).logits[0].float() / temperature, dim=-1)  # (T, V)
        own = logp[:-1].gather(1, row[1:, None])[:, 0]
        scores.append(np.concatenate([[0.0], own.numpy()]).astype(np.float32))
    return scores


@torch.no_grad()
def change_weights(model: torch.nn.Module, size: float = 0.02, seed: int | None = None) -> None:
    """A policy update, as far as the servers are concerned."""
    generator = torch.Generator().manual_seed(torch.seed() % 2**31 if seed is None else seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCAB, length).tolist() for _ in range(count)]
