"""Where a graph hangs together by one edge or by one site, and which edge would mend it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True)
class CutEdge:
    """An edge without which the graph falls apart (a bridge).

    ``ends[0]`` lies on the smaller of the two sides, which ``smaller_side`` names. ``remedy`` is an
    edge that is missing: with it, neither this edge nor one of its ends is the only way across,
    as far as the sides have other sites; None where there are two sites in all.
    """

    ends: tuple[str, str]
    smaller_side: tuple[str, ...]
    remedy: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class CutSite:
    """A site without which the graph falls apart, and an edge around it that is missing."""

    name: str
    remedy: tuple[str, str]


def cut_edges(graph: "nx.Graph") -> list[CutEdge]:
    """All of a connected graph's, those with the larger smaller side first."""
    import networkx as nx  # noqa: PLC0415

    found = [_cut_edge(graph, *sorted(bridge)) for bridge in nx.bridges(graph)]
    return sorted(found, key=lambda cut: (-len(cut.smaller_side), cut.ends))


def _cut_edge(graph: "nx.Graph", one: str, other: str) -> CutEdge:
    sides = {end: _reached_from(graph, end, avoiding=(one, other)) for end in (one, other)}
    near, far = sorted((one, other), key=lambda end: (len(sides[end]), end))
    remedy = None
    if len(graph) > 2:
        remedy = (
            _spare(graph, sides[near] - {near} or sides[near]),
            _spare(graph, sides[far] - {far}),
        )
    return CutEdge((near, far), tuple(sorted(sides[near])), remedy)


def _reached_from(graph: "nx.Graph", start: str, avoiding: tuple[str, str]) -> set[str]:
    """The sites on ``start``'s side of the edge ``avoiding``."""
    reached, frontier = {start}, [start]
    while frontier:
        here = frontier.pop()
        for near in graph[here]:
            if near not in reached and {here, near} != set(avoiding):
                reached.add(near)
                frontier.append(near)
    return reached


def cut_sites(graph: "nx.Graph") -> list[CutSite]:
    """Those of a connected graph that are cut sites also where every cut edge is doubled: what
    mends the edges does not mend them."""
    import networkx as nx  # noqa: PLC0415

    firm = graph.copy()
    firm.remove_edges_from(list(nx.bridges(graph)))
    return [
        CutSite(name, _around(graph, _components_without(firm, name)))
        for name in sorted(nx.articulation_points(firm))
    ]


def _components_without(firm: "nx.Graph", name: str) -> list[set[str]]:
    """The parts, ``name`` being left out, that it alone holds together."""
    import networkx as nx  # noqa: PLC0415

    rest = firm.subgraph(nx.node_connected_component(firm, name) - {name})
    return sorted(map(set, nx.connected_components(rest)), key=lambda part: (len(part), min(part)))


def _around(graph: "nx.Graph", parts: Iterable[Collection[str]]) -> tuple[str, str]:
    first, second, *_ = parts
    return _spare(graph, first), _spare(graph, second)


def _spare(graph: "nx.Graph", sites: Collection[str]) -> str:
    """The site that an edge burdens least: with the fewest neighbours, then by name."""
    return min(sites, key=lambda name: (graph.degree[name], name))
