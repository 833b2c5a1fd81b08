"""Whether a site's name, its key and the topology file belong together."""

from p2pfed.config import Site
from p2pfed.errors import ConfigurationError, Problem
from p2pfed.keys import Identity, format_public_key
from p2pfed.topology import Topology


def check_membership(site: Site, topology: Topology, identity: Identity) -> None:
    """:raises ConfigurationError: the topology file does not list this name with this key."""
    name = site.file.name
    key = format_public_key(identity.public_key)
    by_key = topology.peer_by_id(identity.peer_id)
    if name not in topology.names:
        remedy = (
            f"this key is listed there as {by_key.name!r}: set name to that"
            if by_key is not None
            else "paste the [[peer]] block that p2pfed init printed into the topology file"
        )
        raise ConfigurationError(
            [Problem(site.path, "name", repr(name), f"no peer of {topology.path}", remedy)]
        )
    if by_key is None or by_key.name != name:
        index = topology.names.index(name)
        raise ConfigurationError(
            [
                Problem(
                    topology.path,
                    f"peer[{index}].key",
                    topology.file.peers[index].key or topology.file.peers[index].peer_id,
                    f"this site, {name}, has another key in {site.keys_directory}",
                    f"write key = {key!r} there, at every site, or restore the old key files",
                )
            ]
        )
