"""Being relayed: a circuit as a raw connection, at either end of it.

On top of it comes the same as on a TCP socket: Noise with the far end's key, then Yamux. Of the
relay nothing is believed; it can only fail to deliver.
"""

from collections.abc import Callable, Collection

import trio
from libp2p.abc import IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pfed.daemon import libp2p_relay_messages as wire
from p2pfed.daemon.libp2p_relay import REQUEST_TIMEOUT_SECONDS
from p2pfed.daemon.libp2p_relay_messages import Status
from p2pfed.daemon.transport import READ_BYTES, Stream
from p2pfed.errors import MalformedMessageError, TransportError
from p2pfed.topology.file import circuit_address


class CircuitConnection(IRawConnection):  # type: ignore[misc]
    """A circuit's stream in place of a socket.

    :param stall_seconds: for which the far end may take nothing. It ends the circuit before the
        transport would give up the whole connection to the relay, which is not at fault.
    """

    def __init__(self, stream: Stream, stall_seconds: float, *, is_initiator: bool) -> None:
        self.is_initiator = is_initiator
        self.ended = trio.Event()
        self._stream = stream
        self._stall_seconds = stall_seconds

    async def read(self, n: int | None = None) -> bytes:
        try:
            return await self._stream.receive_some(READ_BYTES if n is None else n)
        except TransportError as error:
            raise ConnectionClosedError(str(error)) from error

    async def write(self, data: bytes) -> None:
        try:
            with trio.fail_after(self._stall_seconds):
                await self._stream.send_all(data)
        except trio.TooSlowError:
            await self._stream.abort()
            raise RawConnError("the far end of the circuit took nothing for too long") from None
        except TransportError as error:
            raise ConnectionClosedError(str(error)) from error

    async def close(self) -> None:
        if not self.ended.is_set():
            self.ended.set()
            await self._stream.close()

    def get_remote_address(self) -> None:
        """None: the far end's IP address is the relay's to know."""

    def get_transport_addresses(self) -> list[Multiaddr]:
        return [Multiaddr(circuit_address(self._stream.peer_id))]

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.RELAYED


async def reserve(stream: Stream) -> None:
    """Ask the relay at the other end of a hop stream to accept circuits to this peer.

    :raises TransportError: it refuses, or its answer makes no sense.
    """
    await _ask(stream, wire.hop_reserve())
    await stream.close()


class Circuits:
    """The circuits that end at this peer.

    :param reserved: relays at which this peer asked to be reachable; others bring no circuit.
    """

    def __init__(
        self,
        network: Swarm,
        is_member: Callable[[str], bool],
        reserved: Collection[str],
        stall_seconds: float,
    ) -> None:
        self._network = network
        self._is_member = is_member
        self._reserved = reserved
        self._stall_seconds = stall_seconds

    async def dial(self, stream: Stream, peer_id: str) -> None:
        """Make a connection to a peer over a hop stream to a relay.

        :raises TransportError: the relay, or the far end, refuses.
        """
        await _ask(stream, wire.hop_connect(peer_id))
        circuit = CircuitConnection(stream, self._stall_seconds, is_initiator=True)
        connected = False
        try:
            await self._network.upgrade_outbound_raw_conn(circuit, ID.from_string(peer_id))
            connected = True
        finally:
            if not connected:
                with trio.CancelScope(shield=True):
                    await circuit.close()

    async def accept(self, stream: Stream) -> None:
        """The handler of the stop protocol: a relay brings a circuit; stays while it lasts.

        Who is at its far end is proven by the Noise handshake alone.
        """
        status = Status.OK
        try:
            with trio.fail_after(REQUEST_TIMEOUT_SECONDS):
                request = await wire.read_stop(stream)
            if request.type != wire.StopMessage.CONNECT:
                status = Status.UNEXPECTED_MESSAGE
            elif stream.peer_id not in self._reserved or not self._is_member(wire.peer_of(request)):
                status = Status.PERMISSION_DENIED
        except MalformedMessageError:
            status = Status.MALFORMED_MESSAGE
        except trio.TooSlowError:
            return
        await stream.send_all(wire.encode(wire.stop_status(status)))
        if status is not Status.OK:
            await stream.close()
            return
        circuit = CircuitConnection(stream, self._stall_seconds, is_initiator=False)
        try:
            (address,) = circuit.get_transport_addresses()
            await self._network.upgrade_inbound_raw_conn(circuit, address)
            await circuit.ended.wait()
        finally:
            with trio.CancelScope(shield=True):
                await circuit.close()


async def _ask(stream: Stream, request: wire.HopMessage) -> None:
    """Send a request to a relay.

    :raises TransportError: the answer is not OK.
    """
    try:
        await stream.send_all(wire.encode(request))
        with trio.fail_after(2 * REQUEST_TIMEOUT_SECONDS):  # it may have to ask the far end first
            answer = await wire.read_hop(stream)
    except MalformedMessageError as error:
        raise TransportError(f"the relay's answer makes no sense: {error}") from error
    except trio.TooSlowError:
        raise TransportError("the relay did not answer in time") from None
    if answer.type != wire.HopMessage.STATUS:
        raise TransportError("the relay's answer is no answer")
    if not wire.is_ok(answer):
        raise TransportError(f"the relay refuses: {wire.meaning(answer.status)}")
