"""Graphs by name, through networkx. Nodes are site names, in the file's order."""

import hashlib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from p2pfed.topology.file import DEFAULT_REWIRING, Graph

if TYPE_CHECKING:
    import networkx as nx

TIME_VARYING = ("one_peer_exponential", "random_per_round")
SAMPLED_ROUNDS = 32  # of a graph that never repeats


def build_graph(
    names: Sequence[str], settings: Graph, federation: str, round_number: int
) -> "nx.Graph":
    """The graph of a round; only kinds in ``TIME_VARYING`` depend on the round.

    :raises ValueError: the kind cannot be built over this many peers.
    """
    import networkx as nx  # noqa: PLC0415 - costs a tenth of a second that status need not pay

    count = len(names)
    match settings.kind:
        case "explicit":
            graph = nx.Graph()
            graph.add_nodes_from(names)
            graph.add_edges_from(settings.edges or ())
            return graph
        case "ring":
            graph = nx.cycle_graph(count) if count > 2 else nx.path_graph(count)
        case "torus":
            graph = _torus(count, settings)
        case "exponential":
            graph = circulant(count, _powers_of_two(count))
        case "complete":
            graph = nx.complete_graph(count)
        case "star":
            graph = nx.star_graph(count - 1)
        case "random_regular":
            graph = _random_regular(count, settings, settings.seed or 0)
        case "small_world":
            graph = _small_world(count, settings)
        case "one_peer_exponential":
            graph = _one_peer_exponential(count, round_number)
        case "random_per_round":
            graph = _random_regular(
                count, settings, _round_seed(federation, settings.seed or 0, round_number)
            )
    return nx.relabel_nodes(graph, dict(enumerate(names)))


def period(count: int, settings: Graph) -> int:
    """After how many rounds the graph repeats; 1 where it does not vary, and
    ``SAMPLED_ROUNDS`` where it never does."""
    if settings.kind == "one_peer_exponential":
        return max(1, (count - 1).bit_length())
    return SAMPLED_ROUNDS if settings.kind == "random_per_round" else 1


def circulant(count: int, offsets: Sequence[int]) -> "nx.Graph":
    import networkx as nx  # noqa: PLC0415

    return nx.circulant_graph(count, list(offsets))


def _powers_of_two(count: int) -> list[int]:
    """1, 2, 4, ... up to half the ring: the undirected exponential graph."""
    return list(itertools.takewhile(lambda hop: hop <= count // 2, (2**i for i in range(64))))


def _torus(count: int, settings: Graph) -> "nx.Graph":
    import networkx as nx  # noqa: PLC0415

    rows, columns = settings.rows or 0, settings.columns or 0
    if rows * columns != count:
        raise ValueError(f"{rows} rows of {columns} are not the {count} peers of the file")
    grid = nx.grid_2d_graph(rows, columns, periodic=True)
    return nx.relabel_nodes(grid, {(r, c): r * columns + c for r, c in grid})


def _random_regular(count: int, settings: Graph, seed: int) -> "nx.Graph":
    import networkx as nx  # noqa: PLC0415

    degree = settings.degree or 0
    if degree >= count or (degree * count) % 2:
        raise ValueError(
            f"no graph over {count} peers has degree {degree}: degree must be below the number "
            "of peers, and their product even"
        )
    return nx.random_regular_graph(degree, count, seed=seed)


def _small_world(count: int, settings: Graph) -> "nx.Graph":
    """Watts, Strogatz 1998, drawn again until it is connected."""
    import networkx as nx  # noqa: PLC0415

    degree = settings.degree or 0
    if degree % 2 or not 2 <= degree < count:
        raise ValueError(
            f"no small world over {count} peers has degree {degree}: degree must be even, at "
            "least 2, and below the number of peers"
        )
    rewiring = DEFAULT_REWIRING if settings.rewiring is None else settings.rewiring
    return nx.connected_watts_strogatz_graph(count, degree, rewiring, seed=settings.seed or 0)


def _one_peer_exponential(count: int, round_number: int) -> "nx.Graph":
    """In round t, peer i is paired with i XOR 2^(t mod log2 n): over log2 n rounds, every peer
    has averaged with every other, exactly (Ying et al. 2021, in its undirected form)."""
    import networkx as nx  # noqa: PLC0415

    if count & (count - 1):
        raise ValueError(f"one_peer_exponential needs a power of two of peers, not {count}")
    hop = 1 << (round_number % (count.bit_length() - 1))
    graph = nx.empty_graph(count)
    graph.add_edges_from((i, i ^ hop) for i in range(count))
    return graph


def _round_seed(federation: str, seed: int, round_number: int) -> int:
    """The same at every peer, without talking."""
    text = f"p2pfed/1 round graph {federation} {seed} {round_number}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())
