"""A lower bound on epsilon from one training run.

Steinke, Nasr, Jagielski, *Privacy Auditing with One (1) Training Run* (NeurIPS 2023,
arXiv:2305.08846). Each of m canaries takes part or not by a fair coin; who sees the result says
of some of them whether they took part, and is silent on the others. Under (epsilon, delta)
differential privacy, for canaries added or removed, their theorem 5.2 bounds how likely v or more
of r guesses are right:

    P[W >= v] <= f(v) + 2 m delta max_{1 <= i <= v} (f(v - i) - f(v)) / i,
    f(v) = P[Binomial(r, e^epsilon / (e^epsilon + 1)) >= v].

An epsilon under which that is less than 1 - confidence is refuted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

MAX_EPSILON = 64.0  # beyond it a bound is not looked for
_BISECTIONS = 40


@dataclass(frozen=True)
class Guessing:
    """Which canaries are guessed, as shares of all: the highest scores "in", the lowest "out"."""

    highest: float
    lowest: float


# Settled before any score is seen; a bound that takes the best of them pays for each.
GUESSINGS: tuple[Guessing, ...] = (
    Guessing(0.5, 0.5),
    Guessing(0.3, 0.0),
    Guessing(0.1, 0.0),
    Guessing(0.05, 0.0),
)


@dataclass(frozen=True)
class EpsilonBound:
    """``epsilon`` or more is spent, with ``confidence``; shown by ``correct`` of ``guesses``
    about ``canaries``."""

    epsilon: float
    confidence: float
    canaries: int
    guesses: int
    correct: int


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely so many correct guesses are at most, if the training is (epsilon, delta)-DP.

    :param epsilon: at least 0.
    :param delta: 0 to 1.
    :raises ValueError: not 0 <= correct <= guesses <= canaries.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} of {guesses} guesses about {canaries} canaries")
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, chance))
    steepest = 0.0
    if delta and correct:
        # f(v - i) - f(v) = P[v - i <= Binomial < v], for i = 1 .. v
        below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance))
        steepest = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, tail + 2.0 * canaries * delta * steepest)


def epsilon_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> float:
    """The largest epsilon that so many correct guesses refute; 0.0 where they refute none.

    :param confidence: probability, 0.5 to 1, that the bound holds.
    """
    allowed = 1.0 - confidence

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon, delta) < allowed

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        if high >= MAX_EPSILON:
            return MAX_EPSILON
        low, high = high, 2.0 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def audit_scores(
    scores: NDArray[np.float64],
    inside: NDArray[np.bool_],
    delta: float,
    confidence: float,
    guessings: Sequence[Guessing] = GUESSINGS,
) -> EpsilonBound:
    """The best bound over ``guessings``, each at so much more confidence that together they hold
    with ``confidence`` (Bonferroni).

    :param scores: shape (m,); higher: rather took part. Ties are broken by position, which the
        coins know nothing of.
    :param inside: shape (m,), which canaries took part.
    """
    canaries = scores.size
    each = 1.0 - (1.0 - confidence) / len(guessings)
    order = np.argsort(scores, kind="stable")
    best: EpsilonBound | None = None
    for guessing in guessings:
        low, high = int(canaries * guessing.lowest), int(canaries * guessing.highest)
        correct = int(np.sum(~inside[order[:low]])) + int(np.sum(inside[order[canaries - high :]]))
        guesses = low + high
        epsilon = epsilon_lower_bound(canaries, guesses, correct, delta, each)
        if best is None or epsilon > best.epsilon:
            best = EpsilonBound(epsilon, confidence, canaries, guesses, correct)
    assert best is not None, "there is a guessing"  # noqa: S101
    return best
