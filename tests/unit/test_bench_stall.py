"""What a sync cost, from a server's engine steps, with numbers by hand."""

import numpy as np
import pytest

from benchmarks.stall import _loss


def test_seconds_lost_by_phase():
    """100 tokens in each step of 0.1 s. The sync is asked for at 1.05: until 1.1 the server samples on."""
    before = [(0.1 * i, 0.1, 100) for i in range(11)]
    probe = [(1.20, 0.05, 8)]
    slow = [(1.26, 0.4, 100), (1.66, 0.2, 100)]  # 0.6 s for what took 0.2
    again = [(1.86 + 0.1 * i, 0.1, 100) for i in range(5)]
    phases = {"load": 0.01, "pause": 0.06, "transfer": 0.08, "probe": 0.06, "compare": 0.1, "resume": 0.01}
    loss = _loss(np.array(before + probe + slow + again), 1.04, 1.0, phases, 1234)
    assert loss.pause == pytest.approx(1.11 - 1.1)
    assert (loss.transfer, loss.probe) == (0.08, 0.06)
    assert loss.recompute == pytest.approx(0.4)
    assert loss.total == pytest.approx(0.55)
    assert loss.recomputed_tokens == 1234
