"""Whether a metric fell, and not by chance, from what the same site had reached before.

A control chart of a site's own history. Its exponentially weighted moving average (S. W. Roberts,
Control chart tests based on geometric moving averages, Technometrics 1 (1959)) is compared with the
best that it has been. The noise of a single round comes from the median of the moving ranges, which
a slow rise during training and a single jump leave as it is (P. C. Clifford, Control charts without
calculations, Industrial Quality Control 15 (1959)). The best of T averages lies up to
sqrt(2 ln T) of their standard deviations above their mean by chance alone; the limit is four
further below.

The hold-out is the same in every round, so its own chance is not in that noise: a fall that the
chart finds is real on these records. Whether it would be one on others, the confidence interval of
the best round says.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from p2pfed.report.metric_names import Direction

SMOOTHING = 0.2  # weight of the newest round; Roberts recommends small ones for small shifts
# Three, as usual, would alarm in every eighth history of 200 rounds in which nothing happens:
# benchmarks/intervals.py.
LIMIT_SIGMAS = 4.0
MEDIAN_RANGE_PER_SIGMA = 0.954  # of the difference of two normal variables
# Until then the first value still weighs more in the average than its share, and fewer say too
# little of the noise.
WARM_UP_ROUNDS = 10
NOISE_ROUNDS = 100  # newest rounds from which the noise is taken
MIN_RELATIVE_NOISE = 0.005  # of the best: what does not move at all has no noise to compare with


@dataclass(frozen=True, slots=True)
class Observation:
    """A metric after one round; ``interval`` is its 95 % confidence interval, where known."""

    round_number: int
    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """A metric that fell beyond noise.

    :ivar since_round: the first round from which on the average lies beyond ``limit``.
    :ivar best_round: when the average was best.
    :ivar best: the average then; ``now`` is the present one.
    :ivar beyond_interval: ``now`` also lies beyond the confidence interval of the best round; None
        where that has none.
    """

    metric: str
    since_round: int
    best_round: int
    best: float
    now: float
    limit: float
    beyond_interval: bool | None

    @property
    def alarming(self) -> bool:
        """Whether it would be a fall on other records too, as far as is known."""
        return self.beyond_interval is not False


def find_drift(metric: str, history: Sequence[Observation], direction: Direction) -> Drift | None:
    """The fall that the metric is in now; None where there is none, or too little to tell.

    :param history: finite values, the oldest first.
    :param direction: a metric of unknown direction never drifts.
    """
    if len(history) <= WARM_UP_ROUNDS or direction == "unknown":
        return None
    sign = 1.0 if direction == "higher" else -1.0
    values = [sign * seen.value for seen in history]
    averages = moving_averages(values)
    best = max(range(WARM_UP_ROUNDS - 1, len(averages)), key=averages.__getitem__)
    noise = max(_noise(values[-NOISE_ROUNDS:]), MIN_RELATIVE_NOISE * abs(averages[best]))
    # Roberts: in the long run the average has this share of a value's standard deviation.
    spread = noise * math.sqrt(SMOOTHING / (2 - SMOOTHING))
    limit = averages[best] - (LIMIT_SIGMAS + math.sqrt(2 * math.log(len(values)))) * spread
    if averages[-1] >= limit:
        return None
    since = max(at for at in range(len(averages)) if averages[at] >= limit) + 1
    return Drift(
        metric=metric,
        since_round=history[since].round_number,
        best_round=history[best].round_number,
        best=sign * averages[best],
        now=sign * averages[-1],
        limit=sign * limit,
        beyond_interval=_beyond(history[best].interval, sign * averages[-1], direction),
    )


def moving_averages(values: Sequence[float]) -> list[float]:
    """The exponentially weighted moving average after each value, beginning with the first."""
    averages = [values[0]]
    for value in values[1:]:
        averages.append(SMOOTHING * value + (1 - SMOOTHING) * averages[-1])
    return averages


def _noise(values: Sequence[float]) -> float:
    ranges = [abs(later - earlier) for earlier, later in itertools.pairwise(values)]
    return statistics.median(ranges) / MEDIAN_RANGE_PER_SIGMA


def _beyond(
    interval: tuple[float, float] | None, value: float, direction: Direction
) -> bool | None:
    if interval is None:
        return None
    return bool(value < interval[0] if direction == "higher" else value > interval[1])
