"""What a topology is good for: how fast it mixes, what it survives, where it is weak."""

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pfed.protocol.codecs import get_codec
from p2pfed.rules_catalogue import RULES
from p2pfed.topology.graphs import period
from p2pfed.topology.topology import Topology
from p2pfed.topology.weights import (
    algebraic_connectivity,
    mixing_matrix,
    mixing_time_rounds,
    second_eigenvalue_modulus,
)

if TYPE_CHECKING:
    import networkx as nx

# No rule survives b >= mu2 / 2 (Gaucher, Dieuleveut, Hendrikx, "Unified Breakdown Analysis for
# Byzantine Robust Gossip"); clipping at an order statistic holds to about mu2 / 4.
SURVIVABLE_FRACTION = 0.5
COMFORTABLE_FRACTION = 0.25
HEADER_BYTES = 800  # of an offer beside its payload: header, signature, digests, wrapped key


@dataclass(frozen=True, slots=True)
class SiteReport:
    """``tolerates``: Byzantine neighbours under which the configured rule's guarantee holds.
    ``detour_hops``: the longest way between two of its neighbours that avoids the site, within
    which an equivocation of the site is found; None where some pair has no such way."""

    name: str
    degree: int
    tolerates: int
    detour_hops: int | None
    cut_vertex: bool


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Figures of one round's graph, or of the worst round where the graph varies."""

    federation: str
    peers: int
    edges: int
    kind: str
    rounds_examined: int
    diameter: int | None
    vertex_connectivity: int
    second_eigenvalue_modulus: float
    spectral_gap: float
    mixing_time_rounds: float
    algebraic_connectivity: float
    byzantine_limit: float
    rule: str
    byzantine_neighbours: int
    sites: list[SiteReport]
    bytes_per_round: dict[str, int]
    warnings: list[str]
    digest: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(topology: Topology, parameters: int | None = None) -> CheckReport:
    """Examine a sound topology.

    :param parameters: of the model; gives ``bytes_per_round`` sent by each site.
    """
    import networkx as nx  # noqa: PLC0415

    rounds = period(topology.names, topology.file.graph)
    graphs = [topology.graph(number) for number in range(rounds)]
    union = nx.compose_all(graphs)
    product = np.eye(len(topology.names))
    for graph in graphs:
        product = mixing_matrix(graph) @ product
    # Over a whole period the product of the rounds' matrices does the mixing.
    modulus = second_eigenvalue_modulus(product) ** (1 / rounds)
    sites = [_site(topology, union, graphs, name) for name in topology.names]
    mu2 = algebraic_connectivity(union)
    report = CheckReport(
        federation=topology.file.federation.name,
        peers=len(topology.names),
        edges=union.number_of_edges(),
        kind=topology.file.graph.kind,
        rounds_examined=rounds,
        diameter=nx.diameter(union),
        vertex_connectivity=nx.node_connectivity(union),
        second_eigenvalue_modulus=modulus,
        spectral_gap=1.0 - modulus,
        mixing_time_rounds=mixing_time_rounds(modulus),
        algebraic_connectivity=mu2,
        byzantine_limit=mu2 * SURVIVABLE_FRACTION,
        rule=topology.file.aggregation.rule,
        byzantine_neighbours=topology.file.aggregation.byzantine_neighbours,
        sites=sites,
        bytes_per_round=_bytes_per_round(topology, graphs, parameters),
        warnings=[],
        digest=topology.digest.hex(),
    )
    report.warnings.extend(_warnings(topology, report))
    return report


def _site(topology: Topology, union: "nx.Graph", graphs: list["nx.Graph"], name: str) -> SiteReport:
    import networkx as nx  # noqa: PLC0415

    degree = min(graph.degree[name] for graph in graphs)
    without = union.copy()
    without.remove_node(name)
    detour: int | None = 0
    for a, b in itertools.combinations(union[name], 2):
        if not nx.has_path(without, a, b):
            detour = None
            break
        detour = max(detour or 0, nx.shortest_path_length(without, a, b))
    return SiteReport(
        name,
        degree,
        RULES[topology.file.aggregation.rule].tolerates(degree),
        detour,
        cut_vertex=len(without) > 1 and not nx.is_connected(without),
    )


def _bytes_per_round(
    topology: Topology, graphs: list["nx.Graph"], parameters: int | None
) -> dict[str, int]:
    if parameters is None:
        return {}
    payload = get_codec(topology.file.codec.name).payload_bytes(parameters) + HEADER_BYTES
    return {name: payload * max(graph.degree[name] for graph in graphs) for name in topology.names}


def _warnings(topology: Topology, report: CheckReport) -> list[str]:
    warnings: list[str] = []
    if report.kind == "star":
        warnings.append(
            "a star has a hub that everybody depends on: a server by another name; use a ring "
            "or an exponential graph"
        )
    for site in report.sites:
        if site.cut_vertex and report.kind != "star":
            warnings.append(f"{site.name} alone holds the graph together; add an edge around it")
    if RULES[report.rule].tolerates(2) == 0 and report.rule == "mean":
        warnings.append("mean gives one broken or hostile site full power over every model")
    powerless = [site.name for site in report.sites if site.tolerates == 0]
    if powerless and report.rule != "mean":
        warnings.append(
            f"{report.rule} protects against no hostile neighbour at {', '.join(powerless)}: "
            "three neighbours are the least that outvote one"
        )
    b = report.byzantine_neighbours
    if b and b >= report.byzantine_limit:
        warnings.append(
            f"no rule survives {b} Byzantine neighbours here: half the algebraic connectivity "
            f"is {report.byzantine_limit:.2f}"
        )
    elif b and b >= report.algebraic_connectivity * COMFORTABLE_FRACTION:
        warnings.append(
            f"{b} Byzantine neighbours are beyond a quarter of the algebraic connectivity "
            f"({report.algebraic_connectivity * COMFORTABLE_FRACTION:.2f}), where clipping is safe"
        )
    silent = [peer.name for peer in topology.file.peers if not peer.addresses]
    if len(silent) > 1:
        for a, b_name in itertools.combinations(silent, 2):
            if b_name in topology.all_neighbours(a):
                warnings.append(
                    f"neither {a} nor {b_name} has an address: they find each other only on "
                    "a local network"
                )
    return warnings
