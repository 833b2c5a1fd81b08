"""What can happen to a peer: the input of the round engine.

Events carry digests, sizes, round numbers and parsed headers, never vectors, sockets or
clocks. Each has its counterpart in ``commands``: a command asks the shell (daemon or
simulator) to do something, an event says that it happened, or that it failed.
"""

from dataclasses import dataclass
from enum import StrEnum

from p2pfed.protocol.header import SignedHeader
from p2pfed.protocol.plan import FederationPlan


class Timer(StrEnum):
    """The engine's timers; at most one of each kind is pending."""

    DEADLINE = "deadline"  # the end of the wait for neighbours in the collecting phase
    GRACE = "grace"  # a neighbour that went down is no longer waited for
    RETRY = "retry"  # another attempt at local training after it failed


@dataclass(frozen=True, slots=True)
class Started:
    """The shell is ready: trainer running, state restored, links being made."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The operator asked for an end; answered by ``commands.Halt`` once it is safe."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    timer: Timer


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """A new topology file is in force from the next round on."""

    plan: FederationPlan


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A neighbour's hello was accepted. ``replica`` is what it says it published last, ``shown``
    what this peer's own hello said of itself; None where that is not known."""

    site: str
    round_number: int
    replica: bytes
    published_round: int
    shown: bytes | None = None


@dataclass(frozen=True, slots=True)
class LinkDown:
    site: str


@dataclass(frozen=True, slots=True)
class NeighbourProgress:
    """A heartbeat: the round the neighbour says it is in. A claim, never trusted alone."""

    site: str
    round_number: int


@dataclass(frozen=True, slots=True)
class NeighbourSilent:
    """Nothing is heard of the neighbour, by this site or by a common neighbour: no round waits for
    it until something is. ``liveness`` decides this; a link that goes down implies it."""

    site: str


@dataclass(frozen=True, slots=True)
class NeighbourHeard:
    """The neighbour is heard: over its link or, where that is down, by a common neighbour. A link
    that comes up implies it."""

    site: str


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    round_number: int


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    round_number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Published:
    """The own delta is encoded, sealed, signed and durable; nothing of it has left yet."""

    signed: SignedHeader


@dataclass(frozen=True, slots=True)
class OfferArrived:
    """A neighbour offers a payload; its header's signature was verified by the shell."""

    site: str
    signed: SignedHeader


@dataclass(frozen=True, slots=True)
class PayloadReceived:
    """Every chunk of an accepted offer was received and authenticated."""

    site: str
    signed: SignedHeader


@dataclass(frozen=True, slots=True)
class TransferAborted:
    """The transfer of an accepted offer broke off; the link may still be up."""

    site: str
    signed: SignedHeader


@dataclass(frozen=True, slots=True)
class ReplicaUpdated:
    """A payload was applied and the replica's digest is the one its header promised."""

    site: str
    signed: SignedHeader


@dataclass(frozen=True, slots=True)
class PayloadRejected:
    """A payload decrypted to something that its header does not promise, or that is not
    finite or out of bounds. The replica is unchanged."""

    site: str
    signed: SignedHeader
    reason: str


@dataclass(frozen=True, slots=True)
class WantArrived:
    """A neighbour holds ``replica_held`` of us and asks for what it misses."""

    site: str
    replica_held: bytes


@dataclass(frozen=True, slots=True)
class HeaderHeard:
    """A member's signed delta header, passed on by ``heard_from``."""

    heard_from: str
    sender: str
    signed: SignedHeader


@dataclass(frozen=True, slots=True)
class OwnHeaderHeard:
    """``heard_from`` holds this delta header of this peer's own; its signature was verified. A
    neighbour shows the newest that it has before the first heartbeat of a link."""

    heard_from: str
    signed: SignedHeader


@dataclass(frozen=True, slots=True)
class EquivocationHeard:
    """Verified proof, passed on by ``heard_from``, that ``sender`` signed two deltas for one
    round."""

    heard_from: str
    sender: str
    first: SignedHeader
    second: SignedHeader


@dataclass(frozen=True, slots=True)
class AggregationFinished:
    """``returned`` are those returning neighbours whose models are near again."""

    round_number: int
    returned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AggregationFailed:
    """The rule refused its input. ``site`` names the neighbour at fault where there is one."""

    round_number: int
    site: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Adopted:
    """The donors' model is durable as the start of the round."""

    round_number: int


@dataclass(frozen=True, slots=True)
class AdoptionRefused:
    """The donors' model is of no use here; the own one is as it was."""

    round_number: int
    reason: str


@dataclass(frozen=True, slots=True)
class RoundCommitted:
    """The aggregated model of the round is durable."""

    round_number: int


Event = (
    Started
    | StopRequested
    | TimerFired
    | PlanChanged
    | LinkUp
    | LinkDown
    | NeighbourProgress
    | NeighbourSilent
    | NeighbourHeard
    | TrainingFinished
    | TrainingFailed
    | Published
    | OfferArrived
    | PayloadReceived
    | TransferAborted
    | ReplicaUpdated
    | PayloadRejected
    | WantArrived
    | HeaderHeard
    | OwnHeaderHeard
    | EquivocationHeard
    | AggregationFinished
    | AggregationFailed
    | Adopted
    | AdoptionRefused
    | RoundCommitted
)
