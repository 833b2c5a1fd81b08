"""Sites for a simulation, from an ordinary topology file.

The file's own keys name real sites, whose secrets nobody else has. A simulated site has a key
made from its name, so a file can be tried before any site has made its own.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfed.errors import ConfigurationError, Problem, UsageError
from p2pfed.keys import KEY_BYTES, Identity, format_public_key
from p2pfed.settings import read_toml
from p2pfed.topology import Topology, parse_topology

DEFAULT_ROUNDS = 100  # where neither the file nor the command says
_SECRET_DOMAIN = b"p2pfed simulated identity\x00"


@dataclass(frozen=True)
class Population:
    topology: Topology
    identities: dict[str, Identity]


@dataclass(frozen=True, slots=True)
class Changes:
    """What the command line changes of the file for a simulation; None: nothing."""

    peers: int | None = None
    rounds: int | None = None
    rule: str | None = None


def read_population(path: Path, changes: Changes) -> Population:
    """Read a topology file and give every site a simulated key.

    :raises ConfigurationError: with everything that is wrong with the file.
    :raises UsageError: its graph cannot have another number of peers.
    """
    document = read_toml(path)
    if changes.peers is not None:
        _resize(document, path, changes.peers)
    peers = document.get("peer")
    if not isinstance(peers, list) or not all(isinstance(peer, dict) for peer in peers):
        raise ConfigurationError(
            [Problem(path, "peer", None, "required, but missing", "add a [[peer]] table a site")]
        )
    identities: dict[str, Identity] = {}
    for peer in peers:
        name = peer.get("name")
        if isinstance(name, str):
            identities[name] = simulated_identity(name)
            peer.pop("peer_id", None)
            peer["key"] = format_public_key(identities[name].public_key)
    _set(document, "round", "rounds", changes.rounds)
    _set(document, "aggregation", "rule", changes.rule)
    topology = parse_topology(document, path)
    if topology.file.round.rounds == 0:
        _set(document, "round", "rounds", DEFAULT_ROUNDS)
        topology = parse_topology(document, path)
    return Population(topology, identities)


def simulated_identity(name: str) -> Identity:
    """The same for a name, always; worthless outside a simulation."""
    halves = hashlib.blake2b(_SECRET_DOMAIN + name.encode(), digest_size=2 * KEY_BYTES).digest()
    return Identity(halves[:KEY_BYTES], halves[KEY_BYTES:])


def _set(document: dict[str, Any], table: str, key: str, value: object) -> None:
    if value is not None and isinstance(document.setdefault(table, {}), dict):
        document[table][key] = value


def _resize(document: dict[str, Any], path: Path, count: int) -> None:
    graph = document.get("graph")
    if isinstance(graph, dict) and graph.get("kind") in ("explicit", "torus"):
        raise UsageError(
            f"{path}: a graph of kind {graph['kind']} is drawn for its own peers; --peers goes "
            "with a generated one, as random_regular or exponential"
        )
    digits = len(str(count - 1))
    document["peer"] = [{"name": f"s{number:0{digits}d}"} for number in range(count)]
