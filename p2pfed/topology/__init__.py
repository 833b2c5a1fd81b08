"""The topology file: who takes part, who talks to whom, and the federation's settings."""

from p2pfed.topology.file import Peer, TopologyFile
from p2pfed.topology.topology import Topology, load_topology, parse_topology

__all__ = ["Peer", "Topology", "TopologyFile", "load_topology", "parse_topology"]
