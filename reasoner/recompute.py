"""Every update again, from the journal alone, next to what the run recorded.

The learner starts from the base model or a checkpoint and takes the steps through the same functions as the
loop (`reasoner.update`, `Learner.update`). Compared are which groups had a signal, the order of the batch,
advantages, the learner's logprobs, the gradient norm and, at every checkpoint, the weights. Where the
fingerprint is the recorded one, everything must agree bit for bit; elsewhere within `TOLERANCE`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open

from reasoner import fingerprint
from reasoner.checkpoint import CheckpointStore, file_sha256, is_complete
from reasoner.config import Config
from reasoner.errors import UsageError
from reasoner.learner import Learner, LearnerConfig
from reasoner.rollout_files import in_batch_order
from reasoner.run import config_at, same_learner
from reasoner.types import Group
from reasoner.update import PreparedUpdate, lr_scale, prepare_update, select_groups

#: What still counts as reproduced where the fingerprint differs (docs/replay.md says how it was measured):
#: advantages and logprobs as the largest |difference| of one entry, gradient norms relative, weights as
#: |difference| / |distance from the start of the replay|, both Euclidean norms over one tensor.
TOLERANCE = {"advantage": 1e-9, "learner_logprobs": 1e-3, "grad_norm": 0.01, "weights": 0.01}
NO_FINGERPRINT = {"fingerprint": ["none recorded", "this process's"]}


@dataclass(frozen=True)
class Divergence:
    """Where a recomputed value first left what is allowed."""

    step: int
    tensor: str
    difference: float
    allowed: float

    def __str__(self) -> str:
        if not math.isfinite(self.difference):
            return f"step {self.step}: {self.tensor} (not finite, or another shape, in one of the two)"
        return f"step {self.step}: {self.tensor} (off by {self.difference:.3g}, allowed {self.allowed:g})"


class Recomputation:
    """The learner of a run once more. `configs` maps the last step a configuration holds for (None: the end)
    to it, in order; `metrics` are the run's lines by step."""

    def __init__(
        self,
        run_dir: Path,
        configs: Sequence[tuple[int | None, Config]],
        metrics: Mapping[int, Mapping[str, Any]],
        start: int,
        base_model: Path,
    ) -> None:
        self.start = start
        self.exact = True
        self.fingerprint_differences: dict[str, list[Any]] = {}
        self.first: Divergence | None = None
        self.worst = dict.fromkeys(TOLERANCE, 0.0)
        self.identical = dict.fromkeys(TOLERANCE, True)
        self.updates = self.without_update = self.tokens = 0
        self.checkpoints: dict[int, str] = {}
        self._run_dir, self._configs, self._metrics, self._base = run_dir, configs, metrics, base_model
        self._store = CheckpointStore(run_dir)
        self._hashes = self._store.hashes()
        self._fingerprints = fingerprint.read(run_dir)
        self._since: int | None = None  # of the fingerprint in force
        self._scratch = tempfile.TemporaryDirectory(prefix="reasoner-replay-")
        self._folder = Path(self._scratch.name)
        self._config = config_at(configs, start + 1)
        self._learner = self._first_learner()
        self._learner.save(self._folder / "start")
        self._check_fingerprint(start + 1)
        self._check_weights(start)

    def close(self) -> None:
        self._scratch.cleanup()

    def step(self, step: int, table: pa.Table, groups: Sequence[Group]) -> None:
        """Recomputes one step; `table` and `groups` are its rows and the groups in them."""
        self._enter(step)
        fates = dict(zip(table["group_index"].to_pylist(), table["fate"].to_pylist(), strict=True))
        trained = in_batch_order(table, [g for g in groups if fates[g.index] == "trained"])
        offered = [g for g in groups if fates[g.index] in ("trained", "filtered")]
        kept = {g.index for g in select_groups(offered, self._config)[0]}
        if odd := sorted(kept ^ {g.index for g in trained}):
            self._diverged(step, f"filtering of group {odd[0]}", 1.0, 0.0)
        if trained:
            prepared = prepare_update(trained, self._config)
            result = self._learner.update(prepared.batch, lr_scale(self._config, step - 1))
            self._compare_uses(step, table, prepared, result.learner_logprobs)
            self._compare_norm(step, result.metrics["grad_norm"])
            self.updates += 1
        else:
            self.without_update += 1
        self._check_weights(step)

    # ------------------------------------------------------------------ the learner

    def _first_learner(self) -> Learner:
        if self.start == 0:
            return self._make_learner(self._base)
        path = self._store.path(self.start)
        if not is_complete(path):
            there = ", ".join(str(int(p.name.removeprefix("step_"))) for p in self._store.complete())
            raise UsageError(
                f"there is no complete checkpoint of step {self.start} to start from: "
                f"choose --from 0 (the base model) or one of {there or 'none'}"
            )
        learner = self._make_learner(path)
        learner.load_trainer(path / "trainer")
        return learner

    def _make_learner(self, path: Path) -> Learner:
        recorded = self._fingerprint_of(self.start + 1)
        return Learner(
            path,
            LearnerConfig.of(self._config.learner),
            temperature=self._config.rollout.temperature,
            seed=self._config.seed,
            device="cpu" if recorded.get("device", "cpu") == "cpu" else "auto",
            reference_path=self._base,
        )

    def _enter(self, step: int) -> None:
        """Where a resume changed how the learner works: a new one, as the run made it, from files."""
        config, before = config_at(self._configs, step), self._config
        self._config = config
        if not same_learner(config, before):
            self._learner.save(self._folder / "resumed")
            self._learner.save_trainer(self._folder / "resumed")
            self._learner = self._make_learner(self._folder / "resumed")
            self._learner.load_trainer(self._folder / "resumed")
        self._check_fingerprint(step)

    def _fingerprint_of(self, step: int) -> dict[str, Any]:
        return next((f for since, f in reversed(self._fingerprints.items()) if since < step), {})

    def _check_fingerprint(self, step: int) -> None:
        since = max((s for s in self._fingerprints if s < step), default=-1)
        if since == self._since:
            return
        self._since = since
        recorded = self._fingerprint_of(step)
        here = fingerprint.fingerprint(self._learner)
        found = fingerprint.differences(recorded, here) if recorded else NO_FINGERPRINT
        self.fingerprint_differences |= found
        self.exact = self.exact and not found and here["device"] == "cpu"

    # ------------------------------------------------------------------ comparisons

    def _compare_uses(
        self, step: int, table: pa.Table, prepared: PreparedUpdate, learner_logprobs: np.ndarray
    ) -> None:
        recorded = {
            (row["group_index"], row["rollout"]): row
            for row in table.select(
                ["group_index", "rollout", "position", "advantage", "learner_logprobs"]
            ).to_pylist()
            if row["position"] is not None
        }
        uses = prepared.uses(learner_logprobs)
        if len(uses) != len(recorded):
            self._diverged(step, "size of the batch", float(abs(len(uses) - len(recorded))), 0.0)
        for use in uses:
            where = f"of group {use.group_index}, rollout {use.rollout}"
            row = recorded.get((use.group_index, use.rollout))
            if row is None or row["position"] != use.position:
                self._diverged(step, f"place in the batch {where}", 1.0, 0.0)
                continue
            self._compare(step, "advantage", where, [row["advantage"]], [use.advantage], np.float64)
            self._compare(
                step, "learner_logprobs", where, row["learner_logprobs"], use.learner_logprobs, np.float32
            )
        self.tokens += prepared.batch.num_action_tokens

    def _compare(self, step: int, name: str, where: str, recorded: Any, found: Any, dtype: Any) -> None:
        old, new = np.asarray(recorded, dtype), np.asarray(found, dtype)
        if old.tobytes() == new.tobytes():
            return
        gap = np.abs(old.astype(np.float64) - new) if old.shape == new.shape else np.array([np.inf])
        self._judge(step, name, f"{name} {where}", float(np.nan_to_num(gap, nan=np.inf).max()))

    def _compare_norm(self, step: int, found: float) -> None:
        recorded = self._metrics[step].get("grad_norm")  # None: it was not finite
        if recorded is None and not math.isfinite(found) or recorded == found:
            return
        gap = math.inf if recorded is None else abs(found - recorded) / max(abs(recorded), 1e-12)
        self._judge(step, "grad_norm", "grad_norm", gap)

    def _judge(self, step: int, name: str, tensor: str, difference: float) -> None:
        """A value that is not the recorded one, bit for bit."""
        self.identical[name] = False
        self.worst[name] = max(self.worst[name], difference)
        allowed = 0.0 if self.exact else TOLERANCE[name]
        if self.exact or not difference <= allowed:
            self._diverged(step, tensor, difference, allowed)

    def _diverged(self, step: int, tensor: str, difference: float, allowed: float) -> None:
        if self.first is None:
            self.first = Divergence(step, tensor, difference, allowed)

    def _check_weights(self, step: int) -> None:
        """Compares with the checkpoint of `step`, if the run saved one: by hash, then tensor by tensor."""
        if step not in self._hashes:
            return
        self._learner.save(self._folder / "now")
        files = {  # of the model; those of the optimizer are in trainer/
            name: sha
            for name, sha in self._hashes[step].items()
            if name.endswith(".safetensors") and "/" not in name
        }
        if all(
            (self._folder / "now" / name).is_file() and file_sha256(self._folder / "now" / name) == sha
            for name, sha in files.items()
        ):
            self.checkpoints[step] = "identical"
            return
        path = self._store.path(step)
        if not is_complete(path):
            self.checkpoints[step] = "other weights (sha256); deleted since, so not compared by tensor"
            if self.exact:
                self._judge(step, "weights", "weights (their sha256)", float("inf"))
            return
        self._compare_tensors(step, path)

    def _compare_tensors(self, step: int, path: Path) -> None:
        differing, worst = 0, 0.0
        for name, recorded in _tensors(path):
            found, begun = (_tensor(self._folder / f, name) for f in ("now", "start"))
            if torch.equal(recorded, found):
                continue
            gap = float((found.double() - recorded.double()).norm())
            moved = float((recorded.double() - begun.double()).norm())
            share = gap / moved if moved else float("inf")
            differing, worst = differing + 1, max(worst, share)
            self._judge(step, "weights", f"weights {name}", share)
        self.checkpoints[step] = (
            f"{differing} tensors differ, by up to {worst:.2g} of the way trained since step {self.start}"
        )


def _weight_files(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def _tensors(path: Path) -> Any:
    for file in _weight_files(path):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                yield name, tensors.get_tensor(name)


def _tensor(path: Path, name: str) -> torch.Tensor:
    for file in _weight_files(path):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():
                return tensors.get_tensor(name)
    raise UsageError(f"the base model has no tensor {name}: is it the one the run began with?")
