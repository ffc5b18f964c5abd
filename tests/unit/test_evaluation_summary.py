"""From graded samples to eval.json, by hand."""

import json

import numpy as np
import pytest

from reasoner.errors import UsageError
from reasoner.evaluation.checkpoints import exchange_of, models_of, training_flops
from reasoner.evaluation.compare import check_comparable, compare
from reasoner.evaluation.costs import Prices, costs_of, flops_of
from reasoner.evaluation.standard_results import standard_results
from reasoner.evaluation.store import CHAIN, EvalStore, Grade, Point, Sample
from reasoner.evaluation.summary import (
    SplitSamples,
    budgets_summary,
    problems_of,
    self_correction,
    split_summary,
    unpaired_difference,
)
from reasoner.flops import FlopCounter
from reasoner.types import Task, Verdict

A, B = Task("a", "1+1", "2", "sum", 1.0), Task("b", "1*3", "3", "product", 2.0)


def sample(task, index, answer, point=CHAIN, tokens=4, said=None, right=(), logprob=-1.0, **grade):
    verdict = Verdict.correct(answer) if answer == task.reference else Verdict.wrong(answer)
    candidates = tuple(said or (answer,))
    g = Grade(
        grade.pop("verdict", verdict), answer, candidates, tuple(right) or (verdict.is_correct,), **grade
    )
    text = "".join(f"\\boxed{{{c}}}" for c in candidates)
    ids, logprobs = np.zeros(3 + tokens, np.int32), np.zeros(tokens, np.float32)
    return Sample(
        "s", task.id, index, point, text, text, ids, logprobs, logprob, 3, tokens, tokens, False, 0.5, g
    )


def split(*samples, name="s", wanted=99):
    return SplitSamples.of(name, [A, B], samples, wanted)


def test_curves_and_costs_by_hand():
    found = split(
        sample(A, 0, "2", tokens=4),
        sample(A, 1, "2", tokens=6),
        sample(B, 0, "3", tokens=2),
        sample(B, 1, "5", tokens=8),
    )
    result = split_summary(found, FlopCounter(10, 0), 0, seconds_per_token=0.1, prices=Prices(1e6, 2e6))
    assert result["problems"] == 2 and result["samples"] == 2
    assert result["pass@k"] == {"1": 0.75, "2": 1.0}
    assert result["maj@k"] == {"1": 0.75, "2": 0.75}, "a tie of 3 and 5 is right half the time"
    assert result["avg@k"] == 0.75 and result["response_tokens_mean"] == 5
    # 2 · 10 FLOPs for each of 4·3 + 20 tokens
    assert result["flops_per_sample"] == 2 * 10 * 32 / 4 and result["flops_per_correct"] == 2 * 10 * 32 / 3
    costs = result["costs"]
    assert (costs["tokens_per_sample"], costs["tokens_per_correct"]) == (5, 20 / 3)
    assert costs["seconds_per_sample"] == pytest.approx(0.5)
    assert costs["price_per_sample"] == (12 * 1 + 20 * 2) / 4
    product = result["by_family"]["product"]
    assert product["pass@1"] == 0.5 and product["problems"] == 1 and product["ci95"]["pass@1"] == [0.5, 0.5]
    assert result["by_difficulty"]["1"]["pass@1"] == 1.0


def test_only_the_wanted_samples_count_and_unscored_ones_never():
    error = sample(A, 1, "2", verdict=Verdict.error("broke"))
    found = split(sample(A, 0, "2"), error, sample(B, 0, "3"), sample(B, 1, "5"), sample(B, 2, "5"), wanted=2)
    result = split_summary(found, None, 0)
    assert result["masked_rate"] == 0.25 and result["pass@k"] == {"1": 0.75}
    assert result["flops_per_sample"] is None


def test_no_correct_sample_costs_nothing_known():
    wrong = [sample(A, 0, "7")]
    assert flops_of(wrong, FlopCounter(10, 0))["flops_per_correct"] is None
    assert costs_of(wrong, None, None) == {
        "tokens_per_sample": 4,
        "tokens_per_correct": None,
        **dict.fromkeys(
            ("seconds_per_sample", "seconds_per_correct", "price_per_sample", "price_per_correct")
        ),
    }


def test_self_correction_counts_what_became_of_first_answers():
    chains = [
        sample(A, 0, "2", said=("1", "2"), right=(False, True)),
        sample(A, 1, "1", said=("2", "1"), right=(True, False)),
        sample(A, 2, "2", said=("2", "2"), right=(True, True)),
        sample(A, 3, "5", said=("4", "5"), right=(False, False)),
        sample(A, 4, "2"),
    ]
    found = self_correction(chains)
    assert found["chains"] == 5 and found["several_answers_rate"] == 0.8
    assert found["wrong_to_right_rate"] == 0.2 and found["right_to_wrong_rate"] == 0.2
    assert found["last_differs_rate"] == pytest.approx(0.6) and found["retracted_rate"] == pytest.approx(0.6)
    assert found["first_answer_accuracy"] == pytest.approx(3 / 5)
    assert found["last_answer_accuracy"] == pytest.approx(3 / 5)


def test_budgets_stand_on_the_same_chains():
    cut = Point("cut", 4, "F")
    found = split(
        sample(A, 0, "2", tokens=4),  # short enough: counts as it is
        sample(B, 0, "3", tokens=10),
        sample(B, 0, "7", point=cut, tokens=7),
    )
    budgets = budgets_summary([found], [cut], None, 0)
    at_cut, full = budgets["splits"]["s"]["points"]
    assert budgets["schema"] == 1
    assert (at_cut["kind"], at_cut["budget"], at_cut["applied_rate"]) == ("cut", 4, 0.5)
    assert (at_cut["accuracy"], at_cut["tokens_mean"]) == (0.5, 5.5)
    assert (full["kind"], full["accuracy"], full["tokens_mean"]) == ("full", 1.0, 7.0)
    assert budgets["splits"]["s"]["s1"]["performance"] == 0.5
    assert budgets_summary([found], [], None, 0) is None


def test_answers_without_classes_and_scores_are_null_not_zero():
    samples = [sample(A, i, "2", logprob=float("nan")) for i in range(2)]
    nameless = [s.__class__(**{**s.__dict__, "grade": Grade(Verdict.correct(), None)}) for s in samples]
    result = split_summary(SplitSamples.of("s", [A], nameless, 9), None, 0)
    assert result["pass@k"]["2"] == 1.0
    assert result["maj@k"] is None and result["weighted_maj@k"] is None and result["best_of_k"] is None


def test_a_scorer_ranks_best_of_k():
    found = split(
        sample(A, 0, "2", score=0.1),
        sample(A, 1, "7", score=0.9),
        sample(B, 0, "3", score=1),
        sample(B, 1, "3", score=0),
    )
    result = split_summary(found, None, 0)
    assert result["best_of_k_scorer"] == "scorer" and result["best_of_k"] == {"1": 0.75, "2": 0.5}


def store(directory, samples):
    with EvalStore(directory, {"model": str(directory)}) as opened:
        opened.add_tasks("s", [A, B])
        opened.add(samples)
        opened.grade([(s, s.grade) for s in samples])


def test_comparison_is_paired_and_by_the_same_tasks(tmp_path):
    store(tmp_path / "other", [sample(A, 0, "2"), sample(B, 0, "5")])
    mine = split(sample(A, 0, "2"), sample(B, 0, "3"))
    found = compare([mine], tmp_path / "other", 0)["splits"]["s"]["pass@1"]
    assert found["difference"] == 0.5 and found["problems"] == 2 and found["p_value"] == 1.0
    by_family = compare([mine], tmp_path / "other", 0)["by_family"]["s"]
    assert {name: (pair["difference"], pair["problems"]) for name, pair in by_family.items()} == {
        A.family: (0.0, 1),
        B.family: (1.0, 1),
    }
    check_comparable(tmp_path / "other", {"s": [A], "elsewhere": [B]})
    with pytest.raises(UsageError, match="no evaluation is there"):
        check_comparable(tmp_path, {"s": [A]})
    with pytest.raises(UsageError, match="no problem in common"):
        check_comparable(tmp_path / "other", {"s": [Task("z", "9+9", "18")]})


def test_memorisation_is_a_difference_with_an_interval():
    seen, fresh = problems_of(split(sample(A, 0, "2"))), problems_of(split(sample(B, 0, "5")))
    assert unpaired_difference(seen, fresh, 0) == {"difference": 1.0, "ci95": [1.0, 1.0]}
    assert unpaired_difference([], fresh, 0)["difference"] is None


def test_standard_layout():
    found = split(sample(A, 0, "2"), sample(B, 0, "5"))
    result = {
        "model": "m",
        "seed": 0,
        "sampling": {},
        "versions": {},
        "verifier": "math",
        "splits": {"s": split_summary(found, None, 0)},
    }
    layout = standard_results(result, [found])
    assert layout["results"]["reasoner|s|0"]["acc"] == layout["results"]["all"]["acc"] == 0.5
    assert layout["results"]["reasoner|s|0"]["acc_stderr"] == pytest.approx(0.5)  # sd √0.5 over √2
    assert layout["n-samples"]["s"]["effective"] == 2


def test_exchange_rate_of_checkpoints():
    def row(step, flops, one, two):
        entry = {"pass@k": {"1": one, "2": two}, "maj@k": {"1": one, "2": two}, "flops_per_sample": 100.0}
        return {"step": step, "train_flops": flops, "splits": {"held_out": entry}}

    rate = exchange_of([row(0, 0.0, 0.2, 0.5), row(10, 5000.0, 0.5, 0.7)])
    assert rate["split"] == "held_out" and rate["reference"] == "step 0"
    target = next(t for t in rate["deployable"]["iso_accuracy"] if t["accuracy"] == 0.5)
    base, trained = target["checkpoints"]
    assert (base["samples"], trained["samples"]) == (2.0, 1.0)
    # 200 FLOPs a query against 100, for 5000 FLOPs of training
    assert trained["break_even_queries"] == 50
    unknown = row(0, 0.0, 0.2, 0.5)
    unknown["splits"]["held_out"]["flops_per_sample"] = None
    assert exchange_of([unknown, row(10, 1.0, 0.5, 0.7)]) is None


def test_training_flops_are_cumulative_with_sampling(tmp_path):
    lines = [
        {"step": 0, "train_flops": None, "sample_flops": None},
        {"step": 1, "train_flops": 10.0, "sample_flops": 1.0},
        {"step": 2, "train_flops": 20.0, "sample_flops": 2.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [training_flops(tmp_path, step) for step in (0, 1, 2)] == [0.0, 11.0, 33.0]


def test_checkpoints_that_are_not_there(tmp_path):
    from reasoner.config import load_config

    assert models_of(tmp_path, load_config(None, {})) == [(0, "embedded")]
    with pytest.raises(UsageError, match="no checkpoint of step 7: there are 0"):
        models_of(tmp_path, load_config(None, {}), [7])
