"""A resumed run is the run that was never interrupted, bit for bit, and is replayed from its journal."""

import os
from pathlib import Path

import pytest
import ray
import scripted_run
import tiny_model

import rollouts.server
from reasoner import cluster, training
from reasoner.checkpoint import CheckpointStore, load_state
from reasoner.config import Config
from reasoner.errors import ReasonerError
from reasoner.metrics import read_metrics
from reasoner.replay import replay
from reasoner.rollout_files import read_table, step_path
from reasoner.run import reopen

pytestmark = pytest.mark.slow

STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def scripted():
    """A Ray whose workers find this folder, and the scripted server and learner in their places."""
    patch = pytest.MonkeyPatch()
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    patch.setattr(rollouts.server, "VLLMServer", scripted_run.ScriptedServer)
    patch.setattr(cluster, "LearnerActor", scripted_run.ScriptedLearner)
    tiny_model.start_ray()
    yield
    ray.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    tiny_model.make_model(folder / "model")
    scripted_run.write_tasks(folder / "tasks.jsonl", 30)
    return folder


def config(folder: Path, name: str, steps: int) -> Config:
    return Config.model_validate(
        {
            "model": str(folder / "model"),
            "runs_dir": str(folder),
            "name": name,
            "steps": steps,
            "tasks": {"source": str(folder / "tasks.jsonl"), "curriculum": "adaptive"},
            "verifier": {"name": "scripted_run:even"},
            "rollout": {"groups_per_step": 4, "group_size": 4, "max_tokens": 16},
            "learner": {"threads": 1, "decay": "none", "zero_variance": "top_up", "minibatches": 2},
            "eval": {"every": 3, "problems": 4, "samples": 1},
            "checkpoint": {"every": 1, "keep": 2},
        }
    )


@pytest.fixture(scope="module")
def whole(folder):
    return training.train(config(folder, "whole", STEPS))


def test_a_run_that_lost_its_newest_checkpoint_resumes_bit_for_bit(whole, folder, capsys):
    """Step 3 is undone and made again, from the groups that its first making had sampled."""
    run = training.train(config(folder, "resumed", STEPS // 2))
    weights = run / "checkpoints" / "step_000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    capsys.readouterr()
    training.train(reopen(run, {"steps": STEPS})[1], resume=run)
    said = capsys.readouterr().out
    assert "step_000003 is damaged" in said and "going back to step 2" in said
    assert scripted_run.metrics_without_timings(run) == scripted_run.metrics_without_timings(whole)
    hashes = [CheckpointStore(path).hashes()[STEPS] for path in (run, whole)]
    assert hashes[0]["model.safetensors"] == hashes[1]["model.safetensors"]
    result = replay(run)
    assert result.reproduced and result.updates.exact
    assert set(result.updates.checkpoints.values()) == {"identical"}


def test_the_uninterrupted_run_exercises_what_a_resume_must_restore(whole):
    lines = read_metrics(whole)[1:]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[2]["filtered_groups"] > 0, "groups of the undone step were replaced by others"
    assert all(line["grad_norm"] > 0 for line in lines)
    state = load_state(CheckpointStore(whole).latest())
    assert len(state["retired"]) == lines[-1]["retired_prompts"] > 0, "tasks were retired"
    assert len(state["curriculum"]) == 3, "the curriculum knows all families"


def test_what_a_broken_verifier_could_not_judge_is_sampled_again(folder, capsys):
    broken = folder / "broken"
    broken.touch()

    def judge(completion, task):
        if broken.exists():
            raise RuntimeError("database is locked")
        return len(completion) % 2 == 0

    plain = config(folder, "mended", 2)
    with pytest.raises(
        ReasonerError, match=r"scored none of 16 rollouts: error: RuntimeError: database is locked"
    ):
        training.train(plain, verifier=judge)
    broken.unlink()
    run = training.train(plain, resume=folder / "mended", verifier=judge)
    # 4 for the step, and 16 that were sampled in the place of others without a signal
    assert "failed on 20 whole groups: sampling them again" in " ".join(capsys.readouterr().out.split())
    lines = read_metrics(run)[1:]
    assert [(line["step"], line["verifier_errors"]) for line in lines] == [(1, 0), (2, 0)]
    assert read_table(run / "rollouts" / "discarded" / "unjudged.0.parquet").num_rows == 20 * 4
    indices = [set(read_table(step_path(run, step))["group_index"].to_pylist()) for step in (1, 2)]
    assert {0, 1, 2, 3} <= indices[0] and not indices[0] & indices[1]


def test_in_asynchronous_mode_weights_travel_beside_the_next_update(folder, monkeypatch, capsys):
    """Also when the learner dies of it."""
    monkeypatch.setattr(cluster, "LearnerActor", scripted_run.SlowLearner)
    settings = {"max_staleness": 2, "eval": {"every": 0, "problems": 4}, "checkpoint": {"every": 0}}
    learner = {"learner": {"threads": 1, "zero_variance": "keep"}}
    plain = config(folder, "beside", 8).model_dump(exclude={"learner", "tasks"})
    tasks = {"tasks": {"source": str(folder / "tasks.jsonl")}}
    run = training.train(Config.model_validate({**plain, **settings, **learner, **tasks}))
    lines = read_metrics(run)[1:]
    assert "the learner died: it is started anew from step_000000, with 4 updates to redo" in " ".join(
        capsys.readouterr().out.split()
    )
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert 0 < max(line["staleness_max"] for line in lines) <= 2
    assert sum(line["begun_meanwhile"] for line in lines) >= 4, "updates begin while weights are on their way"
    assert all(line["sync_seconds"] == scripted_run.SYNC_S for line in lines[1:])
    assert all(line["probe_max_abs_diff"] == 0 for line in lines), "no step while the weights are read"
    assert all(line["seconds"]["sync"] < scripted_run.SYNC_S for line in lines)
