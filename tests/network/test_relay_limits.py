"""What a relay does for whom, and how much of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from relayed_sites import GENEROUS, SWALLOW, Triple, assert_echoes, relayed
from transport_doubles import DIAL_SECONDS, Site, identity, running

from p2pfed.daemon import libp2p_relay_messages as wire
from p2pfed.daemon.libp2p_relay import (
    BURST_SECONDS,
    CIRCUITS_PER_PEER,
    RESERVATION_SECONDS,
    CircuitRelay,
    Pace,
)
from p2pfed.daemon.libp2p_relay_messages import HOP_PROTOCOL, STOP_PROTOCOL, Status
from p2pfed.daemon.libp2p_transport import STREAMS_PER_PEER
from p2pfed.daemon.libp2p_yamux import MAX_INBOUND_STREAMS
from p2pfed.daemon.transport import READ_BYTES, ConnectionPath, Stream
from p2pfed.errors import TransportError


async def ask(site: Site, relay: Site, request: bytes) -> tuple[Stream, int]:
    """Write to a relay by hand; the stream, and the status that it answered."""
    stream = await site.transport.open_stream(relay.peer_id, HOP_PROTOCOL)
    await stream.send_all(request)
    return stream, (await wire.read_hop(stream)).status


async def connect_by_hand(triple: Triple) -> tuple[Stream, int]:
    request = wire.encode(wire.hop_connect(triple.beta.peer_id))
    return await ask(triple.alpha, triple.gamma, request)


@asynccontextmanager
async def accepting(
    triple: Triple, handle: Callable[[Stream], object] | None = None
) -> AsyncIterator[None]:
    """Everybody connected to gamma; beta takes circuits, and does as told with them."""

    async def accept(stream: Stream) -> None:
        await wire.read_stop(stream)
        await stream.send_all(wire.encode(wire.stop_status(Status.OK)))
        if handle is not None:
            await handle(stream)  # type: ignore[misc]
        await trio.sleep_forever()

    triple.beta.transport.set_handler(STOP_PROTOCOL, accept)
    async with running(*triple.sites):
        await triple.reserve(triple.beta)
        await triple.alpha.dial(triple.gamma)
        yield


async def test_who_has_not_asked_is_not_connected_to() -> None:
    triple = Triple()
    alpha, beta, gamma = triple.sites
    async with running(*triple.sites):
        await alpha.dial(gamma)
        await beta.dial(gamma)
        with pytest.raises(TransportError, match="has not asked it to relay"):
            await triple.dial(alpha, beta)


async def test_circuits_lead_to_members_alone() -> None:
    triple = Triple()
    alpha, beta, gamma = triple.sites
    async with running(*triple.sites):
        await triple.reserve(beta)
        await alpha.dial(gamma)
        gamma.transport.set_roster([alpha.peer_id])
        await gamma.recorder.wait("disconnected", beta.peer_id)
        with pytest.raises(TransportError, match="does not allow"):
            await triple.dial(alpha, beta)
        nobody = wire.encode(wire.hop_connect(identity(9).peer_id))
        assert (await ask(alpha, gamma, nobody))[1] == Status.PERMISSION_DENIED
        oneself = wire.encode(wire.hop_connect(alpha.peer_id))
        assert (await ask(alpha, gamma, oneself))[1] == Status.PERMISSION_DENIED


async def test_a_relay_is_not_used_through_a_relay() -> None:
    async with relayed() as triple:
        alpha, beta, _ = triple.sites
        beta.transport.relay_for_others(GENEROUS)
        with pytest.raises(TransportError, match="the relay is not connected"):
            await alpha.transport.reserve(beta.peer_id, DIAL_SECONDS)
        _, status = await ask(alpha, beta, wire.encode(wire.hop_reserve()))
        assert status == Status.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\xff\xff\x7f", Status.MALFORMED_MESSAGE),
        (b"\x02\xff\xff", Status.MALFORMED_MESSAGE),
        (wire.encode(wire.HopMessage(type=wire.HopMessage.CONNECT)), Status.MALFORMED_MESSAGE),
        (wire.encode(wire.hop_status(Status.OK)), Status.UNEXPECTED_MESSAGE),
    ],
    ids=["lying length", "no protobuf", "no peer", "an answer"],
)
async def test_requests_that_make_no_sense_cost_their_stream_alone(
    request_bytes: bytes, status: Status
) -> None:
    async with relayed() as triple:
        assert (await ask(triple.alpha, triple.gamma, request_bytes))[1] == status
        await assert_echoes(triple.alpha, triple.beta)


async def test_a_far_end_takes_circuits_from_its_own_relays_alone() -> None:
    triple = Triple()
    alpha, beta, gamma = triple.sites
    async with running(*triple.sites):
        await beta.dial(gamma)
        await gamma.recorder.wait("connected", beta.peer_id)
        for request, status in (
            (wire.stop_connect(alpha.peer_id, wire.limit_of(1, 1)), Status.PERMISSION_DENIED),
            (wire.stop_status(Status.OK), Status.UNEXPECTED_MESSAGE),
        ):
            stream = await gamma.transport.open_stream(beta.peer_id, STOP_PROTOCOL)
            await stream.send_all(wire.encode(request))
            assert (await wire.read_stop(stream)).status == status
        await beta.transport.reserve(gamma.peer_id, DIAL_SECONDS)
        stream = await gamma.transport.open_stream(beta.peer_id, STOP_PROTOCOL)
        stranger = wire.stop_connect(identity(9).peer_id, wire.limit_of(1, 1))
        await stream.send_all(wire.encode(stranger))
        assert (await wire.read_stop(stream)).status == Status.PERMISSION_DENIED


async def test_a_far_end_that_refuses_or_answers_nonsense_frees_its_place() -> None:
    answers = [wire.encode(wire.stop_status(Status.PERMISSION_DENIED)), b"\xff\xff\x7f"]
    triple = Triple(replace(GENEROUS, circuits=1))

    async def refuse(stream: Stream) -> None:
        await wire.read_stop(stream)
        await stream.send_all(answers[0])
        await stream.close()

    async with running(*triple.sites):
        await triple.reserve(triple.beta)
        await triple.alpha.dial(triple.gamma)
        for _ in range(CIRCUITS_PER_PEER + 1):
            triple.beta.transport.set_handler(STOP_PROTOCOL, refuse)
            assert (await connect_by_hand(triple))[1] == Status.CONNECTION_FAILED
            answers.reverse()


async def test_circuits_beyond_the_limit_are_refused_until_one_ends() -> None:
    triple = Triple(replace(GENEROUS, circuits=2))
    async with accepting(triple):
        first, status = await connect_by_hand(triple)
        assert status == Status.OK
        assert (await connect_by_hand(triple))[1] == Status.OK
        assert (await connect_by_hand(triple))[1] == Status.RESOURCE_LIMIT_EXCEEDED
        await first.abort()
        while True:
            stream, status = await connect_by_hand(triple)
            if status == Status.OK:
                break
            await stream.abort()


async def test_what_was_written_before_the_end_still_arrives() -> None:
    triple = Triple()
    may_read, received = trio.Event(), trio.Event()
    arrived = bytearray()

    async def read_late(stream: Stream) -> None:
        await may_read.wait()
        while data := await stream.receive_some():
            arrived.extend(data)
        received.set()

    async with accepting(triple, read_late):
        stream, _ = await connect_by_hand(triple)
        await stream.send_all(bytes(200_000))
        await stream.close()
        while await stream.receive_some():
            pass  # until the relay is through with it
        may_read.set()
        await received.wait()
    assert len(arrived) == 200_000


async def test_one_member_has_so_many_circuits_and_room_for_its_own_streams() -> None:
    assert CIRCUITS_PER_PEER < STREAMS_PER_PEER < MAX_INBOUND_STREAMS
    triple = Triple(replace(GENEROUS, circuits=256))
    async with accepting(triple):
        for _ in range(CIRCUITS_PER_PEER):
            assert (await connect_by_hand(triple))[1] == Status.OK
        assert (await connect_by_hand(triple))[1] == Status.RESOURCE_LIMIT_EXCEEDED
        await assert_echoes(triple.alpha, triple.gamma)
        await assert_echoes(triple.gamma, triple.beta)


async def test_a_circuit_is_cut_after_its_bytes_and_can_be_made_again() -> None:
    async with relayed(replace(GENEROUS, circuit_bytes=500_000)) as triple:
        alpha, beta, _ = triple.sites
        stream = await alpha.transport.open_stream(beta.peer_id, SWALLOW)
        with pytest.raises(TransportError):
            for _ in range(100):
                await stream.send_all(bytes(100_000))
        await alpha.recorder.wait("disconnected", beta.peer_id)
        await beta.recorder.wait("disconnected", alpha.peer_id)
        assert alpha.transport.sent[triple.gamma.peer_id] < 500_000 + 2 * 1024 * 1024
        await triple.dial(alpha, beta)
        await assert_echoes(alpha, beta)


async def test_a_circuit_is_cut_after_its_time() -> None:
    async with relayed(replace(GENEROUS, circuit_seconds=1)) as triple:
        await triple.alpha.recorder.wait("disconnected", triple.beta.peer_id)
        await triple.beta.recorder.wait("disconnected", triple.alpha.peer_id)


async def test_an_end_that_takes_nothing_loses_the_circuit_and_nobody_a_connection() -> None:
    triple = Triple(idle_seconds=1.0)
    alpha, beta, gamma = triple.sites
    async with accepting(triple):
        stream, status = await connect_by_hand(triple)
        assert status == Status.OK
        with pytest.raises(TransportError):
            while True:
                with trio.fail_after(5.0):
                    # In parts, as a circuit's own end does, so that each write is short.
                    await stream.send_all(bytes(10_000))
        for site in (alpha, beta):
            assert site.recorder.count("disconnected", gamma.peer_id) == 0
            assert gamma.recorder.count("disconnected", site.peer_id) == 0
            await assert_echoes(site, gamma)


class Request(Stream):
    """A hop stream of a member that asks once; what it is answered is kept."""

    protocol = HOP_PROTOCOL

    def __init__(self, peer_id: str, message: wire.HopMessage) -> None:
        self.peer_id = peer_id
        self._rest = wire.encode(message)
        self.answer = b""

    async def receive_some(self, max_bytes: int = READ_BYTES) -> bytes:
        data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return data

    async def send_all(self, data: bytes | memoryview) -> None:
        self.answer += bytes(data)

    async def close(self) -> None: ...

    async def abort(self) -> None: ...


class DeadEnds:
    """Everybody is connected, and takes no stream."""

    def path(self, peer_id: str) -> ConnectionPath:
        return ConnectionPath("/ip4/192.0.2.1/tcp/7400", "inbound", 0.0)

    async def open_stream(self, peer_id: str, protocol: str) -> Stream:
        raise TransportError("it was just lost")


async def test_reservations_run_out(autojump_clock: trio.testing.MockClock) -> None:
    alpha, beta = identity(1).peer_id, identity(2).peer_id
    relay = CircuitRelay(DeadEnds(), GENEROUS, lambda _: True, 15.0)

    async def connects() -> bytes:
        request = Request(alpha, wire.hop_connect(beta))
        await relay.handle(request)
        return request.answer

    await relay.handle(Request(beta, wire.hop_reserve()))
    await trio.sleep(RESERVATION_SECONDS - 1)
    assert await connects() == wire.encode(wire.hop_status(Status.CONNECTION_FAILED))
    await trio.sleep(1)
    assert await connects() == wire.encode(wire.hop_status(Status.NO_RESERVATION))


async def test_all_circuits_share_one_rate(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(bytes_per_second=1_000_000.0)
    start = trio.current_time()

    async def carry() -> None:
        for _ in range(10):
            await pace.spend(50_000)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(carry)
    assert trio.current_time() - start == pytest.approx(2.0 - BURST_SECONDS)
    await trio.sleep(100)
    start = trio.current_time()
    await pace.spend(100_000)
    assert trio.current_time() == start  # what was not used is not owed, and not saved up
    await pace.spend(400_000)
    assert trio.current_time() - start == pytest.approx(0.5 - BURST_SECONDS)
