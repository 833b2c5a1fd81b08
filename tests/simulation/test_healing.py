"""After a partition the two sides come together again, though each looks hostile to the other."""

import pytest
from small_federations import Targets, federation

from p2pfed.protocol.neighbours import Neighbour
from p2pfed.simulation.federation import Outcome

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
