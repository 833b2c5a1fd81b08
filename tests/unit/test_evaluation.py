"""Figures of predictions: their intervals and their calibration, against known cases."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pfed.training.evaluation.assessment import assess
from p2pfed.training.evaluation.binary import Predictions, binary_metrics
from p2pfed.training.evaluation.bootstrap import RESAMPLES, bootstrap_intervals
from p2pfed.training.evaluation.calibration import (
    calibration_in_the_large,
    calibration_of,
    calibration_slope,
    expected_calibration_error,
    probabilities,
    reliability_bins,
)
from p2pfed.training.evaluation.intervals import (
    NORMAL_QUANTILE,
    auc_interval,
    delong_variance,
    mean_interval,
    newcombe_auc_interval,
    wilson_interval,
)


def cohort(records: int, seed: int, strength: float = 1.0) -> Predictions:
    """Labels drawn with the probabilities that ``strength`` times the score claims."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(-0.5, 1.5, records)
    labels = (generator.random(records) < probabilities(strength * scores)).astype(np.float64)
    return Predictions(labels, scores)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
     (1, 29, 0.0061, 0.1718)],
)  # fmt: skip
def test_wilson_gives_the_published_intervals(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_refuses_what_is_no_proportion() -> None:
    for successes, trials in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="trials"):
            wilson_interval(successes, trials)


def test_delong_by_hand() -> None:
    # Positives 3, 2, 1 and negatives 2, 0. Each positive's share of negatives below it, a tie half:
    # 1, 3/4, 1/2. Each negative's share of positives above it: 1/2, 1. Their variances are 1/16
    # and 1/8; 1/16 / 3 + 1/8 / 2 = 1/12.
    labels = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    scores = np.array([3.0, 2.0, 1.0, 2.0, 0.0])
    assert delong_variance(labels, scores) == pytest.approx(1 / 12)
    spread = NORMAL_QUANTILE * math.sqrt(1 / 12) / (0.75 * 0.25)
    low, high = auc_interval(labels, scores)
    assert math.log(low / (1 - low)) == pytest.approx(math.log(3) - spread)
    assert math.log(high / (1 - high)) == pytest.approx(math.log(3) + spread)


def test_delong_is_the_variance_of_its_definition() -> None:
    labels, scores = cohort(80, seed=3)
    scores = np.round(scores, 1)  # with ties
    positive, negative = scores[labels == 1], scores[labels == 0]
    right = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)  # (m, n)
    by_definition = right.mean(1).var(ddof=1) / positive.size
    by_definition += right.mean(0).var(ddof=1) / negative.size
    assert delong_variance(labels, scores) == pytest.approx(by_definition)


def test_a_perfect_separation_is_no_certainty() -> None:
    labels = np.array([0.0] * 5 + [1.0] * 5)
    low, high = auc_interval(labels, np.arange(10.0))
    assert high == 1.0
    # Newcombe's condition holds with equality at the lower end.
    variance = low * (1 - low) * (1 + 4 * ((1 - low) / (2 - low) + low / (1 + low))) / 25
    assert 1 - low == pytest.approx(NORMAL_QUANTILE * math.sqrt(variance), abs=1e-9)
    assert 0.5 < low < 0.8
    assert auc_interval(labels, -np.arange(10.0)) == pytest.approx((0.0, 1 - low))


def test_one_record_of_a_class_still_has_an_interval() -> None:
    low, high = auc_interval(np.array([0.0, 0.0, 1.0, 0.0]), np.array([0.0, 1.0, 2.0, 3.0]))
    assert 0.0 < low < 2 / 3 < high < 1.0
    with pytest.raises(ValueError, match="both classes"):
        newcombe_auc_interval(0.5, 0, 4)


def test_the_auc_interval_covers_what_it_should() -> None:
    area = binary_metrics(*cohort(200_000, seed=0))["auc"]
    covered = [
        low <= area <= high
        for seed in range(200)
        for low, high in [auc_interval(*cohort(60, seed=1000 + seed))]
    ]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_the_interval_of_a_mean_by_hand() -> None:
    low, high = mean_interval(np.array([1.0, 2.0, 3.0])) or (0.0, 0.0)
    assert (high + low) / 2 == pytest.approx(2.0)
    assert (high - low) / 2 == pytest.approx(NORMAL_QUANTILE / math.sqrt(3))
    assert mean_interval(np.array([1.0])) is None


def test_the_calibration_error_by_hand() -> None:
    # Ten records in two bins of five: .2 predicted and 1 of 5 ill; .9 predicted and 3 of 5 ill.
    predicted = np.array([0.2] * 5 + [0.9] * 5)
    labels = np.array([1.0, 0, 0, 0, 0, 1, 1, 1, 0, 0])
    scores = np.log(predicted / (1 - predicted))
    bins = reliability_bins(labels, scores)
    assert [one.records for one in bins] == [5, 5]
    assert [one.observed_share for one in bins] == pytest.approx([0.2, 0.6])
    assert expected_calibration_error(bins) == pytest.approx(0.5 * 0.3)
    figures = calibration_of(labels, scores).figures
    assert figures["brier"] == pytest.approx((0.64 + 4 * 0.04 + 3 * 0.01 + 2 * 0.81) / 10)


def test_equal_predictions_share_a_bin_whatever_the_order_of_the_records() -> None:
    labels, scores = cohort(100, seed=5)
    scores = np.round(scores)
    order = np.random.default_rng(0).permutation(100)
    bins = reliability_bins(labels, scores)
    again = reliability_bins(labels[order], scores[order])
    assert [one.records for one in bins] == [one.records for one in again]
    for one, other in zip(bins, again, strict=True):
        assert one.observed_share == pytest.approx(other.observed_share)
    assert len({one.mean_probability for one in bins}) == len(bins) <= np.unique(scores).size
    assert sum(one.records for one in bins) == 100


def test_slope_and_intercept_find_what_a_score_was_distorted_by() -> None:
    labels, scores = cohort(50_000, seed=1, strength=0.5)  # twice as extreme as it should be
    slope = calibration_slope(labels, scores)
    assert slope is not None
    assert slope.interval[0] < 0.5 < slope.interval[1]
    assert slope.interval[1] - slope.interval[0] < 0.05
    labels, scores = cohort(50_000, seed=2)
    large = calibration_in_the_large(labels, scores - 0.7)  # predicts too little
    assert large is not None
    assert large.interval[0] < 0.7 < large.interval[1]


def test_the_intercept_by_hand() -> None:
    # Scores of 0 and one ill in four: the log-odds of 1/4 are log(1/3), with variance 1 / (n p q).
    fit = calibration_in_the_large(np.array([1.0, 0.0, 0.0, 0.0]), np.zeros(4))
    assert fit is not None
    assert fit.value == pytest.approx(math.log(1 / 3))
    assert fit.interval[1] - fit.value == pytest.approx(NORMAL_QUANTILE / math.sqrt(4 * 3 / 16))


def test_the_slope_agrees_with_an_independent_fit() -> None:
    from sklearn.linear_model import LogisticRegression

    labels, scores = cohort(300, seed=8)
    reference = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000)
    reference.fit(scores[:, None], labels)
    fit = calibration_slope(labels, scores)
    assert fit is not None
    assert fit.value == pytest.approx(float(reference.coef_[0, 0]), rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        ([0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 2.0, 3.0]),  # told apart without error
        ([0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 2.0]),  # but for a tie
        ([0.0, 1.0], [3.0, 3.0]),  # scores alike
        ([1.0, 1.0], [1.0, 2.0]),  # one class
    ],
)
def test_a_slope_that_does_not_exist_is_left_out(labels: list[float], scores: list[float]) -> None:
    calibration = calibration_of(np.array(labels), np.array(scores))
    assert "calibration_slope" not in calibration.figures
    assert math.isfinite(calibration.figures["brier"])


def test_extreme_scores_are_no_trouble() -> None:
    labels = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    scores = np.array([-900.0, 900.0, 900.0, -900.0, 0.5, -0.5])
    found = calibration_of(labels, scores)
    assert all(map(math.isfinite, found.figures.values()))
    half = 1 / (1 + math.exp(0.5))
    assert found.figures["brier"] == pytest.approx((2 + 2 * half**2) / 6)


def test_the_bootstrap_has_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(4).normal(size=400)
    found = bootstrap_intervals(lambda drawn: {"mean": float(drawn[0].mean())}, (values,))
    expected = mean_interval(values)
    assert expected is not None
    assert found["mean"] == pytest.approx(expected, abs=0.02)
    again = bootstrap_intervals(lambda drawn: {"mean": float(drawn[0].mean())}, (values,))
    assert again == found


def test_the_bootstrap_draws_within_classes_and_drops_figures_that_rarely_exist() -> None:
    labels = np.array([1.0] + [0.0] * 29)
    calls = 0

    def figures(drawn: tuple[NDArray[Any], ...]) -> Mapping[str, float]:
        nonlocal calls
        calls += 1
        assert drawn[0].sum() == 1
        return {"share": float(drawn[0].mean())} | ({"rare": 1.0} if calls % 3 == 0 else {})

    found = bootstrap_intervals(figures, (labels,), labels)
    assert calls == RESAMPLES
    assert set(found) == {"share"}
    assert bootstrap_intervals(figures, (labels[:3],)) == {}


class Plain:
    """Offers metrics alone."""


class Judged:
    """Its figures follow from its predictions."""

    def predictions(self, model: Any, batches: Any) -> Predictions:
        raise AssertionError("the caller has them")

    def figures(self, predictions: Any) -> Mapping[str, float]:
        labels, scores = predictions
        return {"sensitivity": float((scores[labels == 1] > 0).mean())}


def test_an_assessment_goes_with_the_metrics_it_belongs_to() -> None:
    predictions = cohort(120, seed=9)
    metrics = binary_metrics(*predictions)
    found = assess(Plain(), predictions, metrics)
    assert set(found.intervals) == {"auc", "accuracy", "loss", *found.calibration} - {
        "expected_calibration_error"
    }
    for name, (low, high) in found.intervals.items():
        assert low <= (metrics | found.calibration)[name] <= high
    other = assess(Plain(), predictions, {"auc": metrics["auc"] + 0.01, "accuracy": 0.0})
    assert other.intervals == other.calibration == {}
    assert other.bins == ()


def test_other_figures_get_theirs_from_the_bootstrap() -> None:
    predictions = cohort(120, seed=9)
    metrics = dict(Judged().figures(predictions))
    low, high = assess(Judged(), predictions, metrics).intervals["sensitivity"]
    assert low < metrics["sensitivity"] < high
    many = (np.arange(30.0), np.arange(30.0))
    assert assess(Plain(), many, {"error": 1.0}).intervals == {}
