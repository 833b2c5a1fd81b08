"""After a partition the two sides come together again, though each looks hostile to the other."""

from typing import Any

import numpy as np
import pytest
from small_federations import Targets, federation

from p2pfed.protocol.joining import JOINING_ROUNDS
from p2pfed.protocol.neighbours import Neighbour
from p2pfed.simulation.behaviour import Behaviour
from p2pfed.simulation.federation import Outcome, SimulatedFederation
from p2pfed.simulation.peer import SimulatedPeer

LEFT, RIGHT = "abcd", "efgh"
BRIDGED = {
    "kind": "explicit",
    "edges": [
        *([one, other] for side in (LEFT, RIGHT) for one in side for other in side if one < other),
        ["a", "e"],
        ["b", "f"],
    ],
}
SPLIT = {"sites": list(LEFT), "at_seconds": 6.0, "for_seconds": 60.0}


def run_bridged() -> Outcome:
    simulated = federation(LEFT + RIGHT, graph=BRIDGED, rounds=90, scenario={"partition": [SPLIT]})
    learner = simulated.learning._learner
    assert isinstance(learner, Targets)
    # What one side learns alone is far from the other's.
    learner.points[:4] += 2.0
    return simulated.run()


def test_two_sides_that_hang_together_by_a_bridge_find_together_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    healed = run_bridged()
    monkeypatch.setattr(Neighbour, "left_out", lambda _: None)
    apart = run_bridged()
    assert healed.finished
    assert apart.finished
    during, at_the_end = 20, -1
    split = healed.rounds[during].consensus_distance
    assert split == pytest.approx(apart.rounds[during].consensus_distance)
    assert apart.rounds[at_the_end].consensus_distance > 0.98 * split
    assert healed.rounds[at_the_end].consensus_distance < 0.75 * split


LATE = {"join": [{"site": "f", "at_seconds": 40.0}]}
AWAY = {"crash": [{"site": "f", "at_seconds": 2.0, "down_seconds": 60.0}]}


def run_late(scenario: dict[str, Any], hostile: str = "") -> SimulatedFederation:
    if hostile:
        scenario = scenario | {"hostile": [{"site": "a", "attack": hostile}]}
    simulated = federation("abcdef", rounds=80, scenario=scenario)
    assert simulated.run().finished
    return simulated


@pytest.mark.parametrize(
    ("scenario", "hostile"),
    [(LATE, ""), (AWAY, ""), (LATE, "sign_flip"), (LATE, "noise")],
    ids=["new", "back after long", "new among liars", "new amid noise"],
)
def test_one_from_far_behind_begins_from_its_neighbours_model_and_counts_little_at_first(
    scenario: dict[str, Any], hostile: str
) -> None:
    simulated = run_late(scenario, hostile)
    late = simulated.peers["f"]
    assert late.notices["adopted"] == 1
    assert simulated.checkers.counts["nobody_joins_by_the_word_of_few"] == 1
    published = late.durable.published
    assert published is not None
    assert published.header.since_round > JOINING_ROUNDS
    assert late.committed_rounds >= 80 - published.header.since_round
    honest = np.stack([simulated.peers[name].model for name in "bcdef"])
    spread = np.linalg.norm(honest - honest.mean(axis=0), axis=1)
    assert spread[-1] < 2 * spread[:-1].max()


class Watched(Behaviour):
    """An honest site that remembers how far from the others' models each of its own was."""

    def __init__(self) -> None:
        self.distances: dict[int, float] = {}

    def publishes(self, peer: SimulatedPeer, round_number: int, trained: np.ndarray) -> np.ndarray:
        others = [other.trained for other in peer.federation.members() if other is not peer]
        self.distances[round_number] = float(np.linalg.norm(trained - np.mean(others, axis=0)))
        return trained


def test_what_it_first_says_is_as_near_to_the_others_as_anything_it_says_later() -> None:
    watched = Watched()
    simulated = federation("abcdef", rounds=80, scenario=LATE, behaviours={"f": watched})
    simulated.run()
    published = simulated.peers["f"].durable.published
    assert published is not None
    since = published.header.since_round
    later = np.mean([far for number, far in watched.distances.items() if number > since + 10])
    assert watched.distances[min(watched.distances)] > 2 * later  # when it knew nobody yet
    assert watched.distances[since] < 1.1 * later
