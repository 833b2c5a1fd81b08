"""A member of the federation that lies to a real daemon: it has a listed key, and our own
transport, and sends what no honest daemon sends."""

import dataclasses
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio
from federation import Federation, Hospital
from transport_doubles import Recorder

from p2pfed.daemon.addresses import AddressBook
from p2pfed.daemon.delta_exchange import send_envelope
from p2pfed.daemon.libp2p_transport import Libp2pTransport
from p2pfed.daemon.links import Links
from p2pfed.daemon.status import Status
from p2pfed.errors import TransportError
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.certificates import issue_address_record, issue_certificate
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.envelope import Offer, PayloadContext, wrap_key
from p2pfed.protocol.header import Header, Kind, SignedHeader, sign_header
from p2pfed.protocol.messages import AnswerCode, HeaderNotice, Hello, Message, Refusal
from p2pfed.protocol.publishing import Publication, publish

pytestmark = pytest.mark.daemons

PARAMETERS = 3  # the test hospitals' logistic regression: two weights and a bias
LINK_TIMEOUT_SECONDS = 60.0  # a guard, never waited out


class Mallory:
    """The hostile member: repeats the hello it is sent under its own key, and keeps the link."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.theirs: Hello | None = None
        self.up = trio.Event()
        self.down = trio.Event()

    def local_hello(self) -> Hello:
        assert self.theirs is not None
        return dataclasses.replace(
            self.theirs,
            certificate=issue_certificate(self.identity),
            address_record=issue_address_record(self.identity, 1, ()),
        )

    def check_hello(self, peer_id: str, hello: Hello) -> Refusal | None:
        return None

    def link_up(self, peer_id: str, hello: Hello) -> None:
        self.theirs = hello
        self.up.set()

    def link_down(self, peer_id: str, reason: str) -> None:
        self.down.set()

    def heard(self, peer_id: str, message: Message) -> None: ...


@asynccontextmanager
async def hostile_link(
    victim: Hospital, identity: Identity, status: Status
) -> AsyncIterator[tuple[Mallory, Libp2pTransport, Links, Hello]]:
    """A link of Mallory to the victim's daemon, up and accepted."""
    mallory = Mallory(identity)
    transport = Libp2pTransport(identity.seed, ["/ip4/127.0.0.1/tcp/0"], Recorder())
    transport.set_roster([victim.identity.peer_id])
    book = AddressBook({victim.identity.peer_id: (victim.address,)})
    links = Links(transport, identity.peer_id, book, mallory, random.Random(0))
    links.set_neighbours({victim.identity.peer_id: "alpha"})
    # What the victim's status says is enough to make a hello that it accepts.
    mallory.theirs = Hello(
        version=limits.PROTOCOL_VERSION,
        software="mallory",
        federation_name=status.site.federation,
        federation_id=bytes.fromhex(status.site.federation_id),
        topology_digest=bytes.fromhex(status.topology.digest),
        schema_digest=bytes.fromhex(status.model.schema),
        genesis_digest=bytes.fromhex(status.model.digest),
        certificate=b"",
        address_record=b"",
        round_number=0,
        phase="collecting",
        published_round=-1,
        published_replica=bytes.fromhex(status.model.digest),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        await nursery.start(links.run)
        with trio.fail_after(LINK_TIMEOUT_SECONDS):
            await mallory.up.wait()
        assert mallory.theirs is not None
        yield mallory, transport, links, mallory.theirs
        nursery.cancel_scope.cancel()


def envelope(
    identity: Identity, hello: Hello, model: np.ndarray, round_number: int, recipient: bytes
) -> tuple[SignedHeader, bytes, Callable[[SignedHeader], Offer]]:
    """A delta against the genesis model, its ciphertext, and an offer of any header for it."""
    codec = get_codec("int8")
    context = PayloadContext(
        hello.federation_id,
        identity.public_key,
        Kind.DELTA,
        round_number,
        round_number + 1,
        "int8",
        codec.payload_bytes(PARAMETERS),
        codec.chunk_count(PARAMETERS),
    )
    chunks: list[bytes] = []
    key = b"\x05" * 32
    publication = Publication(
        model, np.zeros(PARAMETERS, np.float32), context=context, key=key, seed=0
    )
    sealed = publish(publication, write=chunks.append, keep=lambda _: None)
    header = Header(
        version=1,
        federation_id=hello.federation_id,
        kind=Kind.DELTA,
        sender=identity.public_key,
        topology_digest=hello.topology_digest,
        schema_digest=hello.schema_digest,
        round_number=round_number,
        sequence=round_number + 1,
        previous=bytes(32),
        replica_before=hello.genesis_digest,
        replica_after=sealed.replica_after,
        codec="int8",
        key_commitment=sealed.key_commitment,
        chunks_root=sealed.chunks_root,
        chunk_count=context.chunk_count,
        payload_bytes=context.payload_bytes,
        privacy_spend=0.0,
        time_seconds=0,
    )

    def offer(signed: SignedHeader) -> Offer:
        wrapped = wrap_key(identity, recipient, key, signed.digest)
        return Offer(signed, sealed.chunk_digests, wrapped)

    return sign_header(identity, header), b"".join(chunks), offer


async def waiting(victim: Hospital, what: str, holds: Callable[[Status], bool]) -> Status:
    return await trio.to_thread.run_sync(partial(victim.until, what, holds))


def of_mallory(status: Status) -> bool:
    return next(n for n in status.neighbours if n.name == "mallory").quarantined


async def test_two_headers_for_one_round_quarantine_their_signer(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "mallory"]) as federation:
        alpha, other = federation.hospitals
        alpha.start()
        status = await waiting(alpha, "collecting", lambda s: s.round.phase == "collecting")
        async with hostile_link(alpha, other.identity, status) as (_, _, links, hello):
            recipient = alpha.identity.encryption_public_key
            for size in (1.0, 2.0):
                model = np.full(PARAMETERS, size, np.float32)
                signed, _, _ = envelope(other.identity, hello, model, 0, recipient)
                notice = HeaderNotice(signed.encoded, signed.signature)
                assert links.post(alpha.identity.peer_id, notice)
            status = await waiting(alpha, "the quarantine", of_mallory)
        assert not status.healthy
        assert any("two different deltas" in line.problem for line in status.health)
        [event] = alpha.events(
            "equivocation: a site signed two different deltas for one round; it is quarantined"
        )
        assert event["site"] == "mallory"
        await waiting(alpha, "its life", lambda s: s.round.phase == "collecting")


async def test_a_payload_that_lies_is_rejected_and_the_daemon_goes_on(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "mallory"]) as federation:
        alpha, other = federation.hospitals
        alpha.start()
        status = await waiting(alpha, "collecting", lambda s: s.round.phase == "collecting")
        async with hostile_link(alpha, other.identity, status) as (_, transport, _, hello):
            recipient = alpha.identity.encryption_public_key
            model = np.ones(PARAMETERS, np.float32)
            signed, ciphertext, offer = envelope(other.identity, hello, model, 0, recipient)
            path = short_tmp / "sealed"
            path.write_bytes(ciphertext)
            # The payload itself is sound, but it does not lead where its header says.
            lie = sign_header(
                other.identity, dataclasses.replace(signed.header, replica_after=b"x" * 32)
            )
            await send_envelope(transport, alpha.identity.peer_id, offer(lie), path)
            status = await waiting(alpha, "the rejection", lambda s: s.totals.deltas_rejected == 1)
            assert status.totals.deltas_accepted == 0
            # It is not listened to again before the next round.
            later, _, offer = envelope(other.identity, hello, model, 1, recipient)
            outcome = await send_envelope(transport, alpha.identity.peer_id, offer(later), path)
            assert outcome.code is AnswerCode.NOT_NOW
        await waiting(alpha, "its life", lambda s: s.round.phase == "collecting")
        assert "Traceback" not in alpha.log.read_text()


async def test_a_flipped_bit_is_noticed_while_it_arrives(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "mallory"]) as federation:
        alpha, other = federation.hospitals
        alpha.start()
        status = await waiting(alpha, "collecting", lambda s: s.round.phase == "collecting")
        async with hostile_link(alpha, other.identity, status) as (_, transport, _, hello):
            recipient = alpha.identity.encryption_public_key
            model = np.ones(PARAMETERS, np.float32)
            signed, ciphertext, offer = envelope(other.identity, hello, model, 0, recipient)
            path = short_tmp / "sealed"
            path.write_bytes(bytes([ciphertext[0] ^ 1]) + ciphertext[1:])
            with pytest.raises(TransportError, match="not the one that was announced"):
                await send_envelope(transport, alpha.identity.peer_id, offer(signed), path)
        status = await waiting(alpha, "its life", lambda s: s.round.phase == "collecting")
        assert status.totals.deltas_accepted == 0
        assert "Traceback" not in alpha.log.read_text()


async def test_another_member_cannot_be_spoken_for(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "mallory", "victim"]) as federation:
        alpha, other, victim = federation.hospitals
        alpha.start()
        status = await waiting(alpha, "collecting", lambda s: s.round.phase == "collecting")
        async with hostile_link(alpha, other.identity, status) as (_, transport, _, hello):
            recipient = alpha.identity.encryption_public_key
            model = np.ones(PARAMETERS, np.float32)
            path = short_tmp / "sealed"
            # Signed by the victim (as if its envelope had been caught), offered by Mallory.
            signed, ciphertext, offer = envelope(victim.identity, hello, model, 0, recipient)
            path.write_bytes(ciphertext)
            with pytest.raises(TransportError):
                await send_envelope(transport, alpha.identity.peer_id, offer(signed), path)
        status = await waiting(alpha, "its life", lambda s: s.round.phase == "collecting")
        assert status.totals.deltas_accepted == 0
        assert not any(n.quarantined for n in status.neighbours)
