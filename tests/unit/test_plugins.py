"""Losses and estimators of the user's own, by name: found from a file anywhere, or refused clearly."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from reasoner.advantages import compute_advantages, find_estimator, grpo
from reasoner.errors import UsageError
from reasoner.losses import find_loss, reinforce
from reasoner.plugins import function_name, load_function
from reasoner.types import Group, Rollout, Task, Verdict

SOURCE = """
import numpy as np

def best_of_group(groups):
    return [np.where(r == np.nanmax(r), 1.0, 0.0) for r in groups]

def loss(t, eps_low, eps_high, ratio_cap):
    return -(t.loss_weight * t.advantages * t.logprobs).sum(), {"twos": 2 * t.action_mask.sum()}

three = 3
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "my_algorithm.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_algorithm", raising=False)
    return tmp_path


def scored_group(*rewards):
    task, ids = Task("t", "1+1=", "2"), np.array([1, 2], np.int32)
    rollouts = [
        Rollout(
            task,
            ids,
            np.array([False, True]),
            np.zeros(2, np.float32),
            np.array([-1, 0]),
            "",
            True,
            False,
            Verdict.error("broke") if reward is None else Verdict("correct", reward),
        )
        for reward in rewards
    ]
    return Group(task, tuple(rollouts))


@pytest.mark.parametrize("where", ["my_algorithm", "my_algorithm.py"])
def test_an_own_estimator_and_loss_by_name(home, where):
    estimator = find_estimator(f"{where}:best_of_group")
    np.testing.assert_array_equal(estimator([np.array([0.0, 2.0, 1.0])])[0], [0, 1, 0])
    assert find_loss(f"{where}:loss").__name__ == "loss"


def test_rollouts_without_a_verdict_are_left_out_whatever_an_own_estimator_says(home):
    groups = [scored_group(0.0, None, 1.0), scored_group(None, None)]
    with pytest.warns(RuntimeWarning, match="All-NaN"):  # of the estimator itself
        first, second = compute_advantages(groups, "my_algorithm:best_of_group")
    np.testing.assert_array_equal(first, [0, np.nan, 1])
    np.testing.assert_array_equal(second, [np.nan, np.nan])


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (lambda groups: [], r"shapes \[\], not \[\(2,\)\]"),
        (lambda groups: [np.ones(3)], r"shapes \[\(3,\)\], not \[\(2,\)\]"),
        (lambda groups: [r / 0.0 for r in groups], "infinite advantages"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_an_own_estimator_returns_is_checked(estimator, message):
    with pytest.raises(UsageError, match=message):
        compute_advantages([scored_group(1.0, 1.0)], estimator)


def test_an_own_file_takes_the_place_of_no_module(home):
    import token

    (home / "token.py").write_text(SOURCE)
    find_loss("token.py:loss")
    assert sys.modules["token"] is token


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_algorithm:none", "no attribute 'none'"),
        ("my_algorithm:three", "is a int: expected a function"),
        ("no_such_module:f", "cannot be imported"),
        ("nowhere.py:f", "no such file: nowhere.py"),
        (":f", "expected 'module:function'"),
    ],
)
def test_bad_names_are_usage_errors(home, spec, message):
    for find in (find_estimator, find_loss):
        with pytest.raises(UsageError, match=message):
            find(spec)


def test_a_function_has_a_name_that_leads_back_to_it():
    for function in (grpo, reinforce):
        assert load_function("x", function_name("x", function)) is function
    with pytest.raises(UsageError, match="loss .*<lambda> cannot be imported"):
        function_name("loss", lambda t: torch.zeros(()))
