"""What a site does beyond the protocol: nothing, where it is honest, and an attack otherwise.

A hostile site runs the same engine as the others: who leaves the protocol altogether is
refused by it. It lies in what it publishes, and in what it sends to whom.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from p2pfed.attacks import Attack, MessageAttack, ModelAttack, View
from p2pfed.protocol.header import SignedHeader
from p2pfed.simulation.envelopes import Envelope, Statement, encode_delta

if TYPE_CHECKING:
    from p2pfed.simulation.peer import SimulatedPeer

Vector = npt.NDArray[np.float32]
REMEMBERED_ROUNDS = 64  # own envelopes that an attacker keeps to send again


class Behaviour:
    """An honest site; hostile ones override what they do otherwise."""

    hostile = False
    equivocates = False

    def publishes(self, peer: "SimulatedPeer", round_number: int, trained: Vector) -> Vector:  # noqa: ARG002
        """The model whose change it publishes, shape (d,)."""
        return trained

    def published(self, peer: "SimulatedPeer", envelope: Envelope) -> None:
        """Its delta of a round is out."""

    def sends(self, peer: "SimulatedPeer", envelope: Envelope) -> bool:  # noqa: ARG002
        """Whether an own envelope goes where the engine says."""
        return True

    def floods(self, peer: "SimulatedPeer", signed: SignedHeader) -> bool:  # noqa: ARG002
        """Whether it passes a header on."""
        return True


class Poisoned(Behaviour):
    """It is honest about models that it trained on poisoned data."""

    hostile = True


class ModelLiar(Behaviour):
    """It publishes what the attack makes of the models it knows: those of all honest sites."""

    hostile = True

    def __init__(self, attack: ModelAttack) -> None:
        self._attack = attack

    def publishes(self, peer: "SimulatedPeer", round_number: int, trained: Vector) -> Vector:
        federation = peer.federation
        update = trained - peer.model
        view = View(
            round_number=round_number,
            own=trained,
            start=peer.model,
            published=peer.own_replica,
            honest=[
                _believed(other, round_number, update) for other in federation.honest() if other.up
            ],
        )
        seed = [federation.world.seed, peer.index, round_number]
        return self._attack.model(view, np.random.default_rng(seed))


def _believed(other: "SimulatedPeer", round_number: int, update: Vector) -> Vector:
    """What a site's model of the round will be: where it has not published yet, its last one
    moved on as the liar's own training moved."""
    published = other.durable.published
    ahead = published is not None and published.header.round_number >= round_number
    return other.own_replica if ahead else other.own_replica + update


class MessageLiar(Behaviour):
    """It decides itself which of its envelopes goes to whom."""

    hostile = True

    def __init__(self, attack: MessageAttack) -> None:
        self._attack = attack
        self.equivocates = attack.versions > 1
        self._signed: dict[int, list[Envelope]] = {}

    def sends(self, peer: "SimulatedPeer", envelope: Envelope) -> bool:
        # What is new goes out by the attack's choice; what a neighbour asks for again does not.
        published = peer.engine.published
        return published is None or envelope.signed.digest != published.digest

    def floods(self, peer: "SimulatedPeer", signed: SignedHeader) -> bool:
        return signed.header.sender != peer.identity.public_key

    def published(self, peer: "SimulatedPeer", envelope: Envelope) -> None:
        round_number = envelope.signed.header.round_number
        versions = [envelope]
        while len(versions) < self._attack.versions:
            versions.append(_another(peer, envelope, len(versions)))
        self._signed[round_number] = versions
        self._signed.pop(round_number - REMEMBERED_ROUNDS, None)
        recipients = sorted(peer.links)
        for offer in self._attack.offers(round_number, recipients, self._of_round):
            peer.outbox(offer.recipient).send(offer.envelope)

    def _of_round(self, round_number: int) -> list[Envelope]:
        return self._signed.get(round_number, [])


def _another(peer: "SimulatedPeer", envelope: Envelope, version: int) -> Envelope:
    """A second truth for the same round."""
    header = envelope.signed.header
    statement = Statement(
        header.round_number,
        header.sequence,
        header.previous,
        header.replica_before,
        header.time_seconds,
        header.since_round,
    )
    base = peer.federation.genesis
    other, _ = encode_delta(
        peer.identity,
        peer.plan,
        header.codec,
        statement,
        peer.trained - np.float32(version) * (peer.trained - peer.model),
        base if header.replica_before == peer.federation.genesis_digest else peer.replica_before,
        seed=version,
    )
    return other


def behaviour_of(attack: Attack | None) -> Behaviour:
    """How a site with this attack acts; None is honest."""
    match attack:
        case None:
            return Behaviour()
        case ModelAttack():
            return ModelLiar(attack)
        case MessageAttack():
            return MessageLiar(attack)
        case _:
            return Poisoned()
