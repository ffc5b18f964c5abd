"""The learner: packed batch in, policy-gradient step, new weights and what was measured out.

One process, one model (fp32 weights; compute in fp32 or bf16), AdamW. The parts are pure functions elsewhere:
`reasoner.packed` (forward), `reasoner.logprobs`, `reasoner.losses`; this module owns what has state. Which
policy is used where is said in docs/learner.md. Left out: sharding over several processes, learning-rate
schedules (the loop passes a scale).
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from reasoner.batch import BatchPart, split_micro_batches, split_minibatches
from reasoner.errors import UsageError
from reasoner.flops import FlopCounter
from reasoner.kernels import use_lean_kernels
from reasoner.logprobs import token_logprobs
from reasoner.losses import DEFAULT_EPS, LossFn, PolicyTensors, find_loss, kl_to_reference
from reasoner.packed import ATTENTION_NAME, packed_hidden
from reasoner.types import TrainBatch

TRAINER_FILE = "learner.pt"
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


@dataclass(frozen=True)
class LearnerConfig:
    """How to update. Eps of None are the loss's own (`reasoner.losses.DEFAULT_EPS`); `loss` is a name or a
    function of `LossFn`'s signature."""

    lr: float = 2e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0  # largest gradient norm
    loss: str | LossFn = "cispo"
    eps_low: float | None = None  # lower clip of the ratio (ppo_clip, gspo)
    eps_high: float | None = None  # upper clip of the ratio (ppo_clip, gspo)
    ratio_cap: float | None = 4.0  # largest importance weight (cispo, reinforce, TIS); None: see the loss
    kl_coef: float = 0.0  # weight of the KL term to the reference policy; 0: no reference is loaded
    minibatches: int = 1  # optimizer steps a batch
    micro_batch_tokens: int = 16384
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    threads: int | None = None  # CPU threads of torch; None: leave as it is

    def __post_init__(self) -> None:
        find_loss(self.loss)
        checks = {
            "lr": self.lr > 0,
            "weight_decay": self.weight_decay >= 0,
            "grad_clip": self.grad_clip > 0,
            "ratio_cap": self.ratio_cap is None or self.ratio_cap > 0,
            "kl_coef": self.kl_coef >= 0,
            "minibatches": self.minibatches >= 1,
            "micro_batch_tokens": self.micro_batch_tokens >= 1,
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
        """(eps_low, eps_high) with the loss's defaults filled in."""
        name = self.loss if isinstance(self.loss, str) else ""
        low, high = DEFAULT_EPS.get(name, (0.2, 0.2))
        return (
            low if self.eps_low is None else self.eps_low,
            high if self.eps_high is None else self.eps_high,
        )


@dataclass(frozen=True)
class UpdateResult:
    """`learner_logprobs` (N,) float32, in the order of the given batch: log pi_prox, those of the policy that
    the batch met, before any step on it; 0 where `action_mask` is 0."""

    metrics: dict[str, float]
    learner_logprobs: np.ndarray


class Learner:
    """A trainable copy of the model at `model_path` (a Hugging Face directory or name) and its optimizer."""

    def __init__(
        self,
        model_path: str | Path,
        config: LearnerConfig | Any,
        *,
        temperature: float = 1.0,
        seed: int = 0,
        device: str = "cpu",
        reference_path: str | Path | None = None,
    ) -> None:
        """`config` may be any object with `LearnerConfig`'s attributes; `temperature` is the sampler's:
        logits are divided by it; `device` is "cpu", "cuda" or "auto"; `reference_path` is the frozen
        policy of the KL term (default: the model as loaded), only read when `config.kl_coef` > 0."""
        config = LearnerConfig.of(config)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(seed)
        self.model_path = Path(model_path)
        self.config = config
        self.temperature = temperature
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.loss_fn = find_loss(config.loss)
        self.model = load_model(model_path, self.device)
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.train()  # transformers checkpoints in training mode only; there is no dropout to wake
        # In memory: the directory may be a checkpoint that retention deletes while the run goes on.
        self._tokenizer_files = read_tokenizer_files(self.model_path)
        self.reference = None
        if config.kl_coef > 0:
            self.reference = load_model(reference_path or model_path, self.device).requires_grad_(False)
        self.optimizer = make_optimizer(self.model, config)
        self.flops = flop_counter(self.model)
        self.policy_version = 0  # updates begun from here on: one a batch, skipped or not
        self.optimizer_steps = 0
        self.skipped_updates = 0

    def update(self, batch: TrainBatch, lr_scale: float = 1.0) -> UpdateResult:
        """One pass over the batch: `config.minibatches` optimizer steps at `lr_scale` times the learning rate
        (skipped where loss or gradient is not finite), then `policy_version + 1`."""
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * lr_scale
        prox = self._policy_logprobs(batch) if self.config.minibatches > 1 else None  # (N,)
        parts = split_minibatches(batch, self.config.minibatches)
        tally = _Tally(batch.num_tokens)
        norms = [self._step(part, prox, tally) for part in parts]
        learner_logprobs = tally.logprobs if prox is None else prox
        self.policy_version += 1
        seconds = time.perf_counter() - started
        flops = self._flops(np.diff(batch.cu_seqlens), with_prox=prox is not None)
        metrics = {
            "loss": tally.loss / len(parts),
            "entropy": tally.entropy / batch.num_action_tokens,
            "grad_norm": float(np.mean(norms)),
            "grad_norm_max": float(np.max(norms)),
            "lr": self.config.lr * lr_scale,
            "tokens": float(batch.num_tokens),
            "action_tokens": float(batch.num_action_tokens),
            "update_seconds": seconds,
            "flops": flops,
            "skipped_updates": float(self.skipped_updates),
            **{name: total / batch.num_action_tokens for name, total in tally.stats.items()},
            **importance_metrics(learner_logprobs, batch),
        }
        return UpdateResult(metrics, learner_logprobs)

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

    def _policy_logprobs(self, batch: TrainBatch) -> np.ndarray:
        """(N,) logprobs of the action tokens under the current policy, without gradient."""
        logprobs = np.zeros(batch.num_tokens, dtype=np.float32)
        for micro in split_micro_batches(batch, self.config.micro_batch_tokens):
            with torch.no_grad():
                values, _ = self._forward(self.model, micro.batch)
            logprobs[micro.token_index] = values.cpu().numpy()
        return logprobs

    def _forward(self, model: nn.Module, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """(logprobs (N,), entropy (N,)) of the action tokens; 0 elsewhere."""
        token_ids = torch.from_numpy(batch.token_ids).to(self.device)
        bf16 = self.config.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            hidden = packed_hidden(model, token_ids, batch.cu_seqlens)
        return token_logprobs(
            hidden,
            model.get_output_embeddings().weight,
            token_ids,
            torch.from_numpy(batch.cu_seqlens).long().to(self.device),
            self.temperature,
            wanted=torch.from_numpy(batch.action_mask).to(self.device),
        )

    def _step(self, part: BatchPart, prox: np.ndarray | None, tally: _Tally) -> float:
        """One optimizer step on a minibatch; returns its gradient norm before clipping."""
        loss = 0.0
        for micro in split_micro_batches(part.batch, self.config.micro_batch_tokens):
            index = part.token_index[micro.token_index]  # (n,) positions in the whole batch
            loss += self._backward(micro.batch, index, prox, tally)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip))
        tally.loss += loss
        if math.isfinite(norm) and math.isfinite(loss):
            self.optimizer.step()
            self.optimizer_steps += 1
        else:
            self.skipped_updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _backward(
        self, batch: TrainBatch, index: np.ndarray, prox: np.ndarray | None, tally: _Tally
    ) -> float:
        """Add the gradient of one micro-batch; `index` (n,) is where its tokens stand in the whole batch."""
        logprobs, entropy = self._forward(self.model, batch)
        tensors = PolicyTensors(
            logprobs=logprobs,
            behaviour_logprobs=self._tensor(batch.behaviour_logprobs),
            prox_logprobs=None if prox is None else self._tensor(prox[index]),
            advantages=self._tensor(batch.advantages),
            action_mask=self._tensor(batch.action_mask),
            loss_weight=self._tensor(batch.loss_weight),
            cu_seqlens=self._tensor(batch.cu_seqlens.astype(np.int64)),
        )
        loss, stats = self.loss_fn(tensors, *self.config.eps, self.config.ratio_cap)
        if self.reference is not None:
            with torch.no_grad():
                reference_logprobs, _ = self._forward(self.reference, batch)
            kl = kl_to_reference(logprobs, reference_logprobs, tensors.loss_weight)
            loss = loss + self.config.kl_coef * kl
        loss.backward()
        tally.add(index, logprobs.detach().cpu().numpy(), float(entropy.sum()), stats)
        return float(loss.detach())

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _flops(self, lengths: np.ndarray, *, with_prox: bool) -> float:
        """What an update costs: 3 forwards' worth, more for pi_prox, the reference, and recomputation."""
        passes = 3 + with_prox + (self.reference is not None) + self.config.gradient_checkpointing
        return passes * self.flops.forward(lengths.tolist())

    def save(self, path: str | Path) -> None:
        """Write a plain Hugging Face directory: config, fp32 safetensors, tokenizer."""
        path = Path(path)
        self.model.save_pretrained(path)
        for name, content in self._tokenizer_files.items():
            (path / name).write_bytes(content)

    def save_trainer(self, path: str | Path) -> None:
        """Write everything but the weights that an exact continuation needs, into the directory `path`."""
        Path(path).mkdir(parents=True, exist_ok=True)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "policy_version": self.policy_version,
            "optimizer_steps": self.optimizer_steps,
            "skipped_updates": self.skipped_updates,
        }
        torch.save(state, Path(path) / TRAINER_FILE)

    def load_trainer(self, path: str | Path) -> None:
        """Continue from `save_trainer`; the weights come from the `model_path` given at construction.

        The configuration stays the given one: only the optimizer's moments are restored, not its settings."""
        state = torch.load(Path(path) / TRAINER_FILE, map_location="cpu", weights_only=True)
        settings = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, given in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(given)
        torch.set_rng_state(state["rng"])
        self.policy_version = state["policy_version"]
        self.optimizer_steps = state["optimizer_steps"]
        self.skipped_updates = state["skipped_updates"]


class _Tally:
    """Sums over the micro-batches of one update."""

    def __init__(self, num_tokens: int) -> None:
        self.logprobs = np.zeros(num_tokens, dtype=np.float32)
        self.loss = 0.0
        self.entropy = 0.0
        self.stats: dict[str, float] = {}

    def add(self, index: np.ndarray, logprobs: np.ndarray, entropy: float, stats: dict[str, Tensor]) -> None:
        self.logprobs[index] = logprobs
        self.entropy += entropy
        for name, value in stats.items():
            self.stats[name] = self.stats.get(name, 0.0) + float(value)


def importance_metrics(learner_logprobs: np.ndarray, batch: TrainBatch) -> dict[str, float]:
    """How far the policy that met the batch is from the one that sampled it, over its action tokens.

    With r = pi_prox / pi_mu per token: `kl_behaviour` is the mean of r - 1 - log r (the k3 estimator, never
    negative) of KL(pi_mu || pi_prox), in nats a token; `ess` is (sum r)^2 / (n sum r^2), 1 on policy;
    `ratio_max` the largest r; `logprob_diff_max` and `_p99` are of |log r|.
    """
    mask = batch.action_mask
    log_ratio = (learner_logprobs[mask] - batch.behaviour_logprobs[mask]).astype(np.float64)  # (n,)
    ratio = np.exp(log_ratio)
    return {
        "kl_behaviour": float(np.mean(np.expm1(log_ratio) - log_ratio)),
        "ess": float(ratio.sum() ** 2 / (len(ratio) * np.square(ratio).sum())),
        "ratio_max": float(ratio.max()),
        "logprob_diff_max": float(np.abs(log_ratio).max()),
        "logprob_diff_p99": float(np.quantile(np.abs(log_ratio), 0.99)),
    }


def load_model(path: str | Path, device: torch.device) -> nn.Module:
    """A causal language model in fp32 with packed attention, in evaluation mode and without dropout.

    On CUDA with flash-attn installed its varlen kernels are used instead. Raises `UsageError` for a model
    whose logits are more than a product of hidden states and output head.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import is_flash_attn_2_available, logging

    flash = device.type == "cuda" and is_flash_attn_2_available()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="flash_attention_2" if flash else ATTENTION_NAME, dtype=torch.float32
    )
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


def make_optimizer(model: nn.Module, config: LearnerConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), fused; weight decay on matrices only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def flop_counter(model: nn.Module) -> FlopCounter:
    """Counts this model's FLOPs: every matrix but the input embedding (unless it is the output head too)."""
    embedding = model.get_input_embeddings().weight
    matrices = sum(p.numel() for p in model.parameters() if p.ndim >= 2)
    if embedding is not model.get_output_embeddings().weight:
        matrices -= embedding.numel()
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return FlopCounter(matrices, config.num_hidden_layers * config.num_attention_heads * head_dim)
