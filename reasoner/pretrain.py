"""Pre-training of the embedded base model: next-token prediction on the synthetic corpus, nothing else.

A Qwen3 of about one million parameters, byte-level tokens. Hidden matrices are trained with Muon, the rest
(the tied embedding, norms) with AdamW; the learning rate warms up, stays, and falls linearly to zero.
Left out: validation loss (pages are never repeated, so the training loss is one), data parallelism.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from reasoner.pretrain_corpus import (
    BOXED,
    BOXED_ID,
    END,
    END_ID,
    MAX_DOCUMENT_TOKENS,
    PAD_ID,
    VOCAB_SIZE,
    Mixture,
    document,
    encode,
)

PAD = "<|pad|>"
_AS_MANY_AS_FIT = 10**6  # steps, when only a time is given


@dataclass(frozen=True)
class PretrainSettings:
    """How long and how; the corpus has its own settings (`Mixture`)."""

    seed: int = 0
    steps: int = 3000
    minutes: float | None = None  # stop (and finish the schedule) after this time at the latest
    rows: int = 64  # packed rows of MAX_DOCUMENT_TOKENS tokens a step
    matrix_lr: float = 3e-3  # Muon, scaled to AdamW's update size
    other_lr: float = 3e-3  # AdamW
    weight_decay: float = 0.1
    warmup: float = 0.02  # share of the steps
    decay: float = 0.45  # share of the steps, at the end
    threads: int = 2
    compile: bool = True

    def progress(self, step: int, seconds: float) -> float:
        """The share of the training that is over."""
        by_time = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return max(step / self.steps, by_time)


def _keep_freed_memory() -> None:
    """Ask glibc to reuse freed blocks of up to 32 MiB instead of giving them back to the kernel: the page
    faults of fresh memory took 40 % of a training step. Elsewhere than on glibc nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 32 << 20)
    mallopt(m_trim_threshold, (1 << 31) - 1)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes 0..255 are tokens 0..255, so any text round-trips; `\\boxed{` is one ordinary token."""
    unicode_of_byte = _byte_alphabet()
    vocabulary = {unicode_of_byte[b]: b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(BOXED, special=False, normalized=False)])
    tokenizer.add_special_tokens([AddedToken(END, special=True), AddedToken(PAD, special=True)])
    assert [tokenizer.token_to_id(t) for t in (BOXED, END, PAD)] == [BOXED_ID, END_ID, PAD_ID]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _byte_alphabet() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte (GPT-2's mapping)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def build_model(seed: int) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3, about one million parameters, fp32, tied embeddings."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        attn_implementation="sdpa",
        use_cache=True,
    )
    return Qwen3ForCausalLM(config).float()


@dataclass(frozen=True)
class PackedBatch:
    """Rows of whole documents; a document attends to itself only."""

    token_ids: np.ndarray  # (B, T) int64, PAD_ID where a row is not filled
    document_ids: np.ndarray  # (B, T) int16, -1 where a row is not filled
    documents: int


def packed_batches(seed: int, rows: int, mixture: Mixture, start: int = 0) -> Iterator[PackedBatch]:
    """The corpus in order, each page put into the fullest row that still has room for it."""
    length = MAX_DOCUMENT_TOKENS
    index = start
    page = encode(document(seed, index, mixture).text)
    while True:
        token_ids = np.full((rows, length), PAD_ID, dtype=np.int64)
        document_ids = np.full((rows, length), -1, dtype=np.int16)
        room = np.full(rows, length)
        count = 0
        while (fitting := np.where(room >= len(page), room, length + 1)).min() <= length:
            row = int(fitting.argmin())
            at = length - room[row]
            token_ids[row, at : at + len(page)] = page
            document_ids[row, at : at + len(page)] = count
            room[row] -= len(page)
            count += 1
            index += 1
            page = encode(document(seed, index, mixture).text)
        yield PackedBatch(token_ids, document_ids, count)


def _tensors(batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs (B, T), targets (B, T) with -100 where nothing is to be predicted, mask (B, 1, T, T)."""
    ids, docs = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.document_ids)
    targets = torch.full_like(ids, -100)
    same = (docs[:, 1:] == docs[:, :-1]) & (docs[:, 1:] >= 0)
    targets[:, :-1] = torch.where(same, ids[:, 1:], -100)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    mask = (docs[:, None, :, None] == docs[:, None, None, :]) & causal
    return ids, targets, mask


def lr_factor(progress: float, settings: PretrainSettings) -> float:
    """The learning rate relative to its peak: linear warm-up, constant, linear decay to zero."""
    warmup = (progress + 1 / settings.steps) / max(settings.warmup, 1e-9)
    return min(1.0, warmup, (1 - progress) / max(settings.decay, 1e-9))


def _optimizers(model: Qwen3ForCausalLM, settings: PretrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the tied embedding and the norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(
        matrices, lr=settings.matrix_lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=settings.other_lr, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return [muon, adamw]


def save(model: Qwen3ForCausalLM, out_dir: Path) -> None:
    """A plain Hugging Face directory: vLLM and transformers load it as it is, and sample as they are told."""
    out_dir.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(eos_token_id=END_ID, pad_token_id=PAD_ID)
    model.save_pretrained(out_dir)
    build_tokenizer().save_pretrained(out_dir)
    tokenizer_config = out_dir / "tokenizer_config.json"
    fields = json.loads(tokenizer_config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer_config.write_text(json.dumps(fields, indent=2) + "\n")


class _Trainer:
    """The model, its optimizers and one step of training."""

    def __init__(self, settings: PretrainSettings) -> None:
        self.settings = settings
        self.model = build_model(settings.seed).train()
        self.optimizers = _optimizers(self.model, settings)
        self._loss = torch.compile(self._forward) if settings.compile else self._forward

    def _forward(self, ids: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (B, T, V)
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def step(self, batch: PackedBatch, progress: float) -> float:
        """One update; the loss before it, in nats a token."""
        loss = self._loss(*_tensors(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * lr_factor(progress, self.settings)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()


def pretrain(
    out_dir: Path | str,
    settings: PretrainSettings | None = None,
    mixture: Mixture | None = None,
    *,
    seed: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    checkpoint_s: float = 300.0,
    log: Callable[[str], None] = print,
) -> dict:
    """Train a base model from nothing and save it to `out_dir`; returns what was done, which is also
    written to `out_dir/pretraining.json`. `seed`, `steps` and `minutes` override the settings; `minutes`
    without `steps` trains for that time, however many steps it takes.

    A fixed seed reproduces the corpus and the initial weights exactly; the trained weights differ in the
    last bits between machines, since sums are not taken in the same order everywhere."""
    settings, mixture, out_dir = settings or PretrainSettings(), mixture or Mixture(), Path(out_dir)
    settings = _overridden(settings, seed, steps, minutes)
    _keep_freed_memory()
    torch.set_num_threads(settings.threads)
    trainer = _Trainer(settings)
    batches = packed_batches(settings.seed, settings.rows, mixture)
    losses: list[float] = []
    tokens = pages = 0
    started = saved = time.monotonic()
    with ThreadPoolExecutor(1) as prefetch:
        coming = prefetch.submit(next, batches)
        while (progress := settings.progress(len(losses), time.monotonic() - started)) < 1:
            batch, coming = coming.result(), prefetch.submit(next, batches)
            losses.append(trainer.step(batch, progress))
            tokens += int((batch.document_ids >= 0).sum())
            pages += batch.documents
            seconds = time.monotonic() - started
            if len(losses) % 25 == 0:
                log(
                    f"step {len(losses)} ({progress:.0%}) loss {np.mean(losses[-25:]):.4f} pages {pages} "
                    f"tokens {tokens / 1e6:.1f}M {tokens / seconds / 1e3:.1f}k tok/s {seconds:.0f}s"
                )
            if time.monotonic() - saved > checkpoint_s:
                save(trainer.model, out_dir)
                saved = time.monotonic()
                log(f"saved {out_dir} at step {len(losses)}")
    save(trainer.model, out_dir)
    record = {
        "settings": asdict(settings),
        "mixture": asdict(mixture),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps": len(losses),
        "pages": pages,
        "tokens": tokens,
        "seconds": round(time.monotonic() - started),
        "loss": _loss_curve(losses),
    }
    (out_dir / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _overridden(
    settings: PretrainSettings, seed: int | None, steps: int | None, minutes: float | None
) -> PretrainSettings:
    if minutes is not None and steps is None:
        steps = _AS_MANY_AS_FIT
    given: dict[str, Any] = {"seed": seed, "steps": steps, "minutes": minutes}
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _loss_curve(losses: Sequence[float]) -> dict[str, float]:
    """Mean loss of the 50 steps up to some steps: 50, 100, 200, 400 and so on, and the last."""
    at = sorted({50 * 2**k for k in range(20) if 50 * 2**k < len(losses)} | {len(losses)})
    return {str(n): round(float(np.mean(losses[max(0, n - 50) : n])), 4) for n in at}
