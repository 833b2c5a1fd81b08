"""What a correction may do, and when."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from p2pfed.training.regions import Vector

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class RoundStart:
    """What a round begins with.

    :ivar start: x, the model after the last aggregation: a copy of each corrected parameter.
    :ivar local_steps: K, the federation's number of local steps a round.
    :ivar steps: the steps that this site takes, at most K.
    :ivar learning_rate: the optimiser's.
    """

    start: Tensors
    local_steps: int
    steps: int
    learning_rate: float


class Correction(Protocol):
    """One term in a site's local training. It acts on the travelling parameters alone.

    :meth:`begin` once, :meth:`correct` between gradient and step each time, :meth:`finish` once.
    ``state`` has shape (``state_floats``,), float32, zeros at first; what :meth:`finish` writes
    there :meth:`begin` finds in the next round.
    """

    def state_floats(self, floats: int) -> int:
        """Floats of state for ``floats`` corrected parameters in all."""

    def begin(self, given: RoundStart, state: Vector) -> None:
        """Take up what was kept, and what the aggregation made of this site's last model."""

    def correct(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Change the gradients in place, before the optimiser's step."""

    def finish(self, parameters: Sequence[torch.nn.Parameter], state: Vector) -> None:
        """Change the trained model in place before it is published, and write the state."""
