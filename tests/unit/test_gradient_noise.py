"""The gradient noise scale: by hand, and against a gradient whose noise is known."""

from __future__ import annotations

import numpy as np
import pytest

from reasoner.gradient_noise import DECAY, GradientNoise


def test_by_hand():
    # |G|^2 = 4, tr S = 12: norms squared of 2 prompts 4 + 12/2 = 10, of 6 prompts 4 + 12/6 = 6
    noise = GradientNoise().updated(small=10.0, big=6.0, small_prompts=2, prompts=6)
    assert noise.signal == pytest.approx(4.0)
    assert noise.noise == pytest.approx(12.0)
    assert noise.scale == pytest.approx(3.0)
    later = noise.updated(small=7.0, big=5.0, small_prompts=2, prompts=6)  # |G|^2 = 4, tr S = 6
    assert later.noise == pytest.approx(DECAY * 12 + (1 - DECAY) * 6)


def test_finds_the_scale_of_known_noise():
    """Prompts' gradients are normal around (3, 4): |G|^2 = 25; deviation 10 in 2 dimensions: tr S = 200."""
    rng = np.random.default_rng(0)
    noise, signals, traces = GradientNoise(), [], []
    for _ in range(3000):
        gradients = np.array([3.0, 4.0]) + 10 * rng.standard_normal((8, 2))
        small, big = gradients[::2].mean(0), gradients.mean(0)
        one = GradientNoise().updated(small @ small, big @ big, 4, 8)
        signals.append(one.signal)
        traces.append(one.noise)
        noise = noise.updated(small @ small, big @ big, 4, 8)
    assert np.mean(signals) == pytest.approx(25, rel=0.1)
    assert np.mean(traces) == pytest.approx(200, rel=0.1)


def test_no_scale_without_positive_estimates():
    assert GradientNoise().scale is None
    assert GradientNoise().updated(5.0, 6.0, 2, 4).scale is None, "the half is less noisy than the whole"
