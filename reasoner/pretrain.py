"""Pre-training of the embedded base model: next-token prediction on the synthetic corpus, nothing else.

A Qwen3 of about one million parameters, byte-level tokens. Hidden matrices are trained with Muon, the rest
(the tied embedding, norms) with AdamW; the learning rate warms up, stays, and falls linearly to zero.
Left out: validation loss (pages are never repeated, so the training loss is one), data parallelism.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

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


@dataclass(frozen=True)
class PretrainSettings:
    """How long and how; the corpus has its own settings (`Mixture`)."""

    seed: int = 0
    steps: int = 3000
    rows: int = 64  # packed rows of MAX_DOCUMENT_TOKENS tokens a step
    matrix_lr: float = 3e-3  # Muon, scaled to AdamW's update size
    other_lr: float = 3e-3  # AdamW
    weight_decay: float = 0.1
    warmup: float = 0.02  # share of the steps
    decay: float = 0.45  # share of the steps, at the end
    threads: int = 2
    compile: bool = True


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


def _schedule(step: int, settings: PretrainSettings) -> float:
    """Linear warm-up, constant, linear decay to zero: a factor of the learning rate."""
    warmup, decay = settings.warmup * settings.steps, settings.decay * settings.steps
    return min(1.0, (step + 1) / max(warmup, 1), (settings.steps - step) / max(decay, 1))


def _optimizers(model: Qwen3ForCausalLM, settings: PretrainSettings) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(
            matrices,
            lr=settings.matrix_lr,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=settings.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def save(model: Qwen3ForCausalLM, out_dir: Path) -> None:
    """A plain Hugging Face directory: vLLM and transformers load it as it is."""
    out_dir.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = None
    model.save_pretrained(out_dir)
    build_tokenizer().save_pretrained(out_dir)


def pretrain(
    out_dir: Path,
    settings: PretrainSettings | None = None,
    mixture: Mixture | None = None,
    *,
    checkpoint_s: float = 300.0,
    log=print,
) -> dict:
    """Train a base model from nothing and save it to `out_dir`; returns (and saves) what was done.

    A fixed seed reproduces the corpus and the initial weights exactly; the trained weights differ in the
    last bits between machines, since sums are not taken in the same order everywhere."""
    settings, mixture = settings or PretrainSettings(), mixture or Mixture()
    _keep_freed_memory()
    torch.set_num_threads(settings.threads)
    model = build_model(settings.seed).train()
    optimizers = _optimizers(model, settings)

    def loss_of(ids: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (B, T, V)
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    step_loss = torch.compile(loss_of) if settings.compile else loss_of
    batches = packed_batches(settings.seed, settings.rows, mixture)
    losses, tokens, pages, started, saved = [], 0, 0, time.monotonic(), time.monotonic()
    with ThreadPoolExecutor(1) as prefetch:
        coming = prefetch.submit(next, batches)
        for step in range(settings.steps):
            batch, coming = coming.result(), prefetch.submit(next, batches)
            ids, targets, mask = _tensors(batch)
            loss = step_loss(ids, targets, mask)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                base = settings.matrix_lr if isinstance(optimizer, torch.optim.Muon) else settings.other_lr
                for group in optimizer.param_groups:
                    group["lr"] = base * _schedule(step, settings)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            tokens += int((batch.document_ids >= 0).sum())
            pages += batch.documents
            if step % 25 == 24:
                seconds = time.monotonic() - started
                log(
                    f"step {step + 1}/{settings.steps} loss {np.mean(losses[-50:]):.4f} pages {pages} "
                    f"tokens {tokens / 1e6:.1f}M {tokens / seconds / 1e3:.1f}k tok/s {seconds:.0f}s"
                )
            if time.monotonic() - saved > checkpoint_s:
                save(model, Path(out_dir))
                saved = time.monotonic()
                log(f"saved {out_dir} at step {step + 1}")
    save(model, Path(out_dir))
    record = {
        "settings": asdict(settings),
        "mixture": asdict(mixture),
        "pages": pages,
        "tokens": tokens,
        "seconds": round(time.monotonic() - started),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": {
            str(i + 1): round(float(np.mean(losses[max(0, i - 49) : i + 1])), 4)
            for i in _log_points(len(losses))
        },
    }
    (Path(out_dir) / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _log_points(steps: int) -> list[int]:
    return sorted({min(steps - 1, 50 * 2**k - 1) for k in range(20)} | {steps - 1})
