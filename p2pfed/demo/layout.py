"""Writes a demo's federation: one topology file and, for each site, a directory with keys, data
and an ordinary site file, as an operator would have them."""

import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from p2pfed.config import Site, load_site
from p2pfed.errors import ConfigurationError, Problem
from p2pfed.keys import create_identity, format_public_key
from p2pfed.settings import read_toml
from p2pfed.topology import load_topology

HOLDOUT_FRACTION = 0.34
MODEL_NAME = "model.safetensors"  # beside a site file, what the site exported
COPIED_TABLES = ("graph", "round", "aggregation", "codec")  # taken from --topology


@dataclass(frozen=True)
class DemoOptions:
    """What may be changed of a demo; None leaves its own value."""

    rounds: int | None = None
    seed: int = 0
    rule: str | None = None
    topology: Path | None = None
    deadline_seconds: float | None = None


@dataclass(frozen=True)
class DemoSite:
    """A site of a demo and the table that becomes its data."""

    name: str
    table: Path


@dataclass(frozen=True)
class DemoLayout:
    directory: Path
    topology: Path
    sites: tuple[Site, ...]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has now; held open together so that they
    differ, then released for the daemons."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()


def sites_of(folder: Path) -> tuple[DemoSite, ...]:
    """The sites of the demo in ``folder``: one for each table."""
    return tuple(DemoSite(table.stem, table) for table in sorted(folder.glob("*.csv")))


def write_layout(
    folder: Path, directory: Path, options: DemoOptions, further: tuple[DemoSite, ...] = ()
) -> DemoLayout:
    """Write the federation of the demo in ``folder`` under ``directory``.

    :param further: sites beyond those of the demo, after them.
    :raises ConfigurationError: the result, or a given topology file, is not sound.
    """
    document = read_toml(folder / f"{folder.name}.toml")
    sites = (*sites_of(folder), *further)
    names = [site.name for site in sites]
    peers, files = [], []
    for site, port in zip(sites, free_ports(len(sites)), strict=True):
        identity = create_identity(directory / site.name / "keys")
        shutil.copyfile(site.table, directory / site.name / "data.csv")
        address = f"/ip4/127.0.0.1/tcp/{port}"
        peers.append(
            {
                "name": site.name,
                "key": format_public_key(identity.public_key),
                "addresses": [address],
            }
        )
        files.append(directory / site.name / "site.toml")
        _write_site(files[-1], site.name, address, options.seed)
    document = {
        "schema_version": 1,
        "federation": {"name": folder.name},
        "graph": {"kind": "complete"},
        **document,
        "peer": peers,
    }
    if options.topology is not None:
        document |= _from_given(options.topology, names)
    if options.rounds is not None:
        document.setdefault("round", {})["rounds"] = options.rounds
    if options.deadline_seconds is not None:
        document.setdefault("round", {})["deadline_seconds"] = options.deadline_seconds
    if options.rule is not None:
        document.setdefault("aggregation", {})["rule"] = options.rule
    document["task"]["seed"] = options.seed
    topology = directory / "topology.toml"
    topology.write_text(
        f"# The topology file of the {folder.name} demo, the same for every site.\n"
        + tomli_w.dumps(document),
        encoding="utf-8",
    )
    load_topology(topology)
    return DemoLayout(directory, topology, tuple(load_site(file) for file in files))


def _write_site(path: Path, name: str, address: str, seed: int) -> None:
    document = {
        "schema_version": 1,
        "name": name,
        "topology": "../topology.toml",
        "listen": {"addresses": [address], "mdns": False},
        "data": {
            "path": "data.csv",
            "holdout_fraction": HOLDOUT_FRACTION,
            "split_seed": seed,
        },
    }
    path.write_text(f"# The site file of {name}.\n" + tomli_w.dumps(document), encoding="utf-8")


def _from_given(path: Path, names: list[str]) -> dict[str, Any]:
    """Graph and settings of a user's topology file, its peers renamed to the demo's sites."""
    topology = load_topology(path)
    if len(topology.names) != len(names):
        raise ConfigurationError(
            [
                Problem(
                    path,
                    "peer",
                    f"{len(topology.names)} peers",
                    f"the demo has {len(names)} sites",
                    f"give a topology of {len(names)} peers",
                )
            ]
        )
    own = set(topology.names) == set(names)
    renamed = {old: old if own else new for old, new in zip(topology.names, names, strict=True)}
    document = read_toml(path)
    taken = {table: document[table] for table in COPIED_TABLES if table in document}
    if "edges" in taken["graph"]:
        taken["graph"]["edges"] = [[renamed[a], renamed[b]] for a, b in taken["graph"]["edges"]]
    return taken
