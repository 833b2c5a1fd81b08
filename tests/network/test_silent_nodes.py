"""Whole nodes of which one falls silent, wholly or for one neighbour, or which stand still
themselves: what a round of the others costs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from memory_nodes import TRAINING_SECONDS, MemoryFederation, Node, memory_federation
from scripted_network import ScriptedStream

from p2pfed.daemon.links import LINK_TIMEOUT_SECONDS
from p2pfed.daemon.status import NeighbourStatus
from p2pfed.protocol.exchange import LINK_GRACE_SECONDS
from p2pfed.protocol.liveness import (
    HEARTBEAT_SECONDS,
    MIN_ANSWER_SECONDS,
    MIN_SUSPICION_SECONDS,
)
from p2pfed.protocol.local_health import HIGHEST_SCORE
from p2pfed.protocol.messages import ProbeReport, ProbeRequest
from p2pfed.protocol.rounds import Phase

# Less than the deadlines that these federations wait out: the clock is virtual, or a test fails.
pytestmark = pytest.mark.timeout(120)

DEADLINE_SECONDS = 120.0
# Of a quick neighbour; twice, for one probe that nobody answered makes a site doubt itself.
UNREACHABLE_SECONDS = 2 * (HEARTBEAT_SECONDS + MIN_ANSWER_SECONDS + MIN_SUSPICION_SECONDS)
PAUSE_SECONDS = 20.0

ROUND: dict[str, Any] = {"rounds": 0, "deadline_seconds": DEADLINE_SECONDS, "max_staleness": 0}


def mute(federation: MemoryFederation, sender: str, receiver: str | None = None) -> None:
    """Lose whatever a site sends, to one other or to all; connections stay as they are."""
    from_id = federation.topology.peer(sender).peer_id_text
    to_id = federation.topology.peer(receiver).peer_id_text if receiver else None

    def pass_on(stream: ScriptedStream, data: bytes) -> bytes:
        lost = stream.transport.peer_id == from_id and to_id in (None, stream.peer_id)
        return b"" if lost else data

    federation.network.on_send = pass_on


def unmute(federation: MemoryFederation) -> None:
    federation.network.on_send = lambda _stream, data: data


def seen(node: Node, name: str) -> NeighbourStatus:
    [neighbour] = [one for one in node.status().neighbours if one.name == name]
    return neighbour


def waited_seconds(node: Node, round_number: int) -> float:
    return node.entered(Phase.AGGREGATING, round_number) - node.entered(
        Phase.COLLECTING, round_number
    )


def has_closed(node: Node, round_number: int) -> Callable[[], bool]:
    return lambda: round_number in node.rounds_done()


async def test_a_frozen_node_costs_the_others_seconds_and_not_the_deadline(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(tmp_path, round=ROUND) as federation:
        a, b, c = (federation.nodes[name] for name in "abc")
        await federation.until_all(Phase.TRAINING, 2)
        b.trainer.may_train = trio.Event()
        mute(federation, "b")
        for node in (a, c):
            await federation.until(lambda node=node: node.rounds_done()[-1:] == [2])  # type: ignore[misc]
            assert waited_seconds(node, 2) < UNREACHABLE_SECONDS
            assert node.degraded_rounds() == [2]
            # Its link is up still: nobody was told anything but by the silence.
            assert seen(node, "b").liveness == "unreachable"
            assert seen(node, "b").state == "connected"
        await federation.until_all(Phase.TRAINING, 6, a, c)
        for number in (3, 4, 5):
            # Not even a link that ends and is made again costs them anything now.
            assert waited_seconds(a, number) < 1.0
        unmute(federation)
        b.trainer.may_train.set()
        for node in (a, c):
            await federation.until(lambda node=node: not node.runtime.degraded)  # type: ignore[misc]
            assert seen(node, "b").liveness == "alive"
        assert not any(node.store.quarantined() for node in (a, b, c))


async def test_a_node_that_one_other_cannot_hear_is_waited_for_where_a_third_hears_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(tmp_path, round=ROUND) as federation:
        a = federation.nodes["a"]
        await federation.until_all(Phase.TRAINING, 2)
        mute(federation, "b", "a")
        await trio.sleep(2 * LINK_TIMEOUT_SECONDS)
        # Longer than the link lasts, and longer than a link that is down is waited for.
        assert a.is_in(Phase.COLLECTING, 2)
        assert seen(a, "b").state != "connected"
        assert seen(a, "b").liveness == "suspect"
        assert seen(a, "b").vouched_by == ["c"]
        [line] = [line for line in a.status().health if "b is not connected" in line.problem]
        assert "heard by c" in line.problem
        unmute(federation)
        await federation.until(has_closed(a, 2))
        by_itself = LINK_TIMEOUT_SECONDS + LINK_GRACE_SECONDS
        assert by_itself < waited_seconds(a, 2) < DEADLINE_SECONDS
        assert a.degraded_rounds() == []
        assert seen(a, "b").vouched_by == []


async def test_without_a_common_neighbour_silence_decides(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(tmp_path, "abcd", round=ROUND) as federation:
        a = federation.nodes["a"]
        assert federation.topology.common_neighbours("a") == {"b": frozenset(), "d": frozenset()}
        await federation.until_all(Phase.TRAINING, 2)
        mute(federation, "b", "a")
        await federation.until(has_closed(a, 2))
        assert waited_seconds(a, 2) < UNREACHABLE_SECONDS
        assert a.degraded_rounds() == [2]


async def test_a_lying_helper_costs_a_deadline_once_and_then_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(tmp_path, round=ROUND) as federation:
        a, b, c = (federation.nodes[name] for name in "abc")
        await federation.until_all(Phase.TRAINING, 2)

        def lie(sender: str, message: ProbeRequest | ProbeReport) -> None:
            if isinstance(message, ProbeRequest):
                c.post(federation.nodes[sender], ProbeReport(message.target, message.token, 0))

        c._probing.take = lie  # type: ignore[method-assign]
        b.trainer.may_train = trio.Event()
        mute(federation, "b")
        await federation.until(has_closed(a, 4))
        waited = waited_seconds(a, 2)
        assert DEADLINE_SECONDS - 2 * TRAINING_SECONDS < waited <= DEADLINE_SECONDS
        assert seen(a, "b").liveness == "unreachable"
        assert seen(a, "b").vouched_by == []
        assert waited_seconds(a, 4) < UNREACHABLE_SECONDS


async def test_helpers_that_deny_a_node_cannot_have_it_left_out(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(tmp_path, round=ROUND) as federation:
        a, b, c = (federation.nodes[name] for name in "abc")
        await federation.until_all(Phase.TRAINING, 2)
        await trio.sleep(TRAINING_SECONDS / 2)
        b.trainer.may_train = trio.Event()  # slow in the next round, but heard
        await federation.until(lambda: a.is_in(Phase.COLLECTING, 3))
        key = b.identity.public_key
        for token in range(200):
            c.post(a, ProbeReport(key, token, -1))
            await trio.sleep(0.25)
        assert a.is_in(Phase.COLLECTING, 3)
        assert seen(a, "b").liveness == "alive"
        b.trainer.may_train.set()
        await federation.until(has_closed(a, 3))
        assert a.degraded_rounds() == []


async def test_a_process_that_stood_still_declares_nobody_dead_and_keeps_its_links(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(tmp_path, round=ROUND) as federation:
        nodes = list(federation.nodes.values())
        await federation.until_all(Phase.TRAINING, 2)
        autojump_clock.jump(PAUSE_SECONDS)
        await trio.sleep(HEARTBEAT_SECONDS)
        for node in nodes:
            status = node.status()
            assert {one.liveness for one in status.neighbours} == {"alive"}
            assert [one.last_error for one in status.neighbours] == [None, None]
            assert status.local_health.score >= HIGHEST_SCORE - 1
            assert status.local_health.lag_seconds == pytest.approx(PAUSE_SECONDS, abs=0.5)
            assert any("too busy" in line.problem for line in status.health)
        await federation.until_all(Phase.TRAINING, 8)
        for node in nodes:
            assert node.degraded_rounds() == []
            assert node.status().local_health.score == 0
            assert node.status().health == []
