"""What each aggregation rule is worth under attack: rules x graphs x attacks, several seeds.

    python benchmarks/robustness.py [--rules ...] [--graphs ...] [--attacks ...] [--seeds 5]
                                    [--rounds 100] [--task digits] [--consistent] [--quick]
                                    [--processes 2] [--json FILE]

Twelve sites learn together, three local steps a round with momentum 0.9. A cell reads "without
attack / under the worst attack (its name)": accuracy in percent on common test records, the mean
over the honest sites and the seeds, and its standard deviation over the seeds. Attackers know every
honest model of a round before they speak. They tell each neighbour something else; with
--consistent all the same, which is what the protocol's headers hold them to.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import networkx as nx

from p2pfed.aggregation import Mixing
from p2pfed.attacks import ATTACKS, DataAttack, ModelAttack, make
from p2pfed.rules_catalogue import DEFAULT_RULE, RULES
from p2pfed.simulation.lab import (
    Experiment,
    Run,
    RunResult,
    most_in_a_neighbourhood,
    place_attackers,
    run_experiment,
)
from p2pfed.simulation.tasks import TASKS, SimulatedTask, pneumonia
from p2pfed.topology.file import Graph
from p2pfed.topology.graphs import build_graph

SITES = 12
UNLIKE, ALIKE = 0.3, 1000.0  # concentration of the Dirichlet distribution
TUNED = ("sign_flip", "alie", "ipm", "gaussian", "dissensus", "drift")
FURTHER = ("label_flip", "min_max", "mimic", "shrink")  # no rule's settings were chosen on these
COMBINED = (
    "nearest_neighbour_mixing+coordinate_median",
    "nearest_neighbour_mixing+geometric_median",
    "bucketing+coordinate_median",
)


@dataclass(frozen=True)
class Column:
    """One graph with a number of attackers."""

    name: str
    graph: Graph
    attackers: int
    concentration: float = UNLIKE


COLUMNS = {
    column.name: column
    for column in (
        Column("4-regular, 1", Graph(kind="random_regular", degree=4, seed=1), 1),
        Column("4-regular, 3", Graph(kind="random_regular", degree=4, seed=1), 3),
        Column("exponential, 3", Graph(kind="exponential"), 3),
        Column("complete, 3", Graph(kind="complete"), 3),
        Column("ring, 1", Graph(kind="ring"), 1),
        Column("4-regular, 3, alike", Graph(kind="random_regular", degree=4, seed=1), 3, ALIKE),
    )
}
QUICK = ("4-regular, 1", "4-regular, 3", "exponential, 3")
# Of the default rule: column -> percent that the worst attack must leave.
TARGETS = {"4-regular, 1": 91.0, "4-regular, 3": 89.0, "exponential, 3": 90.0}
QUIET_TARGET = 1.5  # points below plain gossip without attack


@dataclass(frozen=True)
class Job:
    rule: str
    column: str
    attacks: tuple[str, ...]
    seeds: int
    rounds: int
    task: str
    consistent: bool


@dataclass(frozen=True)
class Figure:
    """In percent, over the seeds; ``worst_site`` is the mean of the worst site's accuracy."""

    mean: float
    spread: float
    worst_site: float


@dataclass(frozen=True)
class Cell:
    rule: str
    column: str
    attackers: int
    most_in_a_neighbourhood: int
    quiet: Figure
    attacked: Mapping[str, Figure]

    @property
    def worst(self) -> tuple[str, Figure]:
        return min(self.attacked.items(), key=lambda item: item[1].mean)

    def __str__(self) -> str:
        name, figure = self.worst
        return (
            f"{self.quiet.mean:.1f} ± {self.quiet.spread:.1f} / "
            f"{figure.mean:.1f} ± {figure.spread:.1f} ({name})"
        )


def graph_of(column: Column) -> nx.Graph:
    names = [f"{number:02d}" for number in range(SITES)]
    return nx.relabel_nodes(build_graph(names, column.graph, "benchmark", 0), int)


@lru_cache(maxsize=64)
def records(task: str, sites: int, concentration: float, seed: int) -> SimulatedTask:
    """``task`` is a name, or the path of PneumoniaMNIST."""
    if task in TASKS:
        return TASKS[task](sites, concentration, seed)
    return pneumonia(Path(task), sites, concentration, seed)


def mixing_of(rule: str, byzantine: int) -> Mixing:
    before, _, name = rule.rpartition("+")
    return Mixing(name, "benchmark", byzantine, before or "none")


def measure(job: Job) -> Cell:
    import torch  # noqa: PLC0415 - in the worker

    torch.set_num_threads(1)
    column = COLUMNS[job.column]
    graph = graph_of(column)
    attackers = place_attackers(graph, column.attackers)
    most = most_in_a_neighbourhood(graph, attackers)
    experiment = Experiment(
        graph, attackers, mixing_of(job.rule, most), job.rounds, consistent=job.consistent
    )
    seeds = range(job.seeds)
    # Without attack all twelve are honest, and share all records.
    quiet = [Run(records(job.task, SITES, column.concentration, s), None, s) for s in seeds]
    attacked = [
        Run(
            records(job.task, SITES - column.attackers, column.concentration, seed).with_strangers(
                attackers, seed
            ),
            make(name),
            seed,
        )
        for name in job.attacks
        for seed in seeds
    ]
    nobody = Experiment(graph, (), experiment.mixing, job.rounds)
    results = run_experiment(experiment, attacked)
    figures = {
        name: _figure(results[place * job.seeds : (place + 1) * job.seeds])
        for place, name in enumerate(job.attacks)
    }
    without = _figure(run_experiment(nobody, quiet))
    return Cell(job.rule, job.column, column.attackers, most, without, figures)


def _figure(results: Sequence[RunResult]) -> Figure:
    means = [100 * result.mean_accuracy for result in results]
    worst = [100 * result.worst_accuracy for result in results]
    return Figure(
        statistics.mean(means),
        statistics.stdev(means) if len(means) > 1 else 0.0,
        statistics.mean(worst),
    )


def table(cells: Sequence[Cell], rules: Sequence[str], columns: Sequence[str]) -> str:
    found = {(cell.rule, cell.column): cell for cell in cells}
    lines = ["| rule | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for rule in rules:
        name = f"**{rule}**" if rule == DEFAULT_RULE else rule
        lines.append(f"| {name} | " + " | ".join(str(found[rule, c]) for c in columns) + " |")
    return "\n".join(lines)


def verdicts(cells: Sequence[Cell], task: str) -> list[str]:
    """Of the default rule: against the targets, which are for the digits, and plain gossip."""
    found = {(cell.rule, cell.column): cell for cell in cells}
    lines = []
    for column, target in TARGETS.items():
        cell = found.get((DEFAULT_RULE, column))
        if cell is not None and task == "digits":
            name, figure = cell.worst
            word = "met" if figure.mean >= target else "MISSED"
            lines.append(
                f"{DEFAULT_RULE}, {column}: worst {figure.mean:.1f} ({name}), "
                f"target {target:.0f}: {word}"
            )
        plain = found.get(("mean", column))
        if cell is not None and plain is not None:
            loss = plain.quiet.mean - cell.quiet.mean
            word = "met" if loss <= QUIET_TARGET else "MISSED"
            lines.append(
                f"{DEFAULT_RULE}, {column}: {loss:+.1f} points below plain gossip without "
                f"attack, target {QUIET_TARGET}: {word}"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usable = [name for name, kind in ATTACKS.items() if issubclass(kind, ModelAttack | DataAttack)]
    parser.add_argument("--rules", nargs="+", default=[*RULES, *COMBINED])
    parser.add_argument("--graphs", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--attacks", nargs="+", default=[*TUNED, *FURTHER], choices=usable)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument(
        "--task",
        default="digits",
        help=f"{', '.join(TASKS)}, or the path of pneumoniamnist.npz",
    )
    parser.add_argument("--consistent", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two rules, three graphs, 2 seeds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rules, arguments.graphs, arguments.seeds = ["mean", DEFAULT_RULE], QUICK, 2
    jobs = [
        Job(
            rule, column, tuple(arguments.attacks), arguments.seeds, arguments.rounds,
            arguments.task, arguments.consistent,
        )
        for rule in arguments.rules
        for column in arguments.graphs
    ]  # fmt: skip
    started = time.monotonic()
    cells = []
    with ProcessPoolExecutor(arguments.processes) as pool:
        for cell in pool.map(measure, jobs):
            cells.append(cell)
            print(f"{len(cells)}/{len(jobs)} {cell.rule}, {cell.column}: {cell}", file=sys.stderr)
    said = "all neighbours the same" if arguments.consistent else "each neighbour something else"
    print(
        f"{arguments.task}, {SITES} sites, {arguments.rounds} rounds, {arguments.seeds} seeds; "
        f"attackers tell {said}; columns: graph, attackers\n"
    )
    print(table(cells, arguments.rules, arguments.graphs))
    print("\n".join(["", *verdicts(cells, arguments.task), f"{time.monotonic() - started:.0f} s"]))
    if arguments.json is not None:
        document = {
            "schema_version": 1,
            "arguments": {key: str(value) for key, value in vars(arguments).items()},
            "cells": [asdict(cell) for cell in cells],
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
