"""Coming new, or back from far behind: a model from several donors instead of the own old one.

A peer that was away for more rounds than its neighbours keep deltas has a model that has little to
do with theirs. It takes the coordinate-wise median of its neighbours' published models, at least
2b + 1 of them, tries it on its own hold-out, and goes on from it if that is not much worse than
what it began its round with; its weight then grows over some rounds (``shares.ramp_share``). With
too few donors, or where the trial fails, it goes on from its own model, and the aggregation rule
draws it near.
"""

import math
from dataclasses import dataclass

from p2pfed.protocol import limits

JOINING_ROUNDS = limits.RETAINED_DELTAS  # who is further behind is sent whole models anyway
FEWEST_DONORS = 3  # whatever b is: nobody is trusted alone
DONOR_STALENESS = limits.ROUND_WINDOW  # rounds behind the present at which a model still serves
# What the donors' models come to may have so many times the loss of the own one: that was made
# with the like of the records it is tried on, the donors' perhaps without.
TOLERATED_LOSS = 1.25


def donors_needed(byzantine_neighbours: int) -> int:
    """2b + 1, the fewest of which a median cannot be moved beyond the honest ones' values."""
    return max(FEWEST_DONORS, 2 * byzantine_neighbours + 1)


def is_worth_adopting(loss: float | None, own_loss: float | None) -> bool:
    """Whether the model of the donors passes, by its loss on this site's hold-out.

    :param loss: of the donors' model; None where the task measures none, as is ``own_loss``.
        What cannot be tried is adopted on the donors' word, of which there are enough.
    """
    if loss is None or own_loss is None:
        return True
    if not math.isfinite(loss):
        return False
    return not math.isfinite(own_loss) or loss <= TOLERATED_LOSS * own_loss


@dataclass(slots=True)
class Absence:
    """Whether this peer is away, and since when it takes part.

    ``away``: since its daemon began, or since it lost its last link, it has not found itself among
    enough neighbours and up to date. A peer that only trains slowly is not away, however far
    behind it is: its work would be thrown away each time. ``model_round``: the round that its
    model is the beginning of.
    """

    model_round: int
    since_round: int = 0  # 0: from the beginning
    away: bool = True

    def is_over(self, round_number: int) -> bool:
        """Whether a peer that was away, and is among neighbours again, is where they are."""
        return not self.away or round_number - self.model_round <= JOINING_ROUNDS

    def joined(self, round_number: int) -> None:
        self.model_round = self.since_round = round_number
        self.away = False
