"""A resumed run is the run that was never interrupted, bit for bit, and is replayed from its journal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import scripted_run
import tiny_model

import rollouts.server
from reasoner import processes, training
from reasoner.checkpoint import CheckpointStore, load_state
from reasoner.config import CheckpointConfig, Config
from reasoner.errors import ReasonerError, UsageError
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
    put_scripted(patch)
    tiny_model.start_ray()
    yield
    ray.shutdown()
    patch.undo()


def put_scripted(patch):
    patch.setattr(rollouts.server, "VLLMServer", scripted_run.ScriptedServer)
    patch.setattr(processes, "LearnerActor", scripted_run.ScriptedLearner)


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


def check_it_is_the_same(run, whole):
    """Metrics, weights, and what a checkpoint remembers."""
    assert scripted_run.metrics_without_timings(run) == scripted_run.metrics_without_timings(whole)
    hashes = [CheckpointStore(path).hashes()[STEPS] for path in (run, whole)]
    different = {name for name in hashes[0] if hashes[0][name] != hashes[1][name]}
    assert different <= {"trainer/state.json"}, "which has timings"
    states = [load_state(CheckpointStore(path).latest()) for path in (run, whole)]
    assert states[0] | {"seconds": 0} == states[1] | {"seconds": 0}
    assert len({(path / "checkpoints" / "best").resolve().name for path in (run, whole)}) == 1


def test_a_run_that_lost_its_newest_checkpoint_resumes_bit_for_bit(whole, folder, capsys):
    """Step 3 is undone and made again, from the groups that its first making had sampled."""
    run = training.train(config(folder, "resumed", STEPS // 2))
    weights = run / "checkpoints" / "step_000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    capsys.readouterr()
    training.train(reopen(run, {"steps": STEPS})[1], resume=run)
    said = capsys.readouterr().out
    assert "step_000003 is damaged" in said and "going back to step 2" in said
    check_it_is_the_same(run, whole)
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


LIVES = [("_take_in", 1), ("_sync", 2), ("_record", 5)]


def begin_and_die(folder, name, life):
    """Takes the run up to the step and method of `LIVES`, and there `kill -9` of this very process."""
    put_scripted(pytest.MonkeyPatch())
    die_in(pytest.MonkeyPatch(), *LIVES[life], lambda: os.kill(os.getpid(), signal.SIGKILL))
    begun = config(folder, name, STEPS).model_copy(update={"checkpoint": CheckpointConfig(every=2)})
    training.train(begun, resume=folder / name if life else None)


def die_in(patch, method, step, die):
    real = getattr(training.Loop, method)

    def fatal(loop, *args):
        if loop.progress.step == step:
            die()
        return real(loop, *args)

    patch.setattr(training.Loop, method, fatal)


@pytest.mark.timeout(1200)
def test_a_run_that_is_killed_again_and_again_is_the_same_bit_for_bit(whole, folder):
    """While rollouts arrive, between update and journal, between journal and metrics."""
    run = folder / "killed"
    for life in range(len(LIVES)):
        program = f"import test_resume as t; t.begin_and_die(t.Path({str(folder)!r}), {run.name!r}, {life})"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert [line["step"] for line in read_metrics(run)] == list(range(LIVES[-1][1]))
    training.train(reopen(run, {})[1], resume=run)
    check_it_is_the_same(run, whole)


@pytest.mark.parametrize("step", [STEPS // 2, STEPS])
def test_an_evaluation_that_was_interrupted_is_made_up(whole, folder, monkeypatch, step):
    run = folder / f"unevaluated-{step}"

    def interrupt():
        raise training.Interrupted(str(run))

    with monkeypatch.context() as patch, pytest.raises(training.Interrupted):
        die_in(patch, "evaluate", step, interrupt)
        training.train(config(folder, run.name, STEPS))
    assert read_metrics(run)[-1]["step"] == step and "eval" not in read_metrics(run)[-1]
    training.train(reopen(run, {})[1], resume=run)
    check_it_is_the_same(run, whole)
    with pytest.raises(UsageError, match=f"already at step {STEPS} of {STEPS}"):
        training.train(reopen(run, {})[1], resume=run)


def test_a_run_whose_time_runs_out_between_two_steps_is_evaluated(folder, monkeypatch):
    real = training.Loop.save

    def slow(loop):
        real(loop)
        loop.started -= 3600 if loop.progress.step == 2 else 0

    monkeypatch.setattr(training.Loop, "save", slow)
    run = training.train(config(folder, "timed", STEPS).model_copy(update={"time_limit_s": 3000.0}))
    lines = read_metrics(run)
    assert [line["step"] for line in lines if "eval" in line] == [0, 2] and lines[-1]["step"] == 2


BETWEEN = ("_tell_of_idleness", 2, "Step 2 is saved")
INSIDE = ("_update", 0, "Everything up to step 2 is in the checkpoint of step 0 and the journal")


@pytest.mark.parametrize(("method", "saved", "safe"), [BETWEEN, INSIDE])
def test_a_bug_leaves_a_run_that_goes_on_and_says_how(whole, folder, monkeypatch, method, saved, safe):
    """Between two steps all is saved; in the middle of one the last checkpoint and the journal have it."""
    run = folder / f"bug-in{method}"
    begun = config(folder, run.name, STEPS).model_copy(update={"checkpoint": CheckpointConfig(every=0)})
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError) as caught:
        die_in(patch, method, 2, lambda: 1 / 0)
        training.train(begun)
    assert caught.value.__notes__ == [f"{safe}. Continue with: reasoner train --resume {run}"]
    assert CheckpointStore(run).latest().name == f"step_{saved:06d}"
    training.train(reopen(run, {})[1], resume=run)
    check_it_is_the_same(run, whole)


def test_what_a_broken_verifier_could_not_judge_is_sampled_again(folder, capsys):
    broken = folder / "broken"
    broken.touch()

    def judge(completion, task):
        if broken.exists():
            raise RuntimeError("database is locked")
        return len(completion) % 2 == 0

    plain = config(folder, "mended", 2)
    with pytest.raises(
        ReasonerError, match=r"none of 16 rollouts was scored: error: RuntimeError: database is locked"
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
    monkeypatch.setattr(processes, "LearnerActor", scripted_run.SlowLearner)
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
