"""Figures of an attack, each with an interval."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from p2pfed.training.evaluation.binary import auc

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CONFIDENCE = 0.95
RESAMPLES = 400


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval in which it lies with ``confidence``."""

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE


def true_positive_rate(scores: FloatArray, inside: BoolArray, false_positive_rate: float) -> float:
    """The share of members that score above all but so many of the others.

    :param scores: shape (n,); higher: rather a member.
    :raises ValueError: only members, or none.
    """
    members, others = scores[inside], np.sort(scores[~inside])
    if not members.size or not others.size:
        raise ValueError("a rate needs members and others")
    allowed = int(np.floor(others.size * false_positive_rate))
    return float(np.mean(members > others[others.size - 1 - allowed]))


def area(scores: FloatArray, inside: BoolArray) -> float:
    """The area under the ROC curve; 0.5: chance."""
    return auc(inside.astype(np.float64).ravel(), scores.ravel())


def two_way_bootstrap(
    figure: Callable[[FloatArray, BoolArray], float],
    scores: FloatArray,
    inside: BoolArray,
    generator: np.random.Generator,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """A figure of ``scores`` with a percentile interval, for which rows and columns are both drawn
    again with replacement: cells of one model, and of one record, depend on each other (Owen,
    *The pigeonhole bootstrap*, Annals of Applied Statistics 1 (2007)).

    :param scores: shape (models, records).
    :param inside: likewise.
    """
    rows, columns = scores.shape
    found = []
    for _ in range(RESAMPLES):
        row, column = generator.integers(rows, size=rows), generator.integers(columns, size=columns)
        cells = np.ix_(row, column)
        drawn = inside[cells]
        if drawn.any() and not drawn.all():
            found.append(figure(scores[cells].ravel(), drawn.ravel()))
    return _estimate(figure(scores.ravel(), inside.ravel()), found, confidence)


def mean_interval(values: FloatArray, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of ``values``, shape (n,) with n > 1, with Student's interval."""
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / float(np.sqrt(values.size))
    reach = error * float(student.ppf((1.0 + confidence) / 2.0, values.size - 1))
    return Estimate(mean, mean - reach, mean + reach, confidence)


def _estimate(value: float, resampled: list[float], confidence: float) -> Estimate:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high), confidence)
