"""The losses of a round's steps, looked at without making a GPU wait."""

import math

import torch

from p2pfed.errors import TrainingError

Loss = float | torch.Tensor
"""A step's loss: a number that was found finite, or a tensor () on a GPU that is yet to be seen."""


class RoundLosses:
    """Each step's loss, and where it arose.

    Asking a GPU for a number waits until it has done all that it was given, so losses stay there
    until somebody asks; then all that are new come in one transfer. A loss that is not finite is
    named with the step that it arose in, at the latest before the round has a result.
    """

    def __init__(self) -> None:
        self._seen: list[float] = []
        self._unseen: list[tuple[torch.Tensor, str]] = []

    def add(self, loss: Loss, place: str) -> None:
        """:param place: the step and its number of records, as a message shows it."""
        if isinstance(loss, torch.Tensor):
            self._unseen.append((loss.detach(), place))
        else:
            self._seen.append(loss)

    def latest(self) -> float:
        """The last step's.

        :raises TrainingError: a loss that had not been seen is not finite.
        """
        if self._unseen:
            values = torch.stack([loss.reshape(()).float() for loss, _ in self._unseen]).tolist()
            places = [place for _, place in self._unseen]
            self._unseen.clear()
            for value, place in zip(values, places, strict=True):
                check_finite_loss(value, place)
            self._seen += values
        return self._seen[-1]

    def mean(self) -> float:
        """:raises TrainingError: as :meth:`latest`."""
        self.latest()
        return math.fsum(self._seen) / len(self._seen)


def check_finite_loss(value: float, place: str) -> None:
    """:raises TrainingError: the loss ``value`` is not finite."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{place}: the loss is {value}; nothing is published; look for extreme values "
            "in the data, lower learning_rate or set gradient_clip_norm"
        )
