"""Whether a predicted probability means what it says: of a hundred patients who are given a risk of
20 %, do twenty have the disease?

B. Van Calster et al., Calibration: the Achilles heel of predictive analytics, BMC Medicine 17
(2019) says what to report.
"""

import math
from dataclasses import dataclass

import numpy as np

from p2pfed.training.evaluation.binary import FloatArray
from p2pfed.training.evaluation.intervals import NORMAL_QUANTILE, Interval, mean_interval

MAX_BINS = 10
MIN_RECORDS_PER_BIN = 5
MAX_LOG_ODDS = 30.0  # beyond it a probability is 0 or 1 to float64, and the fit below has no slope
NEWTON_STEPS = 50
NEWTON_TOLERANCE = 1e-10
MAX_SLOPE = 1e3  # a slope that grows beyond is that of classes which a score separates


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The records of a range of predictions: their mean prediction, and how many were class 1."""

    mean_probability: float
    observed_share: float
    records: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Figures by name, their intervals where they have one, and the reliability curve."""

    figures: dict[str, float]
    intervals: dict[str, Interval]
    bins: tuple[ReliabilityBin, ...]


def calibration_of(labels: FloatArray, scores: FloatArray) -> Calibration:
    """``brier``, ``expected_calibration_error``, ``calibration_intercept``, ``calibration_slope``.

    The last two are left out where they do not exist: with one class alone, equal scores, or scores
    that tell the classes apart without error.

    :param labels: shape (n,), 0 or 1, n >= 1.
    :param scores: shape (n,), log-odds of class 1.
    """
    squares = (probabilities(scores) - labels) ** 2  # (n,)
    bins = reliability_bins(labels, scores)
    figures = {
        "brier": float(squares.mean()),
        "expected_calibration_error": expected_calibration_error(bins),
    }
    intervals: dict[str, Interval] = {}
    brier_interval = mean_interval(squares)
    if brier_interval is not None:
        intervals["brier"] = (max(0.0, brier_interval[0]), min(1.0, brier_interval[1]))
    for name, fit in (
        ("calibration_intercept", calibration_in_the_large(labels, scores)),
        ("calibration_slope", calibration_slope(labels, scores)),
    ):
        if fit is not None:
            figures[name] = fit.value
            intervals[name] = fit.interval
    return Calibration(figures, intervals, bins)


def probabilities(scores: FloatArray) -> FloatArray:
    """The probability of class 1 of log-odds ``scores``, shape (n,)."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -scores)), np.float64)


def reliability_bins(labels: FloatArray, scores: FloatArray) -> tuple[ReliabilityBin, ...]:
    """Bins of about as many records each, equal predictions together, the smallest first.

    Bins of equal width leave most records in two of them where a disease is rare, and the error of
    the rest is noise: R. Roelofs et al., Mitigating bias in calibration error estimation, AISTATS
    2022, finds those of equal mass less biased.
    """
    count = max(1, min(MAX_BINS, labels.size // MIN_RECORDS_PER_BIN))
    predicted = probabilities(scores)
    edges = np.quantile(predicted, np.linspace(0, 1, count + 1)[1:-1], method="higher")
    places = np.searchsorted(edges, predicted, side="right")  # (n,)
    return tuple(
        ReliabilityBin(float(predicted[inside].mean()), float(labels[inside].mean()), int(size))
        for place in range(count)
        if (size := (inside := places == place).sum())
    )


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """The mean distance of prediction and outcome over bins, each weighing its records.

    M. P. Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.
    Biased upwards on few records, where a perfect model has an error too.
    """
    records = sum(one.records for one in bins)
    return math.fsum(
        one.records / records * abs(one.observed_share - one.mean_probability) for one in bins
    )


@dataclass(frozen=True, slots=True)
class Fit:
    """An estimate by maximum likelihood with its Wald interval."""

    value: float
    interval: Interval


def calibration_in_the_large(labels: FloatArray, scores: FloatArray) -> Fit | None:
    """The constant a in logit P(y = 1) = a + score; 0 where the mean prediction is right.

    Above 0 the model predicts too little disease. None where all labels are alike.

    :param labels: shape (n,), 0 or 1.
    :param scores: shape (n,), log-odds of class 1.
    """
    if not 0 < labels.sum() < labels.size:
        return None
    offset = np.clip(scores, -MAX_LOG_ODDS, MAX_LOG_ODDS)
    fitted = _logistic_regression(np.ones((labels.size, 1)), labels, offset)
    return _fit(fitted, 0)


def calibration_slope(labels: FloatArray, scores: FloatArray) -> Fit | None:
    """The slope b in logit P(y = 1) = a + b * score; 1 where the spread of predictions is right.

    Below 1 they are too extreme, as those of an overfitted model are. D. R. Cox, Two further
    applications of a model for binary regression, Biometrika 45 (1958). None where it does not
    exist: all labels or all scores alike, or classes that the scores separate.

    :param labels: shape (n,), 0 or 1.
    :param scores: shape (n,), log-odds of class 1.
    """
    if not 0 < labels.sum() < labels.size or np.ptp(scores) == 0.0:
        return None
    clipped = np.clip(scores, -MAX_LOG_ODDS, MAX_LOG_ODDS)
    positive, negative = clipped[labels == 1], clipped[labels == 0]
    if positive.min() >= negative.max() or positive.max() <= negative.min():
        return None
    design = np.column_stack([np.ones(labels.size), clipped])  # (n, 2)
    return _fit(_logistic_regression(design, labels, np.zeros(labels.size)), 1)


def _fit(fitted: tuple[FloatArray, FloatArray] | None, index: int) -> Fit | None:
    if fitted is None:
        return None
    value = float(fitted[0][index])
    spread = NORMAL_QUANTILE * math.sqrt(float(fitted[1][index, index]))
    return Fit(value, (value - spread, value + spread))


def _logistic_regression(
    design: FloatArray, labels: FloatArray, offset: FloatArray
) -> tuple[FloatArray, FloatArray] | None:
    """Coefficients, shape (k,), and their covariance, shape (k, k), by Newton's method.

    :param design: shape (n, k).
    :param offset: shape (n,); added to the linear predictor with a coefficient of 1.
    :returns: None where it does not converge.
    """

    def loss(values: FloatArray) -> float:
        linear = offset + design @ values
        return float(np.sum(np.logaddexp(0.0, linear) - labels * linear))

    values = np.zeros(design.shape[1])
    for _ in range(NEWTON_STEPS):
        predicted = probabilities(offset + design @ values)
        gradient = design.T @ (labels - predicted)
        information = design.T @ (design * (predicted * (1 - predicted))[:, None])
        try:
            step = np.linalg.solve(information, gradient)
        except np.linalg.LinAlgError:
            return None
        # The likelihood is concave: a step that worsens it only went too far.
        before = loss(values)
        while loss(values + step) > before + NEWTON_TOLERANCE:
            step /= 2
        values = values + step
        if np.abs(values).max() > MAX_SLOPE:
            return None
        if np.abs(step).max() < NEWTON_TOLERANCE:
            return values, np.asarray(np.linalg.inv(information), np.float64)
    return None
