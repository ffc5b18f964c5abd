"""A server whose learner trains LoRA adapters (arXiv 2106.09685): base weights plus the adapters that arrive.

Only the adapters travel. The base is read from the server's own model directory, mapped and not copied, and
W + B A is loaded as any new weight would be, under the names of the checkpoint, so that vLLM fuses and packs
it as usual. The learner has multiplied B by the adapter's scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # behind a module's name


class StoredWeights(Mapping[str, Tensor]):
    """The tensors in the safetensors files of a Hugging Face directory, each mapped when it is asked for."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = directory
        files = [safe_open(path, "pt") for path in sorted(Path(directory).glob("*.safetensors"))]
        self._file = {name: file for file in files for name in file.keys()}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._file:
            raise KeyError(f"the base model in {self._directory} stores no tensor {name}")
        return self._file[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def merged(weights: Iterable[tuple[str, Tensor]], base: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """`M.lora_A.weight` (r, in), followed by `M.lora_B.weight` (out, r), becomes `M.weight` = base + B A
    (out, in), in the adapter's precision; other weights pass as they are."""
    downs: dict[str, Tensor] = {}
    for name, tensor in weights:
        if name.endswith(DOWN):
            downs[name.removesuffix(DOWN)] = tensor
        elif name.endswith(UP):
            module = name.removesuffix(UP)
            weight = f"{module}.weight"
            yield weight, torch.addmm(base[weight].to(tensor), tensor, downs.pop(module))
        else:
            yield name, tensor
