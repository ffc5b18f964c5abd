"""The gradient noise scale: how many prompts a batch should have before more of them stop helping.

McCandlish et al., arXiv 1812.06162, appendix A.1: from the squared norms of the gradient of part of a batch
(B_small prompts) and of all of it (B_big), unbiased estimates of the true gradient's squared norm and of the
noise,

    |G|^2 = (B_big |G_big|^2 - B_small |G_small|^2) / (B_big - B_small)
    tr S  = (|G_small|^2 - |G_big|^2) / (1 / B_small - 1 / B_big)

whose running means give B_simple = tr S / |G|^2. The part is every other prompt of the batch, whose gradient
the learner passes through anyway: it costs one norm. The unit is prompts, since rollouts of one prompt are
not independent.
"""

from __future__ import annotations

from dataclasses import dataclass

DECAY = 0.95  # of the running means: one batch alone says little


@dataclass(frozen=True)
class GradientNoise:
    """The running means (None before the first estimate)."""

    signal: float | None = None  # |G|^2
    noise: float | None = None  # tr S

    def updated(self, small: float, big: float, small_prompts: int, prompts: int) -> GradientNoise:
        """After a batch whose part of `small_prompts` has the squared gradient norm `small` (of the *mean*
        gradient over those prompts), and all `prompts` of it `big`."""
        signal = (prompts * big - small_prompts * small) / (prompts - small_prompts)
        noise = (small - big) / (1 / small_prompts - 1 / prompts)
        if self.signal is None or self.noise is None:
            return GradientNoise(signal, noise)
        return GradientNoise(
            DECAY * self.signal + (1 - DECAY) * signal, DECAY * self.noise + (1 - DECAY) * noise
        )

    @property
    def scale(self) -> float | None:
        """B_simple in prompts; None where the estimates so far are not both positive."""
        if self.signal is None or self.noise is None or self.signal <= 0 or self.noise <= 0:
            return None
        return self.noise / self.signal
