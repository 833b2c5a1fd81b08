"""What this peer holds of one neighbour, and what it answers to the neighbour's offers.

A replica moves along the neighbour's chain of published deltas: each header names the digest
of the replica before and after. Payloads that arrive before their round are kept (bounded);
a gap in the chain is repaired by asking the neighbour for what is missing.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from p2pfed.protocol import limits
from p2pfed.protocol.header import Header, Kind, SignedHeader
from p2pfed.protocol.messages import AnswerCode

NOTHING_HELD = bytes(32)
NEVER_PUBLISHED = -1
MOST_PATIENCE = limits.RETURNING_ROUNDS * limits.RETURNING_COST


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica as it is persisted: where on its owner's chain it stands.

    ``replica`` is ``NOTHING_HELD`` where the vector itself was lost; ``sequence`` outlives
    it, so that an old header cannot be replayed. ``since_round``: in which its owner joined.
    """

    replica: bytes
    round_number: int
    sequence: int
    since_round: int = 0

    @classmethod
    def after(cls, header: Header) -> "ReplicaState":
        """Where a delta or snapshot leads to."""
        return cls(header.replica_after, header.round_number, header.sequence, header.since_round)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a neighbour's absences are counted, as it is persisted: see :class:`Neighbour`."""

    site: str
    absent_rounds: int = 0
    returning: bool = False
    patience: int = MOST_PATIENCE

    @property
    def is_ordinary(self) -> bool:
        """Whether there is nothing to remember."""
        return self == Standing(self.site)


class Repair(Enum):
    """Whether an offer that cannot be taken is worth asking the neighbour for more."""

    NONE = auto()
    AT_ONCE = auto()  # a gap in the chain: the neighbour can close it
    LATER = auto()  # there is no room yet: once what is here is applied, or a round later


@dataclass(frozen=True, slots=True)
class OfferDecision:
    code: AnswerCode
    detail: str
    repair: Repair = Repair.NONE


@dataclass(slots=True)
class Neighbour:
    """The mutable state of one neighbour; owned by the round engine alone."""

    site: str
    held: ReplicaState
    down_since_seconds: float
    linked: bool = False
    silent: bool = True  # nobody hears of it: see events.NeighbourSilent
    announced_round: int = 0
    told: bytes | None = None  # the own replica that it was shown or sent last over this link
    applying: SignedHeader | None = None
    kept: list[SignedHeader] = field(default_factory=list)  # received, in the chain's order
    arriving: SignedHeader | None = None  # accepted, its payload is on the way
    quarantined: bool = False
    excluded_in_round: int | None = None  # the aggregation rule refused its replica
    repair_later: bool = False
    rejected_in_round: int | None = None  # a payload of it was not what its header promised
    absent_rounds: int = 0  # left out in so many rounds in a row
    returning: bool = False  # it was away, and its model has not been near since
    patience: int = MOST_PATIENCE  # with its being far away

    @property
    def standing(self) -> Standing:
        return Standing(self.site, self.absent_rounds, self.returning, self.patience)

    def delivered(self, round_number: int) -> bool:
        return self.held.round_number >= round_number and self.usable(round_number)

    def usable(self, round_number: int) -> bool:
        """Whether its replica may enter the aggregation of ``round_number`` at all."""
        return (
            not self.quarantined
            and self.held.replica != NOTHING_HELD
            and self.held.round_number > NEVER_PUBLISHED
            and self.excluded_in_round != round_number
        )

    def failed_in(self, round_number: int) -> bool:
        """Whether what it sent for the round was of no use: nothing better will come."""
        return round_number in (self.excluded_in_round, self.rejected_in_round)

    def left_out(self) -> None:
        """A round was closed without it."""
        self.absent_rounds += 1
        self.returning |= self.absent_rounds >= limits.ABSENT_ROUNDS

    def counted(self) -> bool:
        """A round is closed with it; whether it is still returning.

        Patience is limited, and grows again slowly: who only pretends to have been away is
        believed in one of RETURNING_COST + 1 rounds.
        """
        self.absent_rounds = 0
        self.returning &= self.patience >= limits.RETURNING_COST
        self.patience += -limits.RETURNING_COST if self.returning else 1
        self.patience = min(self.patience, MOST_PATIENCE)
        return self.returning

    def idle(self) -> bool:
        """Whether nothing of it is on the way or waiting to be applied."""
        return self.applying is None and self.arriving is None and not self.kept

    def tip(self) -> bytes:
        """Digest of the replica once everything accepted so far is applied."""
        for ahead in (self.arriving, *reversed(self.kept), self.applying):
            if ahead is not None:
                return ahead.header.replica_after
        return self.held.replica

    def highest_sequence(self) -> int:
        accepted = [self.arriving, *self.kept, self.applying]
        return max([self.held.sequence, *(s.header.sequence for s in accepted if s is not None)])

    def decide(self, signed: SignedHeader, genesis: bytes, newest_round: int) -> OfferDecision:
        """Answer an offer whose signature, federation and schema were already checked.

        :param newest_round: the last round that a correct neighbour can have reached.
        """
        header = signed.header
        if self.quarantined:
            return OfferDecision(AnswerCode.REFUSED, "quarantined for equivocation")
        # A delta may change nothing and still be its round's: the sequence tells them apart.
        if header.replica_after == self.tip() and header.sequence <= self.highest_sequence():
            return OfferDecision(AnswerCode.HAVE, "")
        if header.round_number > newest_round:
            return OfferDecision(
                AnswerCode.NOT_NOW,
                f"this peer takes rounds up to {newest_round}",
                Repair.LATER,
            )
        if self.arriving is not None or len(self.kept) >= limits.MAX_PENDING_PER_NEIGHBOUR:
            return OfferDecision(
                AnswerCode.NOT_NOW, "earlier deltas are still waiting", Repair.LATER
            )
        if header.kind is Kind.SNAPSHOT:
            # A snapshot restates a published state: its sequence may be the one last seen,
            # where the vector was lost here, but never an older one.
            if header.sequence < self.highest_sequence():
                return OfferDecision(AnswerCode.STALE, "older than what is held")
            return OfferDecision(AnswerCode.SEND, "")
        if header.sequence <= self.highest_sequence():
            return OfferDecision(AnswerCode.STALE, "not newer than what is held")
        if header.replica_before not in (self.tip(), genesis):
            return OfferDecision(AnswerCode.NOT_NOW, "a delta before it is missing", Repair.AT_ONCE)
        return OfferDecision(AnswerCode.SEND, "")

    def next_to_apply(self, round_number: int) -> SignedHeader | None:
        """The first kept payload, if the current round may see it.

        A payload of a later round is due as well while this round's has not come: the chain
        says that the neighbour published none in between.
        """
        if self.applying is not None or not self.kept:
            return None
        first = self.kept[0]
        due = first.header.round_number <= round_number or self.held.round_number < round_number
        return first if due else None

    def forget_transfers(self) -> tuple[SignedHeader, ...]:
        """Drop what was kept but not applied; returns it so that its payload can go too."""
        dropped = tuple(self.kept)
        self.kept.clear()
        self.arriving = None
        return dropped
