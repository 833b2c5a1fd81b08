"""A member that lies to a real daemon: it has a listed key, and our own transport."""

import dataclasses
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
import trio
from federation import Hospital
from transport_doubles import Recorder

from p2pfed.daemon.addresses import AddressBook
from p2pfed.daemon.libp2p_transport import Libp2pTransport
from p2pfed.daemon.links import Links
from p2pfed.daemon.status import Status
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.certificates import issue_address_record, issue_certificate
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.envelope import Offer, PayloadContext, wrap_key
from p2pfed.protocol.header import Header, Kind, SignedHeader, sign_header
from p2pfed.protocol.messages import Hello, Message, Refusal
from p2pfed.protocol.publishing import Publication, publish

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

    def link_up(self, peer_id: str, hello: Hello, said: Hello) -> None:
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
        since_round=0,
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
