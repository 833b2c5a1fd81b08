"""Links after a topology file changed: neighbours that are parted with, and refusals that end."""

import pytest
import trio
from linked_sites import HIGH, LOW, Site, make_hello, running_pair
from scripted_network import ScriptedNetwork, ScriptedStream
from trio.testing import MockClock

from p2pfed.daemon.links import (
    DIAL_HEAD_START_SECONDS,
    GOODBYE_TIMEOUT_SECONDS,
    REFUSED_RETRY_SECONDS,
)
from p2pfed.protocol.messages import Refusal, RefusalCode

FAREWELL = Refusal(RefusalCode.NOT_A_NEIGHBOUR, "low has another topology file")


async def test_who_is_parted_with_hears_why_and_is_not_dialled_again(
    autojump_clock: MockClock,
) -> None:
    async with running_pair() as (low, high, network):
        before = len(network.dials)
        await low.links.part({HIGH.peer_id: FAREWELL})
        assert low.links.state(HIGH.peer_id) is None
        assert low.transport.path(HIGH.peer_id) is None
        await high.handler.until(lambda: bool(high.handler.down))
        assert high.state(LOW).phase == "refused"
        assert "refuses: low has another topology file" in (high.state(LOW).refusal or "")
        await trio.sleep(4.5 * REFUSED_RETRY_SECONDS)
        dialled_by = {who for _, who, _ in network.dials[before:]}
        assert dialled_by == {HIGH.peer_id}
        assert "no neighbour of yours" in (high.state(LOW).refusal or "")


async def test_parting_with_one_that_hangs_is_bounded_in_time(autojump_clock: MockClock) -> None:
    async with running_pair() as (low, _, network):
        network.partition(LOW.peer_id, HIGH.peer_id)
        before = trio.current_time()
        await low.links.part({HIGH.peer_id: FAREWELL})
        assert trio.current_time() - before == pytest.approx(GOODBYE_TIMEOUT_SECONDS)
        await trio.sleep(1.0)
        assert low.links.state(HIGH.peer_id) is None
        assert low.transport.path(HIGH.peer_id) is None
        network.heal(LOW.peer_id, HIGH.peer_id)


async def test_parting_with_a_site_that_is_not_linked_takes_no_time(
    autojump_clock: MockClock,
) -> None:
    network = ScriptedNetwork()
    low = Site(network, LOW, (HIGH,))
    async with low.running():
        await trio.sleep(5.0)
        before, dials = trio.current_time(), len(network.dials)
        await low.links.part({HIGH.peer_id: FAREWELL})
        assert trio.current_time() == before
        await trio.sleep(10 * REFUSED_RETRY_SECONDS)
        assert len(network.dials) == dials


async def test_a_handshake_that_breaks_after_a_refusal_is_soon_tried_again(
    autojump_clock: MockClock,
) -> None:
    """It brought no verdict, so the one before says nothing about it. Where both ends take a
    new file at nearly the same time, each cuts the other's handshake."""
    network = ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,))
    high.handler.hello = make_hello(HIGH, topology_digest=b"u" * 32)
    cut: list[str] = []

    def cut_once(stream: ScriptedStream, data: bytes) -> bytes:
        if not cut and stream.transport.nursery is not None:
            cut.append(stream.protocol)
            stream.transport.nursery.start_soon(
                stream.transport.drop, stream.peer_id, "the topology file was reloaded"
            )
        return data

    async with high.running(), low.running():
        await trio.sleep(10.0)
        assert low.state(HIGH).phase == high.state(LOW).phase == "refused"
        high.handler.hello = make_hello(HIGH)
        network.on_send = cut_once
        with trio.fail_after(2 * DIAL_HEAD_START_SECONDS):
            await high.links.reconnect(LOW.peer_id, "the topology file was reloaded")
            await low.handler.until(lambda: low.linked(HIGH))
            await high.handler.until(lambda: high.linked(LOW))
        assert cut
