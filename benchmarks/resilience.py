"""What crashes and partitions cost a federation, simulated: the daemon's engine and aggregation.

    python benchmarks/resilience.py [--rounds 200] [--seed 0]

Twenty sites learn the digits (Dirichlet 0.3) on a 6-regular graph. Three runs are compared with one
in which nothing goes wrong: a fifth of the sites down at any time (SIGKILL, back after 20 to 40
virtual seconds); a split into two halves; and the same split of two groups that hang together by
two edges. The checkers of the simulator watch all of them: that no committed round is lost is one.
"""

import argparse
import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tomli_w

from p2pfed.simulation.federation import Outcome
from p2pfed.simulation.measurements import RoundFigures
from p2pfed.simulation.network import MAX_RETRY_SECONDS
from p2pfed.simulation.population import Changes
from p2pfed.simulation.run import Request, simulate

SITES = tuple(f"s{number:02d}" for number in range(20))
DOWN_AT_ONCE = 4
DOWN_SECONDS = (20.0, 40.0)
DEADLINE_SECONDS = 10.0
SPLIT_AT_SECONDS = 28.0
SPLIT_SECONDS = 34.0
GROUP = 6  # sites of each of the two bridged groups

QUORUM = 0.5  # the default
SPLIT_QUORUM = 0.1  # of a half, some sites have one neighbour in six

ACCURACY_TARGET = 1.0  # points below the quiet run
CHURN_TARGET = 2.0  # consensus distance, times that of the quiet run
HEALED_TARGET = 1.1
HEALING_ROUNDS = 5


def topology(
    names: Sequence[str], graph: Mapping[str, Any], rounds: int, quorum: float
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "federation": {"name": "resilience"},
        "peer": [{"name": name} for name in names],
        "graph": dict(graph),
        "round": {"rounds": rounds, "deadline_seconds": DEADLINE_SECONDS, "quorum": quorum},
        "task": {"kind": "tabular"},
    }


def bridged(names: Sequence[str]) -> dict[str, Any]:
    left, right = names[:GROUP], names[GROUP : 2 * GROUP]
    within = [
        [one, other] for side in (left, right) for one in side for other in side if one < other
    ]
    return {"kind": "explicit", "edges": [*within, [left[0], right[0]], [left[1], right[1]]]}


def churn(seed: int, until_seconds: float) -> dict[str, Any]:
    """DOWN_AT_ONCE sites down at any time: each of as many slots kills one after another."""
    draws = random.Random(seed)
    crashes = []
    for slot in range(DOWN_AT_ONCE):
        at_seconds = draws.uniform(3.0, 13.0)
        while at_seconds < until_seconds:
            down_seconds = draws.uniform(*DOWN_SECONDS)
            site = draws.choice(SITES[slot::DOWN_AT_ONCE])
            crashes.append({"site": site, "at_seconds": at_seconds, "down_seconds": down_seconds})
            at_seconds += down_seconds + 0.5
    return {"crash": crashes}


def split(names: Sequence[str]) -> dict[str, Any]:
    partition = {
        "sites": list(names),
        "at_seconds": SPLIT_AT_SECONDS,
        "for_seconds": SPLIT_SECONDS,
    }
    return {"partition": [partition]}


def run(document: Mapping[str, Any], scenario: Mapping[str, Any], seed: int) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        file, faults = Path(name) / "topology.toml", Path(name) / "scenario.toml"
        file.write_text(tomli_w.dumps(document), encoding="utf-8")
        faults.write_text(tomli_w.dumps(scenario), encoding="utf-8")
        request = Request(file, faults, changes=Changes(), seed=seed, evaluate_every=20)
        return simulate(request)[0]


def ratio(faulty: Outcome, quiet: Outcome, number: int) -> float:
    """Of the consensus distances of one round."""
    return faulty.rounds[number].consensus_distance / quiet.rounds[number].consensus_distance


def word(holds: bool) -> str:
    return "met" if holds else "MISSED"


def accuracy(outcome: Outcome) -> float:
    last: RoundFigures = outcome.rounds[-1]
    assert last.mean_accuracy is not None
    return 100 * last.mean_accuracy


def report_churn(faulty: Outcome, quiet: Outcome, down_until_seconds: float) -> None:
    during = [
        ratio(faulty, quiet, one.round_number)
        for one in faulty.rounds
        if one.round_number >= 10 and one.seconds < down_until_seconds
    ]
    middle, final = sorted(during)[len(during) // 2], ratio(faulty, quiet, -1)
    restarts = sum(site.restarts for site in faulty.sites)
    checks = faulty.checked["rounds_close_once"]
    print(
        f"a fifth of the sites down at any time: {restarts} restarts, {len(faulty.rounds)} rounds"
    )
    print(f"  committed rounds lost: none in {checks:,} checks")
    print(
        f"  consensus distance against the quiet run: median {middle:.2f} times over {len(during)} "
        f"rounds with sites down (target {CHURN_TARGET}: {word(middle <= CHURN_TARGET)}), "
        f"{final:.2f} at the end"
    )
    loss = accuracy(quiet) - accuracy(faulty)
    print(
        f"  accuracy {accuracy(faulty):.1f} %, quiet {accuracy(quiet):.1f} % "
        f"(target within {ACCURACY_TARGET:g}: {word(loss <= ACCURACY_TARGET)})"
    )


def report_split(name: str, faulty: Outcome, quiet: Outcome) -> None:
    """Rounds are counted from when every link had the time to be made again."""
    end_seconds = SPLIT_AT_SECONDS + SPLIT_SECONDS
    apart = [
        one.round_number
        for one in faulty.rounds
        if SPLIT_AT_SECONDS + DEADLINE_SECONDS < one.seconds < end_seconds
    ]
    linked = next(
        one.round_number for one in faulty.rounds if one.seconds > end_seconds + MAX_RETRY_SECONDS
    )
    rest = range(linked, len(faulty.rounds))
    healed = next((n for n in rest if ratio(faulty, quiet, n) <= HEALED_TARGET), None)
    most = max(ratio(faulty, quiet, number) for number in range(apart[0], linked + 1))
    took = "not healed" if healed is None else f"healed in {healed - linked} rounds"
    holds = healed is not None and healed - linked <= HEALING_ROUNDS
    print(f"{name}: {len(apart)} rounds apart, then at {most:.1f} times the quiet run's distance")
    print(
        f"  {took} (within {HEALED_TARGET} times; target {HEALING_ROUNDS} rounds: {word(holds)}), "
        f"{ratio(faulty, quiet, -1):.2f} at the end"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    graph = {"kind": "random_regular", "degree": 6, "seed": 1}
    regular = topology(SITES, graph, arguments.rounds, QUORUM)
    quiet = run(regular, {}, arguments.seed)
    # Rounds take longer while sites are down; some are down to the last.
    down_until_seconds = 3.0 * quiet.seconds
    faulty = run(regular, churn(arguments.seed, down_until_seconds), arguments.seed)
    report_churn(faulty, quiet, down_until_seconds)
    regular = topology(SITES, graph, arguments.rounds, SPLIT_QUORUM)
    halves = run(regular, split(SITES[::2]), arguments.seed)
    report_split("two halves of the graph", halves, quiet)
    groups = topology(SITES[: 2 * GROUP], bridged(SITES), arguments.rounds, SPLIT_QUORUM)
    together = run(groups, {}, arguments.seed)
    apart = run(groups, split(SITES[:GROUP]), arguments.seed)
    report_split("two groups joined by two edges", apart, together)


if __name__ == "__main__":
    main()
