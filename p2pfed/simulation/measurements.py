"""What a simulation is judged by: figures of each round, over the honest sites."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pfed.simulation.learning import Learner

Vector = npt.NDArray[np.float32]
EVALUATED_AT_ONCE = 512  # models


@dataclass(slots=True)
class _Sums:
    """Of the models committed in one round: enough for the consensus distance."""

    count: int
    models: npt.NDArray[np.float64]
    squares: float
    last_seconds: float


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """One round. ``consensus_distance`` is the mean squared distance of the honest models to
    their mean, over the mean's squared norm; accuracies are None where they were not taken."""

    round_number: int
    sites: int
    seconds: float
    consensus_distance: float
    mean_accuracy: float | None
    worst_accuracy: float | None
    worst_site: str | None


class Measurements:
    """Collects the models that honest sites commit.

    :param evaluate_every: rounds between two evaluations.
    """

    def __init__(self, learner: Learner, evaluate_every: int) -> None:
        self._learner = learner
        self._every = evaluate_every
        self._sums: dict[int, _Sums] = {}
        self._waiting: list[tuple[int, str, Vector]] = []
        self._accuracy: dict[int, dict[str, float]] = {}

    def committed(self, site: str, round_number: int, model: Vector, now: float) -> None:
        """Take the model with which a site ended a round; one that it ended before is ignored."""
        wide = model.astype(np.float64)
        sums = self._sums.setdefault(round_number, _Sums(0, np.zeros_like(wide), 0.0, 0.0))
        sums.count += 1
        sums.models += wide
        sums.squares += float(wide @ wide)
        sums.last_seconds = now
        if round_number % self._every == 0:
            self.evaluate(site, round_number, model)

    def evaluate(self, site: str, round_number: int, model: Vector) -> None:
        """Take the accuracy of a model as that of the round."""
        self._waiting.append((round_number, site, model))
        if len(self._waiting) >= EVALUATED_AT_ONCE:
            self._work_off()

    def _work_off(self) -> None:
        if not self._waiting:
            return
        accuracies = self._learner.accuracy(np.stack([model for _, _, model in self._waiting]))
        for (round_number, site, _), accuracy in zip(
            self._waiting, accuracies.tolist(), strict=True
        ):
            self._accuracy.setdefault(round_number, {})[site] = accuracy
        self._waiting.clear()

    def consensus_distance(self, round_number: int) -> float:
        sums = self._sums[round_number]
        mean = sums.models / sums.count
        norm = float(mean @ mean)
        return max(0.0, sums.squares / sums.count - norm) / norm if norm > 0.0 else 0.0

    def rounds(self) -> list[RoundFigures]:
        self._work_off()
        return [self._figures(number) for number in sorted(self._sums)]

    def _figures(self, number: int) -> RoundFigures:
        sums, accuracy = self._sums[number], self._accuracy.get(number)
        worst = min(accuracy, key=lambda site: (accuracy[site], site)) if accuracy else None
        return RoundFigures(
            number,
            sums.count,
            sums.last_seconds,
            self.consensus_distance(number),
            _mean(list(accuracy.values())) if accuracy else None,
            accuracy[worst] if accuracy and worst else None,
            worst,
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
