"""Losses and estimators of the user's own, by name: found from a file anywhere, or refused clearly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reasoner.advantages import compute_advantages, find_estimator, grpo
from reasoner.errors import UsageError
from reasoner.losses import find_loss, reinforce
from reasoner.plugins import function_name, load_function

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
    monkeypatch.delitem(__import__("sys").modules, "my_algorithm", raising=False)
    return tmp_path


@pytest.mark.parametrize("where", ["my_algorithm", "my_algorithm.py"])
def test_an_own_estimator_and_loss_by_name(home, where):
    estimator = find_estimator(f"{where}:best_of_group")
    np.testing.assert_array_equal(estimator([np.array([0.0, 2.0, 1.0])])[0], [0, 1, 0])
    assert compute_advantages([], f"{where}:best_of_group") == []
    assert find_loss(f"{where}:loss").__name__ == "loss"


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
