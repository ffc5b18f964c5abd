"""The comparison of curricula at equal FLOPs, by hand."""

import pytest

from benchmarks.curriculum import gain_at_equal_flops


def test_the_gain_is_taken_where_the_cheaper_run_ended():
    none = {"flops": {0: 0.0, 10: 10.0}, "held_out": {0: 0.2, 10: 0.4}}
    adaptive = {"flops": {0: 0.0, 10: 20.0}, "held_out": {0: 0.2, 10: 0.7}}  # 0.45 after 10 FLOPs
    assert gain_at_equal_flops(none, adaptive) == pytest.approx(0.05)
    assert gain_at_equal_flops(adaptive, none) == pytest.approx(-0.05)
