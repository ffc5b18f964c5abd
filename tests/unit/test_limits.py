import json

import pytest

from reasoner.config import Config
from reasoner.errors import UsageError
from reasoner.limits import activation_bytes, check_rollout_fits

MODEL = {"hidden_size": 10, "intermediate_size": 20, "num_hidden_layers": 2}


def test_activations_by_hand():
    assert activation_bytes(MODEL, 3, value_bytes=4, checkpointing=False) == 3 * 2 * (40 + 40) * 4
    assert activation_bytes(MODEL, 3, value_bytes=2, checkpointing=True) == 3 * 2 * 10 * 2
    assert activation_bytes({"text_config": MODEL}, 3, value_bytes=2, checkpointing=True) == 120


def test_a_rollout_that_no_device_holds_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    config = Config(rollout={"max_tokens": 100})
    needed = 100 * 2 * 80 * 4
    check_rollout_fits(tmp_path, config, needed)
    with pytest.raises(UsageError, match=r"max_tokens = 100 .*cannot be split.*gradient_checkpointing"):
        check_rollout_fits(tmp_path, config, needed - 1)
