"""AdamW's moments on disk: safetensors, written by every rank at the same time, read by any number of ranks.

Rank i of n writes its rows of every moment into `optimizer-i-of-n.safetensors` (counted from 1); the metadata
say which rows they are. To read is to collect one's own rows out of all the files there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from reasoner.errors import ReasonerError
from reasoner.ranks import Ranks, local, local_rows

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"


def save_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], directory: Path, ranks: Ranks
) -> None:
    """Write this rank's file; parameters without any step yet are left out."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    rows: dict[str, list[int]] = {}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter)
        if not state:
            continue
        start, stop = local_rows(parameter, ranks)
        rows[name] = [start, stop, parameter.shape[0]]
        tensors[f"{name}/{STEP}"] = state[STEP].reshape(1).cpu()
        for moment in MOMENTS:
            tensors[f"{name}/{moment}"] = local(state[moment]).contiguous().cpu()
    file = directory / f"optimizer-{ranks.rank + 1:05d}-of-{ranks.size:05d}.safetensors"
    save_file(tensors, file, metadata={"rows": json.dumps(rows)})


def load_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], directory: Path, ranks: Ranks
) -> None:
    """Restore this rank's rows from however many files there are.

    Raises `ReasonerError` when files are missing or hold other parameters than these."""
    from safetensors import safe_open

    paths = sorted(directory.glob("optimizer-*.safetensors"))
    written_by = {int(path.stem.rsplit("-", 1)[1]) for path in paths}
    if written_by != {len(paths)}:
        raise ReasonerError(f"{directory} does not hold one whole optimizer state: {[p.name for p in paths]}")
    files = [safe_open(path, framework="pt") for path in paths]
    rows = [json.loads(file.metadata()["rows"]) for file in files]
    if rows[0].keys() - parameters.keys():
        unknown = ", ".join(sorted(rows[0].keys() - parameters.keys())[:3])
        raise ReasonerError(
            f"the optimizer state in {directory} is of another model (or learner.lora_rank): it has {unknown}"
        )
    for name in rows[0]:
        parameter = parameters[name]
        if rows[0][name][2] != parameter.shape[0]:
            raise ReasonerError(f"the optimizer state in {directory} has another shape of {name}")
        start, stop = local_rows(parameter, ranks)
        state = {STEP: files[0].get_tensor(f"{name}/{STEP}")[0].to(parameter.device)}
        for moment in MOMENTS:
            pieces = []
            for file, of in zip(files, rows, strict=True):
                first, last, _ = of[name]
                low, high = max(start, first), min(stop, last)
                if low < high:
                    pieces.append(file.get_slice(f"{name}/{moment}")[low - first : high - first])
            empty = parameter.new_zeros(0, *parameter.shape[1:], dtype=torch.float32, device="cpu")
            state[moment] = _like(parameter, torch.cat(pieces) if pieces else local(empty))
        optimizer.state[parameter] = state


def _like(parameter: Tensor, rows: Tensor) -> Tensor:
    """This rank's rows as a tensor that is sharded as `parameter` is."""
    rows = rows.to(local(parameter).device)
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return rows
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        rows,
        mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
