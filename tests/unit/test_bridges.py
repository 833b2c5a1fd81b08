"""What the check warns of is so: over one edge, groups that differ do not learn from each other."""

import itertools

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest

from p2pfed.aggregation import NeighbourModel, aggregate
from p2pfed.topology.weights import mixing_matrix

Matrix = npt.NDArray[np.float32]

GROUP = 5
PARAMETERS = 50
ROUNDS = 60
LEARNING_RATE = 0.2
LOCAL_STEPS = 3
UNLIKE = 3.0  # how far a group's common target is from zero; a site's own part has length one


def two_groups(crossings: int) -> nx.Graph:
    """Two complete groups; site i of one is joined to site i of the other, for so many."""
    graph = nx.disjoint_union(nx.complete_graph(GROUP), nx.complete_graph(GROUP))
    graph.add_edges_from((site, GROUP + site) for site in range(crossings))
    return graph


def gap_left(graph: nx.Graph, rule: str) -> float:
    """How far apart the groups' models end, as a share of where each would end alone."""
    generator = np.random.default_rng(0)
    apart = generator.normal(size=PARAMETERS)
    apart *= UNLIKE / np.linalg.norm(apart)
    targets = generator.normal(size=(2 * GROUP, PARAMETERS)) / np.sqrt(PARAMETERS)
    targets[:GROUP] += apart
    targets[GROUP:] -= apart
    weights = mixing_matrix(graph)
    models = np.zeros((2 * GROUP, PARAMETERS), np.float32)
    for _ in range(ROUNDS):
        trained = models.copy()
        for _ in range(LOCAL_STEPS):
            trained -= np.float32(LEARNING_RATE) * (trained - targets.astype(np.float32))
        mixed = np.empty_like(models)
        for site in graph:
            neighbours = [
                NeighbourModel(str(other), trained[other], float(weights[site, other]))
                for other in graph[site]
            ]
            aggregate(rule, trained[site], neighbours, mixed[site], start=models[site])
        models = mixed
    return group_distance(models) / group_distance(targets)


def group_distance(rows: npt.NDArray[np.floating]) -> float:
    return float(np.linalg.norm(rows[:GROUP].mean(axis=0) - rows[GROUP:].mean(axis=0)))


@pytest.mark.parametrize("rule", ["median_clipping", "geometric_median", "coordinate_median"])
def test_over_a_bridge_robust_rules_mix_hardly_and_the_mean_slowly(rule: str) -> None:
    bridged = two_groups(1)
    robust, mean = gap_left(bridged, rule), gap_left(bridged, "mean")
    assert robust > 0.97
    assert mean < 0.97
    assert gap_left(two_groups(0), "mean") == pytest.approx(1.0, abs=0.01)


def test_the_more_edges_cross_the_better_the_groups_mix() -> None:
    gaps = [gap_left(two_groups(crossings), "mean") for crossings in range(GROUP + 1)]
    assert all(more < fewer for fewer, more in itertools.pairwise(gaps))
    assert gaps[-1] < 0.7
