"""Topology files in small, for tests."""

from pathlib import Path
from typing import Any

import tomli_w

from p2pfed.keys import Identity, format_public_key
from p2pfed.topology import Topology, load_topology


def identity(name: str) -> Identity:
    """The identity of a site with a one-letter name."""
    return Identity(bytes([ord(name)]) * 32, b"\x01" * 32)


def key(name: str) -> str:
    return format_public_key(identity(name).public_key)


def document(names: str = "abcd", **tables: Any) -> dict[str, Any]:
    """A ring of sites with one-letter names, with other tables as given."""
    return {
        "schema_version": 1,
        "federation": {"name": "test"},
        "graph": {"kind": "ring"},
        "task": {"kind": "tabular"},
        **tables,
        "peer": [
            {
                "name": name,
                "key": key(name),
                "addresses": [f"/ip4/192.0.2.{ord(name)}/tcp/7400"],
            }
            for name in names
        ],
    }


def load(directory: Path, content: dict[str, Any] | str) -> Topology:
    path = directory / "topology.toml"
    path.write_text(content if isinstance(content, str) else tomli_w.dumps(content))
    return load_topology(path)
