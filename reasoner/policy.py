"""The trainable model: any causal language model of transformers, asked for logprobs of packed rollouts."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reasoner.batch import prompts_of
from reasoner.errors import UsageError
from reasoner.flops import FlopCounter
from reasoner.kernels import use_lean_kernels
from reasoner.logprobs import token_logprobs
from reasoner.model_source import check_layers
from reasoner.packed import ATTENTION_NAME, packed_hidden
from reasoner.types import TrainBatch

#: What belongs to a tokenizer in a Hugging Face directory: copied as it is, never parsed and rewritten.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)

#: Config fields of models that scale or cap their logits (Cohere, Granite, Gemma 2).
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class Policy(nn.Module):
    """A model at a temperature. One forward from tokens to logprobs, the output head included, so that a
    sharded model has one root whose parameters are all gathered while it runs."""

    def __init__(self, model: nn.Module, temperature: float, dtype: str, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.dtype = dtype
        self.device = device

    @property
    def layers(self) -> Any:
        return self.model.get_decoder().layers

    def forward(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """(logprobs (N,), entropy (N,)) of the action tokens; 0 elsewhere."""
        token_ids = torch.from_numpy(batch.token_ids).to(self.device)
        bf16 = self.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            hidden = packed_hidden(self.model, token_ids, batch.cu_seqlens, prompts_of(batch))
        return token_logprobs(
            hidden,
            self.model.get_output_embeddings().weight,
            token_ids,
            torch.from_numpy(batch.cu_seqlens).long().to(self.device),
            self.temperature,
            wanted=torch.from_numpy(batch.action_mask).to(self.device),
        )


def choose_attention(device: torch.device, dtype: str) -> str:
    """Packed attention; on CUDA with flash-attn installed its varlen kernels, which compute in bf16 only."""
    from transformers.utils import is_flash_attn_2_available

    flash = device.type == "cuda" and dtype == "bfloat16" and is_flash_attn_2_available()
    return "flash_attention_2" if flash else ATTENTION_NAME


def load_model(path: str | Path, device: torch.device, attention: str = ATTENTION_NAME) -> nn.Module:
    """A causal language model in fp32 with the given attention, in evaluation mode and without dropout.

    Raises `UsageError` for a model whose logits are more than a product of hidden states and output head, or
    whose layers mix tokens otherwise than by full or sliding attention.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=attention, dtype=torch.float32)
    check_layers(getattr(model.config, "layer_types", None), str(path))
    head = model.get_output_embeddings()
    scales = {name: getattr(model.config, name, None) for name in LOGIT_CHANGES}
    changed = [f"{name}={value}" for name, value in scales.items() if value not in (None, 1, 1.0)]
    if getattr(head, "bias", None) is not None:
        changed.append("an output head with a bias")
    if changed:
        raise UsageError(f"model {path}: not supported by the learner: {', '.join(changed)}")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    use_lean_kernels(model)
    return model.to(device).eval()


def read_tokenizer_files(model_path: Path) -> dict[str, bytes]:
    """Name and content of the tokenizer's files; of a hub name those in the cache."""
    if not model_path.is_dir():
        from huggingface_hub import snapshot_download

        model_path = Path(snapshot_download(model_path.as_posix(), allow_patterns=list(TOKENIZER_FILES)))
    return {
        name: (model_path / name).read_bytes() for name in TOKENIZER_FILES if (model_path / name).is_file()
    }


def flop_counter(model: nn.Module) -> FlopCounter:
    """Counts this model's FLOPs: every matrix but the input embedding (unless it is the output head too)."""
    embedding = model.get_input_embeddings().weight
    matrices = sum(p.numel() for p in model.parameters() if p.ndim >= 2)
    if embedding is not model.get_output_embeddings().weight:
        matrices -= embedding.numel()
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return FlopCounter(matrices, config.num_hidden_layers * config.num_attention_heads * head_dim)
