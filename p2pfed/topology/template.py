"""A new topology file, with a comment on everything that an operator may want to change."""

import hashlib
import itertools
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from p2pfed.errors import ConfigurationError
from p2pfed.keys import KEY_BYTES, format_public_key
from p2pfed.rules_catalogue import DEFAULT_RULE, RULES
from p2pfed.topology.file import PLACEHOLDER_KEY
from p2pfed.topology.topology import parse_topology

_HEAD = """\
# Topology file of the federation {federation}. Every site holds the same file; p2pfed compares
# them by what they mean, so comments and order do not matter. Check it with
#     p2pfed topology check {federation}.toml
schema_version = 1

[federation]
name = "{federation}"

[graph]
kind = "{kind}"
{graph}
[round]
rounds = 0                # in total; 0: until stopped
local_steps = 3           # optimiser steps a round at each site
deadline_seconds = 60.0   # how long a round waits for its neighbours
quorum = 0.5              # fraction of the neighbours without whom a round does not close
max_staleness = 1         # rounds for which a silent neighbour's last model still counts

[aggregation]
rule = "{rule}"  # {summary}
pre_aggregation = "none"  # or nearest_neighbour_mixing, bucketing: before rules of ranks
byzantine_neighbours = 0  # hostile ones assumed among each site's; check refuses too many
mixing_step = 1.0         # fraction of the rule's step that is taken

[codec]
name = "int8"             # or float32, four times the bytes

[privacy]
minimum_records = 20      # a site with fewer training records does not train
differential_privacy = false  # true: no site trains without; see topology/PRIVACY.md

[task]
kind = "tabular"          # or python, with class = "package.module:Class"
seed = 0                  # of the model that every site starts from

[task.options]
label = "outcome"         # a column of 0 and 1
model = "logistic_regression"
batch_size = 32
learning_rate = 0.1

[[task.options.columns]]
name = "age"
kind = "numeric"
centre = 50.0             # agreed by the federation, so that no statistics are shared
scale = 10.0
missing = "centre"
"""

_ABOUT_PEERS = """
# One block a site, as p2pfed init printed it there. addresses are where the others can dial it,
# for example "/ip4/192.0.2.10/tcp/7400" or "/dns/p2pfed.hospital.example/tcp/7400"; empty if it
# only dials out, or is found on the local network. One of two neighbours needs an address, or
# both need a member that relays: see NETWORK.md.
"""
_PEER = """\
[[peer]]
name = "{name}"
key = "{key}"
addresses = {addresses}
"""


def new_topology(
    federation: str,
    kind: str,
    peers: Sequence[str],
    graph_keys: Mapping[str, int | float] = MappingProxyType({}),
) -> str:
    """The text of a new file, to be filled in: it holds placeholders for the keys, which a
    check refuses with the remedy. An ``explicit`` graph starts as a ring.

    :param graph_keys: keys of ``[graph]`` beside ``kind`` and ``edges``.
    :raises ValueError: a name is unfit, or no such graph has these peers; all reasons, a line
        each.
    """
    lines = [f"{key} = {value}\n" for key, value in graph_keys.items()]
    if kind == "explicit":
        lines.append(_edges(peers))
    head = _HEAD.format(
        federation=federation,
        kind=kind,
        graph="".join(lines),
        rule=DEFAULT_RULE,
        summary=RULES[DEFAULT_RULE].summary,
    )
    blocks = (_PEER.format(name=name, key=PLACEHOLDER_KEY, addresses="[]") for name in peers)
    text = head + _ABOUT_PEERS + "\n".join(blocks)
    _check(text, {kind, federation, *peers})
    return text


def _edges(peers: Sequence[str]) -> str:
    closed = [*peers, peers[0]] if len(peers) > 2 else peers
    pairs = itertools.pairwise(closed)
    return "edges = [\n" + "".join(f'    ["{a}", "{b}"],\n' for a, b in pairs) + "]\n"


def _check(text: str, names: Collection[str]) -> None:
    """As ``check`` will once the keys are there.

    :raises ValueError: with all reasons.
    """
    quoted = sorted(name for name in names if not name.isprintable() or set(name) & set('"\\'))
    if quoted:
        raise ValueError(f"{', '.join(map(repr, quoted))}: no name has such characters")
    document = tomllib.loads(text)
    for index, peer in enumerate(document.get("peer", ())):
        stand_in = hashlib.blake2b(f"{index}".encode(), digest_size=KEY_BYTES).digest()
        peer["key"] = format_public_key(stand_in)
    try:
        parse_topology(document, Path("topology.toml"))
    except ConfigurationError as error:
        raise ValueError(
            "\n".join(f"{problem.key}: {problem.reason}" for problem in error.problems)
        ) from error
