"""Writes a demo's federation: one topology file and, for each site, a directory with keys, data
and an ordinary site file, as an operator would have them."""

import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """What may be changed of a demo; None leaves its own value.

    :ivar changes: tables of the topology file, whose keys replace those of the demo's.
    """

    rounds: int | None = None
    seed: int = 0
    rule: str | None = None
    topology: Path | None = None
    deadline_seconds: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DemoSite:
    """A site of a demo, and what becomes its data.

    :ivar data: ``[data]`` of its site file; keys named ``path`` or ``*_path`` name ``files``.
    :ivar files: by the name that each gets in the site's directory.
    :ivar privacy: ``[privacy]`` of its site file.
    """

    name: str
    data: Mapping[str, Any]
    files: Mapping[str, Path]
    privacy: Mapping[str, Any] = field(default_factory=dict)


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


def site_with_table(name: str, table: Path, seed: int) -> DemoSite:
    """A site whose records are a table, of which a part is kept for evaluation."""
    data = {"path": "data.csv", "holdout_fraction": HOLDOUT_FRACTION, "split_seed": seed}
    return DemoSite(name, data, {"data.csv": table})


def sites_of(folder: Path, seed: int) -> tuple[DemoSite, ...]:
    """The sites of the demo in ``folder``: one for each table."""
    return tuple(site_with_table(table.stem, table, seed) for table in sorted(folder.glob("*.csv")))


def write_layout(
    folder: Path,
    directory: Path,
    options: DemoOptions,
    sites: tuple[DemoSite, ...] | None = None,
) -> DemoLayout:
    """Write a federation with the settings in ``folder`` under ``directory``.

    :param sites: one for each table in ``folder`` where none are given.
    :raises ConfigurationError: the result, or a given topology file, is not sound.
    """
    document = read_toml(folder / f"{folder.name}.toml")
    sites = sites_of(folder, options.seed) if sites is None else sites
    names = [site.name for site in sites]
    peers, files = [], []
    for site, port in zip(sites, free_ports(len(sites)), strict=True):
        identity = create_identity(directory / site.name / "keys")
        for file_name, file in site.files.items():
            shutil.copyfile(file, directory / site.name / file_name)
        address = f"/ip4/127.0.0.1/tcp/{port}"
        peers.append(
            {
                "name": site.name,
                "key": format_public_key(identity.public_key),
                "addresses": [address],
            }
        )
        files.append(directory / site.name / "site.toml")
        _write_site(files[-1], site, address)
    document = {
        "schema_version": 1,
        "federation": {"name": folder.name},
        "graph": {"kind": "complete"},
        **document,
        "peer": peers,
    }
    document = merged(document, options.changes)
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


def _write_site(path: Path, site: DemoSite, address: str) -> None:
    document = {
        "schema_version": 1,
        "name": site.name,
        "topology": "../topology.toml",
        "listen": {"addresses": [address], "mdns": False},
        "data": dict(site.data),
        "privacy": dict(site.privacy),
    }
    text = f"# The site file of {site.name}.\n" + tomli_w.dumps(document)
    path.write_text(text, encoding="utf-8")


def merged(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``document`` with the keys of ``changes`` in place of its own, in every table."""
    return {**document} | {
        key: merged(document[key], value)
        if isinstance(value, Mapping) and isinstance(document.get(key), Mapping)
        else value
        for key, value in changes.items()
    }


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
