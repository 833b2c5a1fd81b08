"""Two sites that nobody can dial, joined by a third, over real sockets."""

import pytest
import trio
from relayed_sites import GENEROUS, Triple, assert_echoes, last_reason, relayed
from transport_doubles import DIAL_SECONDS, LOOPBACK, Site, running

from p2pfed.daemon.libp2p_relay import CircuitRelay
from p2pfed.daemon.libp2p_relay_messages import HOP_PROTOCOL
from p2pfed.daemon.transport import READ_BYTES, ConnectionPath, Stream
from p2pfed.errors import TransportError

CANARY = b"the patient in bed four is recovering"


def relay_of(site: Site, other: Site) -> str | None:
    path = site.transport.path(other.peer_id)
    assert path is not None
    return path.relay


async def test_two_closed_sites_talk_through_a_third() -> None:
    async with relayed() as triple:
        alpha, beta, gamma = triple.sites
        for site, other, direction in ((alpha, beta, "outbound"), (beta, alpha, "inbound")):
            path = site.transport.path(other.peer_id)
            assert path is not None
            assert (path.relay, path.direction) == (gamma.peer_id, direction)
            assert path.address == triple.address
            await assert_echoes(site, other, 3_000_000)
        await assert_echoes(alpha, gamma)


async def test_a_byte_counts_once_for_the_site_that_it_is_for() -> None:
    count = 3_000_000
    async with relayed() as triple:
        alpha, beta, gamma = triple.sites
        before = {site: site.transport.bytes_arrived(gamma.peer_id) for site in (alpha, beta)}
        await assert_echoes(alpha, beta, count)
        for site, other in ((alpha, beta), (beta, alpha)):
            transport = site.transport
            assert count <= transport.bytes_sent(other.peer_id) < 1.01 * count
            assert count <= transport.bytes_received(other.peer_id) < 1.01 * count
            for peer_id in (gamma.peer_id, site.peer_id):
                assert transport.bytes_sent(peer_id) == transport.bytes_received(peer_id) == 0
            # A relay that is busy with circuits is alive; what goes out to it says nothing.
            assert count < transport.bytes_arrived(gamma.peer_id) - before[site] < 1.05 * count
            assert gamma.transport.bytes_sent(site.peer_id) == 0
            assert gamma.transport.bytes_received(site.peer_id) == 0
            assert transport.relayed() is None
        relayed_now = gamma.transport.relayed()
        assert relayed_now is not None
        assert (relayed_now.circuits, relayed_now.circuits_opened) == (1, 1)
        assert 2 * count < relayed_now.carried_bytes < 2.05 * count  # there and back, sealed
        await alpha.transport.drop(beta.peer_id, "the test")
        await beta.recorder.wait("disconnected", alpha.peer_id)
        await triple.dial(alpha, beta)
        again = gamma.transport.relayed()
        assert again is not None
        assert again.circuits_opened == 2
        assert again.carried_bytes > relayed_now.carried_bytes


class Tap(Stream):
    """A stream at the relay, with a copy of all that it reads."""

    def __init__(self, stream: Stream, seen: bytearray) -> None:
        self.peer_id, self.protocol = stream.peer_id, stream.protocol
        self._stream, self._seen = stream, seen

    async def receive_some(self, max_bytes: int = READ_BYTES) -> bytes:
        data = await self._stream.receive_some(max_bytes)
        self._seen += data
        return data

    async def send_all(self, data: bytes | memoryview) -> None:
        await self._stream.send_all(data)

    async def close(self) -> None:
        await self._stream.close()

    async def abort(self) -> None:
        await self._stream.abort()


class TappedCarrier:
    def __init__(self, site: Site, seen: bytearray) -> None:
        self._site, self._seen = site, seen

    def path(self, peer_id: str) -> ConnectionPath | None:
        return self._site.transport.path(peer_id)

    async def open_stream(self, peer_id: str, protocol: str) -> Stream:
        return Tap(await self._site.transport.open_stream(peer_id, protocol), self._seen)


async def test_the_relay_sees_ciphertext_alone() -> None:
    seen = bytearray()
    triple = Triple(terms=None)
    relay = CircuitRelay(TappedCarrier(triple.gamma, seen), GENEROUS, lambda _: True, 15.0)
    triple.gamma.transport.set_handler(HOP_PROTOCOL, lambda stream: relay.handle(Tap(stream, seen)))
    arrived = trio.Event()

    async def expect(stream: Stream) -> None:
        assert await stream.receive_exactly(len(CANARY) * 1000) == CANARY * 1000
        arrived.set()

    triple.beta.transport.set_handler("/test/canary/1", expect)
    async with running(*triple.sites):
        await triple.connect()
        stream = await triple.alpha.transport.open_stream(triple.beta.peer_id, "/test/canary/1")
        await stream.send_all(CANARY * 1000)
        await arrived.wait()
    assert b"/noise" in seen  # the handshake's offer, which is in the clear
    assert len(seen) > len(CANARY) * 1000
    assert CANARY not in seen
    assert b"/test/canary" not in seen
    assert b"yamux" not in seen


async def test_a_relay_that_answers_itself_is_found_out() -> None:
    """It has the circuit, but not the far end's key."""
    triple = Triple(terms=None)
    alpha, beta, gamma = triple.sites

    async def pose(stream: Stream) -> None:
        from p2pfed.daemon import libp2p_relay_messages as wire
        from p2pfed.daemon.libp2p_relay_circuit import CircuitConnection

        await wire.read_hop(stream)
        await stream.send_all(wire.encode(wire.hop_status(wire.Status.OK)))
        circuit = CircuitConnection(stream, 15.0, is_initiator=False)
        (address,) = circuit.get_transport_addresses()
        await gamma.transport._network.upgrade_inbound_raw_conn(circuit, address)

    gamma.transport.set_handler(HOP_PROTOCOL, pose)
    async with running(*triple.sites):
        await alpha.dial(gamma)
        with pytest.raises(TransportError, match="another key answers there"):
            await triple.dial(alpha, beta)
        assert alpha.transport.path(beta.peer_id) is None


async def test_both_ends_that_dial_at_once_end_up_with_one_connection() -> None:
    triple = Triple()
    alpha, beta, _ = triple.sites
    async with running(*triple.sites):
        await triple.reserve(alpha)
        await triple.reserve(beta)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(triple.dial, alpha, beta)
            nursery.start_soon(triple.dial, beta, alpha)
        await assert_echoes(alpha, beta)
        await assert_echoes(beta, alpha)
        paths = [
            site.transport.path(other.peer_id) for site, other in ((alpha, beta), (beta, alpha))
        ]
        assert {path.direction for path in paths if path} == {"outbound", "inbound"}


async def test_a_direct_connection_takes_over_at_both_ends() -> None:
    triple = Triple()
    triple.beta = beta = Site(2, listen=LOOPBACK)
    alpha, gamma = triple.alpha, triple.gamma
    for site in (alpha, beta):
        site.transport.set_handler("/test/echo/1", lambda stream: stream.close())
    async with running(alpha, beta, gamma):
        await triple.connect()
        assert relay_of(alpha, beta) == gamma.peer_id
        await alpha.dial(beta)
        assert relay_of(alpha, beta) is None
        await beta.recorder.wait("connected", alpha.peer_id, 2)
        assert relay_of(beta, alpha) is None
        for site, other in ((alpha, beta), (beta, alpha)):
            assert "newer connection" in last_reason(site.recorder, other.peer_id)
            stream = await site.transport.open_stream(other.peer_id, "/test/echo/1")
            assert await stream.receive_some() == b""
        await triple.dial(alpha, beta)
        assert relay_of(alpha, beta) is None


async def test_a_relay_that_goes_takes_its_circuits_along_and_can_come_back() -> None:
    async with relayed() as triple:
        alpha, beta, gamma = triple.sites
        stream = await alpha.transport.open_stream(beta.peer_id, "/test/swallow/1")
        await gamma.transport.drop(beta.peer_id, "as a relay that dies")
        await alpha.recorder.wait("disconnected", beta.peer_id)
        await beta.recorder.wait("disconnected", alpha.peer_id)
        with pytest.raises(TransportError):
            while True:
                await stream.send_all(bytes(100_000))
        await beta.recorder.wait("disconnected", gamma.peer_id)
        with pytest.raises(TransportError, match="cannot reach the other end"):
            await triple.dial(alpha, beta)
        await triple.reserve(beta)
        await triple.dial(alpha, beta)
        await assert_echoes(alpha, beta)


async def test_a_circuit_needs_a_relay_that_is_connected_and_relays() -> None:
    triple = Triple(terms=None)
    alpha, beta, gamma = triple.sites
    async with running(*triple.sites):
        with pytest.raises(TransportError, match="the relay is not connected"):
            await triple.dial(alpha, beta)
        await alpha.dial(gamma)
        with pytest.raises(TransportError, match="the relay takes no request"):
            await triple.dial(alpha, beta)
        with pytest.raises(TransportError, match="the relay takes no request"):
            await alpha.transport.reserve(gamma.peer_id, DIAL_SECONDS)
        await assert_echoes(alpha, gamma)


async def test_two_sites_that_stop_end_their_circuit_in_order() -> None:
    async with relayed() as triple:
        alpha, beta, gamma = triple.sites
        await alpha.transport.drop(beta.peer_id, "as a daemon that stops")
        await beta.recorder.wait("disconnected", alpha.peer_id)
        assert alpha.transport.path(gamma.peer_id) is not None
        assert beta.transport.path(gamma.peer_id) is not None
        await triple.dial(alpha, beta)
        await assert_echoes(alpha, beta)
