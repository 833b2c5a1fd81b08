"""What a topology is good for: how fast it mixes, what it survives, where it is weak."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from p2pfed.protocol.codecs import get_codec
from p2pfed.rules_catalogue import RULES, asks_for_b, describe, tolerates
from p2pfed.topology.cuts import CutEdge, cut_edges, cut_sites
from p2pfed.topology.file import Peer, relay_of
from p2pfed.topology.resilience import (
    BREAKDOWN_FRACTION,
    CLIPPING_FRACTION,
    HostileSites,
    detour_hops,
    hostile_sites,
)
from p2pfed.topology.topology import Topology
from p2pfed.topology.weights import (
    algebraic_connectivity,
    contraction_per_round,
    mixing_matrix,
    mixing_time_rounds,
)

if TYPE_CHECKING:
    import networkx as nx

REPORT_SCHEMA_VERSION = 1
HEADER_BYTES = 800  # of an offer beside its payload: header, signature, digests, wrapped key
LISTED_SITES = 6  # a warning names no more
LISTED_EDGES = 4  # a warning each, no more


@dataclass(frozen=True, slots=True)
class SiteReport:
    """``degree`` and ``tolerates`` are of the round in which the site has fewest neighbours.

    ``tolerates``: Byzantine neighbours under which the configured rule's guarantee holds.
    ``detour_hops``: see ``resilience.detour_hops``. ``bytes_per_round``: sent, in the round
    with most neighbours; None where the model's size is not known.
    """

    name: str
    degree: int
    largest_degree: int
    tolerates: int
    detour_hops: int | None
    cut_vertex: bool
    bytes_per_round: int | None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Figures of the graph of all ``rounds_examined`` rounds together.

    ``mixing_time_rounds``: until gossip alone leaves 1 % of a disagreement.
    ``algebraic_connectivity``, ``byzantine_limit`` (Byzantine neighbours a site from which no
    rule has a guarantee) and ``hostile_sites`` are theory of a graph that stays: None where it
    varies with the round. ``weak_sites``: cut vertices, and those with fewest neighbours.
    ``cut_edges``: those without which the graph falls apart.
    """

    federation: str
    digest: str
    kind: str
    rounds_examined: int
    repeats: bool
    peers: int
    edges: int
    diameter: int
    vertex_connectivity: int
    second_eigenvalue_modulus: float
    spectral_gap: float
    mixing_time_rounds: int
    algebraic_connectivity: float | None
    byzantine_limit: float | None
    hostile_sites: HostileSites | None
    rule: str
    pre_aggregation: str
    byzantine_neighbours: int
    sites: tuple[SiteReport, ...]
    weak_sites: tuple[str, ...]
    cut_edges: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": REPORT_SCHEMA_VERSION, **asdict(self)}


def check(topology: Topology, parameters: int | None = None) -> CheckReport:
    """Examine a sound topology.

    :param parameters: of the model; gives the bytes that each site sends.
    """
    import networkx as nx  # noqa: PLC0415

    graphs = [topology.graph(number) for number in topology.examined_rounds]
    union = nx.compose_all(graphs)
    modulus = contraction_per_round([mixing_matrix(graph) for graph in graphs])
    bridges = cut_edges(union)
    cut_vertices = set(nx.articulation_points(union))
    payload_bytes = _payload_bytes(topology, parameters)
    sites = tuple(
        _site(topology, graphs, union, name, name in cut_vertices, payload_bytes)
        for name in topology.names
    )
    mu2 = None if topology.time_varying else algebraic_connectivity(union)
    return CheckReport(
        federation=topology.file.federation.name,
        digest=topology.digest.hex(),
        kind=topology.file.graph.kind,
        rounds_examined=len(graphs),
        repeats=topology.file.graph.kind != "random_per_round",
        peers=len(topology.names),
        edges=union.number_of_edges(),
        diameter=nx.diameter(union, usebounds=True),
        vertex_connectivity=nx.node_connectivity(union),
        second_eigenvalue_modulus=modulus,
        spectral_gap=1.0 - modulus,
        # Rounds that average exactly have done so after a whole period.
        mixing_time_rounds=math.ceil(mixing_time_rounds(modulus)) or len(graphs),
        algebraic_connectivity=mu2,
        byzantine_limit=None if mu2 is None else BREAKDOWN_FRACTION * mu2,
        hostile_sites=None if topology.time_varying else hostile_sites(union),
        rule=topology.file.aggregation.rule,
        pre_aggregation=topology.file.aggregation.pre_aggregation,
        byzantine_neighbours=topology.file.aggregation.byzantine_neighbours,
        sites=sites,
        weak_sites=_weak_sites(sites),
        cut_edges=tuple(cut.ends for cut in bridges),
        warnings=(
            *_shape_warnings(topology, union, bridges),
            *_rule_warnings(topology, sites, mu2),
            *_relay_warnings(topology, sites),
            *_address_warnings(topology, union),
        ),
    )


def _payload_bytes(topology: Topology, parameters: int | None) -> int | None:
    """Of one delta to one neighbour."""
    if parameters is None:
        return None
    return get_codec(topology.file.codec.name).payload_bytes(parameters) + HEADER_BYTES


def _site(
    topology: Topology,
    graphs: "Sequence[nx.Graph]",
    union: "nx.Graph",
    name: str,
    cut_vertex: bool,
    payload_bytes: int | None,
) -> SiteReport:
    degrees = [graph.degree[name] for graph in graphs]
    return SiteReport(
        name=name,
        degree=min(degrees),
        largest_degree=max(degrees),
        tolerates=_tolerates(topology, min(degrees)),
        detour_hops=detour_hops(union, name),
        cut_vertex=cut_vertex,
        bytes_per_round=None if payload_bytes is None else payload_bytes * max(degrees),
    )


def _tolerates(topology: Topology, degree: int) -> int:
    aggregation = topology.file.aggregation
    return tolerates(aggregation.rule, degree, aggregation.pre_aggregation)


def _weak_sites(sites: Sequence[SiteReport]) -> tuple[str, ...]:
    fewest = min(site.degree for site in sites)
    uneven = fewest < max(site.degree for site in sites)
    return tuple(
        site.name for site in sites if site.cut_vertex or (uneven and site.degree == fewest)
    )


def _shape_warnings(topology: Topology, union: "nx.Graph", bridges: Sequence[CutEdge]) -> list[str]:
    hub = _hub(union)
    if hub is not None:
        return [
            f"everybody depends on {hub}, the hub of a star: a server by another name; "
            "use a ring or an exponential graph"
        ]
    robust = topology.file.aggregation.rule != "mean"
    warnings = [
        _bridge_warning(cut, cut.remedy, robust) for cut in bridges[:LISTED_EDGES] if cut.remedy
    ]
    if len(bridges) > LISTED_EDGES:
        warnings.append(
            f"{len(bridges) - LISTED_EDGES} more edges are each the only one between two parts of "
            "the graph; a ring or an exponential graph has none"
        )
    warnings += [
        f"{cut.name} alone holds the graph together: while it is down, the rest falls apart, and "
        f"what it says of one part to the other nobody can check; add an edge around it, such as "
        f"one between {' and '.join(cut.remedy)}"
        for cut in cut_sites(union)
    ]
    return warnings


def _bridge_warning(cut: CutEdge, remedy: tuple[str, str], robust: bool) -> str:
    near, far = cut.ends
    if len(cut.smaller_side) == 1:
        effect = f"{far} takes it for an outlier where its others agree, and it" if robust else "it"
        return (
            f"{near} hangs on {far} alone: {effect} learns nothing while {far} is away; give it "
            f"more neighbours, such as {remedy[1]}"
        )
    effect = (
        "a robust rule takes whoever is alone on the other side for an outlier, so the two sides "
        "mix slowly or not at all"
        if robust
        else "all that the two sides learn from each other passes it, so they mix slowly"
    )
    return (
        f"the edge between {near} and {far} alone joins {_some(cut.smaller_side)} to the rest: "
        f"{effect}; add several across, such as one between {' and '.join(remedy)}"
    )


def _hub(union: "nx.Graph") -> str | None:
    """The centre of a star of three sites or more."""
    if len(union) < 3 or union.number_of_edges() != len(union) - 1:
        return None
    return next((name for name in union if union.degree[name] == len(union) - 1), None)


def _rule_warnings(topology: Topology, sites: Sequence[SiteReport], mu2: float | None) -> list[str]:
    aggregation = topology.file.aggregation
    b = aggregation.byzantine_neighbours
    weakness = RULES[aggregation.rule].weakness
    if weakness is not None:
        return [f"{aggregation.rule} {weakness}"]
    # Eigenvalues are not exact, and graphs whose limit is a whole number are common.
    mu2 = None if mu2 is None else round(mu2, 9)
    shown = describe(aggregation.rule, aggregation.pre_aggregation)
    warnings: list[str] = []
    if asks_for_b(aggregation.rule, aggregation.pre_aggregation) and b == 0:
        warnings.append(
            f"{shown} with byzantine_neighbours = 0 protects against nobody; say how many "
            "hostile neighbours it shall bear"
        )
    powerless = [site.name for site in sites if site.tolerates == 0]
    if powerless:
        least = next(degree for degree in itertools.count() if _tolerates(topology, degree) > 0)
        warnings.append(
            f"{shown} bears no hostile neighbour at {_some(powerless, len(sites))}: it "
            f"takes {least} neighbours to outvote one"
        )
    if mu2 is not None and b >= BREAKDOWN_FRACTION * mu2:
        warnings.append(
            f"no rule has a guarantee against {b} Byzantine neighbours here: half the algebraic "
            f"connectivity is {BREAKDOWN_FRACTION * mu2:.2f}"
        )
    elif mu2 is not None and b >= CLIPPING_FRACTION * mu2 and b > 0:
        warnings.append(
            f"{b} Byzantine neighbours are beyond a quarter of the algebraic connectivity, "
            f"{CLIPPING_FRACTION * mu2:.2f}, to which clipping has a guarantee"
        )
    return warnings


def _relay_warnings(topology: Topology, sites: Sequence[SiteReport]) -> list[str]:
    """Only of a federation so large that its headers do not reach everybody."""
    hops = topology.relays.hops
    hidden = [
        site.name for site in sites if site.detour_hops is not None and site.detour_hops > 2 * hops
    ]
    if not hidden:
        return []
    return [
        f"headers are passed on for {hops} hops in a federation of this size: two deltas for one "
        f"round, told apart to two neighbours of {_some(hidden, len(sites))}, may not meet; add "
        "edges between those neighbours"
    ]


def _some(names: Sequence[str], count: int | None = None) -> str:
    if len(names) == count:
        return "any site"
    more = f" and {len(names) - LISTED_SITES} more" if len(names) > LISTED_SITES else ""
    return ", ".join(names[:LISTED_SITES]) + more


def _address_warnings(topology: Topology, union: "nx.Graph") -> list[str]:
    """Of edges that neither end can make, and relays that nobody can reach. Who may relay is in
    site files; what the topology file says of it is taken at its word."""
    peers = topology.file.peers
    direct = {p.name for p in peers if any(relay_of(each) is None for each in p.addresses)}
    relays = {p.peer_id_text: _relays_of(p) for p in peers}
    offered = {peer_id for peer_id, through in relays.items() if peer_id in through}
    through_others = {p.name for p in peers if relays[p.peer_id_text] - {p.peer_id_text}}
    used = set().union(*relays.values())
    warnings = [
        f"{p.name} is to relay, but has no address at which it can be dialled"
        for p in peers
        if p.peer_id_text in used and p.name not in direct
    ]
    silent = set(topology.names) - direct - through_others
    pairs = sorted(
        tuple(sorted(pair)) for pair in union.edges if not offered and silent.issuperset(pair)
    )
    if pairs:
        listed = "; ".join(f"{a} and {b}" for a, b in pairs[:LISTED_SITES])
        more = f"; and {len(pairs) - LISTED_SITES} pairs more" if len(pairs) > LISTED_SITES else ""
        warnings.append(
            "neighbours without an address at either end find each other only on a local "
            f"network, or through a member that relays: {listed}{more}"
        )
    return warnings


def _relays_of(peer: Peer) -> set[str]:
    return {relay for relay in map(relay_of, peer.addresses) if relay is not None}
