"""What a member that misbehaves can do to another: cost it a stream or a link, and no more."""

import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from libp2p.io.exceptions import IOException
from libp2p.transport.tcp.tcp import TCP
from libp2p.utils.varint import encode_uvarint
from multiaddr import Multiaddr
from transport_doubles import Site, running

from p2pfed.daemon import libp2p_transport
from p2pfed.daemon.libp2p_noise import NoiseChannel
from p2pfed.daemon.libp2p_transport import STREAMS_PER_PEER
from p2pfed.daemon.libp2p_yamux import (
    DATA,
    FIRST_WINDOW_BYTES,
    GO_AWAY,
    HEADER,
    MAX_INBOUND_STREAMS,
    MAX_PAYLOAD_BYTES,
    PING,
    PROTOCOL_ERROR,
    RST,
    SYN,
    WINDOW_UPDATE,
)
from p2pfed.daemon.transport import Stream
from p2pfed.errors import TransportError

ECHO = "/test/echo/1"
DEAF = "/test/deaf/1"
MULTISTREAM = b"/multistream/1.0.0\n"
MEGABYTE = 1_000_000


async def echo(stream: Stream) -> None:
    await stream.send_all(await stream.receive_exactly(4))


async def assert_serves(victim: Site, member: Site) -> None:
    await member.dial(victim)
    stream = await member.transport.open_stream(victim.peer_id, ECHO)
    await stream.send_all(b"ping")
    assert await stream.receive_exactly(4) == b"ping"
    await stream.close()


def frame(kind: int, flags: int, stream_id: int, length: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, length) + payload


def delimited(message: bytes) -> bytes:
    return encode_uvarint(len(message)) + message


@asynccontextmanager
async def raw_channel(member: Site, victim: Site) -> AsyncIterator[NoiseChannel]:
    """A member's authenticated connection on which nobody yet speaks Yamux."""
    network = member.transport._network
    peer_id = victim.transport._network.get_peer_id()
    raw = await TCP().dial(Multiaddr(victim.address))
    try:
        channel = await network.upgrader.upgrade_security(raw, True, peer_id)
        await network.upgrader.upgrade_connection(channel, peer_id)
        await victim.recorder.wait("connected", member.peer_id)
        yield channel
    finally:
        await raw.close()


def refused(frames: bytes) -> list[int]:
    """The streams that frames without payload reset."""
    whole = frames[: len(frames) // HEADER.size * HEADER.size]
    return [stream_id for _, _, flags, stream_id, _ in HEADER.iter_unpack(whole) if flags & RST]


async def read_until_the_end(channel: NoiseChannel) -> bytes:
    received = bytearray()
    with pytest.raises(IOException):
        while True:
            received += await channel.receive()
    return bytes(received)


@pytest.mark.parametrize(
    "negotiation",
    [
        delimited(MULTISTREAM) + delimited(b"\xff\xfe\n"),
        delimited(MULTISTREAM) + encode_uvarint(2**63) + bytes(1000),
        delimited(b"no newline"),
        bytes(100),
    ],
    ids=["not utf-8", "absurd length", "no newline", "zeros"],
)
async def test_a_bad_protocol_id_costs_only_its_stream(negotiation: bytes) -> None:
    victim, member = Site(1), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, member):
        await member.dial(victim)
        connection = member.transport._links[victim.peer_id].connection
        stream = await connection.muxed_conn.open_stream()
        await stream.write(negotiation)
        await stream.close()
        with pytest.raises(Exception, match="stream"):
            while True:
                await stream.read(1000)
        await assert_serves(victim, member)
        assert victim.recorder.count("disconnected", member.peer_id) == 0


@pytest.mark.parametrize(
    "error", [ValueError("boom"), ExceptionGroup("boom", [KeyError("boom")]), TransportError("x")]
)
async def test_a_handler_that_raises_costs_only_its_stream(error: Exception) -> None:
    victim, member = Site(1), Site(2)

    async def fail(stream: Stream) -> None:
        raise error

    victim.transport.set_handler(ECHO, echo)
    victim.transport.set_handler("/test/fail/1", fail)
    async with running(victim, member):
        await member.dial(victim)
        stream = await member.transport.open_stream(victim.peer_id, "/test/fail/1")
        with pytest.raises(TransportError):
            await stream.receive_some()
        await assert_serves(victim, member)
        assert victim.recorder.count("disconnected", member.peer_id) == 0


async def test_a_member_that_ignores_the_window_loses_the_link_and_fills_nothing() -> None:
    victim, member = Site(1), Site(2)

    async def wait(stream: Stream) -> None:
        await trio.sleep_forever()

    victim.transport.set_handler(DEAF, wait)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, member):
        async with raw_channel(member, victim) as channel:
            payload = bytes(MAX_PAYLOAD_BYTES)
            tracemalloc.start()
            opening = delimited(MULTISTREAM) + delimited(DEAF.encode() + b"\n")
            await channel.write(frame(DATA, SYN, 1, len(opening), opening))

            async def flood() -> None:
                with pytest.raises(IOException):
                    for _ in range(200 * MEGABYTE // len(payload)):
                        await channel.write(frame(DATA, 0, 1, len(payload), payload))
                    pytest.fail("the flood was taken")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                await victim.recorder.wait("disconnected", member.peer_id)
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak_bytes < 8 * FIRST_WINDOW_BYTES
        await assert_serves(victim, member)


@pytest.mark.parametrize(
    "frames",
    [
        struct.pack("!BBHII", 1, DATA, 0, 1, 0),
        frame(9, 0, 1, 0),
        frame(DATA, SYN, 2, 0),
        frame(WINDOW_UPDATE, SYN, 1, 0) * 2,
        frame(WINDOW_UPDATE, SYN, 1, 0) + frame(DATA, 0, 1, FIRST_WINDOW_BYTES + 1),
        frame(DATA, 0, 77, 2**32 - 1),
    ],
    ids=["version", "type", "our stream id", "opened twice", "beyond the window", "nobody's"],
)
async def test_a_broken_frame_ends_the_link_with_the_code_for_it(frames: bytes) -> None:
    victim, member = Site(1), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, member):
        async with raw_channel(member, victim) as channel:
            await channel.write(frames)
            received = await read_until_the_end(channel)
            assert frame(GO_AWAY, 0, 0, PROTOCOL_ERROR) in received
        await victim.recorder.wait("disconnected", member.peer_id)
        await assert_serves(victim, member)


async def test_a_message_that_is_not_authentic_ends_the_link() -> None:
    victim, member = Site(1), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, member):
        async with raw_channel(member, victim) as channel:
            await channel._raw.write(b"\x00\x40" + bytes(64))
            await victim.recorder.wait("disconnected", member.peer_id)
        await assert_serves(victim, member)


async def test_streams_beyond_the_limit_are_reset_and_the_rest_go_on() -> None:
    victim, member = Site(1), Site(2)
    release = trio.Event()

    async def wait(stream: Stream) -> None:
        await release.wait()
        await stream.send_all(b"!")
        await stream.close()

    victim.transport.set_handler(DEAF, wait)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, member):
        await member.dial(victim)
        streams = [
            await member.transport.open_stream(victim.peer_id, DEAF)
            for _ in range(STREAMS_PER_PEER)
        ]
        with pytest.raises(TransportError):
            await member.transport.open_stream(victim.peer_id, DEAF)
        release.set()
        for stream in streams:
            assert await stream.receive_exactly(1) == b"!"
            assert await stream.receive_some() == b""
            await stream.close()
        await assert_serves(victim, member)


async def test_a_member_may_open_no_more_streams_than_yamux_keeps_for_it() -> None:
    victim, member = Site(1), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, member):
        async with raw_channel(member, victim) as channel:
            opened = range(1, 2 * 500, 2)
            await channel.write(
                b"".join(frame(WINDOW_UPDATE, SYN, stream_id, 0) for stream_id in opened)
            )
            answers = bytearray()
            while not set(refused(answers)) >= set(opened[MAX_INBOUND_STREAMS:]):
                answers += await channel.receive()
            held = victim.transport._links[member.peer_id].connection.muxed_conn._streams
            assert len(held) <= MAX_INBOUND_STREAMS
        await victim.recorder.wait("disconnected", member.peer_id)
        await assert_serves(victim, member)


async def test_a_member_that_asks_and_never_reads_loses_the_link() -> None:
    victim, member = Site(1, idle_timeout_seconds=1.0), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, member):
        async with raw_channel(member, victim) as channel:

            async def ask() -> None:
                pings = b"".join(frame(PING, SYN, 0, number) for number in range(1000))
                with pytest.raises(IOException):
                    while True:
                        await channel.write(pings)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await victim.recorder.wait("disconnected", member.peer_id)
        await assert_serves(victim, member)


async def test_a_member_that_leaves_many_connections_open_keeps_one() -> None:
    victim, member = Site(1), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, member):
        async with AsyncExitStack() as channels:
            opened = [
                await channels.enter_async_context(raw_channel(member, victim)) for _ in range(20)
            ]
            for channel in opened[:-1]:
                await read_until_the_end(channel)
            assert len(victim.transport._network.get_connections()) == 1
        await victim.recorder.wait("disconnected", member.peer_id, 20)
        await assert_serves(victim, member)


@pytest.mark.parametrize("settled_seconds", [20.0, -1.0])
async def test_a_second_connection_replaces_only_one_that_its_peer_has_forgotten(
    settled_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer dials only while it knows of no connection, once any dial of before is over."""
    monkeypatch.setattr(libp2p_transport, "SETTLED_SECONDS", settled_seconds)
    victim, member = sorted((Site(1), Site(2)), key=lambda site: site.peer_id)
    async with running(victim, member):
        await victim.dial(member)
        connected = victim.transport._links[member.peer_id].connection
        async with raw_channel(member, victim) as channel:
            if settled_seconds > 0:
                await read_until_the_end(channel)
                assert victim.transport._links[member.peer_id].connection is connected
                assert not connected.is_closed
            else:
                await victim.recorder.wait("connected", member.peer_id, 2)
                path = victim.transport.path(member.peer_id)
                assert path is not None
                assert path.direction == "inbound"
