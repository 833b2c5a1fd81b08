"""What the round engine knows of the topology file: who, with what weight, and how fast."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from p2pfed.protocol.joining import FEWEST_DONORS


@dataclass(frozen=True, slots=True)
class FederationPlan:
    """One site's view of the topology.

    ``weights_of(round)`` maps each neighbour of that round to its Metropolis-Hastings mixing
    weight; the sum is below one and the rest is the site's own. ``relayed`` are the members
    whose headers this site passes on; their number is bounded by ``limits.RELAYED_SITES``.
    ``neighbours`` are those of any round.
    """

    topology_digest: bytes
    schema_digest: bytes
    federation_id: bytes
    genesis_replica: bytes
    weights_of: Callable[[int], Mapping[str, float]]
    time_varying: bool
    total_rounds: int  # 0: until stopped
    local_steps: int
    deadline_seconds: float
    quorum: float  # fraction of a round's neighbours, rounded up
    max_staleness: int  # rounds
    relayed: frozenset[str]
    neighbours: frozenset[str]
    donors_needed: int = FEWEST_DONORS  # models that one from far behind starts from
    asynchronous: bool = False  # a round waits for nobody whose model may still be used

    def quorum_of(self, neighbour_count: int) -> int:
        return math.ceil(self.quorum * neighbour_count)

    def is_last(self, round_number: int) -> bool:
        """Whether no round follows ``round_number``; rounds count from 0."""
        return self.total_rounds != 0 and round_number + 1 >= self.total_rounds
