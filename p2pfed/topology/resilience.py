"""How a graph bears sites that fail or lie."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from p2pfed.topology.weights import algebraic_connectivity, second_laplacian_eigenvalue

if TYPE_CHECKING:
    import networkx as nx

# Of the algebraic connectivity of the honest sites' graph: from a half on, no aggregation rule
# has a guarantee to give; clipping at an order statistic has one to about a quarter (Gaucher,
# Dieuleveut, Hendrikx, "Unified Breakdown Analysis for Byzantine Robust Gossip", ICML 2025).
BREAKDOWN_FRACTION = 0.5
CLIPPING_FRACTION = 0.25
MAX_SEARCHED_PEERS = 64  # a placement is searched for in graphs up to this size: seconds


@dataclass(frozen=True, slots=True)
class HostileSites:
    """How many hostile sites, placed where they hurt most, a graph bears.

    ``borne``: that many leave the clipping guarantee in force wherever they are; a lower
    bound, because taking out one site lowers the connectivity by one at most (Fiedler 1973).
    ``breaking``: that many, at ``placement``, leave no rule a guarantee; None where no such
    placement was found, or the graph has over ``MAX_SEARCHED_PEERS`` sites.
    """

    borne: int
    breaking: int | None
    placement: tuple[str, ...]


def hostile_sites(graph: "nx.Graph") -> HostileSites:
    """Bound the number of hostile sites from both sides; the graph is connected."""
    connectivity = algebraic_connectivity(graph)
    largest_degree = max(degree for _, degree in graph.degree)
    borne = 0
    while min(borne + 1, largest_degree) < CLIPPING_FRACTION * (connectivity - borne - 1):
        borne += 1
    placement = _breaking_placement(graph) if len(graph) <= MAX_SEARCHED_PEERS else ()
    return HostileSites(borne, len(placement) or None, placement)


def _breaking_placement(graph: "nx.Graph") -> tuple[str, ...]:
    """Sites chosen greedily until no rule has a guarantee; empty if that never happens."""
    names = list(graph)
    index = {name: number for number, name in enumerate(names)}
    adjacency = np.zeros((len(names), len(names)))
    for a, b in graph.edges:
        adjacency[index[a], index[b]] = adjacency[index[b], index[a]] = 1.0
    chosen: list[int] = []
    for _ in range(len(names) - 2):
        candidates = [number for number in range(len(names)) if number not in chosen]
        margin, worst = min(
            (_margin(adjacency, [*chosen, number]), number) for number in candidates
        )
        chosen.append(worst)
        if margin <= 0.0:
            return tuple(sorted(names[number] for number in chosen))
    return ()


def _margin(adjacency: npt.NDArray[np.float64], hostile: list[int]) -> float:
    """What is left below the breakdown point, in Byzantine neighbours."""
    honest = np.setdiff1d(np.arange(len(adjacency)), hostile)
    connectivity = second_laplacian_eigenvalue(adjacency[np.ix_(honest, honest)])
    most = float(adjacency[honest][:, hostile].sum(axis=1).max())
    # Rounded, so that equal placements tie and the first is taken on every machine.
    return round(BREAKDOWN_FRACTION * connectivity - most, 9)


def detour_hops(graph: "nx.Graph", site: str) -> int | None:
    """The longest of the shortest ways between two neighbours of ``site`` that avoid it.

    Within that many hops two headers of one round, told apart to two neighbours, meet. 0 for
    a site with one neighbour; None where two neighbours have no such way.
    """
    targets = set(graph[site])
    longest = 0
    for start in targets:
        hops, reached, frontier = 0, {site, start}, {start}
        while not targets <= reached:
            frontier = {near for node in frontier for near in graph[node]} - reached
            if not frontier:
                return None
            reached |= frontier
            hops += 1
        longest = max(longest, hops)
    return longest
