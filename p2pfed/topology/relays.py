"""Whose delta headers a site passes on, so that a sender that tells two neighbours two things
is found out, at a cost that does not grow with the federation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pfed.protocol import limits

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True)
class Relays:
    """``senders`` of each site: those within ``hops`` of it. Two headers that a site sends to
    two neighbours meet where these are joined, without it, by at most twice as many hops."""

    hops: int
    senders: Mapping[str, frozenset[str]]


def header_relays(links: "nx.Graph") -> Relays:
    """Who relays whose headers: the number of hops is the same for all sites, and the largest
    at which none relays those of more than ``RELAYED_SITES``, but 1 at least.

    In a federation of up to one more than that, everybody's headers reach everybody.

    :param links: which sites keep a link, in any round; connected.
    """
    hops, reached = 1, {site: frozenset(links[site]) for site in links}
    while True:
        wider = {
            site: frozenset().union(*(reached[near] for near in links[site])) | reached[site]
            for site in links
        }
        wider = {site: senders - {site} for site, senders in wider.items()}
        largest = max(map(len, wider.values()))
        if wider == reached or largest > limits.RELAYED_SITES:
            return Relays(hops, reached)
        hops, reached = hops + 1, wider
