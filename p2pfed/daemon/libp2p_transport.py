"""The transport over py-libp2p: TCP, Noise, Yamux.

Nothing that was begun on a connection is cut off half-way by a cancellation. A write that
stands still is therefore ended from below: every library call that can block on the peer is
stamped when it begins, and a watchdog kills the connection whose oldest stamp is too old.
"""

import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import multiaddr
import structlog
import trio
from libp2p.custom_types import TProtocol
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.tools.anyio_service import background_trio_service

from p2pfed.daemon.libp2p_failures import STREAM_FAILURES, dial_failure, reason_of
from p2pfed.daemon.libp2p_host import make_network
from p2pfed.daemon.libp2p_relay import CIRCUITS_PER_PEER, CircuitRelay
from p2pfed.daemon.libp2p_relay_circuit import Circuits, reserve
from p2pfed.daemon.libp2p_relay_messages import HOP_PROTOCOL, STOP_PROTOCOL
from p2pfed.daemon.transport import (
    READ_BYTES,
    ConnectionObserver,
    ConnectionPath,
    Direction,
    RelayedTraffic,
    RelayTerms,
    Stream,
    StreamHandler,
    Transport,
)
from p2pfed.errors import TransportError
from p2pfed.topology.file import relay_of

log = structlog.get_logger(__name__)

WRITE_BYTES = 65_507  # one Noise message a Yamux frame; a larger write costs two
IDLE_TIMEOUT_SECONDS = 20.0  # a transfer without a byte for this long is dead
WATCH_INTERVALS = 20  # looks at the stamps within an idle timeout
CIRCUIT_STALL_FRACTION = 0.75  # of the idle timeout: a circuit goes before what it runs over
RAW_CLOSE_TIMEOUT_SECONDS = 1.0
CLOSE_TIMEOUT_SECONDS = 3.0
NETWORK_CLOSE_TIMEOUT_SECONDS = 5.0
NEGOTIATION_TIMEOUT_SECONDS = 60  # of a stream's protocol, beside a bulk transfer on 0.3 MB/s
SETTLED_SECONDS = 20.0  # older than any dial that began before the connection was made
# Inbound and at the same time: control, one delta, room for retries; and the circuits.
STREAMS_PER_PEER = 8 + CIRCUITS_PER_PEER


class _Libp2pStream(Stream):
    def __init__(self, transport: "Libp2pTransport", stream: NetStream, protocol: str) -> None:
        self.peer_id = str(stream.muxed_conn.peer_id)
        self.protocol = protocol
        self._transport = transport
        self._stream = stream
        # The library's stream only adds a state of its own, and three locks a read.
        self._bytes = stream.muxed_stream
        self._is_circuit = protocol in (HOP_PROTOCOL, STOP_PROTOCOL)  # which counts for others
        self.ended = False

    async def send_all(self, data: bytes | memoryview) -> None:
        whole = memoryview(data).cast("B")
        for start in range(0, len(whole), WRITE_BYTES):
            piece = whole[start : start + WRITE_BYTES]
            with self._transport.stamped(self._stream.swarm_conn):
                try:
                    await self._bytes.write(piece)
                except STREAM_FAILURES as error:
                    raise TransportError(reason_of(error)) from error
            if not self._is_circuit:
                self._transport.sent[self.peer_id] += len(piece)

    async def receive_some(self, max_bytes: int = READ_BYTES) -> bytes:
        try:
            data: bytes = await self._bytes.read(max_bytes)
        except MuxedStreamEOF:
            return b""
        except STREAM_FAILURES as error:
            raise TransportError(reason_of(error)) from error
        self._transport.arrived[self.peer_id] += len(data)
        if not self._is_circuit:
            self._transport.received[self.peer_id] += len(data)
        return data

    async def close(self) -> None:
        await self._end(self._stream.close)

    async def abort(self) -> None:
        await self._end(self._stream.reset)

    async def _end(self, how: Callable[[], Awaitable[None]]) -> None:
        self.ended = True
        with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_TIMEOUT_SECONDS):
            try:
                await how()
            except STREAM_FAILURES as error:
                log.debug("stream did not close", peer=self.peer_id, reason=reason_of(error))


@dataclass(frozen=True, slots=True)
class _Link:
    connection: SwarmConn
    path: ConnectionPath


class Libp2pTransport(Transport):
    """One peer's libp2p network.

    :param seed: the 32-byte Ed25519 seed of the site's identity.
    :param listen_addresses: multiaddrs; port 0 takes a free one; none at all only dials.
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
        self._network = make_network(seed, self._is_member, observer.refused)
        self._own_peer_id = str(self._network.get_peer_id())
        self._network.set_stream_handler(self._handle_stream)
        self._network.register_notifee(_Notifee(self))
        self._protocols = Multiselect()
        self._reserved: set[str] = set()
        self._stall_seconds = CIRCUIT_STALL_FRACTION * idle_timeout_seconds
        self._circuits = Circuits(
            self._network, self._is_member, self._reserved, self._stall_seconds
        )
        self.set_handler(STOP_PROTOCOL, self._circuits.accept)
        self._open_inbound: Counter[str] = Counter()
        self._links: dict[str, _Link] = {}
        self._dialling: dict[str, str] = {}
        self._stamps: dict[object, tuple[SwarmConn, float]] = {}
        self._nursery: trio.Nursery | None = None
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.arrived: Counter[str] = Counter()  # received, in circuits as well
        self._relay: CircuitRelay | None = None
        self.listen_addresses: tuple[str, ...] = ()

    def _is_member(self, peer_id: str) -> bool:
        return peer_id in self._roster

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        for address in self._wanted_addresses:
            check_free(address)
        not_bound: list[str] = []
        # The library's nursery would wrap an error in a group, so it is raised outside.
        async with background_trio_service(self._network):
            await self._network.auto_connector.stop()
            if self._wanted_addresses:
                await self._network.listen(*map(multiaddr.Multiaddr, self._wanted_addresses))
            listeners = self._network.listeners
            not_bound = [each for each in self._wanted_addresses if each not in listeners]
            if not not_bound:
                self.listen_addresses = tuple(
                    str(address) for each in listeners.values() for address in each.get_addrs()
                )
                await self._serve(task_status)
        if not_bound:
            raise TransportError(
                f"cannot listen on {', '.join(not_bound)}: not an address of this machine, or "
                "not allowed; see listen.addresses in the site file"
            )

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._watch)
                task_status.started()
        finally:
            self._nursery = None
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    for peer_id in list(self._links):
                        nursery.start_soon(self.drop, peer_id, "this daemon stops")
                with trio.move_on_after(NETWORK_CLOSE_TIMEOUT_SECONDS):
                    await self._network.close()

    async def _handle_stream(self, stream: NetStream) -> None:
        """A stream that a member opened: agree on its protocol and hand it over.

        Whatever fails in here costs the peer this stream; the library would end the process.
        """
        peer_id = str(stream.muxed_conn.peer_id)
        ours: _Libp2pStream | None = None
        if self._open_inbound[peer_id] >= STREAMS_PER_PEER:
            await stream.reset()
            return
        self._open_inbound[peer_id] += 1
        try:
            protocol, handler = await self._protocols.negotiate(
                MultiselectCommunicator(stream), NEGOTIATION_TIMEOUT_SECONDS
            )
            ours = _Libp2pStream(self, stream, str(protocol))
            await handler(ours)
        except Exception as error:  # noqa: BLE001 - one stream must not end the daemon
            log.info("stream refused", peer=peer_id, reason=reason_of(error))
        finally:
            self._open_inbound[peer_id] -= 1
            if ours is None or not ours.ended:
                with trio.CancelScope(shield=True):
                    await stream.reset()

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        self._protocols.add_handler(TProtocol(protocol), handler)

    def set_roster(self, peer_ids: Collection[str]) -> None:
        self._roster = frozenset(peer_ids)
        for peer_id in list(self._links):
            if peer_id not in self._roster and self._nursery is not None:
                self._nursery.start_soon(self.drop, peer_id, "no longer in the topology file")

    async def dial(self, peer_id: str, address: str, timeout_seconds: float) -> None:
        if self._is_reached(peer_id, address):
            return
        if peer_id not in self._roster:
            raise TransportError(f"{address}: {peer_id} is not in the topology file")
        failure = f"no answer within {timeout_seconds:g} s"
        self._dialling[peer_id] = address
        with trio.move_on_after(timeout_seconds):
            try:
                await self._dial_once(peer_id, address)
                failure = "the connection ended at once"
            except TransportError as error:
                failure = str(error)
            except Exception as error:  # noqa: BLE001 - the library raises bare and undocumented ones
                failure = dial_failure(error)
        if not self._is_reached(peer_id, address):
            raise TransportError(f"{address}: {failure}")

    def _is_reached(self, peer_id: str, address: str) -> bool:
        """Whether the peer is connected in a way that is no worse than at ``address``."""
        path = self.path(peer_id)
        return path is not None and (path.relay is None or relay_of(address) is not None)

    async def _dial_once(self, peer_id: str, address: str) -> None:
        relay = relay_of(address)
        if relay is None:
            await self._network.dial_addr(multiaddr.Multiaddr(address), ID.from_string(peer_id))
        else:
            hop = await self._open_hop(relay)
            try:
                await self._circuits.dial(hop, peer_id)
            except BaseException:
                await hop.abort()
                raise

    async def _open_hop(self, relay: str) -> Stream:
        """:raises TransportError: the relay is not connected directly, or does not relay."""
        path = self.path(relay)
        if path is None or path.relay is not None:
            raise TransportError("the relay is not connected")
        try:
            return await self.open_stream(relay, HOP_PROTOCOL)
        except TransportError as error:
            raise TransportError(
                f"the relay takes no request; is [relay] enabled in its site file? {error}"
            ) from error

    def relay_for_others(self, terms: RelayTerms) -> None:
        self._relay = CircuitRelay(self, terms, self._is_member, self._stall_seconds)
        self.set_handler(HOP_PROTOCOL, self._relay.handle)

    async def reserve(self, relay: str, timeout_seconds: float) -> None:
        with trio.move_on_after(timeout_seconds) as limit:
            hop = await self._open_hop(relay)
            self._reserved.add(relay)  # before it can bring the first circuit
            try:
                await reserve(hop)
            except BaseException:
                await hop.abort()
                raise
        if limit.cancelled_caught:
            raise TransportError(f"the relay did not answer within {timeout_seconds:g} s")

    async def open_stream(self, peer_id: str, protocol: str) -> Stream:
        link = self._links.get(peer_id)
        if link is None:
            raise TransportError(f"{peer_id} is not connected")
        stream: NetStream | None = None
        agreed = False
        try:
            with self.stamped(link.connection):
                stream = await link.connection.new_stream()
                await MultiselectClient().select_one_of(
                    [TProtocol(protocol)],
                    MultiselectCommunicator(stream),
                    NEGOTIATION_TIMEOUT_SECONDS,
                )
            agreed = True
        except (*STREAM_FAILURES, MultiselectClientError, MultiselectError) as error:
            raise TransportError(f"{protocol}: {reason_of(error)}") from error
        finally:
            if stream is not None and not agreed:
                with trio.CancelScope(shield=True):
                    await stream.reset()
        return _Libp2pStream(self, stream, protocol)

    async def drop(self, peer_id: str, reason: str) -> None:
        link = self._links.pop(peer_id, None)
        if link is not None:
            self._observer.disconnected(peer_id, reason)
            await self._kill(link.connection)

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
                        log.debug("connection did not close", reason=reason_of(error))
            self._network.remove_conn(connection)

    def path(self, peer_id: str) -> ConnectionPath | None:
        link = self._links.get(peer_id)
        return link.path if link is not None else None

    def bytes_sent(self, peer_id: str) -> int:
        return self.sent[peer_id]

    def bytes_received(self, peer_id: str) -> int:
        return self.received[peer_id]

    def bytes_arrived(self, peer_id: str) -> int:
        return self.arrived[peer_id]

    def relayed(self) -> RelayedTraffic | None:
        return self._relay.traffic() if self._relay is not None else None

    @contextmanager
    def stamped(self, connection: SwarmConn | None) -> Iterator[None]:
        """Let the watchdog know of a call that the peer can hold up."""
        token = object()
        if connection is not None:
            self._stamps[token] = (connection, trio.current_time())
        try:
            yield
        finally:
            self._stamps.pop(token, None)

    async def _watch(self) -> None:
        while True:
            await trio.sleep(self._idle_timeout_seconds / WATCH_INTERVALS)
            limit = trio.current_time() - self._idle_timeout_seconds
            for connection in {each for each, since in self._stamps.values() if since < limit}:
                peer_id = str(connection.muxed_conn.peer_id)
                log.warning("connection stands still", peer=peer_id)
                await self._lose(connection, "nothing was taken for too long")

    async def _lose(self, connection: SwarmConn, reason: str) -> None:
        """Kill a connection, whether or not it is still the peer's current one."""
        peer_id = str(connection.muxed_conn.peer_id)
        link = self._links.get(peer_id)
        if link is not None and link.connection is connection:
            await self.drop(peer_id, reason)
        else:
            await self._kill(connection)

    async def note_connected(self, connection: SwarmConn) -> None:
        """Keep one connection a peer; the library allows several."""
        peer_id = str(connection.muxed_conn.peer_id)
        if peer_id not in self._roster or self._nursery is None:
            await self._kill(connection)
            return
        direction: Direction = "outbound" if connection.muxed_conn.is_initiator else "inbound"
        if direction == "outbound":
            address = self._dialling[peer_id]
        else:
            address = str(connection.get_transport_addresses()[0])
        new = _Link(connection, ConnectionPath(address, direction, trio.current_time()))
        known = self._links.get(peer_id)
        if known is not None and not self._replaces(peer_id, known, new):
            await self._kill(connection)
            return
        self._links[peer_id] = new
        if known is not None:
            self._observer.disconnected(peer_id, "a newer connection took its place")
            self._nursery.start_soon(self._kill, known.connection)
        self._observer.connected(peer_id, address, direction)

    def _replaces(self, peer_id: str, known: _Link, new: _Link) -> bool:
        """Which of two connections to one peer stays; both ends decide alike.

        A direct one takes over from a relayed one. Otherwise a peer dials only while it has no
        connection, so a settled one is dead at its end. Where both dialled at once, the one that
        the lower peer id dialled stays.
        """
        if known.connection.is_closed or known.connection.muxed_conn.is_closed:
            return True
        if known.path.relay is not None and new.path.relay is None:
            return True
        if new.path.since_seconds - known.path.since_seconds > SETTLED_SECONDS:
            return True
        if known.path.relay is None and new.path.relay is not None:
            return False
        wanted = "outbound" if self._own_peer_id < peer_id else "inbound"
        if known.path.direction == new.path.direction:
            return new.path.direction == "inbound"
        return new.path.direction == wanted

    def note_disconnected(self, connection: SwarmConn) -> None:
        peer_id = str(connection.muxed_conn.peer_id)
        link = self._links.get(peer_id)
        if link is not None and link.connection is connection:
            del self._links[peer_id]
            self._observer.disconnected(peer_id, "the connection ended")


class _Notifee:
    """The library's notifications, turned into the transport's."""

    def __init__(self, transport: Libp2pTransport) -> None:
        self._transport = transport

    async def connected(self, network: object, conn: SwarmConn) -> None:  # noqa: ARG002
        await self._transport.note_connected(conn)

    async def disconnected(self, network: object, conn: SwarmConn) -> None:  # noqa: ARG002
        self._transport.note_disconnected(conn)

    async def opened_stream(self, network: object, stream: object) -> None: ...

    async def closed_stream(self, network: object, stream: object) -> None: ...

    async def listen(self, network: object, multiaddr: object) -> None: ...

    async def listen_close(self, network: object, multiaddr: object) -> None: ...


def check_free(address: str) -> None:
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
