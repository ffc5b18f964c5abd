import sys
import tomllib
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.trl import runs
from benchmarks.trl.ours import train_batch
from benchmarks.trl.ragged import GROUP_SIZE, LONGEST, SHORTEST, RaggedBatch, ragged_batch
from benchmarks.trl.runs import Step
from benchmarks.trl_time_to_90 import (
    Reached,
    figures,
    finished,
    our_run,
    reached,
    trl_run,
    without_head_start,
)
from reasoner.batch import split_prompts
from reasoner.config import load_config

TRL = Path("benchmarks/trl")


def test_a_ragged_batch_is_long_tailed_and_the_same_every_time():
    batch = ragged_batch(64, 256)
    lengths = sorted(map(len, batch.completions))
    assert batch == ragged_batch(64, 256)
    assert lengths[0] == SHORTEST and lengths[-1] == LONGEST
    assert lengths[31] < 60 < lengths[32], "the median of the log-normal"
    assert sum(lengths) / 64 > 1.4 * 60, "the tail pulls the mean up"
    assert batch.prompts[0] == batch.prompts[GROUP_SIZE - 1] != batch.prompts[GROUP_SIZE]
    with pytest.raises(ValueError, match="whole groups"):
        ragged_batch(63, 256)


def test_padding_is_counted_as_a_rectangle_of_the_longest():
    batch = RaggedBatch([[1, 2], [1]], [[1], [1, 2, 3]], [0.0, 1.0])
    assert batch.tokens == 7 and batch.padded_tokens == 2 * (2 + 3)


def test_both_sides_are_configured_alike():
    """What has a name on both sides has the same value: the comparison is of the implementations."""
    trl = tomllib.loads((TRL / "trl.toml").read_text())
    ours = load_config(TRL / "reasoner.toml")
    same = {
        "num_generations": ours.rollout.group_size,
        "generation_batch_size": ours.rollout.group_size * ours.rollout.groups_per_step,
        "max_completion_length": ours.rollout.max_tokens,
        "temperature": ours.rollout.temperature,
        "loss_type": ours.learner.loss,
        "epsilon_high": ours.learner.ratio_cap,
        "beta": ours.learner.kl_coef,
        "learning_rate": ours.learner.lr,
        "lr_scheduler_type": ours.learner.decay,
        "warmup_steps": ours.learner.warmup_steps,
        "max_steps": ours.steps,
        "max_grad_norm": ours.learner.grad_clip,
        "num_iterations": ours.learner.minibatches,
    }
    assert {key: trl[key] for key in same} == same
    assert (
        trl["per_device_train_batch_size"] * trl["gradient_accumulation_steps"]
        == trl["generation_batch_size"]
    )
    assert trl["weight_decay"] == 0.0, "we have none"
    assert ours.max_staleness == 0 and ours.learner.batch_normalise and trl["scale_rewards"] == "batch"


def test_time_to_the_target_ends_at_the_first_evaluation_that_reaches_it():
    steps = [Step(0, 0.0, 0.2), Step(1, 3.0, None), Step(2, 4.0, 0.91), Step(3, 5.0, 0.95)]
    assert reached(steps) == Reached(True, 2, 7.0, 0.91)
    assert reached(steps[:2]) == Reached(False, 1, 3.0, 0.2)
    assert not finished(steps[:2], total=3) and finished(steps[:3], total=9) and not finished([], total=9)


def test_asynchronous_runs_are_apart_and_get_nothing_from_an_evaluation(tmp_path, monkeypatch):
    called = {}
    for side in ("ours", "trl"):
        monkeypatch.setattr(
            runs, side, lambda name, _, flags, threads, *enough: called.update({name: flags}) or []
        )
    args = Namespace(directory=tmp_path, threads=2, report_only=False, staleness=0, per_device=16)
    our_run(0, args, 120)
    our_run(0, Namespace(**{**vars(args), "staleness": 2}), 120)
    trl_run(0, 3e-4, args, 120)
    assert list(called) == ["ours_seed0", "ours_seed0_staleness2_keep_kv", "trl_seed0_lr0.0003_batch16"]
    assert not any("staleness" in flag for flag in called["ours_seed0"])
    assert {"--max_staleness=2", "--server.replicas=1"} <= set(called["ours_seed0_staleness2_keep_kv"])
    assert "--per-device=16" in called["trl_seed0_lr0.0003_batch16"]

    steps = [Step(n, s, 0.5 if n % 5 == 0 else None) for n, s in enumerate([0, 1, 1, 1, 4, 4, 1, 6, 1, 4, 4])]
    assert [s.seconds for s in without_head_start(steps, 2)] == [0, 4, 4, 4, 4, 4, 4, 6, 4, 4, 4]
    ours = {0: Reached(True, 30, 60.0, 0.9)}
    found = {f.name for f in figures(ours, {3e-4: {0: Reached(True, 40, 900.0, 0.9)}}, "_async")}
    assert {"time_to_90_vs_trl_async", "time_to_90_ours_async", "time_to_90_trl"} <= found


def test_our_side_updates_by_prompts_as_in_training():
    batch = ragged_batch(2 * GROUP_SIZE, 256)
    scored = SimpleNamespace(score=lambda ids: [np.zeros(len(i), np.float32) for i in ids])
    assert [part.batch.num_rollouts for part in split_prompts(train_batch(scored, batch))] == [GROUP_SIZE] * 2


def test_runs_that_do_not_get_there_are_shown_as_such():
    ours = {0: Reached(True, 30, 60.0, 0.9), 1: Reached(True, 25, 50.0, 0.92)}
    slow = {0: Reached(True, 40, 900.0, 0.9), 1: Reached(False, 120, 2000.0, 0.8)}
    fast = {0: Reached(True, 30, 600.0, 0.9), 1: Reached(True, 30, 500.0, 0.9)}
    found = {f.name: f for f in figures(ours, {3e-4: slow, 1e-3: fast})}
    assert found["time_to_90_trl_lr"].value == 1e-3
    assert found["time_to_90_vs_trl"].value == 10.0 and found["time_to_90_vs_trl"].unit == "ratio"
    found = {f.name: f for f in figures(ours, {3e-4: slow})}
    assert found["time_to_90_vs_trl"].unit == "ratio_at_least" and found["time_to_90_vs_trl"].low == 15.0
    assert found["runs_not_at_90_trl"].line() == "figure runs_not_at_90_trl 1 runs"
    assert found["time_to_90_seeds"].value == 2
    assert "time_to_90_vs_trl" not in {f.name for f in figures(slow, {3e-4: fast})}
    assert figures({0: ours[0]}, {3e-4: {}}) == [], "nothing to compare yet"


def test_a_run_that_has_done_enough_is_interrupted(tmp_path):
    program = "import signal, sys, time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(130)"
    asked = iter([False, True])
    runs._call([sys.executable, "-c", program], 1, tmp_path, "r", lambda: next(asked))
    assert next(asked, None) is None
    with pytest.raises(RuntimeError, match="r ended with 3"):
        runs._call([sys.executable, "-c", "raise SystemExit(3)"], 1, tmp_path, "r")
