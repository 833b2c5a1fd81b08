"""Where members can be dialled: the topology file, what they sign about themselves, and hints
from the local network. The file is the operator's word; the rest can only add to it."""

from collections.abc import Iterable, Mapping

from p2pfed.keys import peer_id_from_public_key
from p2pfed.protocol import limits
from p2pfed.protocol.certificates import AddressRecord, parse_address_record
from p2pfed.topology.file import circuit_address, relay_of

MAX_HINTS = 4  # addresses a peer has been seen at on the local network


class AddressBook:
    """Every member's addresses.

    :param listed: peer id to the addresses that the topology file gives.
    :param use_relays: False: nobody is dialled through a relay.
    :ivar relays_held: relays that take circuits for this site; where a neighbour's are not
        known, it may have come to the same ones.
    """

    def __init__(self, listed: Mapping[str, tuple[str, ...]], *, use_relays: bool = True) -> None:
        self._listed = dict(listed)
        self._use_relays = use_relays
        self.relays_held: tuple[str, ...] = ()
        self._records: dict[str, tuple[AddressRecord, bytes]] = {}
        self._hints: dict[str, list[str]] = {}
        self._good: dict[str, str] = {}

    def set_listed(self, listed: Mapping[str, tuple[str, ...]]) -> None:
        """Take the addresses of a reloaded topology file; who is no member is forgotten."""
        self._listed = dict(listed)
        for known in (self._records, self._hints, self._good):
            for peer_id in set(known) - set(listed):
                del known[peer_id]

    def learn_record(self, record: bytes) -> str | None:
        """Take a member's signed addresses.

        :returns: the peer id if it was news, which is then worth passing on, else None.
        :raises RemoteProtocolError: malformed, or not signed by its owner.
        """
        parsed = parse_address_record(record)
        peer_id = peer_id_from_public_key(parsed.owner)
        if peer_id not in self._listed:
            return None
        known = self._records.get(peer_id)
        if known is not None and known[0].sequence >= parsed.sequence:
            return None
        self._records[peer_id] = (parsed, record)
        return peer_id

    def newest_sequence(self, peer_id: str) -> int:
        """The number of a member's newest signed addresses; -1 where none are known."""
        known = self._records.get(peer_id)
        return known[0].sequence if known is not None else -1

    def learn_hint(self, peer_id: str, address: str) -> bool:
        """Take an address seen on the local network; True if it was news of a member."""
        hints = self._hints.setdefault(peer_id, []) if peer_id in self._listed else None
        if hints is None or address in hints:
            return False
        hints.insert(0, address)
        del hints[MAX_HINTS:]
        return True

    def worked(self, peer_id: str, address: str) -> None:
        """Remember a direct address; a relay is only for as long as there is none."""
        if relay_of(address) is None:
            self._good[peer_id] = address

    def addresses(self, peer_id: str) -> tuple[str, ...]:
        """What to try, in this order: the direct addresses, then those through relays."""
        return (*self.direct_addresses(peer_id), *self._circuits(peer_id))

    def direct_addresses(self, peer_id: str) -> tuple[str, ...]:
        """In this order: the last that worked, the file's, signed, hints."""
        good = self._good.get(peer_id)
        candidates: Iterable[str] = (
            *([good] if good else []),
            *self._stated(peer_id),
            *self._hints.get(peer_id, ()),
        )
        direct = (address for address in candidates if relay_of(address) is None)
        return tuple(dict.fromkeys(direct))[: 2 * limits.MAX_ADDRESSES]

    def _circuits(self, peer_id: str) -> tuple[str, ...]:
        if not self._use_relays:
            return ()
        relays = self.named_relays(peer_id) or self.relays_held
        return tuple(circuit_address(relay) for relay in relays if relay != peer_id)

    def named_relays(self, peer_id: str) -> list[str]:
        """The members through whom the file, or its own record, says that a peer is reached."""
        return self._relays_in(self._stated(peer_id), peer_id)

    def listed_relays(self, peer_id: str) -> list[str]:
        """As ``named_relays``, by the file alone."""
        return self._relays_in(self._listed.get(peer_id, ()), peer_id)

    def _relays_in(self, addresses: Iterable[str], peer_id: str) -> list[str]:
        found = dict.fromkeys(map(relay_of, addresses))
        return [r for r in found if r is not None and r != peer_id and r in self._listed]

    def relays(self) -> list[str]:
        """The members that relay, as the file or they themselves say."""
        return [peer for peer in self._listed if circuit_address(peer) in self._stated(peer)]

    def _stated(self, peer_id: str) -> tuple[str, ...]:
        record = self._records.get(peer_id)
        return (*self._listed.get(peer_id, ()), *(record[0].addresses if record else ()))

    def records(self) -> list[bytes]:
        """Every member's newest signed record, to be passed on to a new neighbour."""
        return [record for _, record in self._records.values()]
