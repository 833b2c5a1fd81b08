"""Many seeds of mixed faults; whatever goes wrong, nothing breaks what must hold.

A failure names its seed and the command that runs it alone:

    python tests/simulation/test_storms.py SEED
"""

import random
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from small_federations import Targets, identity_of, topology

from p2pfed.attacks import ATTACKS
from p2pfed.errors import InvariantError
from p2pfed.protocol.rounds import RoundEngine
from p2pfed.simulation.federation import Outcome, SimulatedFederation
from p2pfed.simulation.scenario import Scenario
from p2pfed.topology.graphs import TIME_VARYING

SEEDS = 300
SEEDS_A_TEST = 30
SLOW_SEEDS = 3000
ROUNDS = 10
CALM_SECONDS, STORMY_SECONDS = 1.0, 15.0  # when the first fault comes, and the last

# The graphs by the number of sites that each is drawn over.
GRAPHS: tuple[tuple[int, dict[str, Any]], ...] = (
    (5, {"kind": "ring"}),
    (4, {"kind": "complete"}),
    (6, {"kind": "random_regular", "degree": 3, "seed": 1}),
    (4, {"kind": "one_peer_exponential"}),
    (6, {"kind": "exponential"}),
    (5, {"kind": "star"}),
    (6, {"kind": "torus", "rows": 2, "columns": 3}),
    (6, {"kind": "small_world", "degree": 4}),
    (6, {"kind": "random_per_round", "degree": 3}),
    (4, {"kind": "explicit", "edges": [["a", "b"], ["b", "c"], ["c", "d"], ["a", "c"]]}),
)
LONELY = ("star", "one_peer_exponential", "explicit")  # a site may have one neighbour in a round


def weather(seed: int, names: str) -> dict[str, Any]:
    """The scenario of a seed, without hostile sites."""
    draws = random.Random(f"weather {seed}")
    scenario: dict[str, Any] = {
        "links": {
            "delay_seconds": draws.choice((0.001, 0.02, 0.3)),
            "jitter_seconds": draws.choice((0.0, 0.01, 0.2)),
            "bytes_per_second": draws.choice((4e3, 1e5, 12.5e6)),
            "loss": draws.choice((0.0, 0.0, 0.02, 0.15)),
            "duplication": draws.choice((0.0, 0.2)),
            "reordering": draws.choice((0.0, 0.2)),
        },
        "pace": {"work_seconds": draws.choice((0.001, 0.02, 0.4))},
        "storm": {
            "from_seconds": CALM_SECONDS,
            "until_seconds": STORMY_SECONDS,
            "crashes": draws.randint(0, 4),
            "partitions": draws.randint(0, 3),
            "cut_links": draws.randint(0, 4),
        },
    }
    slow, wrong = draws.choice(names), draws.choice(names)
    if draws.random() < 0.4:
        scenario["straggler"] = [{"site": slow, "factor": draws.choice((2.0, 8.0, 40.0))}]
    if draws.random() < 0.5:
        drift, offset = draws.uniform(-0.2, 0.2), draws.uniform(-1e6, 1e6)
        scenario["clock"] = [{"site": wrong, "drift": drift, "offset_seconds": offset}]
    scenario["storm"]["freezes"] = draws.randint(0, 3)
    return scenario


def stormy_federation(seed: int) -> SimulatedFederation:
    """The graph goes with the seed; every second seed has a hostile site, and the attacks take
    turns."""
    count, graph = GRAPHS[seed % len(GRAPHS)]
    names = "abcdefgh"[:count]
    scenario = weather(seed, names)
    turn, hostile = divmod(seed // len(GRAPHS), 2)
    rounds: dict[str, Any] = {}
    if hostile:
        attack = list(ATTACKS)[(seed % len(GRAPHS) + turn) % len(ATTACKS)]
        scenario["hostile"] = [{"site": names[seed % count], "attack": attack}]
        # Whose only neighbour says nothing that can be used would wait for it, and rightly so.
        rounds = {"quorum": 0.0} if graph["kind"] in LONELY else {}
    if turn % 3 == 2 and graph["kind"] not in TIME_VARYING:
        rounds |= {"mode": "async", "max_staleness": 1 + seed % 4}
    return SimulatedFederation(
        topology(names, ROUNDS, graph=graph, round=rounds),
        {name: identity_of(name) for name in names},
        Scenario.model_validate(scenario),
        Targets(count),
        seed,
        replay=f"python tests/simulation/test_storms.py {seed}",
    )


def weathered(seeds: Iterable[int]) -> Counter[str]:
    """Run storms; says how often each kind of fault came, and how often the checkers looked.

    :raises InvariantError: with the seed, and the command to see it again.
    """
    came: Counter[str] = Counter()
    for seed in seeds:
        simulated = stormy_federation(seed)
        outcome = simulated.run()
        assert outcome.finished, f"seed {seed} did not finish"
        came.update(outcome.checked)
        came["losses"] += simulated.network.lost
        came["crashes"] += sum(site.restarts for site in outcome.sites)
        came["freezes"] += sum(peer.process.freezes for peer in simulated.peers.values())
        came["hostile sites"] += sum(site.hostile for site in outcome.sites)
    return came


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_A_TEST))
def test_no_storm_breaks_what_must_hold(first: int) -> None:
    came = weathered(range(first, first + SEEDS_A_TEST))
    # A storm in which nothing happened, or that nobody watched, would pass as well.
    assert came["losses"] > 20
    assert came["crashes"] > 20
    assert came["freezes"] > 20
    assert came["hostile sites"] >= SEEDS_A_TEST / 3
    for checker in ("only_verified_models", "weights_sum_to_one", "rounds_close_once"):
        assert came[checker] > SEEDS_A_TEST * ROUNDS


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(SEEDS, SEEDS + SLOW_SEEDS, 10 * SEEDS_A_TEST))
def test_no_storm_of_thousands_does(first: int) -> None:
    weathered(range(first, first + 10 * SEEDS_A_TEST))


def test_every_graph_meets_every_attack_or_at_least_its_turn() -> None:
    met = {one.attack for seed in range(SEEDS) for one in stormy_federation(seed).scenario.hostile}
    assert met == set(ATTACKS)


def test_a_storm_that_breaks_something_says_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forget(self: RoundEngine, _now: float) -> None:
        self.round_number = -1

    monkeypatch.setattr(RoundEngine, "_catch_up", forget)
    with pytest.raises(InvariantError, match="rounds_only_rise, seed 12") as error:
        stormy_federation(12).run()
    assert "run it again: python tests/simulation/test_storms.py 12" in str(error.value)


def summary(outcome: Outcome) -> str:
    return f"seed {outcome.seed}: {outcome.seconds:.0f} virtual s, trace {outcome.trace_hash[:16]}"


if __name__ == "__main__":
    print(summary(stormy_federation(int(sys.argv[1])).run()))  # noqa: T201 - said to a person
