"""What befalls simulated sites, and what becomes of it."""

from typing import Any

import numpy as np
import pytest
from small_federations import Targets, federation, run

from p2pfed.daemon import links, outbox, round_work
from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol.header import Kind
from p2pfed.protocol.liveness_events import Liveness
from p2pfed.simulation import durable as simulated_durable
from p2pfed.simulation import network as simulated_network
from p2pfed.simulation import outbox as simulated_outbox
from p2pfed.simulation.federation import Outcome, SimulatedFederation, SiteFigures
from p2pfed.simulation.network import LINK_TIMEOUT_SECONDS
from p2pfed.simulation.process import Process
from p2pfed.simulation.world import World

DEADLINE_SECONDS = 10.0  # of small_federations


def site(outcome: Outcome, name: str) -> SiteFigures:
    return next(one for one in outcome.sites if one.name == name)


def test_the_constants_are_those_of_the_daemon() -> None:
    for name in (
        "LINK_TIMEOUT_SECONDS",
        "FIRST_RETRY_SECONDS",
        "MAX_RETRY_SECONDS",
    ):
        assert getattr(simulated_network, name) == getattr(links, name)
    for name in ("QUEUED_ENVELOPES", "ATTEMPTS", "FIRST_RETRY_SECONDS"):
        assert getattr(simulated_outbox, name) == getattr(outbox, name)
    for name in ("NORM_SAMPLES", "NORM_SAMPLES_NEEDED", "NORM_BOUND_FACTOR"):
        assert getattr(simulated_durable, name) == getattr(round_work, name)


def test_an_honest_federation_learns_what_pooled_data_would_teach() -> None:
    outcome = run(rounds=30, aggregation={"rule": "mean"})
    # 1 / (1 + distance to the mean of all points)
    assert outcome.rounds[-1].worst_accuracy == pytest.approx(1.0, abs=0.05)
    assert outcome.finished
    assert outcome.quarantined == ()


def test_a_site_that_crashes_goes_on_from_what_was_durable() -> None:
    crash = {"site": "b", "at_seconds": 6.0, "down_seconds": 4.0}
    simulated = federation(scenario={"crash": [crash]}, rounds=20)
    outcome = simulated.run()
    assert site(outcome, "b").restarts == 1
    assert outcome.rounds[-1].sites == 4
    # It signed one delta for a round, whatever the crash interrupted.
    rounds = [
        envelope.signed.header.round_number
        for envelope in simulated.peers["b"].durable.envelopes.values()
        if envelope.signed.header.kind is Kind.DELTA
    ]
    assert len(rounds) == len(set(rounds))


@pytest.mark.parametrize("clock", ["runs", "stands"])
@pytest.mark.parametrize("for_seconds", [4.0, 40.0])
def test_a_site_that_was_frozen_goes_on_and_counts_again(clock: str, for_seconds: float) -> None:
    freeze = {"site": "b", "at_seconds": 6.3, "for_seconds": for_seconds, "clock": clock}
    simulated = federation(scenario={"freeze": [freeze]}, rounds=100)
    outcome = simulated.run()
    assert outcome.finished
    assert site(outcome, "b").restarts == 0
    assert outcome.rounds[-1].sites == 4
    lost = for_seconds > LINK_TIMEOUT_SECONDS
    assert site(outcome, "a").events.get("LinkDown", 0) == lost
    behind = simulated.peers["a"].clock.local(0.0) - simulated.peers["b"].clock.local(0.0)
    assert behind == pytest.approx(for_seconds if clock == "stands" else 0.0)
    assert outcome.checked["everybody_counts_again"] > 0


def test_a_frozen_site_does_nothing_at_all() -> None:
    freeze = {"site": "b", "at_seconds": 6.0, "for_seconds": 9.0}
    simulated = federation(scenario={"freeze": [freeze]}, rounds=20)
    handled: list[float] = []
    peer = simulated.peers["b"]
    handle = peer.handle

    def noting(event: on.Event) -> list[do.Command]:
        handled.append(simulated.world.now)
        return handle(event)

    peer.handle = noting  # type: ignore[method-assign]
    simulated.run()
    assert not any(6.0 < at < 15.0 for at in handled)
    assert any(at == 15.0 for at in handled)


def test_timers_of_a_process_wait_for_it_and_for_its_clock() -> None:
    """An overdue one fires on waking up, by a clock that stood still it has time left."""
    for clock_stood in (False, True):
        world = World(0)
        process = Process(world)
        process.start()
        fired: dict[str, float] = {}

        def fire(name: str, world: World = world, fired: dict[str, float] = fired) -> None:
            fired[name] = world.now

        for name, seconds in (("before", 1.0), ("meanwhile", 5.0), ("after", 20.0)):
            process.later(seconds, fire, name)
        world.at(2.0, process.freeze)
        world.at(12.0, lambda process=process, stood=clock_stood: process.thaw(clock_stood=stood))
        while world.step():
            pass
        late = 10.0 if clock_stood else 0.0
        meanwhile = 5.0 + late if clock_stood else 12.0
        assert fired == {"before": 1.0, "meanwhile": meanwhile, "after": 20.0 + late}


def test_a_frozen_site_may_be_killed() -> None:
    scenario = {
        "freeze": [{"site": "b", "at_seconds": 5.0, "for_seconds": 20.0}],
        "crash": [{"site": "b", "at_seconds": 8.0, "down_seconds": 1.0}],
    }
    outcome = run(scenario=scenario, rounds=30)
    assert outcome.finished
    assert site(outcome, "b").restarts == 1


def test_a_site_that_leaves_is_gone_and_one_that_joins_takes_part() -> None:
    scenario = {
        "leave": [{"site": "a", "at_seconds": 8.0}],
        "join": [{"site": "e", "at_seconds": 12.0}],
    }
    simulated = federation("abcde", scenario=scenario, rounds=30)
    outcome = simulated.run()
    assert site(outcome, "a").rounds < 15
    assert site(outcome, "e").rounds > 5
    assert simulated.peers["b"].topology.names == ("b", "c", "d", "e")
    assert "a" not in simulated.peers["b"].engine.neighbours
    assert "e" in simulated.peers["b"].engine.neighbours
    assert outcome.rounds[-1].sites == 4


def test_a_straggler_is_left_out_and_its_late_models_are_used() -> None:
    outcome = run(scenario={"straggler": [{"site": "d", "factor": 20.0}]}, rounds=20)
    assert 0 < site(outcome, "d").rounds < 20
    assert site(outcome, "a").rounds == 20
    assert site(outcome, "a").notices["round_degraded"] > 0
    assert site(outcome, "d").notices["round_skipped"] > 0


def test_a_partition_degrades_both_sides_or_stops_them_and_then_heals() -> None:
    partition = {"sites": ["a", "b"], "at_seconds": 5.0, "for_seconds": 60.0}
    outcome = run(scenario={"partition": [partition]}, rounds=60, round={"quorum": 0.3})
    assert site(outcome, "a").notices["round_degraded"] > 0
    assert outcome.rounds[-1].sites == 4
    late = outcome.rounds[-1].consensus_distance
    apart = max(one.consensus_distance for one in outcome.rounds if one.seconds > 30.0)
    assert late < apart


def test_a_one_way_partition_is_noticed_too() -> None:
    partition = {"sites": ["a"], "at_seconds": 5.0, "for_seconds": 40.0, "direction": "in"}
    outcome = run(scenario={"partition": [partition]}, rounds=40)
    assert outcome.finished
    assert site(outcome, "b").notices["round_degraded"] > 0


def test_a_silent_site_is_gone_on_without_before_its_links_end() -> None:
    """Links are given up after 15 s of silence, and those that went down get a grace of 10 s."""
    partition = {"sites": ["a"], "at_seconds": 5.0, "for_seconds": 14.0}
    simulated = federation(
        scenario={"partition": [partition]}, rounds=30, round={"deadline_seconds": 60.0}
    )
    outcome = simulated.run()
    assert outcome.finished
    for name in "bcd":
        figures = site(outcome, name)
        assert figures.notices["round_degraded"] > 0
        assert "LinkDown" not in figures.events
        assert figures.events["NeighbourSilent"] == 1
        assert simulated.peers[name].probing.detector.liveness("a") is Liveness.ALIVE
        assert figures.bytes_sent["probe"] > 0
    # Heard again, it is waited for again; the rounds that it missed it skips.
    assert site(outcome, "a").notices["round_skipped"] == 1
    assert outcome.rounds[-1].sites == 4


def test_a_fast_clock_shortens_its_own_deadlines_only() -> None:
    straggler = [{"site": "d", "factor": 1000.0}]
    waited: dict[float, dict[str, float]] = {}
    for drift in (0.0, 0.6):
        clock = [{"site": "a", "drift": drift, "offset_seconds": -1e5}]
        # a and b are not neighbours: neither waits for the other, and both for d.
        graph = {"kind": "explicit", "edges": [["a", "c"], ["a", "d"], ["b", "c"], ["b", "d"]]}
        simulated = federation(
            scenario={"straggler": straggler, "clock": clock}, rounds=3, graph=graph
        )
        waited[drift] = first_deadlines(simulated)
    assert waited[0.0] == pytest.approx({"a": DEADLINE_SECONDS, "b": DEADLINE_SECONDS}, abs=1e-5)
    assert waited[0.6]["a"] == pytest.approx(DEADLINE_SECONDS / 1.6, abs=1e-5)
    assert waited[0.6]["b"] == pytest.approx(DEADLINE_SECONDS, abs=1e-5)


def first_deadlines(simulated: SimulatedFederation) -> dict[str, float]:
    """Virtual seconds that a and b wait for d, from publishing until their deadline passes."""
    record, seen = simulated.world.record, {}

    def listening(site: str, what: str, other: str = "", number: int = 0) -> None:
        seen.setdefault((site, what, other), simulated.world.now)
        record(site, what, other, number)

    simulated.world.record = listening  # type: ignore[method-assign]
    while simulated.world.now < 30.0:
        if not seen:
            for peer in simulated.peers.values():
                peer.start()
        simulated.world.step()
    return {
        site: seen[site, "TimerFired", "deadline"] - seen[site, "Published", ""] for site in "ab"
    }


@pytest.mark.parametrize(
    ("quality", "slower"),
    [
        ({"delay_seconds": 1.0}, True),
        ({"bytes_per_second": 500.0}, True),
        ({"delay_seconds": 0.0, "jitter_seconds": 0.0}, False),
    ],
)
def test_slow_links_make_slow_rounds(quality: dict[str, Any], slower: bool) -> None:
    usual, other = run(), run(scenario={"links": quality})
    assert (other.seconds > 1.2 * usual.seconds) is slower


def test_one_slow_link_can_be_described() -> None:
    scenario = {"link": [{"between": ["a", "b"], "delay_seconds": 2.0}]}
    assert run(scenario=scenario).seconds > 1.5 * run().seconds


def test_lost_messages_are_counted_and_made_up_for() -> None:
    simulated = federation(scenario={"links": {"loss": 0.1}}, rounds=20)
    assert simulated.run().finished
    assert simulated.network.lost > 0


def test_an_equivocator_is_convicted_by_all_and_the_rest_goes_on() -> None:
    hostile = [{"site": "c", "attack": "equivocation"}]
    simulated = federation("abcdef", scenario={"hostile": hostile}, graph={"kind": "ring"})
    outcome = simulated.run()
    assert outcome.quarantined == ("c",)
    for name in "abdef":
        assert simulated.peers[name].engine.quarantined == {"c"}


def test_replayed_and_stale_envelopes_change_nothing() -> None:
    usual = run(scenario={"hostile": [{"site": "d", "attack": "replay"}]})
    flooded = run(scenario={"hostile": [{"site": "d", "attack": "stale_flood"}]})
    for outcome in (usual, flooded):
        assert outcome.rounds[-1].mean_accuracy == pytest.approx(
            run().rounds[-1].mean_accuracy, abs=0.02
        )


def test_a_model_that_is_not_a_number_never_enters_an_aggregation() -> None:
    outcome = run("abcde", scenario={"hostile": [{"site": "e", "attack": "not_a_number"}]})
    assert outcome.finished
    assert site(outcome, "a").notices["delta_rejected"] >= 10
    assert outcome.seconds < 40.0  # nobody waits a deadline for it


def test_work_and_bytes_of_a_site_do_not_grow_with_the_federation() -> None:
    figures = {}
    for count in (80, 160):
        names = [f"{number:03d}" for number in range(count)]
        # A lattice: what is near a site does not depend on how many are far away.
        graph = {"kind": "small_world", "degree": 6, "rewiring": 0.0}
        outcome = run(names, rounds=2, graph=graph)  # type: ignore[arg-type]
        site_rounds = sum(one.rounds for one in outcome.sites)
        figures[count] = (
            sum(sum(one.bytes_sent.values()) for one in outcome.sites) / site_rounds,
            sum(sum(one.events.values()) for one in outcome.sites) / site_rounds,
        )
    for small, large in zip(figures[80], figures[160], strict=True):
        assert large == pytest.approx(small, rel=0.05)


def test_the_double_that_learns_does_learn() -> None:
    targets = Targets(2)
    start = targets.genesis()[None]
    trained, _ = targets.train([0], start, start, [0], 50)
    assert trained[0] == pytest.approx(targets.points[0], abs=1e-4)


def test_asynchronous_sites_do_not_wait_for_a_straggler_and_learn_from_it_all_the_same() -> None:
    seconds = {}
    for mode in ("sync", "async"):
        simulated = federation(
            scenario={"straggler": [{"site": "d", "factor": 6.0}]},
            round={"rounds": 40, "mode": mode, "max_staleness": 12, "deadline_seconds": 60.0},
            aggregation={"rule": "mean"},
        )
        simulated.run()
        fast = simulated.peers["a"]
        seconds[mode] = fast.last_commit_seconds
    assert seconds["async"] < 0.25 * seconds["sync"]
    points = Targets(4).points
    wanted, without_it = points.mean(axis=0), points[:3].mean(axis=0)
    towards = (fast.model - without_it) @ (wanted - without_it)
    assert towards > 0.2 * np.sum((wanted - without_it) ** 2)
