"""Falls beyond noise, and numbers of records as ranges."""

import math

import numpy as np
import pytest

from p2pfed.report.buckets import bucket, words
from p2pfed.report.drift import (
    SMOOTHING,
    WARM_UP_ROUNDS,
    Observation,
    find_drift,
    moving_averages,
)
from p2pfed.report.metric_names import direction

Interval = tuple[float, float]


def history(values: list[float], interval: Interval | None = None) -> list[Observation]:
    return [Observation(at, value, interval) for at, value in enumerate(values)]


def noisy(levels: list[float], seed: int, scale: float = 0.01) -> list[float]:
    return list(
        np.array(levels) + np.random.default_rng(seed).normal(scale=scale, size=len(levels))
    )


def test_the_moving_average_by_hand() -> None:
    assert SMOOTHING == 0.2
    assert moving_averages([1.0, 0.0, 1.0]) == pytest.approx([1.0, 0.8, 0.84])


def test_the_limit_by_hand() -> None:
    # Alternating by .02: every moving range is .02, so a round's deviation is .02 / .954, and the
    # average's a third of it. Then the last four rounds fall by .3.
    values = [0.80, 0.82] * 10 + [0.50] * 4
    found = find_drift("auc", history(values), "higher")
    assert found is not None
    averages = moving_averages(values)
    best = max(averages)
    spread = 0.02 / 0.954 / 3
    assert found.limit == pytest.approx(best - (4 + math.sqrt(2 * math.log(24))) * spread)
    assert found.best == pytest.approx(best)
    assert found.now == pytest.approx(averages[-1])
    # Already the first of the low rounds takes the average below the limit.
    assert averages[19] > found.limit > averages[20]
    assert found.since_round == 20


def test_noise_alone_is_no_drift() -> None:
    alarms = [
        find_drift("auc", history(noisy([0.8] * 300, seed)[:end]), "higher") is not None
        for seed in range(20)
        for end in range(20, 301, 40)
    ]
    assert sum(alarms) <= 1


def test_training_that_still_improves_is_no_drift() -> None:
    levels = [0.9 - 0.4 * 0.9**at for at in range(100)]
    assert find_drift("auc", history(noisy(levels, seed=1)), "higher") is None
    losses = [0.3 + 0.4 * 0.9**at for at in range(100)]
    assert find_drift("loss", history(noisy(losses, seed=2)), "lower") is None


def test_a_fall_is_found_within_a_few_rounds_for_either_direction() -> None:
    for way, low in (("higher", 0.75), ("lower", 0.85)):
        values = noisy([0.8] * 60 + [low] * 10, seed=3)
        found = find_drift("metric", history(values), way)  # type: ignore[arg-type]
        assert found is not None
        assert 60 <= found.since_round <= 66
        assert found.best_round < 60


def test_a_rise_again_ends_it() -> None:
    values = noisy([0.8] * 40 + [0.6] * 10 + [0.8] * 30, seed=4)
    assert find_drift("auc", history(values[:50]), "higher") is not None
    assert find_drift("auc", history(values), "higher") is None


def test_the_interval_says_whether_other_records_would_show_it() -> None:
    values = noisy([0.8] * 40 + [0.7] * 15, seed=5)
    judged = [
        find_drift("auc", history(values, interval), "higher")
        for interval in ((0.78, 0.82), (0.6, 0.9), None)
    ]
    assert [found.beyond_interval for found in judged if found] == [True, False, None]
    assert [found.alarming for found in judged if found] == [True, False, True]


def test_too_short_a_history_and_a_metric_of_unknown_direction_say_nothing() -> None:
    values = [0.8] * (WARM_UP_ROUNDS - 1) + [0.1]
    assert find_drift("auc", history(values), "higher") is None
    assert find_drift("auc", history([*values, 0.1]), "higher") is not None
    assert find_drift("auc", history([*values, 0.1]), "unknown") is None


def test_the_direction_of_a_metric() -> None:
    assert direction("auc") == direction("personal_dice") == "higher"
    assert direction("personal_loss") == "lower"
    assert direction("share_of_positives") == "unknown"


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(0, 0, 10), (9, 0, 10), (10, 10, 20), (19, 10, 20), (20, 20, 50), (50, 50, 100),
     (99, 50, 100), (100, 100, 200), (499, 200, 500), (5856, 5000, 10_000)],
)  # fmt: skip
def test_buckets(count: int, low: int, high: int) -> None:
    assert bucket(count) == (low, high)


def test_buckets_in_words() -> None:
    assert words((0, 10)) == "fewer than 10"
    assert words((200, 500)) == "200 to 499"
    with pytest.raises(ValueError, match="records"):
        bucket(-1)
