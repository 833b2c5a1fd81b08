"""How sure a figure is: 95 % confidence intervals of proportions, means and areas under the curve.

Each says over which records it would vary: other patients of this hold-out's population. None says
anything of another hospital's patients.
"""

import math
from collections.abc import Callable

import numpy as np

from p2pfed.training.evaluation.binary import FloatArray, auc

CONFIDENCE_LEVEL = 0.95
NORMAL_QUANTILE = 1.959963984540054  # of the standard normal distribution at (1 + level) / 2
BISECTIONS = 60  # halves an interval of width 1 below the resolution of a float64

Interval = tuple[float, float]


def wilson_interval(successes: int, trials: int) -> Interval:
    """The score interval of a proportion.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22
    (1927); recommended over the textbook interval by R. G. Newcombe, Two-sided confidence intervals
    for the single proportion, Statistics in Medicine 17 (1998).

    :raises ValueError: no trial, or successes that are not among them.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials")
    z2 = NORMAL_QUANTILE**2
    share = successes / trials
    centre = share + z2 / (2 * trials)
    spread = NORMAL_QUANTILE * math.sqrt((share * (1 - share) + z2 / (4 * trials)) / trials)
    low, high = ((centre - spread) / (1 + z2 / trials), (centre + spread) / (1 + z2 / trials))
    return max(0.0, low), min(1.0, high)


def mean_interval(values: FloatArray) -> Interval | None:
    """The interval of a mean by the central limit theorem; None for fewer than two values.

    :param values: shape (n,), one figure a record.
    """
    if values.size < 2:
        return None
    spread = NORMAL_QUANTILE * float(values.std(ddof=1)) / math.sqrt(values.size)
    mean = float(values.mean())
    return mean - spread, mean + spread


def auc_interval(labels: FloatArray, scores: FloatArray) -> Interval:
    """The interval of the area under the ROC curve.

    DeLong's variance on the logit scale, on which the interval stays within (0, 1): M. S. Pepe, The
    Statistical Evaluation of Medical Tests (2003), section 5.2. Where that variance is 0, as it is
    whenever the classes separate without error, Newcombe's interval instead: a hold-out of twenty
    that is told apart without error is no proof of an area of 1.

    :param labels: shape (n,), 0 or 1.
    :param scores: shape (n,); larger speaks for class 1.
    :raises ValueError: only one class.
    """
    area = auc(labels, scores)
    variance = delong_variance(labels, scores)
    if variance is None or variance <= 0.0 or not 0.0 < area < 1.0:
        positives = int((labels == 1).sum())
        return newcombe_auc_interval(area, positives, labels.size - positives)
    spread = NORMAL_QUANTILE * math.sqrt(variance) / (area * (1 - area))
    logit = math.log(area / (1 - area))
    return _logistic(logit - spread), _logistic(logit + spread)


def delong_variance(labels: FloatArray, scores: FloatArray) -> float | None:
    """The variance of the area under the ROC curve; None with fewer than two of a class.

    E. R. DeLong et al., Comparing the areas under two or more correlated receiver operating
    characteristic curves, Biometrics 44 (1988), from mid-ranks as in X. Sun and W. Xu, Fast
    implementation of DeLong's algorithm, IEEE Signal Processing Letters 21 (2014): O(n log n).

    :param labels: shape (n,), 0 or 1.
    :param scores: shape (n,).
    """
    positive = labels == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if m < 2 or n < 2:
        return None
    ranks = midranks(scores)  # among all records
    # The share of the other class that each record stands on the right side of.
    of_positives = (ranks[positive] - midranks(scores[positive])) / n  # (m,)
    of_negatives = 1.0 - (ranks[~positive] - midranks(scores[~positive])) / m  # (n,)
    return float(of_positives.var(ddof=1) / m + of_negatives.var(ddof=1) / n)


def midranks(values: FloatArray) -> FloatArray:
    """Ranks from 1, ties sharing their mean rank; shape (n,) as ``values``."""
    _, tie, ties = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(ties) - (ties - 1) / 2)[tie], np.float64)


def newcombe_auc_interval(area: float, positives: int, negatives: int) -> Interval:
    """The score interval of an area under the ROC curve from the numbers of each class alone.

    The areas that lie no further from ``area`` than their own standard error allows, with Hanley
    and McNeil's variance under exponential scores and both classes given their mean size: R. G.
    Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic,
    part 2, Statistics in Medicine 25 (2006), method 5.

    :raises ValueError: a class without a record.
    """
    if positives < 1 or negatives < 1:
        raise ValueError("the area under the ROC curve needs both classes")

    def fits(candidate: float) -> bool:
        variance = _hanley_mcneil_variance(candidate, positives, negatives)
        return abs(area - candidate) <= NORMAL_QUANTILE * math.sqrt(variance)

    return _last_that_fits(area, 0.0, fits), _last_that_fits(area, 1.0, fits)


def _hanley_mcneil_variance(area: float, positives: int, negatives: int) -> float:
    mean_size = (positives + negatives) / 2 - 1
    return (
        area
        * (1 - area)
        * (1 + mean_size * ((1 - area) / (2 - area) + area / (1 + area)))
        / (positives * negatives)
    )


def _last_that_fits(inside: float, outside: float, fits: Callable[[float], bool]) -> float:
    """Where a condition that holds at ``inside`` ends on the way to ``outside``."""
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        if fits(middle):
            inside = middle
        else:
            outside = middle
    return inside


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
