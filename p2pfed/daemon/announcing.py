"""This site's own addresses: signed anew whenever they change, and told to who is linked."""

import time
from collections.abc import Callable, Iterable

from p2pfed.config import Site
from p2pfed.daemon.links import Links
from p2pfed.daemon.membership import Membership
from p2pfed.daemon.relaying import Relaying, announced_addresses
from p2pfed.daemon.transport import Transport
from p2pfed.keys import Identity
from p2pfed.protocol.certificates import issue_address_record
from p2pfed.protocol.messages import AddressRecordNotice


class Announcing:
    """One daemon's address records.

    :param neighbours: the peer ids of the neighbours of now.
    """

    def __init__(
        self, site: Site, identity: Identity, neighbours: Callable[[], Iterable[str]]
    ) -> None:
        self._site = site
        self._identity = identity
        self._neighbours = neighbours
        self._sequence = 0
        self._transport: Transport
        self._relaying: Relaying
        self._membership: Membership
        self._links: Links

    def connect(
        self, transport: Transport, relaying: Relaying, membership: Membership, links: Links
    ) -> None:
        """Give it the parts that it needs before the first announcement, and that need it."""
        self._transport = transport
        self._relaying = relaying
        self._membership = membership
        self._links = links

    def announce(self) -> None:
        """Sign the addresses that others should dial, and tell those who are linked."""
        self._sequence = max(self._sequence + 1, int(time.time()))
        addresses = announced_addresses(
            self._site,
            self._identity.peer_id,
            self._transport.listen_addresses,
            self._relaying.held,
        )
        record = issue_address_record(self._identity, self._sequence, addresses)
        self._membership.announce(record)
        for peer_id in self._neighbours():
            self._links.post(peer_id, AddressRecordNotice(record))

    def outbid(self, sequence: int) -> None:
        """Sign the addresses anew where a record of an earlier life of this site would hide them
        from everybody: the clock that numbered it was ahead."""
        if sequence > self._sequence:
            self._sequence = sequence
            self.announce()

    def relays_changed(self) -> None:
        self.announce()
        for peer_id in self._links.unlinked():
            self._links.nudge(peer_id)
