"""How often the confidence intervals cover what they should, and how fast drift is found.

    python benchmarks/intervals.py

Coverage: hold-outs are drawn from a population of normal scores with a known area under the curve,
accuracy and mean loss; an interval of 95 % should hold the population's figure in 95 of 100
hold-outs. Textbook intervals (Hanley and McNeil's for the area, Wald's for a share) stand beside.

Drift: a metric of known noise, which falls after round 200 or does not; the share of histories with
an alarm in 200 rounds without a fall, and the rounds from a fall to the alarm.
"""

import argparse
import math
from statistics import NormalDist

import numpy as np

from p2pfed.report.drift import Observation, find_drift
from p2pfed.training.evaluation.binary import FloatArray, auc, log_losses
from p2pfed.training.evaluation.intervals import (
    NORMAL_QUANTILE,
    Interval,
    auc_interval,
    mean_interval,
    wilson_interval,
)

POPULATION = 2_000_000
STEADY_ROUNDS = 200


def hold_out(
    generator: np.random.Generator, positives: int, negatives: int, shift: float
) -> tuple[FloatArray, FloatArray]:
    """Labels and scores; class 1 scores higher by ``shift`` standard deviations."""
    labels = np.repeat([1.0, 0.0], [positives, negatives])
    return labels, generator.normal(size=labels.size) + shift * (labels - 0.5)


def hanley_mcneil(area: float, positives: int, negatives: int) -> Interval:
    """Hanley and McNeil, Radiology 143 (1982)."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positives - 1) * (q1 - area**2)
    variance += (negatives - 1) * (q2 - area**2)
    spread = NORMAL_QUANTILE * math.sqrt(variance / (positives * negatives))
    return area - spread, area + spread


def wald(share: float, trials: int) -> Interval:
    spread = NORMAL_QUANTILE * math.sqrt(share * (1 - share) / trials)
    return share - spread, share + spread


def coverage(
    area: float, positives: int, negatives: int, draws: int, seed: int
) -> dict[str, float]:
    """By interval, the share of hold-outs in which it holds the population's figure."""
    shift = math.sqrt(2) * NormalDist().inv_cdf(area)  # area = Phi(shift / sqrt 2)
    share = NormalDist().cdf(shift / 2)
    generator = np.random.default_rng(seed)
    prevalence = positives / (positives + negatives)
    large = round(POPULATION * prevalence)
    mean_loss = float(log_losses(*hold_out(generator, large, POPULATION - large, shift)).mean())
    held = dict.fromkeys(("auc", "auc, Hanley", "accuracy", "accuracy, Wald", "loss"), 0)
    for _ in range(draws):
        labels, scores = hold_out(generator, positives, negatives, shift)
        records = labels.size
        right = int(((scores > 0) == (labels == 1)).sum())
        found = auc(labels, scores)
        for name, truth, interval in (
            ("auc", area, auc_interval(labels, scores)),
            ("auc, Hanley", area, hanley_mcneil(found, positives, negatives)),
            ("accuracy", share, wilson_interval(right, records)),
            ("accuracy, Wald", share, wald(right / records, records)),
            ("loss", mean_loss, mean_interval(log_losses(labels, scores))),
        ):
            held[name] += interval is not None and interval[0] <= truth <= interval[1]
    return {name: count / draws for name, count in held.items()}


def drift(fall: float, histories: int, seed: int) -> tuple[float, float]:
    """The share of histories with an alarm before the fall, and the mean rounds from it to one.

    :param fall: of the metric, in standard deviations of a round's noise.
    """
    generator = np.random.default_rng(seed)
    early, delays = 0, []
    for _ in range(histories):
        noise = generator.normal(size=2 * STEADY_ROUNDS) * 0.01
        values = [
            0.8 + float(one) - (0.01 * fall if at >= STEADY_ROUNDS else 0.0)
            for at, one in enumerate(noise)
        ]
        seen = [Observation(at, value) for at, value in enumerate(values)]
        alarms = (end for end in range(1, len(seen)) if find_drift("auc", seen[:end], "higher"))
        first = next(alarms, None)
        if first is not None and first <= STEADY_ROUNDS:
            early += 1
        elif first is not None:
            delays.append(first - STEADY_ROUNDS)
    return early / histories, float(np.mean(delays)) if delays else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of intervals, and drift.")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--histories", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("area  records  auc   Hanley  accuracy  Wald  loss")
    for area in (0.75, 0.9, 0.97):
        for positives, negatives in ((10, 10), (15, 45), (100, 100)):
            found = coverage(area, positives, negatives, options.draws, options.seed)
            figures = "  ".join(f"{100 * value:5.1f}" for value in found.values())
            print(f"{area:.2f}  {positives:3d}+{negatives:<3d}  {figures}")
    print("\nfall (deviations)  false alarms in 200 rounds  rounds to the alarm")
    for fall in (2.0, 3.0, 5.0):
        early, delay = drift(fall, options.histories, options.seed)
        print(f"{fall:.0f}  {100 * early:5.1f} %  {delay:.1f}")


if __name__ == "__main__":
    main()
