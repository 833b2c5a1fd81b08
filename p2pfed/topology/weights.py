"""Mixing weights and what they say about how fast the federation agrees."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import networkx as nx

MIXING_ACCURACY = 0.01  # disagreement that is left after the mixing time
EXACT_CONTRACTION = 1e-12  # what rounding leaves of a product that averages exactly


def mixing_weight(degree: int, other_degree: int) -> float:
    """The Metropolis-Hastings weight of an edge: 1 / (1 + max degree) (Xiao, Boyd 2004).

    Both ends compute the same, so the mixing is symmetric and keeps the average.
    """
    return 1.0 / (1 + max(degree, other_degree))


def mixing_matrix(graph: "nx.Graph") -> npt.NDArray[np.float64]:
    """W, shape (n, n), symmetric and doubly stochastic, in the order of the graph's nodes."""
    order = {node: index for index, node in enumerate(graph)}
    matrix = np.zeros((len(order), len(order)))
    for a, b in graph.edges:
        matrix[order[a], order[b]] = matrix[order[b], order[a]] = mixing_weight(
            graph.degree[a], graph.degree[b]
        )
    np.fill_diagonal(matrix, 1.0 - matrix.sum(axis=1))
    return matrix


def second_eigenvalue_modulus(matrix: npt.NDArray[np.float64]) -> float:
    """The second largest modulus among W's eigenvalues; the spectral gap is 1 minus it."""
    symmetric = np.array_equal(matrix, matrix.T)
    values = np.linalg.eigvalsh(matrix) if symmetric else np.linalg.eigvals(matrix)
    moduli = np.sort(np.abs(values))
    return float(moduli[-2]) if len(moduli) > 1 else 0.0


def contraction_per_round(matrices: Sequence[npt.NDArray[np.float64]]) -> float:
    """The factor by which disagreement shrinks in a round, at worst, where each of
    ``matrices``, shape (n, n) and symmetric, mixes one round: the spectral norm of their
    product beside the average, as a geometric mean. For one symmetric matrix it is the second
    largest eigenvalue
    modulus; 0 where the rounds together average exactly.
    """
    count = len(matrices[0])
    product, bound = np.eye(count), 1.0
    for matrix in matrices:
        # Without the average's part, small factors do not drown in the rounding of a 1.
        beside_average = matrix - 1.0 / count
        product = beside_average @ product
        factor = float(np.abs(np.linalg.eigvalsh(beside_average)).max())
        bound *= factor if factor > EXACT_CONTRACTION else 0.0
    norm = float(np.linalg.norm(product, 2))
    exact = bound == 0.0 or norm <= EXACT_CONTRACTION * bound
    return 0.0 if exact else norm ** (1.0 / len(matrices))


def mixing_time_rounds(second_modulus: float) -> float:
    """Rounds until gossip alone has shrunk disagreement to ``MIXING_ACCURACY``."""
    if second_modulus >= 1.0:
        return math.inf
    return 0.0 if second_modulus <= 0.0 else math.log(MIXING_ACCURACY) / math.log(second_modulus)


def algebraic_connectivity(graph: "nx.Graph") -> float:
    """mu2, the second smallest eigenvalue of the graph's Laplacian (Fiedler 1973); it takes two
    nodes at least."""
    index = {node: number for number, node in enumerate(graph)}
    adjacency = np.zeros((len(index), len(index)))
    for a, b in graph.edges:
        adjacency[index[a], index[b]] = adjacency[index[b], index[a]] = 1.0
    return second_laplacian_eigenvalue(adjacency)


def second_laplacian_eigenvalue(adjacency: npt.NDArray[np.float64]) -> float:
    """mu2 of the graph with this symmetric matrix of zeros and ones, shape (n, n)."""
    laplacian = np.diag(adjacency.sum(axis=1)) - adjacency
    return float(np.linalg.eigvalsh(laplacian)[1])
