"""The same seed gives the same trace, whatever the machine adds of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from small_federations import Targets, federation, run

from p2pfed.simulation.world import World

SCENARIO = {
    "links": {"loss": 0.05, "duplication": 0.1, "reordering": 0.2},
    "storm": {"until_seconds": 20.0, "crashes": 3, "partitions": 1, "cut_links": 2},
    "hostile": [{"site": "d", "attack": "equivocation"}],
}


def test_the_same_seed_gives_the_same_trace() -> None:
    first, again = (run("abcde", 3, scenario=SCENARIO) for _ in range(2))
    assert first.trace_hash == again.trace_hash
    assert first == again


def test_another_seed_gives_another_trace() -> None:
    assert run(seed=1).trace_hash != run(seed=2).trace_hash


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_the_trace_does_not_depend_on_the_seed_of_hashes(hash_seed: str) -> None:
    code = (
        "from small_federations import run\n"
        "from test_simulated_world import SCENARIO\n"
        "print(run('abcde', 3, scenario=SCENARIO).trace_hash)"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": here},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == run("abcde", 3, scenario=SCENARIO).trace_hash


def test_the_last_bits_of_a_model_are_not_part_of_the_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = run("abcde", 3, scenario=SCENARIO)
    train = Targets.train

    def another_processor(
        self: Targets, peers: Sequence[int], models: np.ndarray, *rest: object
    ) -> tuple[np.ndarray, np.ndarray]:
        trained, momentum = train(self, peers, models, *rest)  # type: ignore[arg-type]
        return np.nextafter(trained, np.float32(9)), momentum

    monkeypatch.setattr(Targets, "train", another_processor)
    assert run("abcde", 3, scenario=SCENARIO).trace_hash == usual.trace_hash


def test_what_one_site_draws_moves_no_others_draws() -> None:
    world, again = World(7), World(7)
    world.draw("site a").random()
    assert world.draw("site b").random() == again.draw("site b").random()


def test_things_happen_in_the_order_of_their_time_and_then_of_being_planned() -> None:
    world, seen = World(0), []
    world.after(2.0, seen.append, "late")
    world.after(1.0, seen.append, "first")
    world.after(1.0, seen.append, "second")
    world.after(-5.0, seen.append, "now")
    while world.step():
        pass
    assert seen == ["now", "first", "second", "late"]
    assert world.now == 2.0


def test_a_federation_that_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="number of rounds"):
        federation(rounds=0)
