"""Replay of a small run: reproduced bit for bit, and every planted fault is found and named.

The run is made without servers by the pieces of the loop that replay depends on; tests/integration replays
runs that the whole loop has made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from reasoner import fingerprint
from reasoner.checkpoint import CheckpointStore
from reasoner.config import Config, LearnerKeys, RolloutConfig, config_toml, load_config
from reasoner.errors import UsageError
from reasoner.journal import Journal
from reasoner.learner import Learner, LearnerConfig
from reasoner.metrics import MetricsWriter, read_metrics, step_metrics
from reasoner.replay import _other_verifiers, describe, replay
from reasoner.rollout_files import read_table, step_path, write_table
from reasoner.types import ENVIRONMENT_FAILED, Group, Rollout, SamplingParams, Task, Verdict
from reasoner.update import lr_scale, prepare_update, select_groups

STEPS, GROUPS, G, VOCAB = 4, 3, 4, 31
SAVED = (0, 2, 3, 4)


def make_model(path: Path) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(vocab_size=VOCAB, tie_word_embeddings=True, **shape, **heads)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    (path / "tokenizer.json").write_text("{}")
    return path


def make_group(index: int, version: int, behaviour_logprob: float = -3.0) -> Group:
    """Rollouts whose answers are 0 to 3; the reference is 1. Every fifth group has no signal."""
    rng = np.random.default_rng(index)
    task = Task(f"t{index}", "1+0=", "1")

    def rollout(i: int) -> Rollout:
        length = 4 + int(rng.integers(2, 9))
        mask = np.arange(length) >= 4
        answer = 1 if index % 5 == 4 else i
        return Rollout(
            task,
            rng.integers(0, VOCAB, length).astype(np.int32),
            mask,
            np.where(mask, behaviour_logprob, 0).astype(np.float32),
            np.where(mask, version, -1).astype(np.int32),
            f"\\boxed{{{answer}}}",
            True,
            False,
            Verdict.correct(str(answer)) if answer == 1 else Verdict.wrong(str(answer)),
        )

    return Group(task, tuple(rollout(i) for i in range(G)), index)


def make_run(
    path: Path, model: Path, *, resumed_with: dict | None = None, nan_step: int = 0, **learner_keys
) -> Path:
    """What the loop leaves behind; after step 2 it is resumed with other learner settings, if any. In
    `nan_step` a group has no finite logprobs."""
    rollout = RolloutConfig(groups_per_step=GROUPS, group_size=G, max_tokens=16)
    config = Config(
        model=str(model),
        steps=STEPS,
        rollout=rollout,
        learner=LearnerKeys(threads=1, warmup_steps=2, **learner_keys),
    )
    path.mkdir()
    (path / "config.toml").write_text(config_toml(config, {}))
    learner = Learner(model, LearnerConfig.of(config.learner), reference_path=model)
    fingerprint.record(path, 0, fingerprint.fingerprint(learner))
    store = CheckpointStore(path, keep=2)

    def write(directory: Path) -> None:
        learner.save(directory)
        learner.save_trainer(directory / "trainer")

    with Journal(path) as journal, MetricsWriter(path, trackers=()) as metrics:
        store.save(0, write, {})
        for step in range(1, STEPS + 1):
            if step == 3 and resumed_with:
                (path / "config.toml").rename(path / "config_until_000002.toml")
                config = load_config(
                    path / "config_until_000002.toml", {f"learner.{k}": v for k, v in resumed_with.items()}
                )
                (path / "config.toml").write_text(config_toml(config, {}))
                learner = Learner(store.path(2), LearnerConfig.of(config.learner), reference_path=model)
                learner.load_trainer(store.path(2) / "trainer")
                fingerprint.record(path, 2, fingerprint.fingerprint(learner))
            groups = [make_group(GROUPS * step - i, step - 1) for i in range(GROUPS)]
            if step == nan_step:
                groups[1] = make_group(groups[1].index, step - 1, np.nan)
            journal.append_groups(None, groups, SamplingParams(16))
            kept, filtered = select_groups(groups, config)
            prepared = prepare_update(kept, config)
            result = learner.update(prepared.batch, lr_scale(config, step - 1))
            journal.mark_used(step, prepared.uses(result.learner_logprobs))
            journal.mark_dropped(step, [g.index for g in filtered], "filtered")
            if step < STEPS:
                journal.compact(step).result()
            line = step_metrics(
                step=step, policy_version=step - 1, seconds={}, groups=groups, **result.metrics
            )
            metrics.write(line)
            if step in SAVED:
                store.save(step, write, {})
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    return make_run(folder / "run", make_model(folder / "model"))


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run", symlinks=True))


def change_row(run: Path, step: int, column: str, change) -> dict:
    """Applies `change` to that column of the first trained row of a step's file; returns the row."""
    path = step_path(run, step)
    table = read_table(path)
    rows = table.to_pylist()
    row = next(r for r in rows if r["position"] is not None)
    row[column] = change(row[column])
    write_table(path, pa.Table.from_pylist(rows, schema=table.schema))
    return row


def test_a_run_is_reproduced_bit_for_bit(run):
    result = replay(run)
    assert result.reproduced and result.updates.exact and result.updates.first is None
    assert result.updates.checkpoints == dict.fromkeys(SAVED, "identical"), "also deleted ones"
    assert result.rewards.checked == STEPS * GROUPS * G
    assert result.updates.updates == STEPS and "reproduced, bit for bit" in list(describe(result))
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "learner",
    [
        {"loss": "ppo_clip", "kl_coef": 0.1},
        {"lora_rank": 2, "dtype": "bfloat16", "estimator": "reinforce_pp"},
    ],
)
def test_a_resumed_run_is_replayed_under_each_of_its_configurations(tmp_path, learner):
    changed = {"lr": 1e-3, "grad_clip": 0.1, "minibatches": 2}
    run = make_run(tmp_path / "run", make_model(tmp_path / "model"), resumed_with=changed, **learner)
    result = replay(run)
    assert result.reproduced and result.updates.exact
    assert set(result.updates.checkpoints.values()) == {"identical"}


def test_a_skipped_update_is_skipped_again(tmp_path):
    run = make_run(tmp_path / "run", make_model(tmp_path / "model"), nan_step=3, minibatches=2)
    line = next(line for line in read_metrics(run) if line["step"] == 3)
    assert line["grad_norm"] is None and line["skipped_updates"] >= 1
    result = replay(run)
    assert result.reproduced and result.updates.exact
    assert set(result.updates.checkpoints.values()) == {"identical"}
    json.dumps(result.to_json(), allow_nan=False)


def test_groups_verified_before_a_resume_with_another_verifier(run, tmp_path, monkeypatch):
    (tmp_path / "strict.py").write_text("def never(completion, task):\n    return False\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = (run / "config.toml").read_text()
    assert text.count('name = "auto"') == 1
    (run / "config.toml").write_text(text.replace('name = "auto"', 'name = "strict:never"'))
    wrong = replay(run).rewards.disagreements
    assert {d.step for d in wrong} == {1, 2, 3, 4}, "nothing says that another verifier was ever in force"
    (run / "config_until_000002.toml").write_text(text)
    result = replay(run)
    assert result.reproduced and result.rewards.verifiers == ["auto", "strict:never"]


def test_rewards_of_a_verifier_without_a_name_are_not_claimed(run):
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('name = "auto"', 'name = "<mine>"'))
    result = replay(run)
    assert result.reproduced and result.rewards is None and result.to_json()["reproduced"]
    lines = list(describe(result))
    assert lines[1].startswith("rewards       not verified again")
    assert lines[-1] == "updates reproduced, bit for bit"


def test_replay_can_start_from_a_checkpoint_and_stop_early(run):
    result = replay(run, start=3, stop=4)
    assert result.reproduced and list(result.updates.checkpoints) == [3, 4]
    with pytest.raises(UsageError, match="no complete checkpoint of step 2 .* one of 3, 4"):
        replay(run, start=2)


@pytest.mark.parametrize(
    ("column", "change", "tensor"),
    [
        (
            "learner_logprobs",
            lambda v: [*v[:-1], float(np.nextafter(np.float32(v[-1]), 0))],
            "learner_logprobs",
        ),
        ("advantage", lambda v: float(np.nextafter(v, 9)), "advantage"),
        ("token_ids", lambda v: [*v[:-1], (v[-1] + 1) % VOCAB], "learner_logprobs"),
        ("behaviour_logprobs", lambda v: [*v[:-1], v[-1] - 1], "grad_norm"),
    ],
)
def test_one_changed_entry_is_found_and_named(run, column, change, tensor):
    row = change_row(run, 2, column, change)
    first = replay(run).updates.first
    assert first.step == 2 and first.tensor.startswith(tensor)
    if tensor != "grad_norm":
        assert first.tensor == f"{tensor} of group {row['group_index']}, rollout {row['rollout']}"


def test_a_changed_reward_is_a_disagreement_and_changes_the_update(run):
    path = step_path(run, 3)
    table = read_table(path)
    rows = table.to_pylist()
    row = next(r for r in rows if r["fate"] == "trained" and r["status"] == "wrong")
    row["status"], row["reward"] = "correct", 1.0
    write_table(path, pa.Table.from_pylist(rows, schema=table.schema))
    result = replay(run)
    (found,) = result.rewards.disagreements
    assert (found.step, found.group_index, found.rollout) == (3, row["group_index"], row["rollout"])
    assert (found.recorded.reward, found.found.reward) == (1.0, 0.0)
    assert result.updates.first.step == 3 and "advantage" in result.updates.first.tensor
    assert not result.reproduced and list(describe(result))[-1] == "NOT reproduced"


def test_another_learning_rate_shows_in_the_first_checkpoint_it_reaches(run):
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("lr = 0.0003", "lr = 0.0004"))
    assert load_config(run / "config.toml").learner.lr == 0.0004
    first = replay(run).updates.first
    assert first.step == 2 and "learner_logprobs" in first.tensor, "the first that met other weights"


def test_changed_weights_are_named_by_tensor(run):
    log = run / "checkpoints" / "hashes.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    entries[-1]["files"]["model.safetensors"]["sha256"] = "0" * 64
    path = run / "checkpoints" / "step_000004"
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-6
    model.save_pretrained(path)
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    first = replay(run).updates.first
    assert (first.step, first.tensor) == (4, "weights model.norm.weight")


def test_another_fingerprint_means_a_tolerance(run):
    recorded = fingerprint.read(run)[0]
    fingerprint.record(run, 0, {**recorded, "threads": 2})
    change_row(run, 2, "learner_logprobs", lambda v: [*v[:-1], v[-1] + 1e-5])
    result = replay(run)
    assert result.reproduced and not result.updates.exact
    assert result.updates.fingerprint_differences == {"threads": [2, 1]}
    assert list(describe(result))[-1] == "reproduced, within the tolerance"
    change_row(run, 2, "learner_logprobs", lambda v: [*v[:-1], v[-1] + 1])
    first = replay(run).updates.first
    assert first.step == 2 and first.difference == pytest.approx(1, abs=1e-3)


def test_a_verifier_that_was_in_force_twice_has_the_one_between_before_it():
    mine, other = Config(), Config(verifier={"name": "strict:never"})
    assert _other_verifiers([(2, mine), (4, other), (None, mine)], mine) == [other]
    assert _other_verifiers([(2, mine), (None, other)], mine) == []
    assert _other_verifiers([(2, mine), (None, other)], other) == [mine]


def test_another_verifier_says_what_the_rewards_would_have_been(run, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def two(completion, task):\n    return '{2}' in completion\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = replay(run, verifier="mine:two")
    assert result.updates is None and result.reproduced
    mixed = STEPS * GROUPS - 2  # groups 4 and 9 have no signal: all of their answers are 1
    assert result.rewards.confusion == {
        ("correct", "wrong"): mixed + 2 * G,
        ("wrong", "correct"): mixed,
        ("wrong", "wrong"): 2 * mixed,
    }
    step = result.rewards.steps[0]
    assert (step["step"], step["recorded_mean"], step["found_mean"]) == (1, 0.25, 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": 9}, "has the steps 1 to 4"),
        ({"start": 4}, "nothing is left"),
        ({"verifier": "no_such_module:f"}, "no_such_module"),
    ],
)
def test_bad_input_is_refused(run, options, message):
    with pytest.raises(UsageError, match=message):
        replay(run, **options)


def change_metrics(run: Path, change) -> None:
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


def test_a_norm_that_was_not_finite_is_no_finite_one(run):
    change_metrics(
        run, lambda lines: [line | {"grad_norm": None} if line["step"] == 3 else line for line in lines]
    )
    result = replay(run)
    assert (result.updates.first.step, result.updates.first.tensor) == (3, "grad_norm")
    json.dumps(result.to_json(), allow_nan=False)


def test_incomplete_metrics_are_refused(run):
    change_metrics(run, lambda lines: [line for line in lines if line["step"] != 2])
    with pytest.raises(UsageError, match=r"metrics\.jsonl has no line of step 2"):
        replay(run)


def test_an_incomplete_journal_is_refused(run):
    step_path(run, 2).unlink()
    with pytest.raises(UsageError, match="0 of the 12 rollouts of step 2"):
        replay(run)


def journal_a_waiting_group(run: Path, verdict: Verdict) -> None:
    """One that no step has used, whose first rollout (wrong, in truth) has this verdict."""
    waiting = make_group(50, STEPS)
    first = replace(waiting.rollouts[0], verdict=verdict)
    with Journal(run) as journal:
        journal.append_groups(
            None, [replace(waiting, rollouts=(first, *waiting.rollouts[1:]))], SamplingParams(16)
        )


def test_rewards_nobody_has_used_yet_are_verified_too(run):
    journal_a_waiting_group(run, Verdict.correct("0"))
    (found,) = replay(run).rewards.disagreements
    assert (found.step, found.group_index, found.rollout) == (None, 50, 0)


def test_a_recorded_error_is_no_verdict_that_could_be_contradicted(run):
    journal_a_waiting_group(run, Verdict.error("the verifier process died"))
    result = replay(run)
    assert len(result.rewards.disagreements) == 1 and result.reproduced
    assert any("1 had no verdict (error) and have one now" in line for line in describe(result))


def test_what_an_environment_failed_on_is_not_verified_again(run):
    journal_a_waiting_group(run, Verdict.error(f"{ENVIRONMENT_FAILED}Room.respond: KeyError: 'door'"))
    result = replay(run)
    assert result.rewards.disagreements == [] and result.reproduced
