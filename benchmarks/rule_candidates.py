"""Rules that were tried as the default, and what spoke against them.

    python benchmarks/rule_candidates.py [--seeds 3] [--rounds 100]

Each candidate clips at the median of lengths, and drops what is beyond some of them. The first five
measure from the own model. Two remember each neighbour's difference of the round before, and count
a neighbour less whose difference hardly changes: a slow drift stands still, honest training does
not. An attacker that knows this shakes a little, which is what the attack named jitter does: it
spends a share of its norm on noise. The last, which is the rule start_clipping, measures lengths
from the model that the round began with, which the site's own training has not moved.

Attackers know all honest models and tell each neighbour something else; accuracy in percent.
"""

import argparse
import os
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
from robustness import COLUMNS, SITES, graph_of, records

from p2pfed.aggregation import Mixing, NeighbourModel, Outcome
from p2pfed.attacks import ModelAttack, View, make
from p2pfed.attacks.hidden import Drift
from p2pfed.simulation.lab import Experiment, Run, place_attackers, run_experiment

Wide = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float32]
GRAPHS = ("4-regular, 3", "exponential, 3", "complete, 3")
ATTACKS = ("sign_flip", "alie", "dissensus", "drift", "min_max", "shrink")
JITTER = 0.57  # share of the lie's norm that is noise


@dataclass(frozen=True)
class JitteredDrift(ModelAttack):
    """The slow drift with noise on top, of the same length."""

    name: ClassVar[str] = "jitter"
    source: ClassVar[str] = "made for the rules with a memory, in this file"
    summary: ClassVar[str] = "a slow drift that shakes"

    def lie(self, view: View, generator: np.random.Generator) -> Wide:
        assert view.recipient is not None
        drift = np.asarray(Drift().lie(view, generator), np.float64) - view.recipient
        noise = generator.standard_normal(drift.shape)
        noise *= np.linalg.norm(drift) / np.linalg.norm(noise)
        lie: Wide = view.recipient + np.sqrt(1 - JITTER**2) * drift + JITTER * noise
        return lie


@dataclass(frozen=True)
class Candidate(Mixing):
    """Median clipping at ``scale`` times its threshold, nothing from beyond ``drop`` of it.

    With ``memory``, a neighbour counts by how much its difference moved, to this power. With
    ``from_start``, lengths are those of model - x, where x is what the round began with; the
    threshold is then the upper median of an even number.
    """

    scale: float = 1.0
    drop: float = 3.0
    memory: float = 0.0
    from_start: bool = False
    differences: dict[tuple[int, int], dict[str, Wide]] = field(
        default_factory=dict
    )  # by round and site
    calls: Counter[int] = field(default_factory=Counter)  # by round; sites come in one order

    def aggregate(
        self,
        round_number: int,
        total_rounds: int,  # noqa: ARG002 - as the method it stands in for
        own: Vector,
        neighbours: Sequence[NeighbourModel],
        out: Vector,
        start: Vector | None = None,
    ) -> Outcome:
        place = self.calls[round_number]
        self.calls[round_number] += 1
        differences = {n.name: np.subtract(n.vector, own, dtype=np.float64) for n in neighbours}
        centre = own if start is None or not self.from_start else start
        lengths = {
            n.name: float(np.linalg.norm(np.subtract(n.vector, centre, dtype=np.float64)))
            for n in neighbours
        }
        rank = len(lengths) // 2 if self.from_start else (len(lengths) - 1) // 2
        threshold = self.scale * sorted(lengths.values())[rank]
        shares = {
            name: 1.0 if length <= threshold else 0.0 if length > self.drop * threshold
            and len(lengths) >= 3 else threshold / length
            for name, length in lengths.items()
        }  # fmt: skip
        if self.memory:
            known = self.differences.pop((round_number - 1, place), {})
            self.differences[round_number, place] = differences
            self._slow_down(known, differences, lengths, shares)
        weights = {n.name: n.weight * shares[n.name] for n in neighbours}
        out[:] = own + sum(weights[name] * z for name, z in differences.items())
        return Outcome(self.rule, weights, lengths)

    def _slow_down(
        self,
        known: dict[str, Wide],
        differences: dict[str, Wide],
        lengths: dict[str, float],
        shares: dict[str, float],
    ) -> None:
        moved = {
            name: float(np.linalg.norm(z - known[name])) / max(lengths[name], 1e-12)
            for name, z in differences.items()
            if name in known
        }
        counted = sorted(moved[name] for name in moved if shares[name] > 0.0)
        if not counted:
            return
        usual = counted[(len(counted) - 1) // 2]
        for name, movement in moved.items():
            shares[name] *= min(1.0, movement / usual) ** self.memory


CANDIDATES: dict[str, Callable[[], Candidate]] = {
    "from the own model": lambda: Candidate("candidate", "lab"),
    "threshold x 0.7": lambda: Candidate("candidate", "lab", scale=0.7),
    "threshold x 1.3": lambda: Candidate("candidate", "lab", scale=1.3),
    "dropped beyond 2": lambda: Candidate("candidate", "lab", drop=2.0),
    "memory, power 1": lambda: Candidate("candidate", "lab", drop=2.0, memory=1.0),
    "memory, power 2": lambda: Candidate("candidate", "lab", drop=2.0, memory=2.0),
    "from the start": lambda: Candidate("candidate", "lab", from_start=True),
}


def measure(candidate: Candidate, column: str, seeds: int, rounds: int) -> dict[str, float]:
    graph, count = graph_of(COLUMNS[column]), COLUMNS[column].attackers
    attackers = place_attackers(graph, count)
    tasks = [records("digits", SITES - count, 0.3, seed) for seed in range(seeds)]
    attacks = [None, *(make(name) for name in ATTACKS), JitteredDrift()]
    runs = [
        Run(task.with_strangers(attackers, seed), attack, seed)
        for attack in attacks
        for seed, task in enumerate(tasks)
    ]
    results = run_experiment(Experiment(graph, attackers, candidate, rounds), runs)
    return {
        attack.name if attack else "none": 100
        * statistics.mean(r.mean_accuracy for r in results[place * seeds : (place + 1) * seeds])
        for place, attack in enumerate(attacks)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    names = ["none", *ATTACKS, "jitter"]
    for column in GRAPHS:
        print(f"{column:<20}" + "".join(f"{name:>10}" for name in names))
        for name, build in CANDIDATES.items():
            found = measure(build(), column, arguments.seeds, arguments.rounds)
            print(f"{name:<20}" + "".join(f"{found[one]:10.1f}" for one in names), flush=True)


if __name__ == "__main__":
    main()
