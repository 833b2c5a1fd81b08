"""The transport over py-libp2p: TCP, Noise, Yamux.

In-flight reads and writes of the library must not be cancelled: a half-written frame corrupts
the connection for every stream on it. They run shielded, each stamped with its progress, and
a watchdog kills a connection that stands still; that fails whatever is blocked on it.
"""

import socket
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import multiaddr
import structlog
import trio
from libp2p.custom_types import TProtocol
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID

from p2pfed.daemon.libp2p_host import make_host
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

log = structlog.get_logger(__name__)

WRITE_BYTES = 65_507  # one Noise message a Yamux frame; a larger write costs two
IDLE_TIMEOUT_SECONDS = 20.0  # a transfer without a byte for this long is dead
WATCH_INTERVAL_SECONDS = 1.0
RAW_CLOSE_TIMEOUT_SECONDS = 1.0
CLOSE_TIMEOUT_SECONDS = 3.0
HOST_CLOSE_TIMEOUT_SECONDS = 5.0
STREAMS_PER_PEER = 8  # inbound and at the same time: control, one delta, and room for retries


class _Libp2pStream(Stream):
    def __init__(self, transport: "Libp2pTransport", peer_id: str, stream: NetStream) -> None:
        self.peer_id = peer_id
        self.protocol = str(stream.get_protocol())
        self._transport = transport
        self._stream = stream

    async def send_all(self, data: bytes | memoryview) -> None:
        whole = memoryview(data)
        for start in range(0, len(whole), WRITE_BYTES):
            piece = bytes(whole[start : start + WRITE_BYTES])
            async with self._transport.guarded(self.peer_id):
                await self._stream.write(piece)
            self._transport.sent[self.peer_id] += len(piece)

    async def receive_some(self, max_bytes: int = READ_BYTES) -> bytes:
        # Cancelling an idle read is safe: it only waits for the multiplexer's buffer.
        try:
            data: bytes = await self._stream.read(max_bytes)
        except Exception as error:
            raise TransportError(_reason(error)) from error
        self._transport.received[self.peer_id] += len(data)
        return data

    async def close(self) -> None:
        await self._end(self._stream.close)

    async def abort(self) -> None:
        await self._end(self._stream.reset)

    async def _end(self, how: Any) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_TIMEOUT_SECONDS):
            try:
                await how()
            except Exception as error:  # noqa: BLE001 - the stream is given up either way
                log.debug("stream did not close", peer=self.peer_id, reason=_reason(error))


class Libp2pTransport(Transport):
    """One peer's libp2p host.

    :param seed: the 32-byte Ed25519 seed of the site's identity.
    :param listen_addresses: multiaddrs; port 0 takes a free one.
    :param idle_timeout_seconds: how long a write may stand still.
    """

    def __init__(
        self,
        seed: bytes,
        listen_addresses: Collection[str],
        observer: ConnectionObserver,
        *,
        idle_timeout_seconds: float = IDLE_TIMEOUT_SECONDS,
    ) -> None:
        self._wanted_addresses = list(listen_addresses)
        self._roster: frozenset[str] = frozenset()
        self._observer = observer
        self._idle_timeout_seconds = idle_timeout_seconds
        self._host = make_host(
            seed, self._wanted_addresses, lambda peer: peer in self._roster, observer.refused
        )
        self._network: Any = self._host.get_network()
        self._open_inbound: Counter[str] = Counter()
        self._paths: dict[str, tuple[SwarmConn, ConnectionPath]] = {}
        self._blocked_since: dict[object, tuple[str, float]] = {}
        self._nursery: trio.Nursery | None = None
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.listen_addresses: tuple[str, ...] = ()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        for address in self._wanted_addresses:
            _check_free(address)
        library_handler = self._network.common_stream_handler
        self._network.set_stream_handler(self._guard(library_handler))
        self._network.register_notifee(_Notifee(self))
        addresses = [multiaddr.Multiaddr(address) for address in self._wanted_addresses]
        async with self._host.run(addresses):
            await self._network.auto_connector.stop()
            self.listen_addresses = tuple(
                str(address).split("/p2p/")[0] for address in self._host.get_addrs()
            )
            if len(self.listen_addresses) < len(self._wanted_addresses):
                raise TransportError(
                    f"cannot listen on all of {', '.join(self._wanted_addresses)}; "
                    "see listen.addresses in the site file"
                )
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._watch)
                    task_status.started()
                    await trio.sleep_forever()
            finally:
                self._nursery = None
                with trio.CancelScope(shield=True):
                    for peer_id in list(self._paths):
                        await self.drop(peer_id, "this daemon stops")
                    with trio.move_on_after(HOST_CLOSE_TIMEOUT_SECONDS):
                        await self._host.close()

    def _guard(self, library_handler: Any) -> Any:
        """The library's own handling of a new stream, so that it can fail alone."""

        async def handle(stream: NetStream) -> None:
            peer_id = str(stream.muxed_conn.peer_id)
            if self._open_inbound[peer_id] >= STREAMS_PER_PEER:
                await stream.reset()
                return
            self._open_inbound[peer_id] += 1
            try:
                await library_handler(stream)
            except Exception as error:  # noqa: BLE001 - one stream must not end the daemon
                log.info("stream refused", peer=peer_id, reason=_reason(error))
                await _Libp2pStream(self, peer_id, stream).abort()
            finally:
                self._open_inbound[peer_id] -= 1

        return handle

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        async def handle(stream: NetStream) -> None:
            await handler(_Libp2pStream(self, str(stream.muxed_conn.peer_id), stream))

        self._host.set_stream_handler(TProtocol(protocol), handle)

    def set_roster(self, peer_ids: Collection[str]) -> None:
        self._roster = frozenset(peer_ids)
        for peer_id in list(self._paths):
            if peer_id not in self._roster and self._nursery is not None:
                self._nursery.start_soon(self.drop, peer_id, "no longer in the topology file")

    async def dial(self, peer_id: str, address: str, timeout_seconds: float) -> None:
        if self.path(peer_id) is not None:
            return
        peer = ID.from_string(peer_id)
        # A failed dial is remembered by the library for a minute, and a dead connection stands
        # in the way of a new one.
        self._network.unblock_peer(peer)
        for connection in self._network.get_connections(peer):
            self._network.remove_conn(connection)
        failure = f"no answer within {timeout_seconds:g} s"
        with trio.move_on_after(timeout_seconds):
            try:
                await self._network.dial_addr(multiaddr.Multiaddr(address), peer)
                failure = ""
            except Exception as error:  # noqa: BLE001 - the library raises bare and undocumented ones
                failure = _reason(error)
        if failure:
            raise TransportError(f"{address}: {failure}")

    async def open_stream(self, peer_id: str, protocol: str) -> Stream:
        connection = self._paths.get(peer_id)
        if connection is None:
            raise TransportError(f"{peer_id} is not connected")
        async with self.guarded(peer_id):
            stream = await self._host.new_stream(ID.from_string(peer_id), [TProtocol(protocol)])
        return _Libp2pStream(self, peer_id, stream)

    async def drop(self, peer_id: str, reason: str) -> None:
        entry = self._paths.pop(peer_id, None)
        for connection in self._network.get_connections(ID.from_string(peer_id)):
            await self._kill(connection)
        if entry is not None:
            self._observer.disconnected(peer_id, reason)

    async def _kill(self, connection: SwarmConn) -> None:
        """Close from the bottom up: the raw socket first frees every blocked writer, and a
        Yamux farewell would wait behind them."""
        with trio.CancelScope(shield=True):
            for close, limit_seconds in (
                (connection.muxed_conn.secured_conn.close, RAW_CLOSE_TIMEOUT_SECONDS),
                (connection.close, CLOSE_TIMEOUT_SECONDS),
            ):
                with trio.move_on_after(limit_seconds):
                    try:
                        await close()
                    except Exception as error:  # noqa: BLE001 - it is given up either way
                        log.debug("connection did not close", reason=_reason(error))
            self._network.remove_conn(connection)

    def path(self, peer_id: str) -> ConnectionPath | None:
        entry = self._paths.get(peer_id)
        return entry[1] if entry is not None else None

    def bytes_sent(self, peer_id: str) -> int:
        return self.sent[peer_id]

    def bytes_received(self, peer_id: str) -> int:
        return self.received[peer_id]

    @asynccontextmanager
    async def guarded(self, peer_id: str) -> AsyncIterator[None]:
        """Run a library call that must not be cancelled; the watchdog ends it if it hangs.

        :raises TransportError: the call failed.
        """
        token = object()
        self._blocked_since[token] = (peer_id, trio.current_time())
        try:
            with trio.CancelScope(shield=True):
                yield
        except Exception as error:
            raise TransportError(_reason(error)) from error
        finally:
            del self._blocked_since[token]
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _watch(self) -> None:
        while True:
            await trio.sleep(WATCH_INTERVAL_SECONDS)
            limit = trio.current_time() - self._idle_timeout_seconds
            hanging = {peer for peer, since in self._blocked_since.values() if since < limit}
            for peer_id in hanging:
                log.warning("connection stands still", peer=peer_id)
                await self.drop(peer_id, "nothing was taken for too long")

    def note_connected(self, connection: SwarmConn) -> None:
        peer_id = str(connection.muxed_conn.peer_id)
        direction: Direction = "outbound" if connection.muxed_conn.is_initiator_value else "inbound"
        addresses = connection.get_transport_addresses()
        address = str(addresses[0]) if addresses else "unknown"
        known = self._paths.get(peer_id)
        path = ConnectionPath(address, direction, trio.current_time())
        self._paths[peer_id] = (connection, path)
        if known is None:
            self._observer.connected(peer_id, address, direction)

    def note_disconnected(self, connection: SwarmConn) -> None:
        peer_id = str(connection.muxed_conn.peer_id)
        known = self._paths.get(peer_id)
        if known is None or known[0] is not connection:
            return
        others = [
            other
            for other in self._network.get_connections(ID.from_string(peer_id))
            if other is not connection and not other.is_closed
        ]
        if others:
            # Both ends dialled at once; the other connection goes on.
            self._paths[peer_id] = (others[0], known[1])
            return
        del self._paths[peer_id]
        self._observer.disconnected(peer_id, "the connection ended")


class _Notifee:
    """The library's notifications, turned into the transport's."""

    def __init__(self, transport: Libp2pTransport) -> None:
        self._transport = transport

    async def connected(self, network: object, conn: SwarmConn) -> None:  # noqa: ARG002
        self._transport.note_connected(conn)

    async def disconnected(self, network: object, conn: SwarmConn) -> None:  # noqa: ARG002
        self._transport.note_disconnected(conn)

    async def opened_stream(self, network: object, stream: object) -> None: ...

    async def closed_stream(self, network: object, stream: object) -> None: ...

    async def listen(self, network: object, multiaddr: object) -> None: ...

    async def listen_close(self, network: object, multiaddr: object) -> None: ...


def _reason(error: BaseException) -> str:
    """The innermost cause in one line; the library wraps errors many times over."""
    while error.__cause__ is not None or isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__  # type: ignore[assignment]
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _check_free(address: str) -> None:
    """Refuse a port that is taken. The library shares it silently (SO_REUSEPORT) or goes on
    without a listener.

    :raises TransportError: naming the address.
    """
    parsed = multiaddr.Multiaddr(address)
    protocols = {protocol.name: value for protocol, value in parsed.items()}
    port = int(protocols["tcp"] or 0)
    family = socket.AF_INET6 if "ip6" in protocols else socket.AF_INET
    host = protocols.get("ip6") or protocols.get("ip4") or ""
    if port == 0:
        return
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TransportError(
                f"cannot listen on {address}: {error.strerror}; another program has the port "
                "(see: ss -ltnp), or change listen.addresses in the site file"
            ) from error
