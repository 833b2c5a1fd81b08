"""What the round engine asks of its shell: the output of ``RoundEngine.handle``.

The shell carries commands out in the order given, and answers those that say so with the
event named in their docstring. It decides nothing about rounds itself.
"""

from dataclasses import dataclass
from enum import StrEnum

from p2pfed.protocol.events import Timer
from p2pfed.protocol.header import SignedHeader
from p2pfed.protocol.messages import AnswerCode
from p2pfed.protocol.neighbours import Standing


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire ``timer`` at ``at_seconds`` of the clock that ``now`` is read from, replacing a
    pending one of the same kind. Answered by ``TimerFired``."""

    timer: Timer
    at_seconds: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    timer: Timer


@dataclass(frozen=True, slots=True)
class Train:
    """Answered by ``TrainingFinished`` or ``TrainingFailed``."""

    round_number: int
    local_steps: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Encode the trained model against ``replica_before``, seal, sign, make durable.

    Answered by ``Published``. ``replica_before`` is the digest of the own published replica,
    or of the genesis model where the graph varies with the round.
    """

    round_number: int
    sequence: int
    previous: bytes
    replica_before: bytes
    since_round: int = 0


@dataclass(frozen=True, slots=True)
class SendDelta:
    """Offer an own envelope, by the digest of its header, to a linked neighbour."""

    site: str
    header_digest: bytes


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """Seal the own published replica as a snapshot and offer it to a linked neighbour."""

    site: str


@dataclass(frozen=True, slots=True)
class AnswerOffer:
    """The answer to the ``OfferArrived`` that is being handled; exactly one each."""

    site: str
    code: AnswerCode
    detail: str


@dataclass(frozen=True, slots=True)
class ApplyPayload:
    """Decode a received payload into the replica of ``site``.

    Answered by ``ReplicaUpdated`` or ``PayloadRejected``. At most one a neighbour is under
    way, and none while an ``Aggregate`` is.
    """

    site: str
    signed: SignedHeader


@dataclass(frozen=True, slots=True)
class DiscardPayload:
    """A payload that was kept is not wanted any more."""

    site: str
    signed: SignedHeader


@dataclass(frozen=True, slots=True)
class RequestRepair:
    """Send a neighbour a ``Want`` with the digest of the replica held of it."""

    site: str
    replica_held: bytes


@dataclass(frozen=True, slots=True)
class FloodHeader:
    """Pass a signed header on to every linked neighbour except ``except_site``."""

    signed: SignedHeader
    except_site: str | None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Store the proof, pass it on, and refuse ``site`` from now on."""

    site: str
    first: SignedHeader
    second: SignedHeader


@dataclass(frozen=True, slots=True)
class AggregationInput:
    """``weight`` is the mixing weight of the edge, of which ``share`` counts in this round;
    ``staleness`` in rounds. ``returning``: it was left out for some rounds, and has not been
    near since."""

    site: str
    weight: float
    staleness: int
    returning: bool = False
    share: float = 1.0

    @property
    def counted_weight(self) -> float:
        return self.weight * self.share


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Fold the replicas of ``inputs`` into the trained model.

    Answered by ``AggregationFinished`` or ``AggregationFailed``. The weight of a neighbour in
    ``left_out`` returns to this site, which keeps the mixing symmetric.
    """

    round_number: int
    inputs: tuple[AggregationInput, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take the coordinate-wise median of the replicas of ``donors`` for the start of the round,
    if it is worth it on the own hold-out (``joining.is_worth_adopting``, against what the round
    began with), and make it durable.

    Answered by ``Adopted`` or ``AdoptionRefused``.
    """

    round_number: int
    donors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CommitRound:
    """Make the aggregated model durable as the start of the next round, and with it the
    ``standings`` of all neighbours that have another than the ordinary one. The replicas of sites
    that are ``forgotten`` are deleted: no round of the topology asks for them any more.

    Answered by ``RoundCommitted``.
    """

    round_number: int
    standings: tuple[Standing, ...] = ()
    forgotten: tuple[str, ...] = ()


class NoticeKind(StrEnum):
    ROUND_DEGRADED = "round_degraded"
    ROUND_SKIPPED = "round_skipped"
    QUORUM_MISSING = "quorum_missing"
    DELTA_REFUSED = "delta_refused"
    DELTA_REJECTED = "delta_rejected"
    NEIGHBOUR_EXCLUDED = "neighbour_excluded"
    TRAINING_FAILED = "training_failed"
    JOINING = "joining"
    ADOPTED = "adopted"
    NOT_ADOPTED = "not_adopted"
    SIGNED_ELSEWHERE = "signed_elsewhere"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something an operator may want to read; changes nothing."""

    kind: NoticeKind
    round_number: int
    site: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Halt:
    """Everything that matters is durable: the shell may end."""


Command = (
    SetTimer
    | CancelTimer
    | Train
    | Publish
    | SendDelta
    | SendSnapshot
    | AnswerOffer
    | ApplyPayload
    | DiscardPayload
    | RequestRepair
    | FloodHeader
    | Quarantine
    | Aggregate
    | Adopt
    | CommitRound
    | Notice
    | Halt
)
