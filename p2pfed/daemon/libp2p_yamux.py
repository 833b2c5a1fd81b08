"""Yamux (github.com/hashicorp/yamux, spec.md) for one authenticated connection.

It speaks to any implementation. The library's own does not hold a peer to its receive window,
gives up a writer after five seconds without one, sends a window update for every read and
cannot be cancelled in the middle of a read; hence this one. A peer that breaks the rules loses
the connection, and what it can make this side hold is bounded by the windows.
"""

import struct
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from types import TracebackType

import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from multiaddr import Multiaddr

from p2pfed.daemon.libp2p_noise import MAX_PLAINTEXT_BYTES, NoiseChannel

HEADER = struct.Struct("!BBHII")  # version, type, flags, stream id, length
VERSION = 0
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
NORMAL_END, PROTOCOL_ERROR = 0, 1

SPECIFIED_WINDOW_BYTES = 256 * 1024  # of every stream at its start, as the specification says
FIRST_WINDOW_BYTES = 1024 * 1024  # granted at once; at least what loopback needs
MAX_WINDOW_BYTES = 16 * 1024 * 1024
GROWTH_BYTES = 32 * 1024 * 1024  # that all windows of a connection may grow by, together
MAX_PAYLOAD_BYTES = MAX_PLAINTEXT_BYTES - HEADER.size  # one Noise message a frame
SMALL_BYTES = 16 * 1024  # parts below are copied together, so that their overhead is bounded
MAX_INBOUND_STREAMS = 16
MAX_HALF_CLOSED_STREAMS = 16
MAX_QUEUED_CONTROL_FRAMES = 1024
MEASURE_SECONDS = 30.0
FAREWELL_TIMEOUT_SECONDS = 1.0


class ProtocolViolationError(Exception):
    """The peer broke the specification."""


class YamuxStream(IMuxedStream):  # type: ignore[misc]
    """One stream; reads and waits for a window may be cancelled without harm."""

    def __init__(self, connection: "YamuxConnection", stream_id: int) -> None:
        self.muxed_conn = connection
        self.stream_id = stream_id
        self.send_window = SPECIFIED_WINDOW_BYTES
        self.receive_window = FIRST_WINDOW_BYTES
        self.window_bytes = FIRST_WINDOW_BYTES
        self.local_end = False
        self.remote_end = False
        self.was_reset = False
        self._parts: deque[memoryview | bytearray] = deque()
        self._taken_bytes = 0
        self._granted_at_seconds = trio.current_time()
        self._changed = trio.Event()

    def wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def take(self, part: memoryview) -> None:
        """Keep a part of a frame's payload until it is read."""
        if len(part) >= SMALL_BYTES:
            self._parts.append(part)
        else:
            last = self._parts[-1] if self._parts else None
            if isinstance(last, bytearray) and len(last) < SMALL_BYTES:
                last += part
            else:
                self._parts.append(bytearray(part))
        self.wake()

    def forget(self) -> None:
        """Nobody will read what is left."""
        self._parts.clear()
        self.wake()

    async def read(self, n: int | None = None) -> bytes:
        """At least one and at most ``n`` bytes.

        :raises MuxedStreamEOF: the peer closed its end.
        :raises MuxedStreamReset: either end reset the stream, or the connection ended.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._parts:
            if self.was_reset:
                raise MuxedStreamReset("the stream was reset")
            if self.remote_end:
                raise MuxedStreamEOF("the stream has ended")
            await self._changed.wait()
        part = self._parts[0]
        if n is None or n < 0 or len(part) <= n:
            self._parts.popleft()
        elif isinstance(part, bytearray):
            rest, part = part, part[:n]
            del rest[:n]
        else:
            self._parts[0], part = part[n:], part[:n]
        self._grant(len(part))
        return bytes(part)

    def _grant(self, count: int) -> None:
        """Let the peer send as much again, in steps of half a window.

        A window that is used up within four round trips holds the peer up, so it is doubled
        (as go-yamux does).
        """
        self._taken_bytes += count
        if self._taken_bytes < self.window_bytes // 2 or self.remote_end:
            return
        now = trio.current_time()
        if now - self._granted_at_seconds < 2 * self.muxed_conn.round_trip_seconds:
            grown = self.muxed_conn.allow_growth(self.window_bytes)
            self.window_bytes += grown
            self._taken_bytes += grown
        self._granted_at_seconds = now
        self.receive_window += self._taken_bytes
        self.muxed_conn.queue(WINDOW_UPDATE, 0, self.stream_id, self._taken_bytes)
        self._taken_bytes = 0

    async def write(self, data: bytes) -> None:
        """:raises MuxedStreamClosed: this end is closed.
        :raises MuxedStreamReset: either end reset the stream, or the connection ended.
        :raises IOException: the connection failed just now.
        """
        rest = memoryview(data)
        while rest:
            await trio.lowlevel.checkpoint_if_cancelled()
            while not self.send_window or self.local_end:
                if self.was_reset:
                    raise MuxedStreamReset("the stream was reset")
                if self.local_end:
                    raise MuxedStreamClosed("the stream is closed")
                await self._changed.wait()
            size = min(self.send_window, len(rest), MAX_PAYLOAD_BYTES)
            self.send_window -= size
            header = HEADER.pack(VERSION, DATA, 0, self.stream_id, size)
            await self.muxed_conn.send(b"".join((header, rest[:size])))
            rest = rest[size:]

    async def close(self) -> None:
        """Send the end after what was written; what still comes in is not read any more."""
        if not self.local_end:
            self.local_end = True
            self.forget()
            self.muxed_conn.queue(WINDOW_UPDATE, FIN, self.stream_id, 0)
            self.muxed_conn.closed_locally(self)
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        if not self.was_reset and not (self.local_end and self.remote_end):
            self.muxed_conn.queue(WINDOW_UPDATE, RST, self.stream_id, 0)
        self.end()
        self.muxed_conn.remove(self)
        await trio.lowlevel.checkpoint()

    def end(self) -> None:
        """Both ends are gone at once: a reset by this end."""
        self.end_from_afar()
        self.forget()

    def end_from_afar(self) -> None:
        """The peer reset it; what came before can still be read, for it may say why."""
        self.was_reset = self.local_end = self.remote_end = True
        self.wake()

    def lose_connection(self) -> None:
        """What came before can still be read; only a stream the peer had ended is whole."""
        self.was_reset = self.was_reset or not self.remote_end
        self.local_end = self.remote_end = True
        self.wake()

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("use a trio cancel scope")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> "YamuxStream":
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()


class YamuxConnection(IMuxedConn):  # type: ignore[misc]
    """The streams of one connection; ``start`` runs it until it ends."""

    def __init__(self, conn: NoiseChannel, peer_id: ID) -> None:
        self.peer_id = peer_id
        self.secured_conn = conn
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.on_close: Callable[[], Awaitable[None]] | None = None  # set by the library
        self.round_trip_seconds = 0.0
        self._streams: dict[int, YamuxStream] = {}
        self._half_closed: OrderedDict[int, YamuxStream] = OrderedDict()
        self._next_id = 1 if conn.is_initiator else 2
        self._growth_left_bytes = GROWTH_BYTES
        self._queued: list[bytes] = []
        self._queued_some = trio.Event()
        self._ping_sent_at_seconds: float | None = None
        self._accepting, self._accepted = trio.open_memory_channel[YamuxStream](MAX_INBOUND_STREAMS)

    @property
    def is_initiator(self) -> bool:
        return bool(self.secured_conn.is_initiator)

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self.is_closed

    @property
    def is_closed(self) -> bool:
        return self.event_closed.is_set()

    async def start(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_queued)
            nursery.start_soon(self._measure_round_trip)
            self.event_started.set()
            try:
                await self._read_frames()
            except ProtocolViolationError:
                await self._say_goodbye(PROTOCOL_ERROR)
            except (IOException, OSError, trio.ClosedResourceError):
                pass  # the connection ended; whoever uses a stream of it hears so
            # First of all, for it frees whoever is blocked on writing.
            await self.secured_conn.close()
            nursery.cancel_scope.cancel()
        await self._end()

    async def close(self) -> None:
        if not self.is_closed:
            await self._say_goodbye(NORMAL_END)
            await self._end()

    async def _say_goodbye(self, code: int) -> None:
        with trio.move_on_after(FAREWELL_TIMEOUT_SECONDS):
            try:
                await self.secured_conn.write_last(HEADER.pack(VERSION, GO_AWAY, 0, 0, code))
            except IOException:
                return  # it knows already

    async def _end(self) -> None:
        if self.is_closed:
            return
        self.event_closed.set()
        for stream in self._streams.values():
            stream.lose_connection()
        self._streams.clear()
        self._half_closed.clear()
        self._accepting.close()
        await self.secured_conn.close()
        if self.on_close is not None:
            await self.on_close()

    async def open_stream(self) -> YamuxStream:
        """:raises MuxedConnUnavailable: the connection is closed."""
        if self.is_closed:
            raise MuxedConnUnavailable("the connection is closed")
        stream = YamuxStream(self, self._next_id)
        self._next_id += 2
        self._streams[stream.stream_id] = stream
        self.queue(WINDOW_UPDATE, SYN, stream.stream_id, _FIRST_GRANT_BYTES)
        await trio.lowlevel.checkpoint()
        return stream

    async def accept_stream(self) -> YamuxStream:
        """:raises MuxedConnUnavailable: the connection ended."""
        try:
            return await self._accepted.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable("the connection is closed") from None

    async def send(self, frame: bytes) -> None:
        """Write a data frame after the control frames that were queued before it."""
        if self._queued:
            queued = b"".join(self._take_queued())
            if len(queued) + len(frame) <= MAX_PLAINTEXT_BYTES:
                frame = queued + frame
            else:
                await self.secured_conn.write(queued)
        await self.secured_conn.write(frame)

    def queue(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """Have a control frame sent soon. Whoever reads frames must never wait for a write:
        two peers that do so wait for each other."""
        self._queued.append(HEADER.pack(VERSION, kind, flags, stream_id, value))
        self._queued_some.set()

    def _take_queued(self) -> list[bytes]:
        queued, self._queued = self._queued, []
        self._queued_some = trio.Event()
        return queued

    async def _send_queued(self) -> None:
        try:
            while True:
                await self._queued_some.wait()
                await self.secured_conn.write(b"".join(self._take_queued()))
        except IOException:
            await self.secured_conn.close()  # which ends the reading task as well

    async def _measure_round_trip(self) -> None:
        while True:
            self._ping_sent_at_seconds = trio.current_time()
            self.queue(PING, SYN, 0, 0)
            await trio.sleep(MEASURE_SECONDS)

    def allow_growth(self, wanted_bytes: int) -> int:
        """How much a stream's window of ``wanted_bytes`` may grow by, to at most twice."""
        grown = min(wanted_bytes, MAX_WINDOW_BYTES - wanted_bytes, self._growth_left_bytes)
        self._growth_left_bytes -= grown
        return grown

    def remove(self, stream: YamuxStream) -> None:
        self._half_closed.pop(stream.stream_id, None)
        if self._streams.pop(stream.stream_id, None) is not None:
            self._growth_left_bytes += stream.window_bytes - FIRST_WINDOW_BYTES

    def closed_locally(self, stream: YamuxStream) -> None:
        """Forget a stream once both ends are closed; bound those whose peer never closes."""
        if stream.remote_end:
            self.remove(stream)
            return
        self._half_closed[stream.stream_id] = stream
        if len(self._half_closed) > MAX_HALF_CLOSED_STREAMS:
            oldest = next(iter(self._half_closed.values()))
            self.queue(WINDOW_UPDATE, RST, oldest.stream_id, 0)
            oldest.end()
            self.remove(oldest)

    async def _read_frames(self) -> None:
        """:raises ProtocolViolationError: the peer broke the specification.
        :raises IOException: the connection ended.
        """
        ahead = memoryview(b"")
        while True:
            while len(ahead) < HEADER.size:
                ahead = memoryview(b"".join((ahead, await self.secured_conn.receive())))
            version, kind, flags, stream_id, length = HEADER.unpack_from(ahead)
            ahead = ahead[HEADER.size :]
            if version != VERSION or kind > GO_AWAY:
                raise ProtocolViolationError("no such frame")
            if kind == PING:
                self._take_ping(flags, length)
            elif kind == GO_AWAY:
                return
            else:
                stream = self._stream_of(flags, stream_id)
                if kind == WINDOW_UPDATE:
                    if stream is not None:
                        stream.send_window += length
                        stream.wake()
                else:
                    ahead = await self._take_data(stream, stream_id, length, ahead)
                if stream is not None and flags & (FIN | RST):
                    self._take_end(stream, flags)

    def _stream_of(self, flags: int, stream_id: int) -> YamuxStream | None:
        """The stream that a frame is for; None where it is gone, or was refused."""
        stream = self._streams.get(stream_id)
        if not flags & SYN:
            return stream
        if stream is not None or stream_id % 2 == self._next_id % 2:
            raise ProtocolViolationError("a stream that cannot be opened")
        inbound = sum(each % 2 == stream_id % 2 for each in self._streams)
        if inbound >= MAX_INBOUND_STREAMS:
            self._answer(WINDOW_UPDATE, RST, stream_id, 0)
            return None
        stream = YamuxStream(self, stream_id)
        try:
            self._accepting.send_nowait(stream)
        except trio.WouldBlock:
            self._answer(WINDOW_UPDATE, RST, stream_id, 0)
            return None
        self._streams[stream_id] = stream
        self._answer(WINDOW_UPDATE, ACK, stream_id, _FIRST_GRANT_BYTES)
        return stream

    async def _take_data(
        self, stream: YamuxStream | None, stream_id: int, length: int, ahead: memoryview
    ) -> memoryview:
        """Hand a frame's payload to its stream as it comes; returns what follows it."""
        if stream is None:
            if length > MAX_WINDOW_BYTES:
                raise ProtocolViolationError("a frame beyond any window")
        elif length > stream.receive_window or stream.remote_end:
            raise ProtocolViolationError("data beyond the window, or after the end")
        else:
            stream.receive_window -= length
            if stream.local_end:
                # Nobody reads it, so no window will open again: tell the writer.
                self._answer(WINDOW_UPDATE, RST, stream_id, 0)
                stream.end()
                self.remove(stream)
        while length:
            if not ahead:
                ahead = memoryview(await self.secured_conn.receive())
            part, ahead = ahead[:length], ahead[length:]
            length -= len(part)
            if stream is not None and not stream.local_end:
                stream.take(part)
        return ahead

    def _take_end(self, stream: YamuxStream, flags: int) -> None:
        if flags & RST:
            stream.end_from_afar()
        stream.remote_end = True
        stream.wake()
        if stream.local_end:
            self.remove(stream)

    def _take_ping(self, flags: int, value: int) -> None:
        if flags & SYN:
            self._answer(PING, ACK, 0, value)
        elif self._ping_sent_at_seconds is not None:
            self.round_trip_seconds = trio.current_time() - self._ping_sent_at_seconds
            self._ping_sent_at_seconds = None

    def _answer(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """Queue a frame that the peer's own frames caused; it must also read the answers."""
        if len(self._queued) >= MAX_QUEUED_CONTROL_FRAMES:
            raise ProtocolViolationError("more requests than answers that were read")
        self.queue(kind, flags, stream_id, value)

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.secured_conn.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self.secured_conn.get_connection_type()


_FIRST_GRANT_BYTES = FIRST_WINDOW_BYTES - SPECIFIED_WINDOW_BYTES
