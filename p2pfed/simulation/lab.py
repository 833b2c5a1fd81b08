"""The attack laboratory: gossip learning without clock or network, many runs side by side.

For questions about aggregation alone. Every round each site trains, hears all its neighbours
and aggregates, with the very rules of the daemon. The attackers are stronger than a protocol
would let them be: they know every honest model of the round before they speak, and may tell
each neighbour something else.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from p2pfed.aggregation import Mixing, NeighbourModel
from p2pfed.attacks import Attack, DataAttack, ModelAttack, View
from p2pfed.simulation.learner import BatchedLearner, LearnerSettings
from p2pfed.simulation.tasks import SimulatedTask
from p2pfed.topology.weights import mixing_weight, second_laplacian_eigenvalue

if TYPE_CHECKING:
    import networkx as nx

Vector = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float32]

LEARNING = LearnerSettings(learning_rate=0.5)
LARGEST_MODEL = 1e6  # of one parameter: a destroyed model stays a number


@dataclass(frozen=True)
class Run:
    """One run of an experiment: who attacks how, on whose records.

    ``task`` has the records of every site, attackers included. ``attack`` is None where the
    attackers' sites are honest.
    """

    task: SimulatedTask
    attack: Attack | None
    seed: int


@dataclass(frozen=True)
class Experiment:
    """What all runs have in common.

    :param attackers: their places among the nodes of ``graph``, which are 0..n-1.
    :param consistent: attackers tell all neighbours the same, as the protocol forces them to.
    """

    graph: "nx.Graph"
    attackers: tuple[int, ...]
    mixing: Mixing
    rounds: int = 100
    local_steps: int = 3
    settings: LearnerSettings = LEARNING
    consistent: bool = False


@dataclass(frozen=True, slots=True)
class RunResult:
    """After the last round, over the honest sites."""

    mean_accuracy: float
    worst_accuracy: float
    consensus_distance: float


def place_attackers(graph: "nx.Graph", count: int) -> tuple[int, ...]:
    """Where ``count`` attackers stand so that a rule can still hold: the fewest of them in any
    neighbourhood, and of those placements the one whose honest sites are joined best."""
    best: tuple[tuple[int, float], tuple[int, ...]] | None = None
    for chosen in itertools.combinations(sorted(graph), count):
        honest = [node for node in sorted(graph) if node not in chosen]
        most = max(sum(near in chosen for near in graph[node]) for node in honest)
        adjacency = _adjacency(graph, honest)
        connectivity = round(second_laplacian_eigenvalue(adjacency), 9)
        if connectivity > 0 and (best is None or (most, -connectivity) < best[0]):
            best = ((most, -connectivity), chosen)
    if best is None:
        raise ValueError(f"{count} attackers always cut the honest sites apart")
    return best[1]


def most_in_a_neighbourhood(graph: "nx.Graph", attackers: Sequence[int]) -> int:
    """The largest number of attackers among one honest site's neighbours."""
    honest = [node for node in graph if node not in attackers]
    return max(sum(near in attackers for near in graph[node]) for node in honest)


def _adjacency(graph: "nx.Graph", nodes: Sequence[int]) -> npt.NDArray[np.float64]:
    place = {node: index for index, node in enumerate(nodes)}
    adjacency = np.zeros((len(nodes), len(nodes)))
    for one, other in graph.edges:
        if one in place and other in place:
            adjacency[place[one], place[other]] = adjacency[place[other], place[one]] = 1.0
    return adjacency


def run_experiment(experiment: Experiment, runs: Sequence[Run]) -> list[RunResult]:
    """All runs, trained in one batch; they share the test records."""
    return _Bench(experiment, runs).results()


class _Bench:
    """The state of all runs: row ``run * sites + site`` of every matrix is one site's."""

    def __init__(self, experiment: Experiment, runs: Sequence[Run]) -> None:
        self._experiment = experiment
        self._runs = runs
        graph = experiment.graph
        self._sites = len(graph)
        self._near = {node: sorted(graph[node]) for node in graph}
        self._weights = {
            (one, other): mixing_weight(graph.degree[one], graph.degree[other])
            for one in graph
            for other in graph[one]
        }
        self._honest = [node for node in sorted(graph) if node not in experiment.attackers]
        learners = [BatchedLearner(runs[0].task, experiment.settings, run.seed) for run in runs]
        start = np.stack([learner.genesis() for learner in learners])
        self._learner = BatchedLearner(self._all_records(), experiment.settings, runs[0].seed)
        self._models = np.repeat(start, self._sites, axis=0)
        self._momentum = np.zeros_like(self._models)
        self._published = self._models.copy()

    def _all_records(self) -> SimulatedTask:
        features: list[npt.NDArray[np.float32]] = []
        labels: list[npt.NDArray[np.int64]] = []
        for run in self._runs:
            task = run.task
            if isinstance(run.attack, DataAttack):
                poison = dict.fromkeys(self._experiment.attackers, run.attack)
                task = task.poisoned(poison, run.seed)
            features.extend(task.features)
            labels.extend(task.labels)
        return replace(self._runs[0].task, features=tuple(features), labels=tuple(labels))

    def results(self) -> list[RunResult]:
        for number in range(self._experiment.rounds):
            self._round(number)
        accuracy = self._learner.accuracy(self._models).reshape(len(self._runs), self._sites)
        return [
            RunResult(
                float(accuracy[index, self._honest].mean()),
                float(accuracy[index, self._honest].min()),
                _consensus_distance(self._models[self._rows(index)][self._honest]),
            )
            for index in range(len(self._runs))
        ]

    def _rows(self, run: int) -> slice:
        return slice(run * self._sites, (run + 1) * self._sites)

    def _round(self, number: int) -> None:
        count = len(self._models)
        trained, self._momentum = self._learner.train(
            range(count),
            self._models,
            self._momentum,
            [number] * count,
            self._experiment.local_steps,
        )
        mixed = np.empty_like(trained)
        for index, run in enumerate(self._runs):
            rows = self._rows(index)
            self._mix(index, run, number, trained[rows], mixed[rows])
        # A destroyed run stays finite, so that it can be measured.
        np.nan_to_num(mixed, copy=False, nan=0.0, posinf=LARGEST_MODEL, neginf=-LARGEST_MODEL)
        np.clip(mixed, -LARGEST_MODEL, LARGEST_MODEL, out=mixed)
        self._published, self._models = trained, mixed

    def _mix(self, index: int, run: Run, number: int, trained: Matrix, mixed: Matrix) -> None:
        """Let every site of one run aggregate; both matrices have shape (n, d)."""
        rows = self._rows(index)
        lies = self._lies(index, run, number, trained)
        attackers = self._experiment.attackers if run.attack is not None else ()
        for node in range(self._sites):
            if node in attackers:
                mixed[node] = self._insider(node, trained)
                continue
            heard = {near: lies.get((near, node), trained[near]) for near in self._near[node]}
            models = [
                NeighbourModel(f"{near:04d}", model, self._weights[node, near])
                for near, model in heard.items()
                if np.isfinite(model).all()  # or the daemon refuses it, and the edge is left out
            ]
            self._experiment.mixing.aggregate(
                number,
                self._experiment.rounds,
                trained[node],
                models,
                mixed[node],
                start=self._models[rows][node],
            )

    def _insider(self, node: int, trained: Matrix) -> Vector:
        """What an attacker goes on from: plain gossip over what it knows to be true."""
        honest = [near for near in self._near[node] if near in self._honest]
        total = sum(self._weights[node, near] * (trained[near] - trained[node]) for near in honest)
        return np.asarray(trained[node] + total, np.float32)

    def _lies(
        self, index: int, run: Run, number: int, trained: Matrix
    ) -> Mapping[tuple[int, int], Vector]:
        """What each attacker tells each honest neighbour in one run."""
        if not isinstance(run.attack, ModelAttack):
            return {}
        generator = np.random.default_rng([run.seed, number])
        honest = [trained[node] for node in self._honest]
        rows = self._rows(index)
        lies: dict[tuple[int, int], Vector] = {}
        for liar in self._experiment.attackers:
            view = View(
                round_number=number,
                own=trained[liar],
                start=self._models[rows][liar],
                published=self._published[rows][liar],
                honest=honest,
            )
            told = [node for node in self._near[liar] if node in self._honest]
            if self._experiment.consistent:
                lies |= dict.fromkeys(
                    ((liar, node) for node in told), run.attack.model(view, generator)
                )
                continue
            for node in told:
                personal = replace(
                    view,
                    recipient=trained[node],
                    around_recipient=[
                        trained[near] for near in self._near[node] if near in self._honest
                    ],
                    byzantine_neighbours=sum(
                        near in self._experiment.attackers for near in self._near[node]
                    ),
                )
                lies[liar, node] = run.attack.model(personal, generator)
        return lies


def _consensus_distance(models: Matrix) -> float:
    wide = models.astype(np.float64)
    mean = wide.mean(axis=0)
    norm = float(mean @ mean)
    return float(((wide - mean) ** 2).sum(axis=1).mean()) / norm if norm > 0.0 else 0.0
