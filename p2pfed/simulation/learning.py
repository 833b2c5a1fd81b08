"""Local training on request, for many sites at once.

A request is worked off when the first result is wanted, together with all that wait then: one
batched call instead of one a site. What a site learns does not depend on who is in the batch.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float32]


class Learner(Protocol):
    """Trains and judges models of many sites; a row of a matrix is a site's vector."""

    dimension: int

    def genesis(self) -> Vector:
        """The model that all start from, shape (d,)."""

    def train(
        self,
        peers: Sequence[int],
        models: Matrix,
        momentum: Matrix,
        round_numbers: Sequence[int],
        local_steps: int,
    ) -> tuple[Matrix, Matrix]:
        """Models and momentum after the local steps, shape (p, d) each."""

    def accuracy(self, models: Matrix) -> npt.NDArray[np.float64]:
        """The share of the test records that each model gets right, shape (p,)."""


class Learning:
    """Requests for local training, by number."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._count = 0
        self._waiting: dict[int, tuple[int, int, int, Vector, Vector]] = {}
        self._done: dict[int, tuple[Vector, Vector]] = {}

    def request(
        self, peer: int, round_number: int, local_steps: int, model: Vector, momentum: Vector
    ) -> int:
        """Ask for a round of training; neither vector may change after."""
        self._count += 1
        self._waiting[self._count] = (peer, round_number, local_steps, model, momentum)
        return self._count

    def result(self, number: int) -> tuple[Vector, Vector]:
        """The trained model and its momentum; to be taken once."""
        if number not in self._done:
            self._work_off(self._waiting[number][2])
        return self._done.pop(number)

    def errors(self, *models: Vector) -> list[float]:
        """The share of the test records that each gets wrong."""
        return [1.0 - float(share) for share in self._learner.accuracy(np.stack(models))]

    def forget(self, number: int) -> None:
        """The result is not wanted any more."""
        self._waiting.pop(number, None)
        self._done.pop(number, None)

    def _work_off(self, local_steps: int) -> None:
        batch = {
            number: request
            for number, request in self._waiting.items()
            if request[2] == local_steps
        }
        trained, momentum = self._learner.train(
            [request[0] for request in batch.values()],
            np.stack([request[3] for request in batch.values()]),
            np.stack([request[4] for request in batch.values()]),
            [request[1] for request in batch.values()],
            local_steps,
        )
        for row, number in enumerate(batch):
            del self._waiting[number]
            # Copies: a row would keep the whole batch in memory.
            self._done[number] = (trained[row].copy(), momentum[row].copy())
