"""What `reasoner eval` refuses before anything is started, and where it puts its results."""

import json

import pytest
from click.testing import CliRunner

from reasoner.cli import main
from reasoner.config import load_config
from reasoner.errors import UsageError
from reasoner.evaluation.plan import EvalOptions, make_plan, training_splits
from rollouts.endpoint import Endpoint


def refused(*arguments):
    done = CliRunner().invoke(main, ["eval", *map(str, arguments)])
    assert done.exit_code == 2, done.output
    return done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what is to be evaluated"),
        (["embedded", "--model", "x"], "--model names what --endpoint serves"),
        (["--endpoint", "http://localhost:1"], "--model NAME"),
        (["embedded", "--budgets", "8,x"], "write numbers of tokens"),
        (["embedded", "--budgets", "0"], "at least 1 token"),
        (["embedded", "--budgets", "64", "--max-tokens", "32"], "larger than --max-tokens 32"),
        (["embedded", "--budgets", "2000"], "do not fit the context of embedded, 2048 tokens"),
        (["embedded", "--extend", ""], "--extend needs a text"),
        (["embedded", "--force-text", "So"], "give --budgets too"),
        (["embedded", "--compare", "nowhere"], "no evaluation is there"),
        (["embedded", "--checkpoints", "all"], "evaluates those of a run"),
        (["embedded", "--checkpoints", "x"], "write all, or steps"),
        (["embedded", "--generalisation"], "is no run"),
        (["embedded", "--tasks", "gsm8k:nowhere.jsonl"], "cannot read the tasks"),
        (["embedded", "--tasks", "nowhere"], "unknown tasks 'nowhere' (known: arithmetic,"),
        (["nowhere/model"], "model nowhere/model: "),
        (["embedded", "--scorer", "nowhere:f"], "cannot be imported"),
        (["run", "--generalisation", "--checkpoints", "all"], "leave out --checkpoints"),
        (["embedded", "--splits", "heldout"], "did you mean 'held_out'? (it has held_out, ood)"),
        (["embedded", "--json", "/"], "name a file"),
        (["embedded", "--json", "/nowhere/eval.json"], "there is no directory"),
    ],
)
def test_bad_usage(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments)
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "holds no tasks"),
        ('{"prompt": "1+1"}\n', "tasks.jsonl:1: the field 'reference' is missing"),
        ('{"prompt": "1+1", "reference": ""}\n', "tasks.jsonl:1: reference must be"),
        ('{"prompt": "1+1", "reference": "2"}\nno json\n', "tasks.jsonl:2"),
    ],
)
def test_bad_task_files(lines, message, tmp_path):
    (tmp_path / "tasks.jsonl").write_text(lines)
    assert message in refused("embedded", "--tasks", tmp_path / "tasks.jsonl")


def plan_of(tmp_path, overrides=None, **options):
    return make_plan(load_config(None, overrides or {}), EvalOptions(**options))


def test_a_directory_follows_from_what_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan, again = plan_of(tmp_path), plan_of(tmp_path, {"eval.samples": 99, "eval.problems": 7})
    assert plan.directory == again.directory, "more samples or problems are the same evaluation"
    assert plan.directory.parts[0] == "evals" and plan.directory.name.startswith("embedded-arithmetic-")
    for other in ({"rollout.temperature": 0.5}, {"tasks.source": "arithmetic:levels=1"}, {"seed": 1}):
        assert plan_of(tmp_path, other).directory != plan.directory
    endpoint = Endpoint("http://localhost:8000", "embedded")
    assert plan_of(tmp_path, endpoint=endpoint).identity["model"] == "http://localhost:8000/v1 embedded"


def test_budgets_lengthen_the_chains_and_long_prompts_the_context(tmp_path):
    assert plan_of(tmp_path, budgets=(64, 256)).params.max_tokens == 256
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "1+" * 500 + "1", "reference": "501"}) + "\n")
    plan = plan_of(tmp_path, {"tasks.source": str(path)}, all_tasks=True)
    assert plan.config.server.context_tokens >= 128 + 1001
    assert [task.reference for task in plan.tasks["long"]] == ["501"]


def test_tasks_without_splits_are_evaluated_only_when_they_are_named(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "1+1", "reference": "2"}\n')
    with pytest.raises(UsageError, match="neither held-out nor out-of-distribution"):
        plan_of(tmp_path, {"tasks.source": str(path)})


def test_training_problems_seen_and_fresh(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "step_000002" / "trainer").mkdir(parents=True)
    (run / "config.toml").write_text('seed = 3\n[tasks]\nsource = "arithmetic"\n')
    config = load_config(None, {"model": str(run), "eval.problems": 5})
    with pytest.raises(UsageError, match="generator of fresh problems"):
        training_splits(config)  # no complete checkpoint: nothing is known of what was seen
    from reasoner.checkpoint import CheckpointStore

    CheckpointStore(run).save(4, lambda path: (path / "x").write_text("x"), {"next_index": 3})
    splits = training_splits(config)
    assert [task.id for task in splits["train_seen"]] == [f"arithmetic/train/3/{i}" for i in range(3)]
    assert len(splits["train_fresh"]) == 3
    assert not {t.prompt for t in splits["train_seen"]} & {t.prompt for t in splits["train_fresh"]}


def test_splits_and_stop_texts_reach_the_evaluation(monkeypatch):
    asked = []

    def evaluate(config, options):
        asked.append((config.rollout.stop, options.splits))
        raise UsageError("enough")

    monkeypatch.setattr("reasoner.evaluation.command.evaluate", evaluate)
    refused("embedded", "--stop", "\n", "--stop", "Q:", "--splits", "held_out,ood")
    refused("embedded")
    assert asked == [(("\n", "Q:"), ("held_out", "ood")), ((), ())]
