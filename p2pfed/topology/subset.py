"""The same federation with fewer sites."""

from collections.abc import Collection

from p2pfed.topology.topology import Topology, parse_topology


def topology_of(topology: Topology, names: Collection[str]) -> Topology:
    """The topology file with only the peers in ``names``: explicit edges of the others go with
    them, a generator draws its graph over those that stay.

    :raises ConfigurationError: nothing sound is left.
    """
    if set(names) == set(topology.names):
        return topology
    document = topology.file.model_dump(mode="json", by_alias=True, exclude_none=True)
    document["peer"] = [peer for peer in document["peer"] if peer["name"] in names]
    if "edges" in document["graph"]:
        document["graph"]["edges"] = [
            edge for edge in document["graph"]["edges"] if set(edge) <= set(names)
        ]
    return parse_topology(document, topology.path)
