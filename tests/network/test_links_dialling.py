"""Who dials whom, when, and how often."""

import random

import pytest
import trio
from linked_sites import HIGH, LOW, MIDDLE, RawPeer, Site, running, running_pair
from scripted_network import ScriptedNetwork, address_of
from trio.testing import MockClock

from p2pfed.daemon.links import (
    CONTROL_STREAM_TIMEOUT_SECONDS,
    DIAL_HEAD_START_SECONDS,
    DIAL_TIMEOUT_SECONDS,
    FIRST_RETRY_SECONDS,
    MAX_RETRY_SECONDS,
)


def dial_times(network: ScriptedNetwork, start: float) -> list[float]:
    return [at - start for at, _, _ in network.dials]


async def test_the_lower_peer_id_dials_at_once_and_the_other_waits(
    autojump_clock: MockClock,
) -> None:
    start = trio.current_time()
    async with running_pair() as (low, high, network):
        assert network.dials == [(start, LOW.peer_id, address_of(HIGH.peer_id))]
        assert low.state(HIGH).direction == "outbound"
        assert high.state(LOW).direction == "inbound"
        await trio.sleep(10 * DIAL_HEAD_START_SECONDS)
        assert len(network.dials) == 1
        assert low.linked(HIGH)
        assert high.linked(LOW)


async def test_the_higher_peer_id_dials_when_the_lower_cannot(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low = Site(network, LOW, (HIGH,), knows_addresses=False)
    high = Site(network, HIGH, (LOW,))
    start = trio.current_time()
    async with low.running(), high.running():
        await low.handler.until(lambda: low.linked(HIGH))
        assert dial_times(network, start) == [pytest.approx(DIAL_HEAD_START_SECONDS)]
        assert network.dials[0][1] == HIGH.peer_id


async def test_a_peer_without_known_addresses_says_that_it_waits_to_be_dialled(
    autojump_clock: MockClock,
) -> None:
    network = ScriptedNetwork()
    low = Site(network, LOW, (HIGH,), knows_addresses=False)
    async with low.running():
        await trio.sleep(1)
        assert low.state(HIGH).phase == "waiting"
        assert "no address" in (low.state(HIGH).last_error or "")


async def test_pauses_double_up_to_the_longest(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low = Site(network, LOW, (HIGH,))
    start = trio.current_time()
    async with low.running():
        await trio.sleep(120)
        assert low.state(HIGH).attempts == len(network.dials)
        assert "refused" in (low.state(HIGH).last_error or "")
    expected, pause_seconds = [0.0], FIRST_RETRY_SECONDS
    while expected[-1] + pause_seconds <= 120:
        expected.append(expected[-1] + pause_seconds)
        pause_seconds = min(2 * pause_seconds, MAX_RETRY_SECONDS)
    assert dial_times(network, start) == pytest.approx(expected)


async def test_pauses_are_drawn_anew_from_all_that_is_allowed(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low = Site(network, LOW, (HIGH,), generator=random.Random(4711))
    start = trio.current_time()
    async with low.running():
        await trio.sleep(60)
    same = random.Random(4711)
    expected, pause_seconds = [0.0], FIRST_RETRY_SECONDS
    while expected[-1] <= 60:
        expected.append(expected[-1] + same.uniform(0, pause_seconds))
        pause_seconds = min(2 * pause_seconds, MAX_RETRY_SECONDS)
    assert dial_times(network, start) == pytest.approx(expected[:-1])


async def test_a_link_that_worked_starts_the_back_off_anew(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low = Site(network, LOW, (HIGH,))
    async with low.running():
        await trio.sleep(60)  # the pauses have grown to the longest
        high = Site(network, HIGH, (LOW,), knows_addresses=False)
        async with high.running():
            await low.handler.until(lambda: low.linked(HIGH))
            network.dials.clear()
            stopped_at = trio.current_time()
        await trio.sleep(1)
        assert dial_times(network, stopped_at) == pytest.approx([0.2, 0.6])


async def test_every_known_address_is_tried_and_the_one_that_works_is_remembered(
    autojump_clock: MockClock,
) -> None:
    network = ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,))
    works = address_of(HIGH.peer_id)
    low.book.set_listed({HIGH.peer_id: ("/memory/gone", address_of(MIDDLE.peer_id), works)})
    async with Site(network, MIDDLE, ()).running(), high.running(), low.running():
        await low.handler.until(lambda: low.linked(HIGH))
        assert [address for _, _, address in network.dials] == [
            "/memory/gone",
            address_of(MIDDLE.peer_id),  # where another key answers
            works,
        ]
        assert low.book.addresses(HIGH.peer_id)[0] == works


async def test_a_nudge_ends_the_pause(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low = Site(network, LOW, (HIGH,), knows_addresses=False)
    high = Site(network, HIGH, (LOW,), knows_addresses=False)
    async with low.running(), high.running():
        await trio.sleep(60)
        assert network.dials == []
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        low.book.learn_hint(HIGH.peer_id, address_of(HIGH.peer_id))
        low.links.nudge(HIGH.peer_id)
        await low.handler.until(lambda: low.linked(HIGH))
        assert trio.current_time() == before


async def test_a_failing_dial_does_not_disturb_a_link_made_meanwhile(
    autojump_clock: MockClock,
) -> None:
    network = ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,))
    network.silent.add(address_of(HIGH.peer_id))
    async with low.running(), high.running():
        await low.handler.until(lambda: low.linked(HIGH))
        assert trio.current_time() < DIAL_TIMEOUT_SECONDS
        await trio.sleep(2 * DIAL_TIMEOUT_SECONDS + CONTROL_STREAM_TIMEOUT_SECONDS)
        assert low.linked(HIGH)
        assert low.links.encryption_key(HIGH.peer_id) == HIGH.encryption_public_key
        assert low.handler.down == []


@pytest.mark.parametrize("lead_seconds", [0.0, 0.125, 0.25, 0.375])
async def test_two_that_dial_each_other_at_once_end_up_with_one_link(
    lead_seconds: float, autojump_clock: MockClock
) -> None:
    network = ScriptedNetwork()
    network.dial_seconds = 0.5
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,))
    async with running(low.transport.run), high.running():
        await trio.sleep(DIAL_HEAD_START_SECONDS - lead_seconds)
        async with running(low.links.run):
            await trio.sleep(20)
            assert low.linked(HIGH)
            assert high.linked(LOW)
            assert await low.links.ping(HIGH.peer_id, 1.0) == 0.0
            assert await high.links.ping(LOW.peer_id, 1.0) == 0.0
            assert {who for _, who, _ in network.dials} == {LOW.peer_id, HIGH.peer_id}
            assert low.transport.dropped == high.transport.dropped == []


async def test_a_neighbour_that_connects_but_opens_no_control_stream_is_dropped(
    autojump_clock: MockClock,
) -> None:
    network = ScriptedNetwork()
    high = Site(network, HIGH, (LOW,), knows_addresses=False)
    mute = RawPeer(network, LOW)
    async with high.running(), mute.running():
        await mute.transport.dial(HIGH.peer_id, address_of(HIGH.peer_id), 1.0)
        await trio.sleep(2 * CONTROL_STREAM_TIMEOUT_SECONDS)
        assert high.transport.dropped == [(LOW.peer_id, "it opened no control stream")]
        assert mute.transport.path(HIGH.peer_id) is None


async def test_a_change_of_neighbours_touches_only_the_links_that_changed(
    autojump_clock: MockClock,
) -> None:
    network = ScriptedNetwork()
    low = Site(network, LOW, (MIDDLE,))
    middle, high = Site(network, MIDDLE, (LOW, HIGH)), Site(network, HIGH, (LOW, MIDDLE))
    async with low.running(), middle.running(), high.running():
        await low.handler.until(lambda: low.linked(MIDDLE))
        low.links.set_neighbours({MIDDLE.peer_id: "middle", HIGH.peer_id: "high"})
        high.links.nudge_all()
        await high.handler.until(lambda: high.linked(LOW))
        low.links.set_neighbours({HIGH.peer_id: "high"})
        await low.handler.until(lambda: len(low.handler.down) == 1)
        await trio.sleep(1)
        assert low.handler.down[0][0] == MIDDLE.peer_id
        assert low.links.state(MIDDLE.peer_id) is None
        assert low.transport.path(MIDDLE.peer_id) is None
        assert low.linked(HIGH)
        assert high.linked(MIDDLE)
        assert high.handler.down == []
