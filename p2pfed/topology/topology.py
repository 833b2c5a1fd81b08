"""A checked topology: the file's tables and what follows from them."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from p2pfed.errors import ConfigurationError, Problem
from p2pfed.rules_catalogue import precondition
from p2pfed.settings import read_toml, validate
from p2pfed.topology.file import (
    DEFAULT_REWIRING,
    MAX_INTEGER,
    SCHEMA_VERSION,
    Graph,
    Peer,
    TopologyFile,
    relay_of,
)
from p2pfed.topology.graphs import TIME_VARYING, build_graph, period
from p2pfed.topology.relays import Relays, header_relays
from p2pfed.topology.weights import mixing_weight

if TYPE_CHECKING:
    import networkx as nx

DIGEST_DOMAIN = b"p2pfed/1 topology\x00"
CACHED_GRAPHS = 256  # rounds of a graph that varies


@dataclass(frozen=True)
class Topology:
    """A topology file that was read and found sound.

    ``digest`` is the same for two files that mean the same, whatever their comments, order of
    keys or spelling of numbers; peers compare it at every hello.
    """

    path: Path
    file: TopologyFile
    digest: bytes

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(peer.name for peer in self.file.peers)

    @property
    def time_varying(self) -> bool:
        return self.file.graph.kind in TIME_VARYING

    @property
    def examined_rounds(self) -> range:
        """A whole period of the graph, or a sample where it never repeats."""
        return _examined_rounds(self.file)

    def graph(self, round_number: int = 0) -> "nx.Graph":
        """The round's graph; it is shared, and frozen."""
        return self._graphs(round_number if self.time_varying else 0)

    @cached_property
    def _graphs(self) -> "Callable[[int], nx.Graph]":
        return lru_cache(CACHED_GRAPHS)(partial(_graph, self.file))

    @cached_property
    def _peers_by_id(self) -> Mapping[str, Peer]:
        return {peer.peer_id_text: peer for peer in self.file.peers}

    def neighbours(self, name: str, round_number: int = 0) -> tuple[str, ...]:
        """The site's neighbours in a round, sorted."""
        return tuple(sorted(self.graph(round_number)[name]))

    def all_neighbours(self, name: str) -> tuple[str, ...]:
        """Its neighbours of any round: the links to keep. A graph drawn anew every round may
        make anybody a neighbour."""
        if self.file.graph.kind == "random_per_round":
            return tuple(sorted(set(self.names) - {name}))
        rounds = self.examined_rounds
        return tuple(sorted({n for number in rounds for n in self.neighbours(name, number)}))

    def common_neighbours(self, name: str) -> Mapping[str, frozenset[str]]:
        """For each neighbour of any round, the neighbours of any round that both have."""
        own = frozenset(self.all_neighbours(name))
        return {other: own & frozenset(self.all_neighbours(other)) for other in sorted(own)}

    def weights(self, name: str, round_number: int = 0) -> Mapping[str, float]:
        """The mixing weight of each of its edges in a round."""
        graph = self.graph(round_number)
        return {
            other: mixing_weight(graph.degree[name], graph.degree[other])
            for other in sorted(graph[name])
        }

    @cached_property
    def relays(self) -> Relays:
        """Who passes on whose headers."""
        import networkx as nx  # noqa: PLC0415

        links = nx.Graph(
            (name, other) for name in self.names for other in self.all_neighbours(name)
        )
        return header_relays(links)

    def peer(self, name: str) -> Peer:
        for peer in self.file.peers:
            if peer.name == name:
                return peer
        raise KeyError(name)

    def peer_by_id(self, peer_id: str) -> Peer | None:
        return self._peers_by_id.get(peer_id)


def _graph(file: TopologyFile, round_number: int) -> "nx.Graph":
    """:raises ValueError: the kind cannot be built over these peers."""
    names = tuple(peer.name for peer in file.peers)
    return _graph_of(names, file.graph, file.federation.name, round_number)


@lru_cache(maxsize=CACHED_GRAPHS)
def _graph_of(
    names: tuple[str, ...], settings: Graph, federation: str, round_number: int
) -> "nx.Graph":
    import networkx as nx  # noqa: PLC0415

    return nx.freeze(build_graph(names, settings, federation, round_number))


def canonical_digest(file: TopologyFile) -> bytes:
    """BLAKE2b-256 over canonical msgpack of what the file means.

    The edges are part of it, not only the settings that generate them: two sites whose
    libraries draw different graphs from one seed must notice.
    """
    document = file.model_dump(mode="json", by_alias=True)
    graph = document["graph"]
    del graph["edges"]
    graph["seed"] = graph["seed"] or 0
    graph["rewiring"] = DEFAULT_REWIRING if graph["rewiring"] is None else graph["rewiring"]
    document["peer"] = [
        # One key has two spellings.
        {"name": peer.name, "peer_id": peer.peer_id_text, "addresses": list(peer.addresses)}
        for peer in sorted(file.peers, key=lambda peer: peer.name)
    ]
    document["edges"] = [
        sorted(sorted(edge) for edge in _graph(file, number).edges)
        for number in _examined_rounds(file)
    ]
    return hashlib.blake2b(DIGEST_DOMAIN + canonical_bytes(document), digest_size=32).digest()


def canonical_bytes(value: object) -> bytes:
    """Msgpack of plain values, the same for values that mean the same."""
    encoded: bytes = msgpack.packb(_canonical(value))
    return encoded


def _canonical(value: Any) -> Any:
    """Keys sorted; 60.0 and 60 alike."""
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_INTEGER:
        return int(value)
    return value


def _examined_rounds(file: TopologyFile) -> range:
    return range(period(len(file.peers), file.graph))


def load_topology(path: Path) -> Topology:
    """Read and check a topology file.

    :raises ConfigurationError: with everything that is wrong with it.
    """
    return parse_topology(read_toml(path), path)


def parse_topology(document: dict[str, Any], path: Path) -> Topology:
    """As ``load_topology``, from a parsed document; ``path`` is for messages."""
    version = document.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ConfigurationError(
            [
                Problem(
                    path,
                    "schema_version",
                    repr(version),
                    f"this p2pfed reads topology files of version {SCHEMA_VERSION}",
                    "install a p2pfed that reads this version, or convert the file",
                )
            ]
        )
    file = validate(TopologyFile, document, path)
    problems = [
        *_check_peers(file, path),
        *_check_circuits(file, path),
        *_check_edges(file, path),
        *_check_mode(file, path),
    ]
    if not problems:
        problems = _check_graph(file, path)
    if problems:
        raise ConfigurationError(problems)
    return Topology(path, file, canonical_digest(file))


def _check_peers(file: TopologyFile, path: Path) -> list[Problem]:
    problems: list[Problem] = []
    names: dict[str, int] = {}
    keys: dict[bytes, int] = {}
    for index, peer in enumerate(file.peers):
        if peer.name in names:
            problems.append(
                Problem(
                    path,
                    f"peer[{index}].name",
                    repr(peer.name),
                    f"peer[{names[peer.name]}] has this name",
                    "give every site a name of its own",
                )
            )
        if peer.public_key in keys:
            problems.append(
                Problem(
                    path,
                    f"peer[{index}].key",
                    peer.key or peer.peer_id,
                    f"peer[{keys[peer.public_key]}] has this key",
                    "run p2pfed init at each site; keys are never shared",
                )
            )
        names.setdefault(peer.name, index)
        keys.setdefault(peer.public_key, index)
    return problems


def _check_circuits(file: TopologyFile, path: Path) -> list[Problem]:
    members = {peer.peer_id_text for peer in file.peers}
    return [
        Problem(
            path,
            f"peer[{index}].addresses[{position}]",
            repr(address),
            "the relay is no peer of this file",
            "only members relay; add it, or mend its peer id",
        )
        for index, peer in enumerate(file.peers)
        for position, address in enumerate(peer.addresses)
        if relay_of(address) not in {None, *members}
    ]


def _check_edges(file: TopologyFile, path: Path) -> list[Problem]:
    problems: list[Problem] = []
    known = {peer.name for peer in file.peers}
    seen: set[frozenset[str]] = set()
    for index, (a, b) in enumerate(file.graph.edges or ()):
        key, shown = f"graph.edges[{index}]", f"[{a!r}, {b!r}]"
        for name in sorted({a, b} - known):
            problems.append(
                Problem(path, key, shown, f"there is no peer {name!r}", "add it, or mend the name")
            )
        if a == b:
            problems.append(Problem(path, key, shown, "a site is no neighbour of itself"))
        elif frozenset((a, b)) in seen:
            problems.append(Problem(path, key, shown, "this edge is given twice", "remove one"))
        seen.add(frozenset((a, b)))
    return problems


def _check_mode(file: TopologyFile, path: Path) -> list[Problem]:
    if file.round.mode == "sync" or file.graph.kind not in TIME_VARYING:
        return []
    return [
        Problem(
            path,
            "round.mode",
            repr(file.round.mode),
            f"the graph is {file.graph.kind}: whose neighbour a site is depends on the round, "
            "and asynchronous sites are not in the same one",
            'write "sync", or choose a graph that stays',
        )
    ]


def _check_graph(file: TopologyFile, path: Path) -> list[Problem]:
    import networkx as nx  # noqa: PLC0415

    names = tuple(peer.name for peer in file.peers)
    try:
        graphs = [_graph(file, number) for number in _examined_rounds(file)]
    except (ValueError, nx.NetworkXException) as error:
        return [Problem(path, "graph", None, str(error))]
    union = nx.compose_all(graphs)
    if not nx.is_connected(union):
        parts = sorted(sorted(part) for part in nx.connected_components(union))
        listed = "; ".join(", ".join(part) for part in parts)
        return [
            Problem(
                path,
                "graph",
                None,
                f"the graph is not connected; its parts are: {listed}",
                "add an edge between the parts"
                if file.graph.kind == "explicit"
                else "choose another seed, or a larger degree",
            )
        ]
    problems: list[Problem] = []
    b = file.aggregation.byzantine_neighbours
    for name in names:
        degree = min(graph.degree[name] for graph in graphs)
        rule, before = file.aggregation.rule, file.aggregation.pre_aggregation
        reason = precondition(rule, degree, b, before) if b else None
        if reason is not None:
            problems.append(
                Problem(
                    path,
                    "aggregation.byzantine_neighbours",
                    str(b),
                    f"at site {name}: {reason}",
                    "lower it, or give the site more neighbours",
                )
            )
    return problems
