"""Whole nodes together: a federation on a virtual clock, and what may happen to it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from memory_nodes import MemoryFederation, Node, memory_federation, target_of
from scripted_network import ScriptedStream

from p2pfed.daemon.round_work import RoundWork
from p2pfed.daemon.store import Store
from p2pfed.errors import AggregationError
from p2pfed.protocol import limits
from p2pfed.protocol.commands import NoticeKind
from p2pfed.protocol.header import SignedHeader, sign_header
from p2pfed.protocol.joining import JOINING_ROUNDS, TOLERATED_LOSS
from p2pfed.protocol.messages import HeaderNotice
from p2pfed.protocol.phases import Phase

# Less than the deadlines that these federations wait out: the clock is virtual, or a test fails.
pytestmark = pytest.mark.timeout(120)

ROUNDS = 6
DEADLINE_SECONDS = 120.0
# Without loss, and the same for the same models: how a run ends tells whether anything was lost.
EXACT: dict[str, Any] = {"aggregation": {"rule": "mean"}, "codec": {"name": "float32"}}


def rounds(**changes: Any) -> dict[str, Any]:
    return {"rounds": ROUNDS, "deadline_seconds": DEADLINE_SECONDS, **changes}


def consensus_distance(nodes: list[Node]) -> float:
    """Mean squared distance of the models to their mean, over the mean's squared norm."""
    models = np.stack([node.model for node in nodes]).astype(np.float64)
    centre = models.mean(axis=0)
    return float(np.mean(np.sum((models - centre) ** 2, axis=1)) / np.sum(centre**2))


async def finish(federation: MemoryFederation) -> dict[str, bytes]:
    """Let every node do its last round; returns the digest of each model."""
    await federation.until_all(Phase.FINISHED, ROUNDS)
    return {name: node.runtime.model_digest for name, node in federation.nodes.items()}


async def undisturbed(directory: Path) -> dict[str, bytes]:
    """How an exact federation of three ends when nothing happens to it."""
    async with memory_federation(directory / "undisturbed", round=rounds(), **EXACT) as federation:
        return await finish(federation)


def nobody_is_quarantined(federation: MemoryFederation) -> bool:
    return not any(node.store.quarantined() for node in federation.nodes.values())


@pytest.mark.parametrize(
    ("rule", "codec"), [("mean", "float32"), ("mean", "int8"), ("median_clipping", "int8")]
)
async def test_three_nodes_learn_together_and_agree(
    rule: str, codec: str, state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    tables: dict[str, Any] = {"aggregation": {"rule": rule}, "codec": {"name": codec}}
    async with memory_federation(state_path, round=rounds(), **tables) as federation:
        await finish(federation)
        nodes = list(federation.nodes.values())
        assert [node.rounds_done() for node in nodes] == [list(range(ROUNDS))] * 3
        assert [node.degraded_rounds() for node in nodes] == [[]] * 3
        assert consensus_distance(nodes) < 1e-3
        # On their own they would end this far apart, and far from what fits all of them.
        targets = np.stack([target_of(name) for name in "abc"])
        common = targets.mean(axis=0)
        alone = min(float(np.linalg.norm(target - common)) for target in targets)
        for node in nodes:
            assert np.linalg.norm(node.model - common) < 0.1 * alone
            assert np.array_equal(node.model, stored_model(node.store))


def stored_model(store: Store) -> np.ndarray:
    generation = store.generation()
    assert generation is not None
    return store.vector(generation.model, target_of("a").shape[0])


async def test_asynchronous_nodes_go_on_without_one_that_trains_slowly_and_take_it_back(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    settings = rounds(mode="async", max_staleness=2)
    async with memory_federation(state_path, round=settings) as federation:
        a, b, c = (federation.nodes[name] for name in "abc")
        await federation.until(lambda: c.is_in(Phase.COLLECTING, 0))
        c.trainer.may_train = trio.Event()
        await federation.until_all(Phase.TRAINING, ROUNDS - 1, a, b)
        assert trio.current_time() - c.entered(Phase.COLLECTING, 0) < DEADLINE_SECONDS
        assert all(node.degraded_rounds() == [3, 4] for node in (a, b))
        c.trainer.may_train.set()
        await finish(federation)
        assert nobody_is_quarantined(federation)
        assert consensus_distance(list(federation.nodes.values())) < 1.0
        # It skipped to where the others were, and what it trained went out under their round.
        assert c.rounds_done()[-1] == ROUNDS - 1
        assert len(c.rounds_done()) < ROUNDS


async def test_a_silent_node_is_left_out_at_the_deadline_and_catches_up(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    settings = rounds(max_staleness=0)
    async with memory_federation(state_path, round=settings) as federation:
        a, b, c = (federation.nodes[name] for name in "abc")
        await federation.until(lambda: c.is_in(Phase.COLLECTING, 0))
        c.trainer.may_train = trio.Event()  # its link stays up, but it publishes nothing
        await federation.until_all(Phase.COLLECTING, 3, a, b)
        for node in (a, b):
            for round_number in (1, 2):
                waited_seconds = node.entered(Phase.AGGREGATING, round_number) - node.entered(
                    Phase.COLLECTING, round_number
                )
                assert waited_seconds == pytest.approx(DEADLINE_SECONDS, abs=1e-6)
            assert node.degraded_rounds() == [1, 2]
            for record in node.store.history(2):
                assert set(record["weights"]) == {"a", "b"} - {node.name}
        assert c.is_in(Phase.TRAINING, 1)
        c.trainer.may_train.set()
        await finish(federation)
        assert [notice.kind for notice in c.runtime.notices].count(NoticeKind.ROUND_SKIPPED) == 1
        assert c.rounds_done() == [0, 3, 4, 5]
        assert [node.degraded_rounds() for node in (a, b, c)] == [[1, 2], [1, 2], []]
        assert consensus_distance([a, b, c]) < 1e-3
    assert autojump_clock.current_time() > 2 * DEADLINE_SECONDS


async def test_a_node_that_is_cut_off_waits_for_its_quorum_and_catches_up(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    settings = rounds(rounds=0, max_staleness=0)
    async with memory_federation(state_path, round=settings) as federation:
        a, b, c = (federation.nodes[name] for name in "abc")
        await federation.until(lambda: c.is_in(Phase.COLLECTING, 1))
        for other in "ab":
            federation.part("c", other)
        await federation.until(lambda: all(len(n.degraded_rounds()) >= 5 for n in (a, b)))
        assert c.runtime.engine.phase is Phase.COLLECTING
        round_when_healed = a.runtime.engine.round_number
        assert c.runtime.engine.round_number < round_when_healed
        for other in "ab":
            federation.heal("c", other)
        await federation.until(lambda: c.runtime.engine.round_number > round_when_healed + 3)
        assert not any(n.runtime.degraded for n in (a, b, c))
        # One round at most was done twice over: on rejoining it publishes under theirs.
        assert len(c.rounds_done()) < len(a.rounds_done())
        assert nobody_is_quarantined(federation)


async def test_a_link_that_drops_in_a_transfer_is_repaired_and_no_round_is_lost(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    cut: list[int] = []
    async with memory_federation(state_path / "cut", round=rounds(), **EXACT) as federation:
        a, b = federation.nodes["a"], federation.nodes["b"]

        def cut_in_the_payload(stream: ScriptedStream, data: bytes) -> bytes:
            from_a_to_b = (stream.transport.peer_id, stream.peer_id) == (
                a.identity.peer_id,
                b.identity.peer_id,
            )
            in_payload = stream.protocol == limits.DELTA_PROTOCOL and len(data) == payload_bytes(a)
            round_number = a.runtime.engine.round_number
            if not (from_a_to_b and in_payload and round_number in (1, 3)) or round_number in cut:
                return data
            cut.append(round_number)
            assert stream.transport.nursery is not None
            stream.transport.nursery.start_soon(
                stream.transport.drop, stream.peer_id, "the cable was pulled"
            )
            return data[: len(data) // 2]

        federation.network.on_send = cut_in_the_payload
        after = await finish(federation)
        assert cut == [1, 3]
        assert [n.degraded_rounds() for n in federation.nodes.values()] == [[]] * 3
        assert [n.rounds_done() for n in federation.nodes.values()] == [list(range(ROUNDS))] * 3
        assert nobody_is_quarantined(federation)
    assert after == await undisturbed(state_path)


def payload_bytes(node: Node) -> int:
    """Bytes of the one sealed chunk of a node's delta."""
    published = node.runtime.engine.published
    assert published is not None
    return published.header.payload_bytes + limits.SEAL_BYTES


async def test_a_node_killed_while_collecting_sends_the_same_bytes_again(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(state_path / "killed", round=rounds(), **EXACT) as federation:
        a, b, c = (federation.nodes[name] for name in "abc")
        await federation.until_all(Phase.TRAINING, 2)
        # One neighbour has the delta when its sender dies, the other only knows its header.
        federation.part("b", "c")
        await federation.until(lambda: delivered_to(a, "c", 2) and c.is_in(Phase.COLLECTING, 2))
        before, sealed = published(c), sealed_bytes(c)
        await federation.kill("c")
        federation.heal("b", "c")
        c = await federation.start("c")
        await federation.until(lambda: bool(c.phases))
        assert (c.phases[0].phase, c.phases[0].round_number) == (Phase.COLLECTING, 2)
        assert published(c) == before
        assert sealed_bytes(c) == sealed
        await federation.until(lambda: delivered_to(b, "c", 2))
        assert b.header_heard(c, 2) == before == a.header_heard(c, 2)
        after = await finish(federation)
        assert nobody_is_quarantined(federation)
        assert [n.degraded_rounds() for n in federation.nodes.values()] == [[]] * 3
    assert after == await undisturbed(state_path)


def delivered_to(node: Node, site: str, round_number: int) -> bool:
    return node.runtime.engine.neighbours[site].held.round_number >= round_number


def published(node: Node) -> SignedHeader:
    signed = node.runtime.engine.published
    assert signed is not None
    return signed


def sealed_bytes(node: Node) -> bytes:
    return node.store.ciphertext_path(published(node).header.sequence).read_bytes()


async def test_a_node_killed_while_training_loses_nothing_but_the_time(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(state_path / "killed", round=rounds(), **EXACT) as federation:
        await federation.until_all(Phase.TRAINING, 3)
        await federation.kill("a")
        await federation.start("a")
        after = await finish(federation)
        assert [n.degraded_rounds() for n in federation.nodes.values()] == [[]] * 3
    assert after == await undisturbed(state_path)


async def test_a_stop_while_collecting_leaves_the_round_durable(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(state_path / "stopped", round=rounds(), **EXACT) as federation:
        a, b, c = (federation.nodes[name] for name in "abc")
        await federation.until(lambda: a.is_in(Phase.COLLECTING, 1))
        a.trainer.may_train = trio.Event()
        await federation.until_all(Phase.COLLECTING, 2, b, c)
        before = published(b)
        b.stop()
        await b.ended.wait()
        for other in (a, c):
            assert "its operator stopped it" in (other.last_error(b) or "")
        store = Store(b.site.state_directory)
        generation = store.generation()
        assert generation is not None
        assert (generation.round_number, generation.published) == (2, True)
        assert generation.replica == before.header.replica_after
        assert store.envelopes()[-1].signed == before
        store.close()
        await federation.start("b")
        a.trainer.may_train.set()
        after = await finish(federation)
        assert [n.degraded_rounds() for n in federation.nodes.values()] == [[]] * 3
    assert after == await undisturbed(state_path)


async def test_a_node_that_signs_two_headers_for_one_round_is_quarantined_by_all(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(state_path, "abcd", round=rounds()) as federation:
        a, b, c, d = (federation.nodes[name] for name in "abcd")
        assert federation.topology.neighbours("c") == ("b", "d")
        await federation.until_all(Phase.TRAINING, 2)
        told = published(c)
        assert told.header.round_number == 1
        other = sign_header(c.identity, replace(told.header, replica_after=b"\x00" * 32))
        c.post(b, HeaderNotice(other.encoded, other.signature))
        honest = (a, b, d)
        await federation.until(lambda: all(n.store.quarantined() == ["c"] for n in honest))
        await federation.until_all(Phase.FINISHED, ROUNDS, *honest)
        for node in (b, d):
            assert node.rounds_done() == list(range(ROUNDS))
            assert "c" not in node.store.history(1)[0]["weights"]
            assert node.store.history(1)[0]["weights"]["a"] > 0
        assert a.degraded_rounds() == []
        assert not c.rounds_done()[3:]
        assert len(c.rounds_done()) >= 2


async def test_nothing_but_a_stop_ends_a_node_whose_neighbours_are_gone(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    settings = rounds(deadline_seconds=900.0)
    async with memory_federation(state_path, round=settings) as federation:
        a = federation.nodes["a"]
        await federation.until_all(Phase.TRAINING, 1)
        for name in "bc":
            await federation.kill(name)
        await federation.until(quorum_is_missing(a))
        assert trio.current_time() == pytest.approx(a.entered(Phase.COLLECTING, 1) + 900.0)
        assert not a.ended.is_set()
        a.stop()
        await a.ended.wait()


def quorum_is_missing(node: Node) -> Callable[[], bool]:
    return lambda: any(n.kind is NoticeKind.QUORUM_MISSING for n in node.runtime.notices)


async def test_a_node_that_was_away_for_long_begins_anew_from_its_neighbours_model(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    settings = rounds(rounds=2 * JOINING_ROUNDS + 6, deadline_seconds=20.0)
    complete = {"kind": "complete"}
    async with memory_federation(state_path, "abcd", round=settings, graph=complete) as federation:
        others = [federation.nodes[name] for name in "abc"]
        await federation.until_all(Phase.TRAINING, 2)
        await federation.kill("d")
        there = 2 + JOINING_ROUNDS + 2
        await federation.until_all(Phase.TRAINING, there, *others)
        d = await federation.start("d")
        # Of the like of the others' data: a stranger would rightly keep its own model.
        d.trainer.target = np.mean([target_of(name) for name in "abc"], axis=0)
        await federation.until(lambda: any(n.kind is NoticeKind.ADOPTED for n in d.runtime.notices))
        adopted = next(r for r in d.store.history(100) if r["rule"] == "coordinate_median")
        assert set(adopted["weights"]) == {"a", "b", "c"}
        assert adopted["after"]["loss"] <= TOLERATED_LOSS * adopted["before"]["loss"]
        await federation.until_all(Phase.FINISHED, 2 * JOINING_ROUNDS + 6)
        since = adopted["round"] + 1
        assert d.rounds_done()[-1] == 2 * JOINING_ROUNDS + 5
        assert others[0].header_heard(d, since).header.since_round == since
        # Having gone on from their model it is where they are.
        assert consensus_distance([*others, d]) < 2 * consensus_distance(others) + 1e-3
        assert nobody_is_quarantined(federation)


async def test_donors_whose_models_cannot_be_combined_leave_a_node_with_its_own(
    state_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: RoundWork, _donors: object) -> None:
        raise AggregationError("a model is not finite")

    monkeypatch.setattr(RoundWork, "gather", refuse)
    last = JOINING_ROUNDS + 4
    settings = rounds(rounds=last, deadline_seconds=20.0)
    complete = {"kind": "complete"}
    async with memory_federation(state_path, "abcd", round=settings, graph=complete) as federation:
        others = [federation.nodes[name] for name in "abc"]
        await federation.kill("d")
        await federation.until_all(Phase.TRAINING, JOINING_ROUNDS + 2, *others)
        d = await federation.start("d")
        await federation.until_all(Phase.FINISHED, last)
        [refusal] = [n for n in d.runtime.notices if n.kind is NoticeKind.NOT_ADOPTED]
        assert refusal.detail == "a model is not finite"
        assert d.rounds_done()[-1] == last - 1
