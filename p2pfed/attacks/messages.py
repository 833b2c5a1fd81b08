"""Attacks with signed envelopes: what is sent to whom, and when, rather than what is in them.

None is a forgery: every envelope here was signed by the attacker itself. The driver, a simulator
or a hostile daemon, keeps what it signed and sends what ``offers`` says.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from p2pfed.attacks.attack import Envelope, MessageAttack, Offer


@dataclass(frozen=True)
class Equivocation(MessageAttack):
    """Two envelopes for one round: every other neighbour gets the second."""

    name: ClassVar[str] = "equivocation"
    source: ClassVar[str] = "Lamport, Shostak, Pease 1982 (Byzantine generals)"
    summary: ClassVar[str] = "signs two different models for one round and shows each to half"
    versions: ClassVar[int] = 2

    def offers(
        self,
        round_number: int,
        recipients: Sequence[str],
        signed: Callable[[int], Sequence[Envelope]],
    ) -> list[Offer[Envelope]]:
        envelopes = signed(round_number)
        return [
            Offer(recipient, envelopes[place % len(envelopes)])
            for place, recipient in enumerate(recipients)
            if envelopes
        ]


@dataclass(frozen=True)
class Replay(MessageAttack):
    """This round's envelope, and after it the one of ``age`` rounds ago once more."""

    name: ClassVar[str] = "replay"
    source: ClassVar[str] = "Syverson 1994 (a taxonomy of replay attacks)"
    summary: ClassVar[str] = "sends an envelope of an earlier round again"

    age: int = 1  # rounds

    def problems(self) -> Iterator[str]:
        if self.age < 1:
            yield f"age = {self.age} is not at least 1"

    def offers(
        self,
        round_number: int,
        recipients: Sequence[str],
        signed: Callable[[int], Sequence[Envelope]],
    ) -> list[Offer[Envelope]]:
        envelopes = [*signed(round_number), *signed(round_number - self.age)]
        return [Offer(recipient, one) for recipient in recipients for one in envelopes]


@dataclass(frozen=True)
class StaleFlood(MessageAttack):
    """This round's envelope, then ``copies`` old ones, of the latest ``depth`` rounds in turn:
    work for the receiver that leads to nothing."""

    name: ClassVar[str] = "stale_flood"
    source: ClassVar[str] = "Kent 2005 (RFC 4303, what a window against replay must withstand)"
    summary: ClassVar[str] = "floods its neighbours with envelopes of rounds long past"

    copies: int = 100  # envelopes for each neighbour in a round
    depth: int = 8  # rounds

    def problems(self) -> Iterator[str]:
        if self.copies < 1:
            yield f"copies = {self.copies} is not at least 1"
        if self.depth < 1:
            yield f"depth = {self.depth} is not at least 1"

    def offers(
        self,
        round_number: int,
        recipients: Sequence[str],
        signed: Callable[[int], Sequence[Envelope]],
    ) -> list[Offer[Envelope]]:
        ages = range(1, self.depth + 1)
        past = [envelope for age in ages for envelope in signed(round_number - age)]
        flood = [past[copy % len(past)] for copy in range(self.copies)] if past else []
        envelopes = [*signed(round_number), *flood]
        return [Offer(recipient, one) for recipient in recipients for one in envelopes]
