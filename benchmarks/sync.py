"""A weight sync against copying the same bytes in memory, and how long the servers stand still for it.

`sync_vs_memcpy` = seconds of `WeightSync.sync` (pause, transfer through vLLM's protocol, repacking,
probe, resume) / seconds of one `memcpy` of the same bytes. For a small model the ratio is large by
nature: the copy takes microseconds, rebuilding vLLM's layers and proving them milliseconds each.

    python -m benchmarks.sync [--model NAME] [--repeats 20] [--dtype float32] [--lora-rank 8]

With `--lora-rank` two servers instead, synced in turn from one learner with LoRA adapters: one gets the
merged weights, one the adapters, which it merges itself. `sync_lora_bytes` is the bytes of the second over
those of the first, `sync_lora_pause` the same for the seconds that a server stands still.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import Any

import numpy as np
import ray

from benchmarks.figures import Figure, ratio, report
from reasoner.model_source import resolve_model
from rollouts.server import ServerConfig, start_server, wait_until_ready


def run(model_path: str, *, repeats: int, dtype: str) -> tuple[list[Figure], dict[str, Any]]:
    """Interleaved syncs and copies; needs a running Ray."""
    with tempfile.TemporaryDirectory() as directory:
        config = ServerConfig(model=model_path, dtype=dtype, kv_cache_gib=0.25)
        actor = start_server(config, name="bench-sync", log_dir=directory, wait=False)
        import torch
        from transformers import AutoModelForCausalLM

        from reasoner.weight_sync import WeightSync

        torch.set_num_threads(1)
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        wait_until_ready({"bench-sync": actor}, log_dir=directory, timeout_s=600)
        sync = WeightSync([actor], score=_score_with(model), dtype=dtype)
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        target = torch.empty_like(flat)
        syncs, pauses, copies, probes = [], [], [], []
        for version in range(1, repeats + 2):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=1e-4)
            done = sync.sync(model, version)
            syncs.append(done.seconds)
            pauses.append(done.pause_seconds)
            probes.append(done.probe_max_abs_diff)
            copies.append(_copy_seconds(target, flat))
        ray.kill(actor)
    figures = [
        ratio("sync_vs_memcpy", syncs[1:], copies[1:]),
        Figure("sync_s", *_spread(syncs[1:])),
        Figure("sync_pause_s", *_spread(pauses[1:])),
    ]
    details = {"bytes": flat.numel() * 4, "dtype": dtype, "memcpy_s": copies[1:], "probe_max": max(probes)}
    return figures, details


def run_lora(model_path: str, *, repeats: int, dtype: str, rank: int) -> tuple[list[Figure], dict[str, Any]]:
    """Merged weights to one server and adapters to another, in turn; needs a running Ray."""
    with tempfile.TemporaryDirectory() as directory:
        config = ServerConfig(model=model_path, dtype=dtype, kv_cache_gib=0.25)
        actors = {
            name: start_server(config, name=name, log_dir=directory, wait=False)
            for name in ("merged", "adapters")
        }
        import torch

        from reasoner.learner import Learner, LearnerConfig
        from reasoner.weight_sync import WeightSync

        learner = Learner(model_path, LearnerConfig(lora_rank=rank, threads=1))
        wait_until_ready(actors, log_dir=directory, timeout_s=600)
        syncs = {
            name: WeightSync([actor], score=learner.score, dtype=dtype, adapters_only=name == "adapters")
            for name, actor in actors.items()
        }
        reports: dict[str, list[Any]] = {name: [] for name in syncs}
        for version in range(1, repeats + 2):
            with torch.no_grad():
                for name, parameter in learner.model.named_parameters():
                    if ".lora_B." in name:
                        parameter.add_(torch.randn_like(parameter), alpha=1e-3)
            for name, sync in syncs.items():
                reports[name].append(sync.sync(learner.model, version))
        for actor in actors.values():
            ray.kill(actor)
    adapters, merged = reports["adapters"][1:], reports["merged"][1:]
    figures = [
        ratio("sync_lora_bytes", [r.bytes for r in adapters], [r.bytes for r in merged]),
        ratio("sync_lora_pause", [r.pause_seconds for r in adapters], [r.pause_seconds for r in merged]),
    ]
    details = {
        "rank": rank,
        "bytes": {"adapters": adapters[0].bytes, "merged": merged[0].bytes},
        "probe_max": max(r.probe_max_abs_diff for r in adapters + merged),
    }
    return figures, details


def _spread(seconds: list[float]) -> tuple[float, str, float, float]:
    return float(np.median(seconds)), "s", min(seconds), max(seconds)


def _copy_seconds(target: Any, source: Any) -> float:
    """Seconds of one copy: the median of five, warm."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def _score_with(model: Any) -> Any:
    import torch

    @torch.no_grad()
    def score(token_ids: list[np.ndarray]) -> list[np.ndarray]:
        rows = torch.tensor(np.stack(token_ids), dtype=torch.long)  # the probe's sequences are equally long
        logp = torch.log_softmax(model(rows).logits.float(), dim=-1)
        own = logp[:, :-1].gather(2, rows[:, 1:, None])[..., 0].numpy()
        return list(np.concatenate([np.zeros((len(rows), 1), np.float32), own], axis=1))

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--lora-rank", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    model_path, settings = str(resolve_model(args.model).path), {"repeats": args.repeats, "dtype": args.dtype}
    if args.lora_rank:
        report("sync_lora", *run_lora(model_path, rank=args.lora_rank, **settings))
    else:
        report("sync", *run(model_path, **settings))


if __name__ == "__main__":
    main()
