"""A new topology file, with a comment on everything that an operator may want to change."""

from collections.abc import Mapping, Sequence

from p2pfed.topology.file import GRAPH_KEYS

PLACEHOLDER_KEY = "PASTE-THE-KEY-THAT-p2pfed-init-PRINTED"

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
rounds = 0                # 0: until stopped
local_steps = 3           # optimiser steps a round at each site
deadline_seconds = 60.0   # how long a round waits for its neighbours
quorum = 0.5              # fraction of neighbours without whom a round does not close
max_staleness = 1         # rounds for which a silent neighbour's last model still counts

[aggregation]
rule = "median_clipping"  # no neighbour pulls further than the median one

[codec]
name = "int8"             # or float32, four times the bytes

[privacy]
minimum_records = 20      # a site with fewer training records does not train

[task]
kind = "tabular"
seed = 0

[task.options]
label = "outcome"         # a column of 0 and 1
model = "logistic_regression"
hidden = [16]             # used by model = "mlp"
batch_size = 32
learning_rate = 0.1

[[task.options.columns]]
name = "age"
kind = "numeric"
centre = 50.0             # agreed by the federation, so that no statistics are shared
scale = 10.0
missing = "centre"
"""

_PEER = """
[[peer]]
name = "{name}"
key = "{key}"
addresses = {addresses}
"""


def new_topology(
    federation: str,
    kind: str,
    peers: Sequence[str],
    *,
    keys: Mapping[str, str] | None = None,
    addresses: Mapping[str, Sequence[str]] | None = None,
    graph_keys: Mapping[str, object] | None = None,
) -> str:
    """The text of a new file.

    Without ``keys`` it holds placeholders that a check refuses with the remedy.
    """
    values = dict(graph_keys or {})
    if kind == "explicit" and "edges" not in values:
        values["edges"] = [[a, b] for a, b in zip(peers, peers[1:], strict=False)]
    lines = "".join(f"{key} = {_toml(values[key])}\n" for key in GRAPH_KEYS[kind] if key in values)
    text = _HEAD.format(federation=federation, kind=kind, graph=lines)
    for name in peers:
        text += _PEER.format(
            name=name,
            key=(keys or {}).get(name, PLACEHOLDER_KEY),
            addresses=_toml(list((addresses or {}).get(name, ()))),
        )
    return text


def _toml(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return str(value)
