from dataclasses import replace

import numpy as np
import pytest

from reasoner.evaluation import summarise
from reasoner.evaluation.splits import style
from reasoner.flops import FlopCounter
from reasoner.types import Group, Rollout, Task, Verdict


def rollout(completion, verdict, difficulty=1.0):
    n = len(completion)
    task = Task("t", "p", "2", difficulty=difficulty)
    zeros, actions = np.zeros(n + 1), np.arange(n + 1) > 0
    return Rollout(task, zeros, actions, zeros, zeros, completion, True, False, verdict)


def test_summary_leaves_unscored_rollouts_out():
    rollouts = (
        rollout("\\boxed{2}", Verdict.correct("2")),
        rollout("1+1=2;\\boxed{2}", Verdict.correct("2")),
        rollout("1+1=3;no,1+1=2;\\boxed{2}", Verdict.correct("2")),
        rollout("\\boxed{3}", Verdict.wrong("3")),
        rollout("", Verdict.error("broke")),
    )
    summary = summarise([Group(rollouts[0].task, rollouts)])
    assert summary["pass@1"] == 0.75
    assert (summary["problems"], summary["samples"]) == (1, 5)
    assert summary["masked_rate"] == pytest.approx(1 / 5)
    assert {name: s["share"] for name, s in summary["by_style"].items()} == {
        "direct": 0.5,
        "working": 0.25,
        "corrected": 0.25,
    }
    assert summary["by_style"]["direct"]["pass@1"] == 0.5
    assert summary["by_difficulty"]["1"]["pass@1"] == 0.75


def test_summary_tells_families_apart_where_there_are_several():
    def group(family, *verdicts):
        rollouts = tuple(rollout("\\boxed{2}", v) for v in verdicts)
        return Group(replace(rollouts[0].task, family=family), rollouts)

    groups = [
        group("gcd", Verdict.correct("2"), Verdict.wrong("3")),
        group("gcd", Verdict.wrong("3"), Verdict.error("broke")),
        group("lcm", Verdict.correct("2")),
    ]
    families = summarise(groups)["by_family"]
    assert families["gcd"] == {"pass@1": 1 / 3, "response_tokens_mean": 9.0, "problems": 2}
    assert families["lcm"]["pass@1"] == 1.0 and "by_family" not in summarise(groups[:2])


def test_style_reads_working_before_the_answer():
    assert style(rollout("\\boxed{2}", Verdict.correct())) == "direct"
    assert style(rollout("1+1=2;\\boxed{2}", Verdict.correct())) == "working"


def test_flops_by_hand():
    # 2 tokens, N = 10: 2·10·2 = 40; keys seen 1 + 2 = 3, width 3: 4·3·3 = 36
    assert FlopCounter(10, 3).forward([2]) == 76
    assert FlopCounter(10, 3).train([2]) == 228


def test_matmul_parameters_of_a_qwen3_config():
    config = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "intermediate_size": 16,
        "vocab_size": 10,
    }
    # per layer: q and o 2·8·8, k and v 2·8·4, mlp 3·8·16; head 8·10
    assert FlopCounter.from_config(config).matmul_parameters == 2 * (128 + 64 + 384) + 80
