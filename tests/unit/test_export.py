import json
import shutil

import pytest
import yaml
from click.testing import CliRunner
from recorded import record, rollout

from reasoner.checkpoint import CheckpointStore
from reasoner.cli import main
from reasoner.errors import ReasonerError, UsageError
from reasoner.export import export
from reasoner.models import embedded_path
from reasoner.types import Group, Task

HELD_OUT = {"problems": 100, "samples": 2, "response_tokens_mean": 20.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    task = Task("t", "2+2", "4", "sum", 1.0)
    steps = [
        [Group(task, (rollout(task, r"\boxed{4}", True), rollout(task, "5", False)), i)] for i in range(3)
    ]
    evaluations = {
        0: {"held_out": HELD_OUT | {"pass@1": 0.25}},
        2: {"held_out": HELD_OUT | {"pass@1": 0.5}},
        3: {"held_out": HELD_OUT | {"pass@1": 0.75}},
    }
    path = record(tmp_path_factory.mktemp("runs") / "first", steps, evaluations)
    store = CheckpointStore(path, keep=2)

    def write(directory):
        shutil.copytree(embedded_path(), directory, dirs_exist_ok=True)
        (directory / "trainer" / "optimizer.pt").write_bytes(b"heavy")

    for step in (2, 3):
        store.save(step, write, {}, best=step == 2)
    return path


def test_a_run_becomes_a_plain_model_directory_with_a_card(run, tmp_path):
    out = export(str(run), tmp_path / "my-model")
    files = {p.name for p in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "curves.png"} <= files
    assert "trainer" not in files and not list(tmp_path.glob(".*"))
    assert (out / "model.safetensors").read_bytes() == (embedded_path() / "model.safetensors").read_bytes()
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = (out / "README.md").read_text()
    for expected in (
        "license: apache-2.0",
        "# my-model",
        "after 3 steps",
        "vllm serve my-model --dtype float32",
        # Wilson, 95 %, 75 of 100 problems
        "| held_out | 100 × 2 | 0.250 | 0.750 | 0.657 to 0.825 | 20.0 |",
        "| sum | 2 | 0.500 |",
        "value: 0.7500",
        "Tasks `arithmetic`: Apache-2.0.",
    ):
        assert expected in card, expected
    assert str(run) not in card and str(tmp_path) not in card


def test_the_checkpoint_can_be_chosen(run, tmp_path):
    for i, (source, which) in enumerate(
        [(run, "best"), (run, "2"), (run / "checkpoints" / "step_000002", "latest")]
    ):
        card = (export(str(source), tmp_path / str(i), which=which) / "README.md").read_text()
        assert "after 2 steps" in card and "| 0.500 | 0.404 to 0.596 |" in card


def test_samples_of_reasoner_eval_are_on_the_card(run, tmp_path):
    found = {"problems": 10, "samples": 4, "pass@k": {"1": 0.5, "4": 0.9}, "maj@k": {"1": 0.5, "4": 0.7}}
    directory = run / "eval" / "step_000003-arithmetic-1a2b"
    directory.mkdir(parents=True)
    result = {"tasks": "arithmetic", "sampling": {"samples": 4}, "splits": {"ood": found}}
    (directory / "eval.json").write_text(json.dumps(result))
    other = result | {"tasks": "/home/me/x.jsonl", "splits": {"held_out": found | {"problems": 1000}}}
    (directory.with_name("step_000003-x-9c0d")).mkdir()
    (directory.with_name("step_000003-x-9c0d") / "eval.json").write_text(json.dumps(other))
    card = (export(str(run), tmp_path / "out", licence="mit", name="Sums") / "README.md").read_text()
    assert "| ood | 4 | 0.900 | 0.700 |" in card and "`arithmetic`, 4 of each problem" in card
    assert "/home/me" not in card and "| held_out | 4 |" not in card  # of other tasks, though larger
    assert "license: mit" in card and "# Sums" in card


def test_the_prompt_on_the_card_is_what_the_policy_saw(run, tmp_path):
    card = (export(str(run), tmp_path / "out") / "README.md").read_text()
    assert '"prompt": "2+2"' in card  # three bytes, as `recorded` writes them


def test_several_lines_of_tasks_are_one_on_a_card_that_is_yaml_and_names_no_path(run, tmp_path):
    tasks = """
    hf:/home/me/p.parquet(prompt=problem, reference=math)*2,
    self_correct(arithmetic:levels=2,tries=3)
    """
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    config = f"model = 'embedded'\n[tasks]\nsource = {json.dumps(tasks)}\n"
    (copy / "config.toml").write_text(config + "[verifier]\nname = '/home/me/rewards.py:graded'\n")
    card = (export(str(copy), tmp_path / "out", name="sums: mine") / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    shown = "hf:p.parquet(prompt=problem, reference=math)*2, self_correct(arithmetic:levels=2,tries=3)"
    assert front["model-index"][0]["name"] == "sums: mine"
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == f"{shown} (held_out)"
    assert f"on `{shown}` with the verifier `rewards.py:graded`" in card and "/home/me" not in card
    assert "Tasks `arithmetic`: Apache-2.0." in card and ": MIT" not in card


def test_bad_input_is_named(run, tmp_path):
    with pytest.raises(UsageError, match="exists already"):
        export(str(run), tmp_path)
    with pytest.raises(UsageError, match="no checkpoint of step 7: 2, 3"):
        export(str(run), tmp_path / "a", which="7")
    with pytest.raises(UsageError, match="expected latest, best or a step"):
        export(str(run), tmp_path / "a", which="newest")
    with pytest.raises(UsageError, match="not a run"):
        export(str(embedded_path()), tmp_path / "a")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    weights = copy / "checkpoints" / "step_000003" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ReasonerError, match=r"damaged: model\.safetensors"):
        export(str(copy), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    shutil.move(copy / "checkpoints" / "step_000002", tmp_path / "alone" / "x" / "step_000002")
    with pytest.raises(UsageError, match="outside of its run"):
        export(str(tmp_path / "alone" / "x" / "step_000002"), tmp_path / "a")


def test_the_command(run, tmp_path):
    done = CliRunner().invoke(main, ["export", str(run), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(tmp_path / "out")
    assert CliRunner().invoke(main, ["export", str(run), "--out", str(tmp_path / "out")]).exit_code == 2
