"""Commands about a site's files; none of them needs a running daemon."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from p2pfed.config import SITE_TEMPLATE, load_site
from p2pfed.errors import ConfigurationError, Problem
from p2pfed.keys import create_identity, format_public_key, load_identity
from p2pfed.privacy_terms import PrivacyTerms, privacy_terms
from p2pfed.site_identity import check_membership
from p2pfed.topology import load_topology
from p2pfed.topology.file import Name

SITE_FILE_NAME = "site.toml"
REPORTED_PACKAGES = ("libp2p", "torch", "numpy", "numba", "trio", "pynacl", "cryptography")


def init_site(directory: Path, name: str) -> str:
    """Make keys and a site file; returns the block to paste into the topology file.

    :raises ConfigurationError: the name is unfit, or files are there already.
    """
    site_file = directory / SITE_FILE_NAME
    _check_name(name, site_file)
    if os.path.lexists(site_file):
        raise ConfigurationError(
            [
                Problem(
                    site_file,
                    "",
                    None,
                    "exists already and is never overwritten",
                    "use it, or choose another directory",
                )
            ]
        )
    identity = create_identity(directory / "keys")
    with site_file.open("x", encoding="utf-8") as file:
        file.write(SITE_TEMPLATE.format(name=name))
    return "\n".join(
        (
            "[[peer]]",
            f'name = "{name}"',
            f'key = "{format_public_key(identity.public_key)}"',
            f"# peer id: {identity.peer_id}",
            "# Where the others can dial this site, for example /ip4/192.0.2.10/tcp/7400;",
            "# empty if it only dials out or is found on the local network.",
            "addresses = []",
        )
    )


def _check_name(name: str, site_file: Path) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise ConfigurationError(
            [
                Problem(
                    site_file,
                    "name",
                    repr(name),
                    "a name has 1 to 63 lower-case letters, digits and hyphens",
                    "choose another with --name",
                )
            ]
        ) from None


def site_paths(config: Path) -> dict[str, str]:
    site = load_site(config)
    return {
        "config": str(site.path),
        "topology": str(site.topology_path),
        "keys": str(site.keys_directory),
        "state": str(site.state_directory),
        "control": str(site.control_socket),
    }


def check_site(config: Path) -> list[str]:
    """What is in order, a line each.

    :raises ConfigurationError: with the problems of every file at once.
    """
    problems: list[Problem] = []
    site = load_site(config)
    lines = [f"ok  site file {site.path}"]
    identity = topology = None
    try:
        identity = load_identity(site.keys_directory)
        lines.append(f"ok  keys in {site.keys_directory}, peer id {identity.peer_id}")
    except ConfigurationError as error:
        problems.extend(error.problems)
    try:
        topology = load_topology(site.topology_path)
        lines.append(
            f"ok  topology {site.topology_path}, {len(topology.names)} peers, "
            f"digest {topology.digest.hex()[:12]}"
        )
    except ConfigurationError as error:
        problems.extend(error.problems)
    if identity is not None and topology is not None:
        try:
            check_membership(site, topology, identity)
            neighbours = ", ".join(topology.all_neighbours(site.file.name))
            lines.append(f"ok  {site.file.name} is a member; its neighbours: {neighbours}")
        except ConfigurationError as error:
            problems.extend(error.problems)
    if topology is not None:
        try:
            lines.append(f"ok  privacy: {_privacy_words(privacy_terms(site, topology))}")
        except ConfigurationError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigurationError(problems)
    return lines


def _privacy_words(terms: PrivacyTerms | None) -> str:
    if terms is None:
        return "no differential privacy, neither demanded nor chosen"
    return (
        f"epsilon {terms.epsilon:g} at delta {terms.delta:g}, noise multiplier "
        f"{terms.noise_multiplier:g}, clip norm {terms.clip_norm:g}"
    )


def versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in REPORTED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
