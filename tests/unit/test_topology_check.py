"""What the check says of a graph: mixing, failures, lies, bytes, weak sites."""

import itertools
import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from topology_documents import document, load

from p2pfed.errors import ConfigurationError
from p2pfed.protocol.codecs import get_codec
from p2pfed.rules_catalogue import PRE_AGGREGATIONS, RULES, tolerates
from p2pfed.topology.cuts import CutEdge, CutSite, cut_edges, cut_sites
from p2pfed.topology.lint import HEADER_BYTES, CheckReport, check
from p2pfed.topology.resilience import BREAKDOWN_FRACTION, detour_hops, hostile_sites
from p2pfed.topology.weights import (
    algebraic_connectivity,
    contraction_per_round,
    mixing_matrix,
    second_eigenvalue_modulus,
)

B = "byzantine_neighbours"
BRIDGE = [["a", "b"], ["b", "c"], ["c", "a"], ["c", "d"], ["d", "e"], ["e", "f"], ["f", "d"]]


def report(directory: Path, names: str = "abcd", **tables: Any) -> CheckReport:
    return check(load(directory, document(names, **tables)))


@st.composite
def connected_graphs(draw: st.DrawFn) -> nx.Graph:
    count = draw(st.integers(3, 8))
    graph = nx.path_graph(count)
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    graph.add_edges_from((a, b) for a, b in draw(st.lists(pairs, max_size=12)) if a != b)
    return nx.relabel_nodes(graph, {number: f"p{number}" for number in range(count)})


def test_a_ring_is_described_exactly(tmp_path: Path) -> None:
    found = report(tmp_path, "abcdef", graph={"kind": "ring"})
    assert found.edges == 6
    assert found.diameter == 3
    assert found.vertex_connectivity == 2
    assert found.spectral_gap == pytest.approx(1 / 3)
    assert found.mixing_time_rounds == 12  # the first power of 2/3 under 0.01
    assert found.algebraic_connectivity == pytest.approx(1)
    assert found.byzantine_limit == pytest.approx(0.5)
    assert [site.detour_hops for site in found.sites] == [4] * 6
    assert found.weak_sites == ()


def test_a_complete_graph_agrees_in_one_round(tmp_path: Path) -> None:
    found = report(tmp_path, graph={"kind": "complete"})
    assert found.mixing_time_rounds == 1
    assert found.vertex_connectivity == 3
    assert [site.tolerates for site in found.sites] == [1] * 4
    assert found.warnings == ()


def test_a_graph_of_one_peer_a_round_agrees_exactly_after_its_period(tmp_path: Path) -> None:
    found = report(tmp_path, "abcdefgh", graph={"kind": "one_peer_exponential"})
    assert found.rounds_examined == found.mixing_time_rounds == 3
    assert found.repeats
    assert found.spectral_gap == 1
    assert found.algebraic_connectivity is found.hostile_sites is found.byzantine_limit is None
    assert {(site.degree, site.largest_degree) for site in found.sites} == {(1, 1)}


def test_a_graph_that_never_repeats_is_sampled_and_says_so(tmp_path: Path) -> None:
    found = report(tmp_path, "abcdef", graph={"kind": "random_per_round", "degree": 3})
    assert not found.repeats
    assert found.rounds_examined > 1
    assert 0 < found.spectral_gap < 1


def test_a_bridge_shows_its_cut_vertices_and_where_lies_are_never_found(tmp_path: Path) -> None:
    found = report(tmp_path, "abcdef", graph={"kind": "explicit", "edges": BRIDGE})
    sites = {site.name: site for site in found.sites}
    assert {name for name, site in sites.items() if site.cut_vertex} == {"c", "d"}
    assert sites["c"].detour_hops is None
    assert sites["a"].detour_hops == 1
    assert found.vertex_connectivity == 1
    assert found.weak_sites == tuple("abcdef")
    assert found.cut_edges == (("c", "d"),)
    [warning] = [each for each in found.warnings if "alone" in each]
    assert warning == (
        "the edge between c and d alone joins a, b, c to the rest: a robust rule takes whoever is "
        "alone on the other side for an outlier, so the two sides mix slowly or not at all; add "
        "several across, such as one between a and e"
    )


def test_the_mean_mixes_over_a_bridge_if_slowly(tmp_path: Path) -> None:
    found = report(
        tmp_path,
        "abcdef",
        graph={"kind": "explicit", "edges": BRIDGE},
        aggregation={"rule": "mean"},
    )
    assert "so they mix slowly; add" in found.warnings[0]


def test_a_site_on_one_edge_is_named_with_a_second_neighbour_for_it(tmp_path: Path) -> None:
    edges = [["a", "b"], ["b", "c"], ["c", "a"], ["c", "d"]]
    found = report(tmp_path, "abcd", graph={"kind": "explicit", "edges": edges})
    assert found.warnings[0] == (
        "d hangs on c alone: c takes it for an outlier where its others agree, and it learns "
        "nothing while c is away; give it more neighbours, such as a"
    )


def test_a_site_that_two_groups_share_is_named_with_an_edge_around_it(tmp_path: Path) -> None:
    edges = [["a", "b"], ["b", "c"], ["c", "a"], ["c", "d"], ["d", "e"], ["e", "c"]]
    found = report(tmp_path, "abcde", graph={"kind": "explicit", "edges": edges})
    assert found.cut_edges == ()
    assert found.warnings[0].startswith("c alone holds the graph together")
    assert found.warnings[0].endswith("such as one between a and d")


def test_a_chain_is_not_warned_about_edge_by_edge(tmp_path: Path) -> None:
    names = "abcdefghij"
    edges = [list(pair) for pair in itertools.pairwise(names)]
    found = report(tmp_path, names, graph={"kind": "explicit", "edges": edges})
    assert len(found.cut_edges) == 9
    lines = [warning for warning in found.warnings if "the edge between" in warning]
    assert len(lines) == 4
    assert lines[0].startswith("the edge between e and f alone joins a, b, c, d, e to the rest")
    assert any(warning.startswith("5 more edges") for warning in found.warnings)


def test_two_sites_can_be_joined_by_one_edge_alone(tmp_path: Path) -> None:
    found = report(tmp_path, "ab", graph={"kind": "explicit", "edges": [["a", "b"]]})
    assert found.cut_edges == (("a", "b"),)
    assert not any("alone" in warning for warning in found.warnings)


@given(connected_graphs())
def test_the_remedies_mend_what_they_are_given_for(graph: nx.Graph) -> None:
    bridges = cut_edges(graph)
    assert {frozenset(cut.ends) for cut in bridges} == set(map(frozenset, nx.bridges(graph)))
    for cut in bridges:
        assert cut.remedy is not None
        assert not graph.has_edge(*cut.remedy)
        parted = graph.copy()
        parted.remove_edge(*cut.ends)
        assert nx.node_connected_component(parted, cut.ends[0]) == set(cut.smaller_side)
        assert 2 * len(cut.smaller_side) <= len(graph)
        parted.add_edge(*cut.remedy)
        assert nx.is_connected(parted)
    for site in cut_sites(graph):
        assert site.name in set(nx.articulation_points(graph))
        assert not graph.has_edge(*site.remedy)
        rest = graph.subgraph(set(graph) - {site.name}).copy()
        before = nx.number_connected_components(rest)
        rest.add_edge(*site.remedy)
        assert nx.number_connected_components(rest) == before - 1


@given(connected_graphs())
def test_a_graph_in_which_both_are_mended_holds_together_whoever_fails(graph: nx.Graph) -> None:
    # Each remedy takes away a cut edge, or joins two parts that one site held together.
    for _ in range(3 * len(graph)):
        cuts: list[CutEdge | CutSite] = [*cut_edges(graph), *cut_sites(graph)]
        if not cuts:
            break
        assert cuts[0].remedy is not None
        graph.add_edge(*cuts[0].remedy)
    assert not list(nx.articulation_points(graph))


def test_an_explicit_star_has_a_hub_too(tmp_path: Path) -> None:
    edges = [["b", name] for name in "acd"]
    warnings = report(tmp_path, graph={"kind": "explicit", "edges": edges}).warnings
    assert "depends on b" in warnings[0]
    assert not any("holds the graph together" in warning for warning in warnings)
    assert not any("hangs on" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("aggregation", "says"),
    [
        ({"rule": "mean"}, "full power"),
        ({"rule": "trimmed_mean"}, "protects against nobody"),
        ({"rule": "median_clipping"}, "takes 3 neighbours to outvote one"),
        ({"rule": "coordinate_median", "byzantine_neighbours": 1}, "no rule has a guarantee"),
        ({"rule": "balance"}, "pull with full weight, however many are hostile"),
        ({"rule": "krum"}, "takes 4 neighbours to outvote one"),
        (
            {"rule": "coordinate_median", "pre_aggregation": "nearest_neighbour_mixing"},
            "coordinate_median after nearest_neighbour_mixing with byzantine_neighbours = 0 "
            "protects against nobody",
        ),
        (
            {"rule": "median_clipping", "pre_aggregation": "bucketing"},
            "takes 5 neighbours to outvote one",
        ),
    ],
)
def test_a_rule_that_does_not_protect_is_warned_about(
    tmp_path: Path, aggregation: dict[str, Any], says: str
) -> None:
    assert any(says in text for text in report(tmp_path, aggregation=aggregation).warnings)


def test_a_b_between_a_quarter_and_a_half_of_the_connectivity_is_warned_about(
    tmp_path: Path,
) -> None:
    aggregation = {"rule": "clipped_gossip", "byzantine_neighbours": 1}
    close = report(tmp_path, graph={"kind": "complete"}, aggregation=aggregation)
    assert any("beyond a quarter" in warning for warning in close.warnings)
    far = report(tmp_path, "abcdef", graph={"kind": "complete"}, aggregation=aggregation)
    assert far.warnings == ()


@pytest.mark.parametrize("before", list(PRE_AGGREGATIONS))
@pytest.mark.parametrize("rule", list(RULES))
def test_the_check_fails_exactly_from_one_more_than_the_rule_bears(
    tmp_path: Path, rule: str, before: str
) -> None:
    aggregation = {"rule": rule, "pre_aggregation": before}
    tables = {"graph": {"kind": "complete"}, "aggregation": aggregation}
    found = report(tmp_path, "abcdefgh", **tables)
    assert found.pre_aggregation == before
    borne = {site.tolerates for site in found.sites}
    assert borne == {tolerates(rule, 7, before)}
    (most,) = borne
    report(tmp_path, "abcdefgh", **tables | {"aggregation": {**aggregation, B: most}})
    with pytest.raises(ConfigurationError) as caught:
        report(tmp_path, "abcdefgh", **tables | {"aggregation": {**aggregation, B: most + 1}})
    assert {problem.key for problem in caught.value.problems} == {f"aggregation.{B}"}
    assert f"at most {most} Byzantine" in str(caught.value)


def test_an_unknown_pre_aggregation_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        report(tmp_path, aggregation={"pre_aggregation": "nnm"})
    (problem,) = caught.value.problems
    assert problem.key == "aggregation.pre_aggregation"
    assert "known: none, nearest_neighbour_mixing, bucketing" in problem.reason


def test_the_digest_tells_pre_aggregations_apart_and_not_how_the_default_is_written(
    tmp_path: Path,
) -> None:
    digests = {
        before: report(tmp_path, aggregation={"pre_aggregation": before}).digest
        for before in PRE_AGGREGATIONS
    }
    assert len(set(digests.values())) == len(PRE_AGGREGATIONS)
    assert report(tmp_path).digest == digests["none"]


def test_a_whole_number_for_a_limit_is_met_and_not_missed_by_rounding(tmp_path: Path) -> None:
    # On twelve sites the exponential graph has an algebraic connectivity of 4.
    exponential = {"kind": "exponential"}
    aggregation = {"rule": "coordinate_median", "byzantine_neighbours": 2}
    found = report(tmp_path, "abcdefghijkl", graph=exponential, aggregation=aggregation)
    assert found.byzantine_limit == pytest.approx(2)
    assert any("no rule has a guarantee" in warning for warning in found.warnings)


def test_neighbours_that_neither_can_dial_are_named(tmp_path: Path) -> None:
    content = document()
    for peer in content["peer"]:
        peer["addresses"] = ["/ip4/192.0.2.1/tcp/7400"] if peer["name"] == "a" else []
    warnings = check(load(tmp_path, content)).warnings
    assert warnings[-1].endswith("b and c; c and d")


@pytest.mark.parametrize("codec", ["int8", "float32"])
def test_bytes_are_the_codecs_for_every_neighbour(tmp_path: Path, codec: str) -> None:
    edges = [["a", "b"], ["b", "c"], ["b", "d"]]
    content = document(graph={"kind": "explicit", "edges": edges}, codec={"name": codec})
    found = check(load(tmp_path, content), parameters=1_000_000)
    delta_bytes = get_codec(codec).payload_bytes(1_000_000) + HEADER_BYTES
    assert [site.bytes_per_round for site in found.sites] == [
        delta_bytes,
        3 * delta_bytes,
        delta_bytes,
        delta_bytes,
    ]


@pytest.mark.parametrize("kind", ["ring", "one_peer_exponential"])
def test_a_report_is_plain_json(tmp_path: Path, kind: str) -> None:
    found = report(tmp_path, graph={"kind": kind}).to_json()
    assert json.loads(json.dumps(found, allow_nan=False))["schema_version"] == 1


@given(connected_graphs())
def test_detours_are_the_shortest_ways_around_a_site(graph: nx.Graph) -> None:
    for site in graph:
        without = graph.subgraph(set(graph) - {site})
        try:
            expected = max(
                nx.shortest_path_length(without, a, b) for a in graph[site] for b in graph[site]
            )
        except nx.NetworkXNoPath:
            expected = None
        assert detour_hops(graph, site) == expected


@given(connected_graphs())
def test_a_breaking_placement_breaks_and_a_borne_number_does_not(graph: nx.Graph) -> None:
    found = hostile_sites(graph)
    assert found.breaking is None or found.borne < found.breaking
    if found.breaking is not None:
        honest = graph.subgraph(set(graph) - set(found.placement))
        most = max(len(set(graph[name]) & set(found.placement)) for name in honest)
        assert most >= BREAKDOWN_FRACTION * algebraic_connectivity(honest) - 1e-9


def test_a_large_complete_graph_bears_hostile_sites() -> None:
    found = hostile_sites(nx.complete_graph([f"p{number}" for number in range(12)]))
    # f < (12 - f) / 4 and, at the breaking point, f >= (12 - f) / 2.
    assert (found.borne, found.breaking) == (2, 4)


@given(connected_graphs())
def test_the_contraction_of_one_round_is_the_second_eigenvalue(graph: nx.Graph) -> None:
    matrix = mixing_matrix(graph)
    assert contraction_per_round([matrix]) == pytest.approx(
        second_eigenvalue_modulus(matrix), abs=1e-9
    )


def test_a_fast_contraction_does_not_drown_in_rounding() -> None:
    matrix = mixing_matrix(nx.complete_bipartite_graph(3, 3))
    rate = contraction_per_round([matrix])
    assert 0.2 < rate < 0.6
    assert contraction_per_round([matrix] * 64) == pytest.approx(rate)
    assert contraction_per_round([np.full((4, 4), 0.25)] * 3) == 0
