"""Preparing a run, and going back to a checkpoint: which, under which configuration, with which message."""

import json
import shutil
from pathlib import Path

import pytest

from reasoner.checkpoint import CheckpointStore
from reasoner.config import Config, load_config
from reasoner.errors import UsageError
from reasoner.run import config_files, prepare, reopen


@pytest.fixture
def run(tmp_path) -> Path:
    """A run whose checkpoints of steps 2, 4 and 6 hold the embedded model."""
    made = prepare(Config(name="r", runs_dir=str(tmp_path), steps=8))
    store = CheckpointStore(made.path, keep=3)

    def write(directory: Path) -> None:
        shutil.copytree(made.model.path, directory, dirs_exist_ok=True)

    for step in (2, 4, 6):
        store.save(step, write, {"seconds": 1.0})
    made.lock.close()
    return made.path


def resume(path: Path, **overrides):
    resumed = prepare(reopen(path, overrides)[1], resume=path)
    resumed.lock.close()
    return resumed


def test_a_run_has_one_writer(run):
    first = prepare(reopen(run, {})[1], resume=run)
    with pytest.raises(UsageError, match="is being trained by another process"):
        resume(run)
    first.lock.close()
    assert resume(run).checkpoint is not None


def test_a_truncated_checkpoint_is_passed_over_with_a_message(run):
    weights = run / "checkpoints" / "step_000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    resumed = resume(run)
    assert resumed.checkpoint == run / "checkpoints" / "step_000004" == resumed.model.path
    assert "step_000006 is damaged: model.safetensors has 1000 of" in resumed.messages[0]
    assert resumed.messages[0].endswith("going back to step 4")
    assert (run / "checkpoints" / "latest").resolve() == resumed.checkpoint


def test_a_checkpoint_of_an_earlier_version_is_refused(run):
    store = CheckpointStore(run, keep=3)
    store.save(7, lambda directory: (directory / "trainer" / "learner.pt").write_text("pickled"), {})
    with pytest.raises(UsageError, match="earlier version.* reasoner train --model .*step_000007"):
        resume(run)


def test_a_resumed_run_keeps_its_model(run):
    other = str(run / "checkpoints" / "step_000002")
    before = (run / "config.toml").read_text()
    with pytest.raises(UsageError, match="begun with the model embedded, not .*step_000002: a resumed"):
        resume(run, model=other)
    assert (run / "config.toml").read_text() == before


def test_a_run_that_begins_with_another_run_keeps_its_checkpoint(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    second = prepare(Config(name="second", model="r", runs_dir=".", steps=8))
    second.lock.close()
    began_with = run / "checkpoints" / "step_000006"
    CheckpointStore(second.path).save(1, lambda d: _copy(second.model.path, d), {"seconds": 1.0})
    CheckpointStore(run, keep=3).save(7, lambda d: _copy(second.model.path, d), {"seconds": 1.0})
    monkeypatch.chdir("/")
    resumed = resume(run.parent / "second")
    assert resumed.base_model.path == began_with == Path(resumed.config.model)
    assert resume(run.parent / "second", model=str(began_with), steps=9).base_model.path == began_with


def _copy(model: Path, directory: Path) -> None:
    shutil.copytree(model, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("trainer"))


def test_no_intact_checkpoint_is_bad_input_and_changes_nothing(run):
    for path in (run / "checkpoints").glob("step_*"):
        (path / "trainer" / "state.json").write_text("{}")
    with pytest.raises(UsageError, match="no complete checkpoint"):
        resume(run)
    assert len(list((run / "checkpoints").glob("step_*"))) == 3


def test_a_run_that_never_began_makes_way_and_any_other_stays(tmp_path, run):
    config = Config(name="stopped", runs_dir=str(tmp_path))
    made = prepare(config)
    with pytest.raises(UsageError, match="is being trained by another process"):
        prepare(config)
    made.lock.close()
    with pytest.raises(UsageError, match=r"start it anew: reasoner train \S*/stopped/config.toml"):
        resume(made.path)
    (made.path / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(UsageError):
        prepare(config.model_copy(update={"model": "no such model"}))
    assert (made.path / "metrics.jsonl").exists(), "a run that cannot start changes nothing"
    again = prepare(config)
    again.lock.close()
    assert not (again.path / "metrics.jsonl").exists()
    (again.path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    with pytest.raises(UsageError, match="exists already"):
        prepare(config)
    with pytest.raises(UsageError, match="exists already"):
        prepare(Config(name="r", runs_dir=str(tmp_path)))


@pytest.mark.parametrize("foreign", ["notes.txt", "unlocked", "linked", "config"])
def test_what_is_not_just_a_run_that_never_began_is_never_replaced(tmp_path, foreign):
    config = Config(name="mine", runs_dir=str(tmp_path))
    made = prepare(config)
    made.lock.close()
    if foreign == "unlocked":
        (made.path / ".lock").unlink()
    elif foreign == "linked":
        made.path.rename(tmp_path / "elsewhere")
        made.path.symlink_to(tmp_path / "elsewhere")
    elif foreign == "config":
        (made.path / "config.toml").write_text('model = "embedded"\n')
    else:
        (made.path / foreign).touch()
    with pytest.raises(UsageError, match="exists already"):
        prepare(config)
    assert (made.path / "config.toml").exists()


def test_the_configuration_of_every_step_stays_known(run):
    def steps_by_file():
        return [(until, load_config(file).steps) for until, file in config_files(run)]

    resume(run, steps=10)
    assert steps_by_file() == [(6, 8), (None, 10)]
    resume(run, steps=12)
    assert steps_by_file() == [(6, 8), (None, 12)], "no step was made under the second configuration"
    (run / "checkpoints" / "step_000006" / "trainer" / "state.json").write_text("{}")
    resume(run, steps=14)
    assert steps_by_file() == [(4, 8), (None, 14)], "steps 5 and 6 are undone"


def test_the_context_has_room_for_the_longest_prompt_of_tasks_and_evaluation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"prompt": "1+1", "reference": "2"}, {"prompt": "x" * 900, "reference": "2", "split": "ood"}]
    Path("long.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = {"tasks": {"source": "long.jsonl"}, "rollout": {"max_tokens": 32}}
    for name, given, wanted in (
        ("longest", asked, 32 + 900 + 256),
        ("short", {}, 128 + 512),
        ("own", {**asked, "server": {"context_tokens": 99}}, 99),
    ):
        prepared = prepare(Config(name=name, **given))
        prepared.lock.close()
        assert prepared.config.server.context_tokens == wanted
        assert reopen(tmp_path / "runs" / name, {})[1].server.context_tokens == wanted, (
            "a resumed run keeps it"
        )
