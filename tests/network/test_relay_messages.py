"""The messages of circuit relay v2 on the wire."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.peer.id import ID
from transport_doubles import identity

from p2pfed.daemon import libp2p_relay_messages as wire
from p2pfed.daemon.libp2p_relay_messages import Status
from p2pfed.daemon.transport import READ_BYTES, Stream
from p2pfed.errors import MalformedMessageError, TransportError

PEER_ID = identity(1).peer_id


class Bytes(Stream):
    """A stream that delivers given bytes, then ends."""

    peer_id = PEER_ID
    protocol = wire.HOP_PROTOCOL

    def __init__(self, data: bytes) -> None:
        self.rest = data

    async def receive_some(self, max_bytes: int = READ_BYTES) -> bytes:
        await trio.lowlevel.checkpoint()
        data, self.rest = self.rest[:max_bytes], self.rest[max_bytes:]
        return data

    async def send_all(self, data: bytes | memoryview) -> None:
        raise AssertionError("nothing is written here")

    async def close(self) -> None: ...

    async def abort(self) -> None: ...


def test_the_bytes_are_those_of_the_specification() -> None:
    # A field's tag is its number times eight, plus 0 for a varint and 2 for bytes.
    assert wire.encode(wire.hop_reserve()) == bytes([2, 0x08, 0])
    raw = ID.from_string(PEER_ID).to_bytes()
    peer = bytes([0x0A, len(raw)]) + raw
    body = bytes([0x08, 1, 0x12, len(peer)]) + peer
    assert wire.encode(wire.hop_connect(PEER_ID)) == bytes([len(body)]) + body
    # Status 203 as a varint is CB 01; it is field 5 of a hop and field 4 of a stop message.
    failed = Status.CONNECTION_FAILED
    assert wire.encode(wire.hop_status(failed)) == bytes([5, 0x08, 2, 0x28, 0xCB, 1])
    assert wire.encode(wire.stop_status(failed)) == bytes([5, 0x08, 1, 0x20, 0xCB, 1])


async def test_what_is_written_is_read_and_nothing_beyond_it() -> None:
    limit = wire.limit_of(3600, 10**12)
    stream = Bytes(wire.encode(wire.stop_connect(PEER_ID, limit)) + b"noise")
    message = await wire.read_stop(stream)
    assert message.type == wire.StopMessage.CONNECT
    assert wire.peer_of(message) == PEER_ID
    assert (message.limit.duration, message.limit.data) == (3600, 10**12)
    assert stream.rest == b"noise"


@pytest.mark.parametrize(
    "start",
    [b"\x81\x20", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x80\x80\x01"],
    ids=["4097", "2**64-1", "not minimal, three bytes"],
)
async def test_a_length_beyond_the_limit_is_refused_before_its_bytes_are_read(start: bytes) -> None:
    stream = Bytes(start + bytes(10_000))
    with pytest.raises(MalformedMessageError, match="4096"):
        await wire.read_hop(stream)
    assert len(stream.rest) >= 10_000


async def test_a_length_beyond_the_stream_is_an_end_of_the_stream() -> None:
    with pytest.raises(TransportError, match="ended"):
        await wire.read_hop(Bytes(b"\x80\x20" + b"\x08\x00"))


@pytest.mark.parametrize("body", [b"\xff\xff", b"", b"\x28\x64"], ids=["noise", "empty", "no type"])
async def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        await wire.read_hop(Bytes(bytes([len(body)]) + body))


@pytest.mark.parametrize("raw", [b"", bytes(200)])
def test_a_peer_id_has_a_sensible_length(raw: bytes) -> None:
    message = wire.HopMessage(type=wire.HopMessage.CONNECT)
    message.peer.id = raw
    with pytest.raises(MalformedMessageError):
        wire.peer_of(message)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    async def read() -> None:
        for reader in (wire.read_hop, wire.read_stop):
            try:
                message = await reader(Bytes(data))
                wire.peer_of(message)
            except (MalformedMessageError, TransportError):
                pass

    trio.run(read)


def test_every_status_but_ok_says_what_it_means() -> None:
    meanings = {wire.meaning(status) for status in Status if status is not Status.OK}
    assert len(meanings) == len(Status) - 1
    assert "999" in wire.meaning(999)
