"""The memory network under a script: what is dialled is recorded, and what passes can be
delayed, lost, falsified and cut."""

from collections.abc import Callable

import trio
from memory_transport import MemoryNetwork, MemoryTransport

from p2pfed.daemon.transport import (
    READ_BYTES,
    ConnectionObserver,
    Direction,
    Stream,
    StreamHandler,
)
from p2pfed.errors import P2pfedError, TransportError


def address_of(peer_id: str) -> str:
    return f"/memory/{peer_id}"


class Unobserved:
    """A connection observer that looks away."""

    def connected(self, peer_id: str, address: str, direction: Direction) -> None: ...

    def disconnected(self, peer_id: str, reason: str) -> None: ...

    def refused(self, peer_id: str | None, address: str | None, reason: str) -> None: ...


class ScriptedStream(Stream):
    """A stream whose ``send_all`` passes through the network's script."""

    def __init__(self, transport: "ScriptedTransport", stream: Stream) -> None:
        self.transport = transport
        self.peer_id = stream.peer_id
        self.protocol = stream.protocol
        self._stream = stream

    async def send_all(self, data: bytes | memoryview) -> None:
        await self._stream.send_all(self.transport.script.on_send(self, bytes(data)))

    async def receive_some(self, max_bytes: int = READ_BYTES) -> bytes:
        return await self._stream.receive_some(max_bytes)

    async def close(self) -> None:
        await self._stream.close()

    async def abort(self) -> None:
        await self._stream.abort()


class ScriptedTransport(MemoryTransport):
    def __init__(
        self, network: "ScriptedNetwork", peer_id: str, address: str, observer: ConnectionObserver
    ) -> None:
        super().__init__(network, peer_id, address, observer)
        self.script = network
        self.dropped: list[tuple[str, str]] = []  # peer id, reason

    async def dial(self, peer_id: str, address: str, timeout_seconds: float) -> None:
        self.script.dials.append((trio.current_time(), self.peer_id, address))
        if address in self.script.silent:
            await trio.sleep(timeout_seconds)
            raise TransportError(f"{address}: no answer within {timeout_seconds:g} s")
        await trio.sleep(self.script.dial_seconds)
        await super().dial(peer_id, address, timeout_seconds)

    async def open_stream(self, peer_id: str, protocol: str) -> Stream:
        return ScriptedStream(self, await super().open_stream(peer_id, protocol))

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        async def handle(stream: Stream) -> None:
            try:
                await handler(ScriptedStream(self, stream))
            except P2pfedError:
                raise
            except Exception as error:
                self.script.failures.append(error)
                raise

        super().set_handler(protocol, handle)

    async def drop(self, peer_id: str, reason: str) -> None:
        if self.path(peer_id) is not None:
            self.dropped.append((peer_id, reason))
        await super().drop(peer_id, reason)


class ScriptedNetwork(MemoryNetwork):
    """A memory network that keeps to a script.

    ``dials`` records every attempt as (seconds on trio's clock, who, address). An address in
    ``silent`` never answers. ``on_send`` sees, and may replace, what a stream is given.
    ``failures`` are what stream handlers raised although no network can be the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dials: list[tuple[float, str, str]] = []
        self.silent: set[str] = set()
        self.dial_seconds = 0.0
        self.failures: list[Exception] = []
        self.on_send: Callable[[ScriptedStream, bytes], bytes] = lambda _stream, data: data

    def transport(self, peer_id: str) -> ScriptedTransport:
        return ScriptedTransport(self, peer_id, address_of(peer_id), Unobserved())
