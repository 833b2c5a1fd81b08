"""What a simulated site holds of itself and of its neighbours, and what a crash leaves of it."""

import math
import statistics
from collections import OrderedDict, deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from p2pfed.errors import AuthenticationError
from p2pfed.protocol.header import Kind, SignedHeader
from p2pfed.protocol.neighbours import ReplicaState, Standing
from p2pfed.simulation.envelopes import Envelope

Vector = npt.NDArray[np.float32]

# As the daemon's, which tests compare.
NORM_SAMPLES = 64
NORM_SAMPLES_NEEDED = 8
NORM_BOUND_FACTOR = 1000.0


@dataclass(slots=True)
class Held:
    """A neighbour's replica; ``vector`` is shared with everybody who holds the same, and
    ``signed`` is the header that led to it."""

    state: ReplicaState
    vector: Vector
    signed: SignedHeader


@dataclass(slots=True)
class Durable:
    """What a crash leaves: the daemon's store."""

    round_number: int
    published: SignedHeader | None
    model: Vector  # the start of the round, or what was trained in it once that is published
    momentum: Vector
    replica: Vector
    replicas: dict[str, Held] = field(default_factory=dict)
    envelopes: OrderedDict[bytes, Envelope] = field(default_factory=OrderedDict)
    headers: tuple[SignedHeader, ...] = ()
    quarantined: frozenset[str] = frozenset()
    standings: tuple[Standing, ...] = ()
    since_round: int = 0

    @property
    def in_its_midst(self) -> bool:
        """Whether the round's own delta was published."""
        published = self.published
        return published is not None and published.header.round_number == self.round_number


class Replicas:
    """What a site holds of its neighbours in one life, by name.

    :param genesis: the model that the federation starts from, and its digest.
    """

    def __init__(self, held: dict[str, Held], genesis: Vector, genesis_digest: bytes) -> None:
        self.held = dict(held)
        self._genesis = genesis
        self._genesis_digest = genesis_digest
        self._delta_norms: deque[float] = deque(maxlen=NORM_SAMPLES)

    def apply(self, site: str, envelope: Envelope, own_replica: Vector) -> None:
        """Move a neighbour's replica on.

        :raises AuthenticationError: as the daemon's; the replica stays as it was.
        """
        header = envelope.signed.header
        snapshot = header.kind is Kind.SNAPSHOT
        held = self.held.get(site)
        if snapshot:
            base = np.zeros_like(self._genesis)
        elif header.replica_before == self._genesis_digest:
            base = self._genesis
        elif held is not None and held.state.replica == header.replica_before:
            base = held.vector
        else:
            raise AuthenticationError("the delta builds on a replica that is not held")
        rebuilt = envelope.rebuild(header.replica_before, base)
        if not snapshot:
            self._check_norm(rebuilt.norm, own_replica)
        self.held[site] = Held(ReplicaState.after(header), rebuilt.vector, envelope.signed)

    def _check_norm(self, norm: float, own_replica: Vector) -> None:
        if len(self._delta_norms) >= NORM_SAMPLES_NEEDED:
            bound = NORM_BOUND_FACTOR * statistics.median(self._delta_norms)
            if norm > max(bound, float(np.linalg.norm(own_replica))):
                raise AuthenticationError("its norm is beyond the bound")
        if math.isfinite(norm):
            self._delta_norms.append(norm)
