"""The transport's interface without sockets, for tests of what stands on it.

Works under trio's autojump clock. The network can partition two peers: dials between them time
out, and connections that exist fall silent, as they do when a cable is cut.
"""

from collections import Counter
from collections.abc import Collection

import trio

from p2pfed.daemon.transport import (
    READ_BYTES,
    ConnectionObserver,
    ConnectionPath,
    Direction,
    Stream,
    StreamHandler,
    Transport,
)
from p2pfed.errors import TransportError

PART_BYTES = 65_536
PARTS_IN_FLIGHT = 16
IDLE_TIMEOUT_SECONDS = 20.0
STREAMS_PER_PEER = 8


class _Pipe:
    """One direction of a stream."""

    def __init__(self) -> None:
        self.sender, self.receiver = trio.open_memory_channel[bytes](PARTS_IN_FLIGHT)


class _Connection:
    """Both ends share it; ``dialler`` opened it."""

    def __init__(self, dialler: "MemoryTransport", listener: "MemoryTransport") -> None:
        self.ends = (dialler, listener)
        self.broken = trio.Event()
        self.streams: list[MemoryStream] = []

    def other(self, end: "MemoryTransport") -> "MemoryTransport":
        return self.ends[1] if end is self.ends[0] else self.ends[0]

    def direction(self, end: "MemoryTransport") -> Direction:
        return "outbound" if end is self.ends[0] else "inbound"

    def break_off(self) -> None:
        self.broken.set()
        for stream in self.streams:
            stream.fail()


class MemoryStream(Stream):
    def __init__(
        self,
        connection: _Connection,
        end: "MemoryTransport",
        protocol: str,
        incoming: _Pipe,
        outgoing: _Pipe,
    ) -> None:
        self.peer_id = connection.other(end).peer_id
        self.protocol = protocol
        self._connection = connection
        self._end = end
        self._incoming = incoming
        self._outgoing = outgoing
        self._rest = b""
        self.ended = False
        self._failed = False
        connection.streams.append(self)

    def fail(self) -> None:
        self._failed = self.ended = True
        for pipe in (self._incoming, self._outgoing):
            pipe.sender.close()
            pipe.receiver.close()

    async def send_all(self, data: bytes | memoryview) -> None:
        whole = memoryview(data)
        for start in range(0, len(whole), PART_BYTES):
            part = bytes(whole[start : start + PART_BYTES])
            if self._failed:
                raise TransportError("the stream was reset")
            with trio.move_on_after(IDLE_TIMEOUT_SECONDS) as limit:
                await self._end.network.reachable(self._end, self._connection.other(self._end))
                try:
                    await self._outgoing.sender.send(part)
                except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
                    raise TransportError("the stream was reset") from error
            if limit.cancelled_caught:
                await self._end.drop(self.peer_id, "nothing was taken for too long")
                raise TransportError("nothing was taken for too long")
            self._end.sent[self.peer_id] += len(part)

    async def receive_some(self, max_bytes: int = READ_BYTES) -> bytes:
        if not self._rest:
            await self._end.network.reachable(self._end, self._connection.other(self._end))
            try:
                self._rest = await self._incoming.receiver.receive()
            except trio.EndOfChannel:
                if self._failed:
                    raise TransportError("the stream was reset") from None
                return b""
            except trio.ClosedResourceError as error:
                raise TransportError("the stream was reset") from error
        data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        self._end.received[self.peer_id] += len(data)
        return data

    async def close(self) -> None:
        self.ended = True
        self._outgoing.sender.close()
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        for stream in self._connection.streams:
            if stream._incoming in (self._incoming, self._outgoing):
                stream.fail()
        await trio.lowlevel.cancel_shielded_checkpoint()


class MemoryTransport(Transport):
    def __init__(
        self, network: "MemoryNetwork", peer_id: str, address: str, observer: ConnectionObserver
    ) -> None:
        self.network = network
        self.peer_id = peer_id
        self.listen_addresses = (address,)
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.observer = observer
        self.roster: frozenset[str] = frozenset()
        self.nursery: trio.Nursery | None = None
        self.connections: dict[str, tuple[_Connection, ConnectionPath]] = {}
        self._handlers: dict[str, StreamHandler] = {}
        self._open_inbound: Counter[str] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        (address,) = self.listen_addresses
        if address in self.network.listeners:
            raise TransportError(f"cannot listen on {address}: another program has the port")
        self.network.listeners[address] = self
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self.nursery = None
            del self.network.listeners[address]
            for peer_id in list(self.connections):
                self._drop(peer_id, "this daemon stops")

    def set_roster(self, peer_ids: Collection[str]) -> None:
        self.roster = frozenset(peer_ids)
        for peer_id in set(self.connections) - self.roster:
            self._drop(peer_id, "no longer in the topology file")

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    async def dial(self, peer_id: str, address: str, timeout_seconds: float) -> None:
        if peer_id in self.connections:
            return
        await trio.lowlevel.checkpoint()
        other = self.network.listeners.get(address)
        if other is None:
            raise TransportError(f"{address}: connection refused")
        with trio.move_on_after(timeout_seconds) as limit:
            await self.network.reachable(self, other)
        if limit.cancelled_caught:
            raise TransportError(f"{address}: no answer within {timeout_seconds:g} s")
        if other.peer_id != peer_id:
            raise TransportError(f"{address}: another key answers there")
        if self.peer_id not in other.roster:
            other.observer.refused(self.peer_id, None, "its key is not in the topology file")
            raise TransportError(f"{address}: it hung up after the handshake")
        if peer_id in self.connections:
            return
        connection = _Connection(self, other)
        for end, far in ((self, other), (other, self)):
            path = ConnectionPath(
                far.listen_addresses[0], connection.direction(end), trio.current_time()
            )
            end.connections[far.peer_id] = (connection, path)
        for end, far in ((self, other), (other, self)):
            path = end.connections[far.peer_id][1]
            end.observer.connected(far.peer_id, path.address, path.direction)

    async def open_stream(self, peer_id: str, protocol: str) -> Stream:
        await trio.lowlevel.checkpoint()
        if peer_id not in self.connections:
            raise TransportError(f"{peer_id} is not connected")
        connection, _ = self.connections[peer_id]
        other = connection.other(self)
        await self.network.reachable(self, other)
        handler = other._handlers.get(protocol)
        if handler is None or other.nursery is None or connection.broken.is_set():
            raise TransportError(f"{protocol}: not spoken there")
        there, back = _Pipe(), _Pipe()
        stream = MemoryStream(connection, self, protocol, back, there)
        theirs = MemoryStream(connection, other, protocol, there, back)
        if other._open_inbound[self.peer_id] >= STREAMS_PER_PEER:
            await theirs.abort()
        else:
            other.nursery.start_soon(other._handle, handler, theirs)
        return stream

    async def _handle(self, handler: StreamHandler, stream: MemoryStream) -> None:
        self._open_inbound[stream.peer_id] += 1
        try:
            await handler(stream)
        except Exception:  # noqa: BLE001 - as over libp2p, a handler's failure costs its stream
            await stream.abort()
        finally:
            self._open_inbound[stream.peer_id] -= 1
            if not stream.ended:
                stream.fail()

    async def drop(self, peer_id: str, reason: str) -> None:
        self._drop(peer_id, reason)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _drop(self, peer_id: str, reason: str) -> None:
        if peer_id not in self.connections:
            return
        connection, _ = self.connections[peer_id]
        other = connection.other(self)
        connection.break_off()
        for end, far, why in ((self, other, reason), (other, self, "the connection ended")):
            if end.connections.pop(far.peer_id, None) is not None:
                end.observer.disconnected(far.peer_id, why)

    def path(self, peer_id: str) -> ConnectionPath | None:
        entry = self.connections.get(peer_id)
        return entry[1] if entry else None

    def bytes_sent(self, peer_id: str) -> int:
        return self.sent[peer_id]

    def bytes_received(self, peer_id: str) -> int:
        return self.received[peer_id]


class MemoryNetwork:
    """Where the transports of one test find one another."""

    def __init__(self) -> None:
        self.listeners: dict[str, MemoryTransport] = {}
        self._partitions: dict[frozenset[str], trio.Event] = {}

    def make(self, peer_id: str, observer: ConnectionObserver) -> MemoryTransport:
        """A transport with an address of its own; it listens once it runs."""
        number = len(self.listeners) + 1
        while f"/ip4/10.0.0.{number}/tcp/7400" in self.listeners:
            number += 1
        return self.make_at(peer_id, f"/ip4/10.0.0.{number}/tcp/7400", observer)

    def make_at(self, peer_id: str, address: str, observer: ConnectionObserver) -> MemoryTransport:
        return MemoryTransport(self, peer_id, address, observer)

    def partition(self, one: str, other: str) -> None:
        """Let nothing pass between two peers, and tell neither."""
        self._partitions.setdefault(frozenset((one, other)), trio.Event())

    def heal(self, one: str, other: str) -> None:
        self._partitions.pop(frozenset((one, other)), trio.Event()).set()

    async def reachable(self, one: MemoryTransport, other: MemoryTransport) -> None:
        """Wait until nothing is between the two."""
        pair = frozenset((one.peer_id, other.peer_id))
        while pair in self._partitions:
            await self._partitions[pair].wait()
