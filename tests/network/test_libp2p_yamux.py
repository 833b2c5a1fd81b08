"""Our Yamux alone: frames in, frames out, over a channel that a test holds both ends of."""

import itertools

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset
from trio.testing import MockClock

from p2pfed.daemon.libp2p_yamux import (
    ACK,
    DATA,
    FIN,
    FIRST_WINDOW_BYTES,
    GROWTH_BYTES,
    HEADER,
    MAX_HALF_CLOSED_STREAMS,
    MAX_PAYLOAD_BYTES,
    MAX_WINDOW_BYTES,
    PING,
    RST,
    SMALL_BYTES,
    SPECIFIED_WINDOW_BYTES,
    SYN,
    WINDOW_UPDATE,
    YamuxConnection,
    YamuxStream,
)

PEER = ID(b"\x00\x01x")
GRANT_BYTES = FIRST_WINDOW_BYTES - SPECIFIED_WINDOW_BYTES


class Channel:
    """What the peer wrote comes out of ``receive``; what is written is kept."""

    is_initiator = False

    def __init__(self) -> None:
        self.to_read, self._source = trio.open_memory_channel[bytes](100_000)
        self.written: list[bytes] = []
        self._changed = trio.Event()

    async def receive(self) -> bytes:
        try:
            return await self._source.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise ConnectionClosedError("closed") from None

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.written.append(data)
        self._changed.set()
        self._changed = trio.Event()

    write_last = write

    async def close(self) -> None:
        self.to_read.close()
        await trio.lowlevel.checkpoint()

    def frames(self) -> list[tuple[int, int, int, int]]:
        """Type, flags, stream and length of what was written; payloads are left out."""
        rest, found = b"".join(self.written), []
        while rest:
            _, kind, flags, stream_id, length = HEADER.unpack_from(rest)
            rest = rest[HEADER.size + (length if kind == DATA else 0) :]
            if kind != PING:
                found.append((kind, flags, stream_id, length))
        return found

    async def wait_for(self, frame: tuple[int, int, int, int]) -> None:
        while frame not in self.frames():
            await self._changed.wait()


def frame(kind: int, flags: int, stream_id: int, length: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, length) + payload


async def started(nursery: trio.Nursery) -> tuple[YamuxConnection, Channel]:
    channel = Channel()
    connection = YamuxConnection(channel, PEER)
    nursery.start_soon(connection.start)
    await connection.event_started.wait()
    return connection, channel


async def accepted(nursery: trio.Nursery) -> tuple[YamuxConnection, Channel, YamuxStream]:
    """A connection on which the peer has opened stream 1."""
    connection, channel = await started(nursery)
    await channel.to_read.send(frame(WINDOW_UPDATE, SYN, 1, 0))
    return connection, channel, await connection.accept_stream()


async def test_a_stream_opened_by_the_peer_is_acknowledged_with_the_larger_window(
    nursery: trio.Nursery,
) -> None:
    _, channel, stream = await accepted(nursery)
    await channel.wait_for((WINDOW_UPDATE, ACK, 1, GRANT_BYTES))
    assert stream.receive_window == FIRST_WINDOW_BYTES
    await channel.close()


async def test_a_write_stops_at_the_window_and_goes_on_when_it_opens(
    nursery: trio.Nursery,
) -> None:
    _, channel, stream = await accepted(nursery)
    more = 100_000
    async with trio.open_nursery() as writing:
        writing.start_soon(stream.write, bytes(SPECIFIED_WINDOW_BYTES + more))
        await trio.testing.wait_all_tasks_blocked()
        data = [length for kind, _, _, length in channel.frames() if kind == DATA]
        assert sum(data) == SPECIFIED_WINDOW_BYTES
        assert max(data) == MAX_PAYLOAD_BYTES
        await channel.to_read.send(frame(WINDOW_UPDATE, 0, 1, more))
    data = [length for kind, _, _, length in channel.frames() if kind == DATA]
    assert sum(data) == SPECIFIED_WINDOW_BYTES + more
    await channel.close()


async def test_reading_gives_the_window_back_in_halves(nursery: trio.Nursery) -> None:
    _, channel, stream = await accepted(nursery)
    part = FIRST_WINDOW_BYTES // 8
    for number in range(8):
        await channel.to_read.send(frame(DATA, 0, 1, part, bytes([number]) * part))
    for number in range(8):
        assert await stream.read(part) == bytes([number]) * part
    await trio.testing.wait_all_tasks_blocked()
    grants = [frame for frame in channel.frames() if frame[:2] == (WINDOW_UPDATE, 0)]
    assert grants == [(WINDOW_UPDATE, 0, 1, FIRST_WINDOW_BYTES // 2)] * 2
    assert stream.receive_window == FIRST_WINDOW_BYTES
    await channel.close()


async def test_a_window_that_holds_the_peer_up_grows_to_its_bound_and_is_returned(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection, channel, stream = await accepted(nursery)
    connection.round_trip_seconds = 1.0
    payload = bytes(FIRST_WINDOW_BYTES // 2)
    while stream.window_bytes < MAX_WINDOW_BYTES:
        await channel.to_read.send(frame(DATA, 0, 1, len(payload), payload))
        while stream.receive_window < len(payload) or stream._parts:
            await stream.read(len(payload))
    assert connection.allow_growth(MAX_WINDOW_BYTES) == 0
    await stream.reset()
    assert connection.allow_growth(MAX_WINDOW_BYTES // 2) == MAX_WINDOW_BYTES // 2
    assert connection._growth_left_bytes == GROWTH_BYTES - MAX_WINDOW_BYTES // 2
    await channel.close()


async def test_data_and_end_can_be_read_after_the_connection_has_gone(
    nursery: trio.Nursery,
) -> None:
    connection, channel, stream = await accepted(nursery)
    await channel.to_read.send(frame(DATA, FIN, 1, 5, b"hello"))
    await channel.close()
    await connection.event_closed.wait()
    assert await stream.read() == b"hello"
    with pytest.raises(MuxedStreamEOF):
        await stream.read()
    with pytest.raises(MuxedStreamClosed):
        await stream.write(b"x")


async def test_a_connection_that_goes_before_the_end_is_no_end(nursery: trio.Nursery) -> None:
    connection, channel, stream = await accepted(nursery)
    await channel.to_read.send(frame(DATA, 0, 1, 5, b"hello"))
    await channel.close()
    await connection.event_closed.wait()
    assert await stream.read() == b"hello"
    with pytest.raises(MuxedStreamReset):
        await stream.read()


async def test_what_came_before_the_peer_reset_a_stream_can_still_be_read(
    nursery: trio.Nursery,
) -> None:
    connection, channel, stream = await accepted(nursery)
    await channel.to_read.send(frame(DATA, 0, 1, 5, b"hello"))
    await channel.to_read.send(frame(WINDOW_UPDATE, RST, 1, 0))
    while connection._streams:
        await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(MuxedStreamReset):
        await stream.write(b"x" * MAX_WINDOW_BYTES)
    assert await stream.read() == b"hello"
    with pytest.raises(MuxedStreamReset):
        await stream.read()
    await channel.close()


async def test_data_for_a_stream_closed_here_is_answered_with_a_reset(
    nursery: trio.Nursery,
) -> None:
    connection, channel, stream = await accepted(nursery)
    await stream.close()
    await channel.wait_for((WINDOW_UPDATE, FIN, 1, 0))
    await channel.to_read.send(frame(DATA, 0, 1, 5, b"hello"))
    await channel.wait_for((WINDOW_UPDATE, RST, 1, 0))
    assert connection._streams == {}
    await channel.close()


async def test_streams_that_the_peer_never_closes_are_bounded(nursery: trio.Nursery) -> None:
    connection, channel = await started(nursery)
    for _ in range(3 * MAX_HALF_CLOSED_STREAMS):
        await (await connection.open_stream()).close()
    assert len(connection._streams) == MAX_HALF_CLOSED_STREAMS
    await channel.close()


async def test_tiny_frames_are_kept_together(nursery: trio.Nursery) -> None:
    _, channel, stream = await accepted(nursery)
    count = 20_000
    await channel.to_read.send(frame(DATA, 0, 1, 1, b"x") * count)
    await trio.testing.wait_all_tasks_blocked()
    assert len(stream._parts) <= count // SMALL_BYTES + 1
    received = bytearray()
    while len(received) < count:
        received += await stream.read(1000)
    assert received == b"x" * count
    await channel.close()


async def test_a_ping_is_answered_and_a_reply_measures(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection, channel = await started(nursery)
    await channel.to_read.send(frame(PING, SYN, 0, 4711))
    await trio.testing.wait_all_tasks_blocked()
    assert frame(PING, ACK, 0, 4711) in b"".join(channel.written)
    await trio.sleep(0.25)
    await channel.to_read.send(frame(PING, ACK, 0, 0))
    await trio.testing.wait_all_tasks_blocked()
    assert connection.round_trip_seconds == 0.25
    await channel.close()


async def test_a_read_that_is_cancelled_loses_nothing(nursery: trio.Nursery) -> None:
    _, channel, stream = await accepted(nursery)
    payload = bytes(range(256)) * 1000
    received = bytearray()
    async with trio.open_nursery() as sending:

        async def send() -> None:
            for start in range(0, len(payload), 1000):
                part = payload[start : start + 1000]
                await channel.to_read.send(frame(DATA, 0, 1, len(part), part))
                await trio.lowlevel.checkpoint()

        sending.start_soon(send)
        for attempt in itertools.count():
            if len(received) == len(payload):
                break
            with trio.CancelScope() as scope:
                if attempt % 3:
                    scope.cancel()
                received += await stream.read(777)
            await trio.lowlevel.checkpoint()
    assert received == payload
    await channel.close()


@settings(max_examples=50, deadline=None)
@given(
    payloads=st.lists(st.binary(max_size=2 * SMALL_BYTES), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 40_000), min_size=1, max_size=20),
    read_bytes=st.integers(1, 50_000),
)
def test_frames_arrive_whole_however_the_channel_cuts_them(
    payloads: list[bytes], cuts: list[int], read_bytes: int
) -> None:
    async def run() -> bytes:
        async with trio.open_nursery() as nursery:
            _, channel, stream = await accepted(nursery)
            wire = b"".join(frame(DATA, 0, 1, len(part), part) for part in payloads)
            wire += frame(WINDOW_UPDATE, FIN, 1, 0)
            number = 0
            while wire:
                cut = cuts[number % len(cuts)]
                await channel.to_read.send(wire[:cut])
                wire, number = wire[cut:], number + 1
            received = bytearray()
            with pytest.raises(MuxedStreamEOF):
                while True:
                    part = await stream.read(read_bytes)
                    assert 0 < len(part) <= read_bytes
                    received += part
            await channel.close()
        return bytes(received)

    assert trio.run(run) == b"".join(payloads)
