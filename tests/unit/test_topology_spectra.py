"""Closed forms: the second largest eigenvalue modulus of Metropolis-Hastings weights."""

import math

import networkx as nx
import numpy as np
import pytest

from p2pfed.topology.file import Graph
from p2pfed.topology.graphs import build_graph, circulant
from p2pfed.topology.weights import (
    algebraic_connectivity,
    mixing_matrix,
    mixing_time_rounds,
    second_eigenvalue_modulus,
)


def modulus(graph: nx.Graph) -> float:
    return second_eigenvalue_modulus(mixing_matrix(graph))


def named(kind: str, count: int, **keys: int) -> nx.Graph:
    names = [f"p{number}" for number in range(count)]
    return build_graph(names, Graph(kind=kind, **keys), "test", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [3, 8, 64])
def test_ring(count: int) -> None:
    assert modulus(named("ring", count)) == pytest.approx(
        (1 + 2 * math.cos(2 * math.pi / count)) / 3
    )


def test_ring_figures() -> None:
    assert modulus(named("ring", 8)) == pytest.approx(0.804738, abs=5e-7)
    assert modulus(named("ring", 64)) == pytest.approx(0.996790, abs=5e-7)


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (4, 4), (5, 8)])
def test_torus(rows: int, columns: int) -> None:
    graph = named("torus", rows * columns, rows=rows, columns=columns)
    longer = max(rows, columns)
    assert modulus(graph) == pytest.approx((3 + 2 * math.cos(2 * math.pi / longer)) / 5)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_undirected_exponential(bits: int) -> None:
    assert modulus(named("exponential", 2**bits)) == pytest.approx(1 - 2 / bits if bits > 2 else 0)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_hypercube(bits: int) -> None:
    assert modulus(nx.hypercube_graph(bits)) == pytest.approx(1 - 2 / (bits + 1))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_directed_exponential(bits: int) -> None:
    count = 2**bits
    matrix = np.eye(count)
    for hop in range(bits):
        matrix += np.roll(np.eye(count), 2**hop, axis=1)
    assert second_eigenvalue_modulus(matrix / (bits + 1)) == pytest.approx(1 - 2 / (bits + 1))


@pytest.mark.parametrize("count", [3, 4, 10])
def test_star_and_complete(count: int) -> None:
    assert modulus(named("star", count)) == pytest.approx(1 - 1 / count)
    assert modulus(named("complete", count)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_one_peer_exponential_averages_exactly_over_its_period(bits: int) -> None:
    count = 2**bits
    names = [f"p{number}" for number in range(count)]
    product = np.eye(count)
    for number in range(bits):
        graph = build_graph(names, Graph(kind="one_peer_exponential"), "test", number)
        product = mixing_matrix(graph) @ product
    np.testing.assert_allclose(product, np.full((count, count), 1 / count), atol=1e-12)


def test_more_edges_are_not_always_better() -> None:
    ring = named("ring", 6)
    assert 1 - modulus(ring) == pytest.approx(1 / 3)
    ring.add_edge("p0", "p3")
    assert 1 - modulus(ring) == pytest.approx(1 / 4)


def test_the_matrix_is_symmetric_and_doubly_stochastic() -> None:
    matrix = mixing_matrix(circulant(9, [1, 3]))
    np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert (matrix >= 0).all()


def test_mixing_time_and_connectivity() -> None:
    assert mixing_time_rounds(0.1) == pytest.approx(2)
    assert mixing_time_rounds(0.0) == 0
    assert mixing_time_rounds(1.0) == math.inf
    assert algebraic_connectivity(nx.complete_graph(5)) == pytest.approx(5)
