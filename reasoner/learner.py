"""The learner: packed batch in, policy-gradient step, new weights and what was measured out.

One model (fp32 weights; compute in fp32 or bf16), AdamW, in one process or sharded over several
(`reasoner.ranks`), whole or as adapters (`reasoner.adapters`). The parts are pure functions elsewhere:
`reasoner.packed` (forward), `reasoner.logprobs`, `reasoner.losses`; this module owns what has state. Which
policy is used where is said in docs/learner.md. Left out: learning-rate schedules (the loop passes a scale).
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from reasoner.adapters import (
    ADAPTER_DIRECTORY,
    add_adapters,
    exported_weights,
    save_adapters,
)
from reasoner.batch import BatchPart, rank_micro_batches, split_minibatches, split_prompts
from reasoner.errors import BrokenPolicyError, UsageError
from reasoner.gradient_noise import GradientNoise
from reasoner.losses import DEFAULT_EPS, LossFn, PolicyTensors, find_loss, kl_to_reference
from reasoner.optimizer_state import load_moments, save_moments
from reasoner.policy import Policy, choose_attention, flop_counter, load_model, read_tokenizer_files
from reasoner.ranks import Ranks, full
from reasoner.types import TrainBatch, UpdateResult
from reasoner.update_metrics import Tally, importance_metrics

TRAINER_FILE = "learner.json"


@dataclass(frozen=True)
class LearnerConfig:
    """How to update. A `clip` of None is the loss's own (`reasoner.losses.DEFAULT_EPS`); `loss` is a name or
    a function of `LossFn`'s signature."""

    lr: float = 2e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0  # largest gradient norm
    loss: str | LossFn = "cispo"
    clip: tuple[float, float] | None = None  # (eps_low, eps_high): the ratio's clips (ppo_clip, gspo)
    ratio_cap: float | None = 4.0  # largest importance ratio to the policy that sampled; 0, None: no cap
    kl_coef: float = 0.0  # weight of the KL term to the reference policy; 0: no reference is loaded
    minibatches: int = 1  # optimizer steps a batch
    micro_batch_tokens: int = 16384
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    lora_rank: int = 0  # rank of LoRA adapters; 0: all weights are trained
    threads: int | None = None  # CPU threads of torch; None: leave as it is

    def __post_init__(self) -> None:
        find_loss(self.loss)
        checks = {
            "lr": self.lr > 0,
            "weight_decay": self.weight_decay >= 0,
            "grad_clip": self.grad_clip > 0,
            "clip": self.clip is None or min(self.clip) >= 0,
            "ratio_cap": self.ratio_cap is None or self.ratio_cap >= 0,
            "kl_coef": self.kl_coef >= 0,
            "minibatches": self.minibatches >= 1,
            "micro_batch_tokens": self.micro_batch_tokens >= 1,
            "lora_rank": self.lora_rank >= 0,
            "dtype": self.dtype in ("float32", "bfloat16"),
            "threads": self.threads is None or self.threads >= 1,
        }
        for name, holds in checks.items():
            if not holds:
                raise UsageError(f"learner: {name} cannot be {getattr(self, name)!r}")

    @classmethod
    def of(cls, settings: Any) -> LearnerConfig:
        """From any object with some attributes of the same names, such as a section of the configuration."""
        names = [f.name for f in fields(cls) if hasattr(settings, f.name)]
        return cls(**{name: getattr(settings, name) for name in names})

    @property
    def eps(self) -> tuple[float, float]:
        """(eps_low, eps_high): `clip`, or the loss's own."""
        name = self.loss if isinstance(self.loss, str) else ""
        return DEFAULT_EPS.get(name, (0.2, 0.2)) if self.clip is None else self.clip


class Learner:
    """A trainable copy of the model at `model_path` (a Hugging Face directory or name) and its optimizer.

    With several `ranks` every one of them makes its own `Learner` and calls the same methods with the same
    arguments: `update`, `score`, `save`, `save_trainer` and `load_trainer` are collectives.
    """

    def __init__(
        self,
        model_path: str | Path,
        config: LearnerConfig | Any,
        *,
        temperature: float = 1.0,
        seed: int = 0,
        device: str = "cpu",
        reference_path: str | Path | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """`config` may be any object with `LearnerConfig`'s attributes; `temperature` is the sampler's:
        logits are divided by it; `device` is "cpu", "cuda" or "auto"; `reference_path` is the model the run
        began with (default: the model as loaded): the frozen policy of the KL term, and what adapters saved
        in `model_path` are added to."""
        config = LearnerConfig.of(config)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(seed)
        self.model_path = Path(model_path)
        self.base_path = Path(reference_path or model_path)
        self.config = config
        self.ranks = ranks or Ranks()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.loss_fn = find_loss(config.loss)
        self.model = self._load()
        # In memory: the directory may be a checkpoint that retention deletes while the run goes on.
        self._tokenizer_files = read_tokenizer_files(self.model_path)
        self.flops = flop_counter(self.model)
        self.policy = self._policy(self.model, temperature)
        self.reference = None
        if config.kl_coef > 0:
            self.reference = self._policy(self._read(self.base_path).requires_grad_(False), temperature)
        self.optimizer = make_optimizer(self.model, config)
        self.noise = GradientNoise()
        self.before_step: Callable[[], object] = lambda: None  # returns when the weights may change
        self._waited_s = 0.0  # of the present update, for that
        self.policy_version = 0  # updates begun from here on: one a batch, skipped or not
        self.optimizer_steps = 0
        self.skipped_updates = 0

    def _load(self) -> nn.Module:
        """The model with its adapters: those of a checkpoint of this run, or fresh ones."""
        saved = self.model_path / ADAPTER_DIRECTORY
        lora = self.config.lora_rank
        begun_with_it = self.base_path == self.model_path  # then its merged weights are the base
        goes_on = lora > 0 and saved.is_dir() and not begun_with_it
        model = self._read(self.base_path if goes_on else self.model_path)
        if lora:
            add_adapters(model, lora, saved if goes_on else None)
        if self.config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()  # transformers checkpoints in training mode only; there is no dropout to wake
        return model

    def _read(self, path: Path) -> nn.Module:
        """A model for this device, on it unless it is going to be sharded: that moves the parts to their
        devices, where the whole may not fit."""
        device = self.device if self.ranks.size == 1 else torch.device("cpu")
        return load_model(path, device, choose_attention(self.device, self.config.dtype))

    def _policy(self, model: nn.Module, temperature: float) -> Policy:
        policy = Policy(model, temperature, self.config.dtype, self.device)
        self.ranks.shard(policy, policy.layers)
        return policy

    def update(self, batch: TrainBatch, lr_scale: float = 1.0) -> UpdateResult:
        """One pass over the batch: `config.minibatches` optimizer steps at `lr_scale` times the learning rate
        (skipped where loss or gradient is not finite), then `policy_version + 1`."""
        started, self._waited_s = time.perf_counter(), 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * lr_scale
        first, *later = split_minibatches(batch, self.config.minibatches)
        prox = np.zeros(batch.num_tokens, dtype=np.float32)
        for part in later:  # they will meet other weights; the first one's own pass is under these
            prox[part.token_index] = self._policy_logprobs(part.batch)
        tally = Tally(batch.num_tokens)
        steps = [self._step(first, None, tally), *(self._step(part, prox, tally) for part in later)]
        losses, norms = np.array(steps).T
        tally.reduce(self.ranks)
        prox[first.token_index] = tally.logprobs[first.token_index]
        self.policy_version += 1
        metrics = {
            "loss": float(losses.mean()),
            "entropy": tally.entropy / batch.num_action_tokens,
            "grad_norm": float(norms.mean()),
            "grad_norm_max": float(norms.max()),
            "grad_noise_scale": math.nan if self.noise.scale is None else self.noise.scale,
            "lr": self.config.lr * lr_scale,
            "tokens": float(batch.num_tokens),
            "action_tokens": float(batch.num_action_tokens),
            "update_seconds": time.perf_counter() - started - self._waited_s,
            "flops": self._flops(batch, [part.batch for part in later]),
            "skipped_updates": float(self.skipped_updates),
            **{name: total / batch.num_action_tokens for name, total in tally.stats.items()},
            **importance_metrics(prox, batch),
        }
        return UpdateResult(metrics, prox)

    def score(self, token_ids: list[np.ndarray]) -> list[np.ndarray]:
        """Per-token logprobs (L,) float32 of each sequence under the current policy, temperature included;
        the first token's is 0."""
        if not token_ids:
            return []
        cu_seqlens = np.concatenate([[0], np.cumsum([len(t) for t in token_ids])]).astype(np.int32)
        tokens = np.concatenate(token_ids).astype(np.int32)
        empty = np.zeros(len(tokens), dtype=np.float32)
        batch = TrainBatch(tokens, cu_seqlens, np.ones(len(tokens), dtype=bool), empty, empty, empty)
        return np.split(self._policy_logprobs(batch), cu_seqlens[1:-1])

    def lead_score(self, token_ids: list[np.ndarray]) -> list[np.ndarray]:
        """`score` on rank 0 while the other ranks `follow`: only it knows what is to be scored."""
        return self.score(self.ranks.broadcast(token_ids) or [])

    def follow(self) -> None:
        """On the other ranks: take part in `lead_score` until rank 0 calls `release`."""
        while (token_ids := self.ranks.broadcast(None)) is not None:
            self.score(token_ids)

    def release(self) -> None:
        self.ranks.broadcast(None)

    def _policy_logprobs(self, batch: TrainBatch) -> np.ndarray:
        """(N,) logprobs of the action tokens under the current policy, without gradient."""
        logprobs = np.zeros(batch.num_tokens, dtype=np.float32)
        for micro in self._micro_batches(batch):
            with torch.no_grad():
                values, _ = self.policy(micro.batch)
            mask = micro.batch.action_mask
            logprobs[micro.token_index[mask]] = values.cpu().numpy()[mask]
        return self.ranks.sum(logprobs)

    def _micro_batches(self, batch: TrainBatch) -> list[BatchPart]:
        tokens, ranks = self.config.micro_batch_tokens, self.ranks
        return rank_micro_batches(batch, tokens, ranks.rank, ranks.size)

    def _step(self, part: BatchPart, prox: np.ndarray | None, tally: Tally) -> tuple[float, float]:
        """One optimizer step on a minibatch; returns its loss and its gradient norm before clipping. `prox`
        (N,) is log pi_prox of the whole batch; None: that of the present weights.

        The gradient of every other prompt comes first: its norm tells the noise of the whole."""
        loss = 0.0
        norms: list[float] = []
        halves = split_prompts(part.batch)
        for half in halves:
            for micro in self._micro_batches(half.batch):
                index = part.token_index[half.token_index[micro.token_index]]  # (n,) in the whole batch
                loss += self._backward(micro.batch, index, prox, tally)
            total = self._grad_norm()
            norms.append(float(full(total)))
        loss = float(self.ranks.sum(np.array([loss]))[0])
        computed = time.perf_counter()
        self.before_step()
        self._waited_s += time.perf_counter() - computed
        if math.isfinite(norms[-1]) and math.isfinite(loss):
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.grad_clip, total)
            self.optimizer.step()
            self.optimizer_steps += 1
            if len(halves) == 2:
                self.noise = _noise_after(self.noise, part.batch, halves[0].batch, *norms)
        else:
            self.skipped_updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norms[-1]

    def _grad_norm(self) -> Tensor:
        """The norm of the gradient so far; sharded like the gradient."""
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _backward(self, batch: TrainBatch, index: np.ndarray, prox: np.ndarray | None, tally: Tally) -> float:
        """Add the gradient of one micro-batch; `index` (n,) is where its tokens stand in the whole batch."""
        logprobs, entropy = self.policy(batch)
        tensors = PolicyTensors(
            logprobs=logprobs,
            behaviour_logprobs=self._tensor(batch.behaviour_logprobs),
            prox_logprobs=None if prox is None else self._tensor(prox[index]),
            advantages=self._tensor(batch.advantages),
            action_mask=self._tensor(batch.action_mask),
            loss_weight=self._tensor(batch.loss_weight),
            cu_seqlens=self._tensor(batch.cu_seqlens.astype(np.int64)),
        )
        loss, stats = self.loss_fn(tensors, *self.config.eps, self.config.ratio_cap or None)
        if self.reference is not None:
            with torch.no_grad():
                reference_logprobs, _ = self.reference(batch)
            kl = kl_to_reference(logprobs, reference_logprobs)  # (n,)
            loss = loss + self.config.kl_coef * (tensors.loss_weight * kl).sum()
            stats = {**stats, "kl_reference": kl.detach()[tensors.action_mask].sum()}
        loss.backward()
        mask = batch.action_mask
        tally.add(index[mask], logprobs.detach().cpu().numpy()[mask], float(entropy.sum()), stats)
        return float(loss.detach())

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _flops(self, batch: TrainBatch, scored: list[TrainBatch]) -> float:
        """What an update costs: 3 forwards' worth (2 with adapters: frozen weights need no gradient), more
        for the reference and recomputation, and one over what was `scored` for pi_prox."""
        config = self.config
        passes = 3 - (config.lora_rank > 0) + config.gradient_checkpointing + (self.reference is not None)
        forward, *extra = (self.flops.forward(np.diff(b.cu_seqlens).tolist()) for b in (batch, *scored))
        return passes * forward + sum(extra)

    def save(self, path: str | Path) -> None:
        """Write a plain Hugging Face directory (config, fp32 safetensors, tokenizer), adapters merged; with
        adapters, peft's directory of them beside it. Raises BrokenPolicyError when a weight is not finite:
        the checkpoint before is the one to go on from."""
        path = Path(path)
        writes = self.ranks.rank == 0
        if self.config.lora_rank:
            save_adapters(self.model, path / ADAPTER_DIRECTORY, str(self.base_path), write=writes)
        state = {}
        for weight in exported_weights(self.model):
            merged = weight.merged()  # a collective; only the writer keeps it
            if writes and not merged.isfinite().all():
                raise BrokenPolicyError(
                    f"{weight.name} is not finite after {self.optimizer_steps} optimizer steps: the policy "
                    "is broken and is not saved. A lower learner.lr or learner.grad_clip may keep it whole"
                )
            if writes:
                state[weight.name] = merged
        if writes:
            self.model.save_pretrained(path, state_dict=state)
            for name, content in self._tokenizer_files.items():
                (path / name).write_bytes(content)

    def save_trainer(self, path: str | Path) -> None:
        """Write everything but the weights that an exact continuation needs, into the directory `path`: every
        rank its own file of the optimizer's moments."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        save_moments(self.optimizer, self._trained(), path, self.ranks)
        if self.ranks.rank == 0:
            state = {
                "policy_version": self.policy_version,
                "optimizer_steps": self.optimizer_steps,
                "skipped_updates": self.skipped_updates,
                "gradient_noise": asdict(self.noise),
                "rng": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
            }
            (path / TRAINER_FILE).write_text(json.dumps(state, indent=1))

    def load_trainer(self, path: str | Path) -> None:
        """Continue from `save_trainer`; the weights come from the `model_path` given at construction.

        The configuration stays the given one: only the optimizer's moments are restored, not its settings.
        The number of ranks may be another one."""
        path = Path(path)
        state = json.loads((path / TRAINER_FILE).read_text())
        load_moments(self.optimizer, self._trained(), path, self.ranks)
        torch.set_rng_state(torch.from_numpy(np.frombuffer(base64.b64decode(state["rng"]), np.uint8).copy()))
        self.noise = GradientNoise(**state["gradient_noise"])
        self.policy_version = state["policy_version"]
        self.optimizer_steps = state["optimizer_steps"]
        self.skipped_updates = state["skipped_updates"]

    def _trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def make_optimizer(model: nn.Module, config: LearnerConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), fused; weight decay on matrices only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def _noise_after(
    noise: GradientNoise, whole: TrainBatch, half: TrainBatch, norm_of_half: float, norm: float
) -> GradientNoise:
    """With a batch and its first half by prompts, and the norms of the gradient after each."""
    assert whole.group is not None and half.group is not None
    share = half.loss_weight.sum() / whole.loss_weight.sum()
    return noise.updated(
        float((norm_of_half / share) ** 2),  # of a mean over the half, as the whole is one over all
        norm**2,
        len(np.unique(half.group)),
        len(np.unique(whole.group)),
    )
