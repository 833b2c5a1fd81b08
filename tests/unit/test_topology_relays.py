"""Whose headers a site passes on."""

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from p2pfed.protocol import limits
from p2pfed.shipped import shipped
from p2pfed.simulation.population import Changes, read_population
from p2pfed.topology.lint import check
from p2pfed.topology.relays import header_relays


def regular(count: int, seed: int = 0) -> nx.Graph:
    return nx.relabel_nodes(nx.random_regular_graph(6, count, seed=seed), str)


def test_in_a_small_federation_everybodys_headers_reach_everybody() -> None:
    ring = nx.relabel_nodes(nx.cycle_graph(limits.RELAYED_SITES + 1), str)
    relays = header_relays(ring)
    for site in ring:
        assert relays.senders[site] == set(ring) - {site}


def test_the_work_of_a_site_does_not_grow_with_the_federation() -> None:
    for count in (100, 400):
        relays = header_relays(regular(count))
        assert relays.hops == 2
        assert max(map(len, relays.senders.values())) <= 6 + 6 * 5


def test_neighbours_are_always_relayed_however_many() -> None:
    star = nx.relabel_nodes(nx.star_graph(limits.RELAYED_SITES * 2), str)
    relays = header_relays(star)
    assert relays.hops == 1
    assert relays.senders["0"] == set(star) - {"0"}


@given(st.integers(8, 120), st.integers(0, 20))
def test_a_site_relays_exactly_those_within_the_distance(count: int, seed: int) -> None:
    graph = nx.connected_watts_strogatz_graph(count, 4, 0.3, seed=seed)
    graph = nx.relabel_nodes(graph, str)
    relays = header_relays(graph)
    within = dict(nx.all_pairs_shortest_path_length(graph, cutoff=relays.hops))
    for site in graph:
        assert relays.senders[site] == set(within[site]) - {site}


def test_the_check_says_where_a_lie_could_stay_hidden() -> None:
    ring = shipped("topology") / "ring-4.toml"
    large = read_population(ring, Changes(peers=100)).topology
    [warning] = [one for one in check(large).warnings if "may not meet" in one]
    assert "any site" in warning
    small = read_population(ring, Changes(peers=limits.RELAYED_SITES)).topology
    assert not any("may not meet" in one for one in check(small).warnings)
