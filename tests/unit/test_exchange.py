import json

import pytest

from reasoner.exchange import CheckpointCurves, default_targets, exchange_rate, samples_needed

BASE = CheckpointCurves("base", 0.0, 10.0, {1: 0.2, 4: 0.4, 16: 0.6}, {1: 0.2, 4: 0.6, 16: 0.9})
TRAINED = CheckpointCurves("trained", 6000.0, 20.0, {1: 0.5, 4: 0.7}, {1: 0.5, 4: 0.8})


def row(rate, kind, accuracy, checkpoint):
    found = next(r for r in rate[kind]["iso_accuracy"] if r["accuracy"] == accuracy)
    return next(r for r in found["checkpoints"] if r["checkpoint"] == checkpoint)


def test_the_example_of_the_docs_by_hand():
    rate = exchange_rate([TRAINED, BASE], [0.5])
    # base: halfway from 0.4 at 4 to 0.6 at 16, in log k: sqrt(4·16) = 8 samples, 8·10 = 80 FLOPs a query
    assert row(rate, "deployable", 0.5, "base")["samples"] == pytest.approx(8)
    assert row(rate, "deployable", 0.5, "base")["flops_per_query"] == pytest.approx(80)
    # trained: one sample, 20 FLOPs: 60 saved a query, 6000 / 60 = 100 queries
    trained = row(rate, "deployable", 0.5, "trained")
    assert (trained["samples"], trained["extra_train_flops"]) == (1, 6000)
    assert trained["saved_flops_per_query"] == pytest.approx(60)
    assert trained["break_even_queries"] == pytest.approx(100)
    assert row(rate, "deployable", 0.5, "base")["break_even_queries"] is None
    # the oracle needs 4·4^(-1/4)… fewer: 0.2 at 1, 0.6 at 4, so 0.5 at 4^(3/4)
    assert row(rate, "oracle", 0.5, "base")["samples"] == pytest.approx(4**0.75)


def test_training_that_equals_samples_by_hand():
    # 4 samples of the base reach 0.4: two thirds of the way from 0.2 to 0.5, so 4000 training FLOPs and
    # 10 + 2/3·10 FLOPs a sample; 40 - 16.67 saved a query
    rows = {r["samples"]: r for r in exchange_rate([BASE, TRAINED])["deployable"]["samples_as_training"]}
    assert rows[4]["equal_train_flops"] == pytest.approx(4000)
    assert rows[4]["break_even_queries"] == pytest.approx(4000 / (40 - 50 / 3))
    assert (rows[1]["equal_train_flops"], rows[1]["break_even_queries"]) == (0, None)
    assert rows[16]["equal_train_flops"] is None  # no checkpoint has 0.6 with one sample


def test_out_of_reach_is_null():
    rate = exchange_rate([BASE, TRAINED], [0.65, 0.95])
    assert row(rate, "deployable", 0.65, "base")["samples"] is None
    assert row(rate, "deployable", 0.65, "trained")["samples"] is not None
    assert row(rate, "deployable", 0.65, "trained")["break_even_queries"] is None
    assert row(rate, "oracle", 0.95, "trained")["flops_per_query"] is None


def test_training_that_saves_nothing_never_pays():
    longer = CheckpointCurves("longer", 100.0, 1000.0, {1: 0.5}, {1: 0.5})
    trained = row(exchange_rate([BASE, longer], [0.4]), "deployable", 0.4, "longer")
    assert trained["saved_flops_per_query"] == pytest.approx(40 - 1000)
    assert trained["break_even_queries"] is None


def test_samples_needed_takes_the_first_crossing_of_a_curve_that_falls():
    assert samples_needed({1: 0.1, 2: 0.5, 4: 0.2, 8: 0.6}, 0.3) == pytest.approx(2**0.5)
    assert samples_needed({1: 0.5, 2: 0.4}, 0.45) == 1
    assert samples_needed({}, 0.1) is None


def test_default_targets_lie_within_what_was_measured():
    assert default_targets([BASE, TRAINED])[0] == 0.25
    assert default_targets([BASE, TRAINED])[-1] == 0.9


def test_what_it_returns_is_plain_json():
    rate = exchange_rate([BASE, TRAINED])
    assert json.loads(json.dumps(rate, allow_nan=False)) == rate
    assert rate["schema"] == 1
    assert rate["reference"] == "base"


def test_bad_input_is_refused():
    for call in (
        lambda: exchange_rate([BASE]),
        lambda: exchange_rate([BASE, BASE]),
        lambda: exchange_rate([BASE, TRAINED], [0.0]),
        lambda: CheckpointCurves("x", -1.0, 1.0, {}, {}),
        lambda: CheckpointCurves("x", 0.0, 0.0, {}, {}),
        lambda: CheckpointCurves("x", 0.0, 1.0, {0: 0.5}, {}),
        lambda: CheckpointCurves("x", 0.0, 1.0, {}, {1: 1.5}),
    ):
        with pytest.raises(ValueError):
            call()
