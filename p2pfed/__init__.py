"""p2pfed: hospitals train one model together, peer to peer."""

__version__ = "0.1.0"
