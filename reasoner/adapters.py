"""LoRA (arXiv 2106.09685): train the product of two thin matrices beside every linear layer, freeze the rest.

W x becomes W x + (ALPHA / r) B A x. Only A and B have gradients and optimizer state. `peft` builds them;
its usual adapter directory is read and written. Checkpoints hold the merged matrices W + (ALPHA / r) B A, so
whatever loads the model needs to know nothing of adapters. Servers of ours get A and (ALPHA / r) B and merge
them themselves (`rollouts.merging`), others get the merged matrices.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reasoner.errors import UsageError
from reasoner.ranks import full

#: Numerator of the scale: constant, so that the best learning rate hardly depends on the rank.
ALPHA = 32
ADAPTER = "default"  # peft's name for the only one
ADAPTER_DIRECTORY = "adapter"  # in a checkpoint


@dataclass(frozen=True)
class Weight:
    """One weight as a server or a checkpoint knows it: the base parameter and, if any, what is added; or a
    half of what is added, alone and scaled."""

    name: str
    base: Tensor
    down: Tensor | None = None  # (r, in), A
    up: Tensor | None = None  # (out, r), B
    scale: float = 1.0  # of what is added, or of a `base` that is a half

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The whole weight, gathered and with the adapter added (a collective when sharded)."""
        base = full(self.base)
        if self.down is None or self.up is None:
            return base if self.scale == 1.0 else self.scale * base
        return torch.addmm(base, full(self.up), full(self.down), alpha=self.scale)


def add_adapters(model: nn.Module, rank: int, path: Path | None = None) -> None:
    """Put adapters of that rank beside all linear layers but the output head and freeze everything else.

    They start as zero (A random, B zero), or as saved in `path` by `save_adapters`. Raises `UsageError` when
    those have another rank."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    config = LoraConfig(
        r=rank, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", target_modules=_linear_layers(model)
    )
    inject_adapter_in_model(config, model, ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    if path is not None:
        saved = json.loads((path / "adapter_config.json").read_text())["r"]
        if saved != rank:
            raise UsageError(f"learner.lora_rank is {rank}, but the adapter in {path} has rank {saved}")
        set_peft_model_state_dict(model, load_file(path / "adapter_model.safetensors"), ADAPTER)


def save_adapters(model: nn.Module, path: Path, base_model: str, *, write: bool = True) -> None:
    """Write peft's adapter directory: `PeftModel.from_pretrained(base, path)` loads it. A collective when the
    model is sharded; only the rank with `write` writes."""
    from safetensors.torch import save_file

    state = {  # peft's names: no adapter name, and the prefix of its wrapper
        "base_model.model." + name.replace(f".{ADAPTER}.", "."): full(p.detach()).contiguous()
        for name, p in model.named_parameters()
        if ".lora_" in name
    }
    if not write:
        return
    path.mkdir(parents=True, exist_ok=True)
    save_file(state, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config: Any = model.peft_config[ADAPTER]
    written = {**config.to_dict(), "base_model_name_or_path": base_model, "inference_mode": True}
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in written.items()}
    (path / "adapter_config.json").write_text(json.dumps(plain, indent=1, default=str))


def exported_weights(model: nn.Module, *, adapters_only: bool = False) -> list[Weight]:
    """The parameters under the names they have without adapters, in order; tied ones once. With
    `adapters_only` what a server that has the base needs: `M.lora_A.weight` and, scaled,
    `M.lora_B.weight` of every adapted module M."""
    weights = []
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        if ".base_layer." not in name:
            weights.append(Weight(name, parameter))
            continue
        layer_name, _, leaf = name.partition(".base_layer.")
        layer: Any = model.get_submodule(layer_name)
        plain = f"{layer_name}.{leaf}"
        if leaf != "weight":
            weights.append(Weight(plain, parameter))
            continue
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        weights.append(Weight(plain, parameter, down, up, layer.scaling[ADAPTER]))
    return [half for weight in weights for half in _halves(weight)] if adapters_only else weights


def _halves(weight: Weight) -> list[Weight]:
    if weight.down is None or weight.up is None:
        return []
    module = weight.name.removesuffix(".weight")
    return [
        Weight(f"{module}.lora_A.weight", weight.down),
        Weight(f"{module}.lora_B.weight", weight.up, scale=weight.scale),
    ]


def _linear_layers(model: nn.Module) -> list[str]:
    head = model.get_output_embeddings()
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
