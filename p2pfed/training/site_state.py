"""All that a site's training keeps for itself from round to round, as one flat float32 vector.

The daemon stores it with every round and gives it back with the next one, so a round is a
function of its inputs and a restart changes nothing. All zeros is a fresh start. What comes first
is *kept* when the site, far behind, takes its neighbours' model for its own: the position among
its records, its local tensors, its personal model. What follows belonged to the model that it gave
up, and is begun anew: the optimiser's moments and the corrections' memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from p2pfed.training.regions import Vector
from p2pfed.training.sampling import POSITION_FLOATS, Position

_WRITTEN, _PREPARED = 0, 1
_POSITION = slice(2, 2 + POSITION_FLOATS)
HEAD_FLOATS = 2 + POSITION_FLOATS


@dataclass(frozen=True)
class SiteStateLayout:
    """How many floats each part has; the parts lie in this order after the head."""

    local: int = 0
    personal: int = 0
    optimiser: int = 0
    corrections: tuple[int, ...] = ()

    @property
    def kept_floats(self) -> int:
        return HEAD_FLOATS + self.local + self.personal

    @property
    def floats(self) -> int:
        return self.kept_floats + self.optimiser + sum(self.corrections)

    def over(self, vector: Vector) -> "SiteState":
        """The parts of ``vector``, shape (:attr:`floats`,), as views of it."""
        if vector.shape != (self.floats,):
            raise ValueError(f"a vector of {vector.size} floats for a state of {self.floats}")
        sizes = [HEAD_FLOATS, self.local, self.personal, self.optimiser, *self.corrections]
        head, local, personal, optimiser, *corrections = np.split(vector, np.cumsum(sizes)[:-1])
        return SiteState(head, local, personal, optimiser, tuple(corrections))


@dataclass(frozen=True)
class SiteModel:
    """A model as one site has it: what all sites share, and what the site keeps for itself.

    :ivar parameters: shape (d,), float32.
    :ivar state: shape (s,), float32.
    """

    parameters: Vector
    state: Vector


@dataclass(frozen=True)
class SiteState:
    """Views of a state's parts, each of shape (floats,), float32.

    :ivar local: values of the local tensors.
    :ivar personal: the personal model, where there is one: travelling and local tensors.
    :ivar corrections: one for each correction, in the order in which they are applied.
    """

    head: Vector
    local: Vector
    personal: Vector
    optimiser: Vector
    corrections: Sequence[Vector]

    @property
    def fresh(self) -> bool:
        """No round has ended yet: local tensors and personal model are as in the genesis model."""
        return bool(self.head[_WRITTEN] == 0.0)

    @property
    def prepared(self) -> bool:
        """This site has given what its task prepares before the first local step."""
        return bool(self.head[_PREPARED] != 0.0)

    @property
    def position(self) -> Position:
        return Position.read(self.head[_POSITION])

    def write_head(self, position: Position, *, prepared: bool) -> None:
        self.head[_WRITTEN] = 1.0
        self.head[_PREPARED] = float(prepared)
        position.write(self.head[_POSITION])
