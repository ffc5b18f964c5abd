"""Majority votes over k of n samples: the exact expectation, and Monte Carlo where that costs too much.

A vote: k of the n samples are drawn without replacement; samples with the same answer key form a class; the
class with most votes wins, ties are broken uniformly, a sample without a key uses up its vote but never
wins, and nobody wins when no sample has a key. The winner is right with the correctness of a representative
drawn uniformly from the voters of its class (classes whose samples agree need no such rule).

Exact, without enumerating subsets. Tilt by p = k/n: let class j get X_j ~ Binomial(g_j, p) votes,
independently; given ΣX = k, that is the draw without replacement. For a class i and its count v,

    P(i wins with v) = P(X_i = v) · [x^(k-v)] ∫₀¹ Π_{j≠i} (A_j(x) + y·B_j(x)) dy · (q + p·x)^u / P(ΣX = k)

with A_j the part of X_j's generating function below v, B_j its term at v, u the unparsed samples, q = 1 - p:
since ∫ y^t dy = 1/(1+t), t rivals tied at v get their share. The integrand is a polynomial of degree <= T in
y, so ⌈(T+1)/2⌉ Gauss-Legendre nodes integrate it exactly; the coefficient is read off by evaluating at the
roots of unity. Every term is a probability: nothing overflows, and the only error is rounding, about 1e-13.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

MAX_WORK = 10**8  # complex multiply-adds of one exact expectation: a few seconds
_CELLS = 2 * 10**6  # of the vote counts held at once by Monte Carlo
NEGLIGIBLE = 1e-18  # probability mass that may be left out: below the rounding of a double


class Estimate(NamedTuple):
    """An expectation and its Monte Carlo standard error: 0.0 where it was computed exactly."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Ballot:
    """All votes of one problem by class: class j has sizes[j] samples, a share[j] of which is right."""

    classes: np.ndarray  # (n,) int: the class of each sample, -1 = unparsed
    sizes: np.ndarray  # (m,) int
    share: np.ndarray  # (m,) float in [0, 1]

    @classmethod
    def of(cls, keys: Sequence[str | None], correct: np.ndarray) -> Ballot:
        index: dict[str, int] = {}
        classes = np.fromiter(
            (-1 if key is None else index.setdefault(key, len(index)) for key in keys), np.int64, len(keys)
        )
        parsed = classes >= 0
        sizes = np.bincount(classes[parsed], minlength=len(index))
        right = np.bincount(classes[parsed], weights=correct[parsed], minlength=len(index))
        return cls(classes, sizes, right / np.maximum(sizes, 1))

    @property
    def n(self) -> int:
        return len(self.classes)

    @cached_property
    def of_size(self) -> Counter[int]:
        """How many classes there are of each size."""
        return Counter(self.sizes.tolist())


def exact_vote(ballot: Ballot, k: int, max_work: float = MAX_WORK) -> float | None:
    """The expected correctness of a majority vote over k of the samples; None when it would cost more than
    `max_work` complex multiply-adds (it never does for n <= 1024 with the default)."""
    if not ballot.share.any():
        return 0.0
    if k == 1:
        return float(ballot.sizes @ ballot.share) / ballot.n
    if k == ballot.n:
        return float(_plurality(ballot.sizes[None], ballot.share)[0])
    if len(ballot.sizes) == 1 and ballot.sizes[0] == ballot.n:
        return float(ballot.share[0])
    tilt = _tilt(ballot.n, k)
    total = 0.0
    for i in np.flatnonzero(ballot.share):
        size = int(ballot.sizes[i])
        rivals = {g: many for g, all_ in ballot.of_size.items() if (many := all_ - (g == size))}
        win = tilt.win_probability(size, rivals, max_work)
        if win is None:
            return None
        total += win * float(ballot.share[i])
    return min(1.0, max(0.0, total))


def sampled_votes(
    ballot: Ballot,
    correct: np.ndarray,
    ks: Sequence[int],
    weights: np.ndarray | None,
    draws: int,
    rng: np.random.Generator,
) -> list[Estimate]:
    """Monte Carlo of a vote, weighted by `weights` (n,) if given, for every k.

    Each of `draws` >= 2 random orders of the samples is cut into disjoint subsets of size k (as many as fit,
    or fewer where the classes are many); ties and representatives enter by their expectation. The standard
    error is that of the mean over the orders."""
    agree = bool(np.isin(ballot.share, (0.0, 1.0)).all())
    right = None if agree else correct.astype(float)
    means: dict[int, list[np.ndarray]] = {k: [] for k in ks}
    batch = max(1, _CELLS // (4 * ballot.n))
    for start in range(0, draws, batch):
        orders = rng.random((min(batch, draws - start), ballot.n)).argsort(axis=1)  # (batch, n)
        for k in ks:
            means[k].append(_vote_means(ballot, orders, k, weights, right))
    return [_estimate(np.concatenate(means[k]), certain=k == ballot.n) for k in ks]


def _estimate(means: np.ndarray, certain: bool) -> Estimate:
    """`certain`: there is only one subset, all means are it up to rounding."""
    if certain:
        return Estimate(float(means[0]), 0.0)
    return Estimate(float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means))))


def _subsets(ballot: Ballot, k: int) -> int:
    """How many subsets of size k an order is cut into: counting votes costs a cell a subset and class, and
    an order may cost about 4n of them."""
    return max(1, min(ballot.n // k, 4 * ballot.n // (len(ballot.sizes) + 1)))


def _vote_means(
    ballot: Ballot, orders: np.ndarray, k: int, weights: np.ndarray | None, right: np.ndarray | None
) -> np.ndarray:
    """The mean correctness of the votes of each order's disjoint subsets: (draws, n) -> (draws,).

    `right` (n,) is given when a class's samples disagree, and the representative matters."""
    m = len(ballot.sizes)
    subsets = orders[:, : _subsets(ballot, k) * k].reshape(-1, k)
    cells = (ballot.classes[subsets] + 1 + np.arange(len(subsets))[:, None] * (m + 1)).ravel()

    def tally(values: np.ndarray | None) -> np.ndarray:  # (subsets, m)
        chosen = None if values is None else values[subsets].ravel()
        return np.bincount(cells, chosen, len(subsets) * (m + 1)).reshape(-1, m + 1)[:, 1:]

    share = ballot.share if right is None else tally(right) / np.maximum(tally(None), 1)
    return _plurality(tally(weights), share).reshape(len(orders), -1).mean(axis=1)


def _plurality(votes: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Expected correctness of the winners of (s, m) votes, `share` (m,) or (s, m): (s,). Votes that are equal
    up to rounding are tied."""
    if not votes.shape[1]:
        return np.zeros(len(votes))
    best = votes.max(axis=1, keepdims=True)
    winners = (votes >= best * (1 - 1e-12)) & (best > 0)
    return (winners * share).sum(axis=1) / np.maximum(winners.sum(axis=1), 1)


# ---------------------------------------------------------------------- the exact expectation


class _Binomial(NamedTuple):
    pmf: np.ndarray  # (g + 1,)
    least: int  # fewer are negligible
    most: int  # more are negligible


class _Block(NamedTuple):
    """Winning counts low..high of a class, the sizes of the rivals that may reach them (size, how many), the
    samples of all other classes, and the nodes that integrate their ties exactly."""

    low: int
    high: int
    rivals: tuple[tuple[int, int], ...]
    others: int
    nodes: int


@dataclass
class _Tilt:
    """What all problems with n samples share at one k: the roots of unity and the binomial laws."""

    n: int
    k: int
    binomials: dict[int, _Binomial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.p = self.k / self.n
        # Mass further than this from the mean would alias: less than the rounding of a double.
        deviation = math.sqrt(self.n * self.p * (1 - self.p))
        points = min(self.n + 1, math.ceil(9.5 * deviation) + 30) | 1  # odd: the half circle has no midpoint
        self.circle = np.exp(2j * np.pi * np.arange(points) / points)
        self.half = np.arange(points // 2 + 1)  # (L,): the other roots are conjugates of these
        self.one_sample = (
            1 - self.p + self.p * self.circle[self.half]
        )  # (L,): of an unconstrained sample's vote
        self.read_off = (
            np.where(self.half == 0, 1.0, 2.0) * self.circle[-self.k * self.half % points] / points
        )
        self.read_off /= self.binomial(self.n).pmf[self.k]

    def binomial(self, g: int) -> _Binomial:
        """The law of the votes of g samples, each drawn with probability p."""
        if g not in self.binomials:
            j = np.arange(g)
            ratios = (g - j) * self.p / ((j + 1) * (1 - self.p))  # pmf[j + 1] / pmf[j]
            pmf = from_ratios(ratios, min(g, int((g + 1) * self.p)))
            least = int(np.argmax(np.cumsum(pmf) > NEGLIGIBLE))
            most = g - int(np.argmax(np.cumsum(pmf[::-1]) > NEGLIGIBLE))
            self.binomials[g] = _Binomial(pmf, least, most)
        return self.binomials[g]

    def powers(self, low: int, high: int) -> np.ndarray:
        """z^v of the roots of unity z for v = low..high: (V, L)."""
        return self.circle[np.arange(low, high + 1)[:, None] * self.half % len(self.circle)]

    def win_probability(self, size: int, rivals: dict[int, int], max_work: float) -> float | None:
        """P(a class of `size` samples wins), with its share of the ties; None when that takes more than
        `max_work`. `rivals` says how many other classes there are of each size."""
        blocks = list(self._blocks(size, rivals))
        rows = sum((b.high - b.low + 1) * len(b.rivals) * b.nodes for b in blocks)
        if rows * len(self.half) > max_work:
            return None
        own, total = self.binomial(size).pmf, 0.0
        for block in blocks:
            powers = self.powers(block.low, block.high)
            beaten = powers * self._beaten(block, powers)
            rest = self.one_sample**block.others * self.read_off  # (L,)
            total += float((own[block.low : block.high + 1] @ beaten @ rest).real)
        return total

    def _blocks(self, size: int, rivals: dict[int, int]) -> Iterator[_Block]:
        """The likely winning counts cut at doublings: each block has few rivals that matter, and few ties."""
        own, laws = self.binomial(size), {g: self.binomial(g) for g in rivals}
        if any(law.least > own.most for law in laws.values()):
            return  # beaten for certain
        high, last = 0, min(own.most, self.k)
        while high < last:
            low = max(high + 1, own.least)
            high = min(2 * low, last)
            if any(law.least > high for law in laws.values()):
                continue
            reach = {g: many for g, many in rivals.items() if laws[g].most >= low}
            others = self.n - size - sum(g * many for g, many in reach.items())
            ties = min(sum(reach.values()), self.k // low)
            yield _Block(low, high, tuple(reach.items()), others, ties // 2 + 1)

    def _beaten(self, block: _Block, powers: np.ndarray) -> np.ndarray:
        """∫ Π_j (A_j + y·B_j) dy at the roots of unity, a row for each count of the block: (V, L)."""
        low, high = block.low, block.high
        parts = []
        for g, many in block.rivals:
            pmf = np.zeros(high + 1)
            pmf[: min(g, high) + 1] = self.binomial(g).pmf[: high + 1]
            tied = pmf[low:, None] * powers  # (V, L)
            first = self.binomial(g).least
            head = pmf[first:low] @ self.powers(first, low - 1) if first < low else 0.0
            parts.append((head + np.cumsum(tied, axis=0) - tied, tied, many))
        total = np.zeros_like(powers)
        for y, weight in zip(*_gauss_legendre(block.nodes), strict=True):
            product = np.full_like(powers, weight)
            for below, tied, many in parts:
                product *= _power(below + y * tied, many)
            total += product
        return total


@lru_cache(maxsize=16)
def _tilt(n: int, k: int) -> _Tilt:
    return _Tilt(n, k)


@lru_cache(maxsize=64)
def _gauss_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1], exact for polynomials up to degree 2·nodes - 1."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, weights / 2


def _power(base: np.ndarray, exponent: int) -> np.ndarray:
    """base ** exponent by squaring: numpy's complex power goes through logarithms, and is slow."""
    result = None
    while True:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        if not exponent:
            return base if result is None else result
        base = base * base


def from_ratios(ratios: np.ndarray, mode: int) -> np.ndarray:
    """A unimodal probability mass function from its successive ratios p[j+1]/p[j], (m,) -> (m + 1,).

    Multiplied outwards from the mode: nothing overflows, and the tails keep their relative precision."""
    p = np.ones(len(ratios) + 1)
    p[mode + 1 :] = np.cumprod(ratios[mode:])
    p[:mode] = np.cumprod(1 / ratios[:mode][::-1])[::-1]
    return p / p.sum()
