"""Topology files that change while whole nodes run, on a virtual clock."""

from pathlib import Path
from typing import Any

import pytest
import trio
from memory_nodes import MemoryFederation, Node, memory_federation

from p2pfed.daemon.reloading import Reload
from p2pfed.daemon.round_work import RoundWork
from p2pfed.daemon.sendable import Sendable
from p2pfed.daemon.status import NeighbourStatus
from p2pfed.errors import ConfigurationError
from p2pfed.protocol.header import SignedHeader
from p2pfed.protocol.rounds import Phase

pytestmark = pytest.mark.timeout(120)

DEADLINE_SECONDS = 600.0
COMPLETE: dict[str, Any] = {"graph": {"kind": "complete"}}
VARYING: dict[str, Any] = {"graph": {"kind": "one_peer_exponential"}}
PHASES = (Phase.TRAINING, Phase.PUBLISHING, Phase.COLLECTING, Phase.AGGREGATING, Phase.COMMITTING)


def rounds(**changes: Any) -> dict[str, Any]:
    return {"round": {"deadline_seconds": DEADLINE_SECONDS, **changes}}


def partners(node: Node) -> list[tuple[int, set[str]]]:
    """Whom it folded in, round by round."""
    return [(record["round"], set(record["weights"])) for record in node.store.history(1000)]


def seen_by(node: Node, other: str) -> NeighbourStatus:
    [found] = [n for n in node.status().neighbours if n.name == other]
    return found


async def until_round(federation: MemoryFederation, number: int, names: str) -> None:
    nodes = [federation.nodes[name] for name in names]
    await federation.until(lambda: all(n.runtime.engine.round_number >= number for n in nodes))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("graph", [COMPLETE, VARYING], ids=["constant", "varying"])
async def test_a_site_is_exchanged_for_another_in_the_midst_of_a_phase(
    phase: Phase, graph: dict[str, Any], state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(state_path, "abcd", **rounds(), **graph) as federation:
        nodes = [federation.nodes[name] for name in "abc"]
        await federation.until(lambda: nodes[0].is_in(phase, 2))
        federation.write_topology("abce", **rounds(), **graph)
        await federation.reload("a", "b", "c")
        reloaded_in = max(node.runtime.engine.round_number for node in nodes)
        await federation.start("e")
        await until_round(federation, reloaded_in + 6, "abce")
        for node in nodes:
            neighbours = federation.topology.all_neighbours(node.name)
            assert sorted(node.runtime.engine.neighbours) == sorted(neighbours)
            assert not node.runtime.degraded
            met = [them for number, them in partners(node) if number > reloaded_in]
            assert set().union(*met) == set(neighbours)
        assert not any(node.store.quarantined() for node in federation.nodes.values())


def stored_replicas(node: Node) -> set[str]:
    """The sites whose models are on this one's disk."""
    directory = node.site.state_directory / "replicas"
    return {path.name.partition(".")[0] for path in directory.glob("*.f32")}


async def test_a_removed_sites_model_leaves_the_disk_and_it_may_come_back(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(state_path, "abcd", **rounds(), **COMPLETE) as federation:
        a = federation.nodes["a"]
        await until_round(federation, 3, "abcd")
        assert stored_replicas(a) == set("bcd")
        federation.write_topology("abc", **rounds(), **COMPLETE)
        await federation.reload("a", "b", "c")
        number = a.runtime.engine.round_number
        await until_round(federation, number + 2, "abc")
        assert stored_replicas(a) == set("bc")
        assert set(a.store.replicas(300)) == set("bc")
        federation.write_topology("abcd", **rounds(), **COMPLETE)
        await federation.reload("a", "b", "c", "d")
        number = max(node.runtime.engine.round_number for node in federation.nodes.values())
        await until_round(federation, number + 4, "abcd")
        assert partners(a)[-1][1] == set("bcd")
        assert stored_replicas(a) == set("bcd")


async def test_on_a_graph_that_varies_the_models_of_other_rounds_stay(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Also over a restart, after which some of them are met late."""
    async with memory_federation(state_path, "abcd", **rounds(), **VARYING) as federation:
        await until_round(federation, 6, "abcd")
        whole = federation.topology.all_neighbours("a")
        assert stored_replicas(federation.nodes["a"]) == set(whole)
        await federation.kill("a")
        a = await federation.start("a")
        done = len(a.rounds_done())
        await federation.until(lambda: len(a.rounds_done()) > done)
        assert stored_replicas(a) == set(whole)


async def test_a_site_that_was_removed_while_its_neighbour_was_down_leaves_the_disk_as_well(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(state_path, "abcd", **rounds(), **COMPLETE) as federation:
        await until_round(federation, 3, "abcd")
        await federation.kill("a")
        federation.write_topology("abc", **rounds(), **COMPLETE)
        await federation.reload("b", "c")
        a = await federation.start("a")
        assert stored_replicas(a) == set("bcd")
        done = len(a.rounds_done())
        await federation.until(lambda: len(a.rounds_done()) > done)
        assert stored_replicas(a) == set("bc")
        federation.write_topology("abcd", **rounds(), **COMPLETE)
        await federation.reload("b", "c", "d", "a")
        await until_round(federation, a.runtime.engine.round_number + 4, "abcd")
        assert partners(a)[-1][1] == set("bcd")


async def test_a_removed_site_hears_why_and_so_does_one_that_only_lost_an_edge(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(state_path, "abcd", **rounds(), **COMPLETE) as federation:
        a, b, c, d = (federation.nodes[name] for name in "abcd")
        await federation.until_all(Phase.TRAINING, 2)
        edges = [["a", "b"], ["b", "c"]]
        federation.write_topology("abc", **rounds(), graph={"kind": "explicit", "edges": edges})
        await a.reload()
        for other, lacks in ((c, "an edge between the two"), (d, "d's key")):
            await federation.until(lambda n=other: seen_by(n, "a").refusal is not None)
            said = seen_by(other, "a").refusal or ""
            assert said.startswith(
                f"a refuses: a now has topology file {a.topology.digest.hex()[:12]}"
            )
            assert lacks in said
            assert seen_by(other, "a").state == "refused"
        # Who is a neighbour still is refused for its file, and is told of that.
        await federation.until(lambda: seen_by(a, "b").refusal is not None)
        assert "topology file differs" in (seen_by(b, "a").refusal or "")
        await federation.reload("b", "c")
        with pytest.raises(ConfigurationError, match="this site, d, was taken out"):
            await d.reload()
        number = max(node.runtime.engine.round_number for node in (a, b, c))
        await until_round(federation, number + 3, "abc")
        assert [n.name for n in a.status().neighbours] == ["b"]
        assert partners(a)[-1][1] == {"b"}
        assert partners(b)[-1][1] == {"a", "c"}
        assert {neighbour.state for neighbour in d.status().neighbours} == {"refused"}
        assert any("this site is alone" in line.problem for line in d.status().health)


async def test_a_site_whose_key_is_replaced_is_parted_with_and_met_again(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Until the new one is there nobody waits for the old one, up to the deadline or at all."""
    async with memory_federation(state_path, "abc", **rounds(), **COMPLETE) as federation:
        a, b = federation.nodes["a"], federation.nodes["b"]
        await federation.until_all(Phase.TRAINING, 2)
        federation.replace_key("c", "z")
        await federation.reload("a", "b")
        started_at = trio.current_time()
        await until_round(federation, 6, "ab")
        assert trio.current_time() - started_at < DEADLINE_SECONDS
        for node in (a, b):
            assert not node.runtime.engine.neighbours["c"].linked


async def test_a_shorter_deadline_ends_the_round_that_waits_for_it(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(state_path, "abc", **rounds(), **COMPLETE) as federation:
        a, b, c = (federation.nodes[name] for name in "abc")
        await federation.until(lambda: c.is_in(Phase.COLLECTING, 1))
        c.trainer.may_train = trio.Event()  # linked, and silent
        await federation.until_all(Phase.COLLECTING, 2, a, b)
        shorter = rounds(deadline_seconds=60.0)
        federation.write_topology("abc", **shorter, **COMPLETE)
        await federation.reload()
        await federation.until_all(Phase.TRAINING, 3, a, b)
        for node in (a, b):
            waited = node.entered(Phase.AGGREGATING, 2) - node.entered(Phase.COLLECTING, 2)
            assert waited == pytest.approx(60.0, abs=1e-6)
        c.trainer.may_train.set()


async def test_a_lower_quorum_ends_the_round_that_lacked_it(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(state_path, "abc", **rounds(quorum=1.0), **COMPLETE) as federation:
        a, b = federation.nodes["a"], federation.nodes["b"]
        await federation.until_all(Phase.TRAINING, 2)
        await federation.kill("c")
        await federation.until(lambda: a.runtime.engine._deadline_passed)
        assert a.is_in(Phase.COLLECTING, 2)
        federation.write_topology("abc", **rounds(quorum=0.5, max_staleness=0), **COMPLETE)
        await federation.reload("a", "b")
        await federation.until_all(Phase.TRAINING, 4, a, b)
        assert partners(a)[2:] == [(2, {"b"}), (3, {"b"})]


@pytest.mark.parametrize("phase", PHASES)
async def test_a_reload_has_a_whole_model_sealed_only_for_who_lacks_it(
    phase: Phase,
    state_path: Path,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody does, but where a delta was being signed, or was on its way, under the old file."""
    sealed: list[int] = []
    seal = RoundWork.snapshot

    def counting(self: RoundWork, published: SignedHeader, *rest: Any) -> Sendable:
        sealed.append(published.header.round_number)
        return seal(self, published, *rest)

    monkeypatch.setattr(RoundWork, "snapshot", counting)
    async with memory_federation(state_path, "abc", **rounds(), **COMPLETE) as federation:
        await federation.until(lambda: federation.nodes["a"].is_in(phase, 2))
        federation.write_topology("abc", **rounds(local_steps=2), **COMPLETE)
        await federation.reload()
        await federation.until_all(Phase.TRAINING, 5)
        for node in federation.nodes.values():
            assert node.degraded_rounds() == []
            others = set("abc") - {node.name}
            assert [them for _, them in partners(node)] == [others] * 5
        assert set(sealed) <= {2}
        if phase is Phase.TRAINING:
            assert sealed == []


async def test_a_snapshot_that_waited_for_a_delta_to_be_sealed_restates_that_delta(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing that was signed under the old file is taken any more, so all get snapshots."""
    async with memory_federation(state_path, "abc", **rounds(), **COMPLETE) as federation:
        a, b = federation.nodes["a"], federation.nodes["b"]
        inline, may_seal = a.runtime.offload, trio.Event()

        async def once_allowed(job: Any, /) -> Any:
            await may_seal.wait()
            return await inline(job)

        await federation.until_all(Phase.TRAINING, 2)
        a.runtime.offload = once_allowed
        await federation.until(lambda: a.is_in(Phase.PUBLISHING, 2))
        federation.write_topology("abc", **rounds(local_steps=2), **COMPLETE)
        await federation.reload()
        await federation.until(lambda: seen_by(b, "a").state == "connected")
        a.runtime.offload = inline
        may_seal.set()
        await federation.until_all(Phase.TRAINING, 3)
        published = a.runtime.engine.published
        assert published is not None
        held = b.runtime.engine.neighbours["a"].held
        assert (held.round_number, held.replica) == (2, published.header.replica_after)
        assert partners(b)[2] == (2, {"a", "c"})
        for node in federation.nodes.values():
            assert node.degraded_rounds() == []
            waited = node.entered(Phase.AGGREGATING, 2) - node.entered(Phase.COLLECTING, 2)
            assert waited < DEADLINE_SECONDS


async def test_two_reloads_at_once_end_with_the_newer_file(
    state_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_federation(state_path, "abc", **rounds(), **COMPLETE) as federation:
        a = federation.nodes["a"]
        await federation.until_all(Phase.TRAINING, 1)
        read_at_once, pauses = a._read_again, [10.0, 0.0]

        async def read_slowly() -> Reload | None:
            pause_seconds = pauses.pop(0)
            found = await read_at_once()
            await trio.sleep(pause_seconds)
            return found

        monkeypatch.setattr(a, "_read_again", read_slowly)
        federation.write_topology("abc", **rounds(local_steps=2), **COMPLETE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.reload)
            await trio.sleep(1.0)
            federation.write_topology("abc", **rounds(local_steps=4), **COMPLETE)
            nursery.start_soon(a.reload)
        assert pauses == []
        assert a.topology.digest == federation.topology.digest
        assert a.runtime.plan.local_steps == 4


async def test_what_is_heard_while_a_removed_neighbour_is_still_aggregated_is_passed_on(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_federation(state_path, "abcd", **rounds(), **COMPLETE) as federation:
        a, b, c = (federation.nodes[name] for name in "abc")
        inline, may_mix = a.runtime.offload, trio.Event()

        async def once_allowed(job: Any, /) -> Any:
            await may_mix.wait()
            return await inline(job)

        await federation.until(lambda: a.is_in(Phase.AGGREGATING, 2))
        a.runtime.offload = once_allowed
        await federation.until_all(Phase.TRAINING, 3, b, c)
        federation.write_topology("abc", **rounds(), **COMPLETE)
        await federation.reload("a", "b", "c")
        await federation.until_all(Phase.COLLECTING, 3, b, c)
        await federation.until(lambda: (b.identity.public_key, 3) in a.runtime.headers.entries())
        assert a.is_in(Phase.AGGREGATING, 2)
        assert "d" in a.runtime.engine.neighbours
        a.runtime.offload = inline
        may_mix.set()
        await until_round(federation, 5, "abc")
        assert partners(a)[2:4] == [(2, {"b", "c", "d"}), (3, {"b", "c"})]


async def test_a_reload_whose_caller_gave_up_is_carried_through_all_links(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """One of the neighbours hangs, so that it takes its time."""
    async with memory_federation(state_path, "abcd", **rounds(), **COMPLETE) as federation:
        a, b, c = (federation.nodes[name] for name in "abc")
        await federation.until_all(Phase.TRAINING, 1)
        federation.part("a", "d")
        federation.write_topology("abc", **rounds(), **COMPLETE)
        with trio.move_on_after(1.0) as caller:
            await a.reload()
        assert caller.cancel_called
        assert a.transport.roster == {b.identity.peer_id, c.identity.peer_id}
        await federation.until(lambda: seen_by(a, "b").refusal is not None)
        await federation.reload("b", "c")
        number = a.runtime.engine.round_number
        await until_round(federation, number + 2, "abc")
        assert partners(a)[-1][1] == {"b", "c"}
