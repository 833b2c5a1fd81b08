"""Two sites that exchange sealed envelopes over a memory network, without links or rounds."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import trio
from linked_sites import HIGH, LOW, running
from scripted_network import ScriptedNetwork, ScriptedTransport, address_of

from p2pfed.daemon.delta_exchange import (
    DeltaReceiver,
    ExchangeHandler,
    ReceivedPayload,
    SendOutcome,
    send_envelope,
)
from p2pfed.protocol import limits
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.envelope import (
    ChunkSealer,
    Offer,
    PayloadContext,
    chunk_digest,
    chunks_root,
    unwrap_key,
    wrap_key,
)
from p2pfed.protocol.header import Header, Kind, SignedHeader, sign_header
from p2pfed.protocol.messages import AnswerCode

ONE_CHUNK = limits.CHUNK_BYTES // 4  # parameters of a full chunk of float32
PAYLOAD_KEY = b"k" * 32


@dataclass(frozen=True)
class Envelope:
    """What LOW sends to HIGH."""

    offer: Offer
    ciphertext: Path
    plaintext: bytes


def make_envelope(directory: Path, parameters: int, *, sequence: int = 1) -> Envelope:
    """A float32 envelope of ``parameters`` parameters, sealed and signed by LOW for HIGH."""
    codec = get_codec("float32")
    plaintext = np.random.default_rng(sequence).bytes(4 * parameters)
    header = Header(
        version=limits.PROTOCOL_VERSION,
        federation_id=b"f" * 32,
        kind=Kind.DELTA,
        sender=LOW.public_key,
        topology_digest=b"t" * 32,
        schema_digest=b"s" * 32,
        round_number=sequence - 1,
        sequence=sequence,
        since_round=0,
        previous=bytes(32),
        replica_before=b"b" * 32,
        replica_after=b"a" * 32,
        codec="float32",
        key_commitment=bytes(32),
        chunks_root=bytes(32),
        chunk_count=codec.chunk_count(parameters),
        payload_bytes=codec.payload_bytes(parameters),
        privacy_spend=0.0,
        time_seconds=0,
    )
    sealer = ChunkSealer(PAYLOAD_KEY, PayloadContext.of(header))
    sealed = [
        sealer.seal(index, plaintext[start : start + limits.CHUNK_BYTES])
        for index, start in enumerate(range(0, len(plaintext), limits.CHUNK_BYTES))
    ]
    digests = b"".join(map(chunk_digest, sealed))
    header = replace(header, key_commitment=sealer.key_commitment, chunks_root=chunks_root(digests))
    signed = sign_header(LOW, header)
    path = directory / f"{sequence}.sealed"
    path.write_bytes(b"".join(sealed))
    wrapped = wrap_key(LOW, HIGH.encryption_public_key, PAYLOAD_KEY, signed.digest)
    return Envelope(Offer(signed, digests, wrapped), path, plaintext)


@dataclass
class Exchange:
    """LOW sends, HIGH receives. ``answer`` is what HIGH says to an offer it has checked."""

    network: ScriptedNetwork
    sender: ScriptedTransport
    receiver: ScriptedTransport
    spool: Path
    answer: tuple[AnswerCode, str] = (AnswerCode.SEND, "")
    decided: list[SignedHeader] = field(default_factory=list)
    delivered: list[ReceivedPayload] = field(default_factory=list)
    aborted: list[SignedHeader] = field(default_factory=list)
    unwrap: Callable[[str, Offer], bytes] = lambda _peer_id, offer: unwrap_key(
        HIGH, LOW.encryption_public_key, offer.wrapped_key, offer.signed.digest
    )
    _change: trio.Event = field(default_factory=trio.Event)

    def handler(self) -> ExchangeHandler:
        def decide(peer_id: str, offer: Offer) -> tuple[AnswerCode, str]:
            assert peer_id == LOW.peer_id
            self.decided.append(offer.signed)
            self._changed()
            return self.answer

        def deliver(peer_id: str, received: ReceivedPayload) -> None:
            assert peer_id == LOW.peer_id
            self.delivered.append(received)
            self._changed()

        def aborted(peer_id: str, signed: SignedHeader) -> None:
            assert peer_id == LOW.peer_id
            self.aborted.append(signed)
            self._changed()

        def unwrap(peer_id: str, offer: Offer) -> bytes:
            return self.unwrap(peer_id, offer)  # a test may have replaced it

        return ExchangeHandler(decide, unwrap, deliver, aborted)

    async def send(self, envelope: Envelope) -> SendOutcome:
        await self.sender.dial(HIGH.peer_id, address_of(HIGH.peer_id), 1.0)
        return await send_envelope(self.sender, HIGH.peer_id, envelope.offer, envelope.ciphertext)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._change.wait()

    def spooled(self) -> list[str]:
        """What is kept of payloads; not the files that wait to be overwritten."""
        names = (path.name for path in self.spool.iterdir())
        return sorted(name for name in names if not name.startswith("spare-"))

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()


@asynccontextmanager
async def exchanging(directory: Path, parameters: int) -> AsyncIterator[Exchange]:
    """Run both ends for a model of ``parameters`` parameters."""
    network = ScriptedNetwork()
    sender, receiver = network.transport(LOW.peer_id), network.transport(HIGH.peer_id)
    sender.set_roster((HIGH.peer_id,))
    receiver.set_roster((LOW.peer_id,))
    spool = directory / "spool"
    spool.mkdir(exist_ok=True)
    exchange = Exchange(network, sender, receiver, spool)
    delta_receiver = DeltaReceiver(spool, parameters, exchange.handler())
    receiver.set_handler(limits.DELTA_PROTOCOL, delta_receiver.handle)
    async with running(sender.run, receiver.run):
        yield exchange
    assert network.failures == []
