"""Through whom a site is reached that nobody can dial: which members relay for it, and that it
stays connected to them.

A member that relays says so by its own circuit address, in the topology file or in its signed
record; a site that a relay took says so by the relay's. Both travel as addresses do.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import structlog
import trio

from p2pfed import config
from p2pfed.daemon.addresses import AddressBook
from p2pfed.daemon.transport import RelayTerms, Transport
from p2pfed.errors import TransportError
from p2pfed.protocol import limits
from p2pfed.topology.file import circuit_address, relay_of

log = structlog.get_logger(__name__)

DIRECT_DIAL_TIMEOUT_SECONDS = 15.0
DIRECT_RETRY_SECONDS = 60.0  # beside a connection through a relay
MAX_DIRECT_RETRY_SECONDS = 1800.0
RESERVE_TIMEOUT_SECONDS = 30.0  # opening a stream beside a bulk transfer can take 9 s
RENEW_SECONDS = 60.0  # a reservation lasts ten minutes; it also shows that the relay is alive
LOOK_SECONDS = 1.0  # between two looks at what is needed
MAX_RETRY_SECONDS = 60.0
LOST_ATTEMPTS = 3  # in a row, after which a relay is no longer announced
RELAYS_HELD = 2  # at the same time; one may go down
UNLINKED_SECONDS = 20.0  # a neighbour is unreached for so long before a relay is asked for
UNLINKED_UNREACHABLE_SECONDS = 2.0  # the same where nobody can dial this site
WILDCARD_HOSTS = ("/ip4/0.0.0.0/", "/ip6/::/")
MEGABYTE_BYTES = 10**6
HOUR_SECONDS = 3600


def terms_of(relay: config.Relay) -> RelayTerms:
    """What a site file allows to those it relays for."""
    return RelayTerms(
        circuits=relay.circuits,
        circuit_bytes=relay.circuit_megabytes * MEGABYTE_BYTES,
        circuit_seconds=round(relay.circuit_hours * HOUR_SECONDS),
        bytes_per_second=relay.megabytes_per_second * MEGABYTE_BYTES,
    )


def announced_addresses(
    site: config.Site, own_peer_id: str, listening: Sequence[str], relays: Sequence[str]
) -> tuple[str, ...]:
    """What a site tells others to dial: through whom it is reached, and its direct addresses;
    wildcards say nothing to others. Its own circuit address says that it relays."""
    circuits = [*relays, own_peer_id] if site.file.relay.enabled else relays
    direct: Sequence[str] = ()
    if site.reachable:
        direct = site.file.listen.announce or [
            address for address in listening if not address.startswith(WILDCARD_HOSTS)
        ]
    return (*map(circuit_address, circuits), *direct)[: limits.MAX_ADDRESSES]


class RelayAccess:
    """Dials peers at any of their addresses, through relays as well; each peer once at a time,
    because two dials that both succeed would end each other's connections."""

    def __init__(self, transport: Transport, book: AddressBook, own_peer_id: str) -> None:
        self._transport = transport
        self._book = book
        self._own_peer_id = own_peer_id
        self._dialling: dict[str, trio.Lock] = {}

    def is_up(self, relay: str) -> bool:
        path = self._transport.path(relay)
        return path is not None and path.relay is None

    async def dial(self, peer_id: str, address: str, timeout_seconds: float) -> None:
        """As ``Transport.dial``; the relay of a circuit address is connected first."""
        relay = relay_of(address)
        if relay == self._own_peer_id:
            raise TransportError("it is reached through this site, to which it has to connect")
        if relay is not None:
            await self.reach(relay)
        async with self._dialling.setdefault(peer_id, trio.Lock()):
            await self._transport.dial(peer_id, address, timeout_seconds)
        self._book.worked(peer_id, address)

    async def dial_directly(self, peer_id: str) -> None:
        """:raises TransportError: no direct address leads there."""
        failure = "no address is known"
        for address in self._book.direct_addresses(peer_id):
            try:
                await self.dial(peer_id, address, DIRECT_DIAL_TIMEOUT_SECONDS)
            except TransportError as error:
                failure = str(error)
            else:
                return
        raise TransportError(failure)

    async def reach(self, relay: str) -> None:
        """Connect directly to a relay, unless it is.

        :raises TransportError: it cannot be reached.
        """
        if not self.is_up(relay):
            try:
                await self.dial_directly(relay)
            except TransportError as error:
                raise TransportError(f"the relay cannot be reached: {error}") from error

    async def seek_direct(self, peer_id: str, draw: Callable[[float, float], float]) -> None:
        """Beside a connection through a relay, try now and then whether there is a direct way;
        return once there is one, or the connection is gone.

        :param draw: gives a pause between two bounds, in seconds.
        """
        pause_seconds = DIRECT_RETRY_SECONDS
        while (path := self._transport.path(peer_id)) is not None and path.relay is not None:
            await trio.sleep(draw(pause_seconds / 2, pause_seconds))
            pause_seconds = min(2 * pause_seconds, MAX_DIRECT_RETRY_SECONDS)
            try:
                await self.dial_directly(peer_id)
            except TransportError as error:
                log.debug("still relayed", peer=peer_id, reason=str(error))


@dataclass
class _Reservation:
    held: bool = False
    failures: int = 0
    next_at_seconds: float = 0.0


class Relaying:
    """Keeps reservations while a neighbour can be reached no other way.

    Once asked for they are kept: the next failure of the link would need them again.

    :param neighbours: whose connections are watched over by their links.
    :param unlinked: those without a link now.
    :param changed: called after every change of ``held``.
    """

    def __init__(
        self,
        transport: Transport,
        access: RelayAccess,
        book: AddressBook,
        own_peer_id: str,
        *,
        reachable: bool,
        neighbours: Callable[[], Collection[str]],
        unlinked: Callable[[], Collection[str]],
        changed: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._access = access
        self._book = book
        self._own_peer_id = own_peer_id
        self._patience_seconds = UNLINKED_SECONDS if reachable else UNLINKED_UNREACHABLE_SECONDS
        self._neighbours = neighbours
        self._unlinked = unlinked
        self._changed = changed
        self._unlinked_since_seconds: dict[str, float] = {}
        self._needed = False
        self._reservations: dict[str, _Reservation] = {}

    @property
    def held(self) -> tuple[str, ...]:
        """The relays that take circuits for this site now."""
        return tuple(sorted(peer for peer, each in self._reservations.items() if each.held))

    async def run(self) -> None:
        while True:
            wanted = self._wanted()
            before = self.held
            for relay in set(self._reservations) - set(wanted):
                del self._reservations[relay]
            async with trio.open_nursery() as nursery:
                for relay in wanted:
                    reservation = self._reservations.setdefault(relay, _Reservation())
                    if self._is_due(relay, reservation):
                        nursery.start_soon(self._ask, relay, reservation)
            if self.held != before:
                self._book.relays_held = self.held
                self._changed()
            await trio.sleep(LOOK_SECONDS)

    def _wanted(self) -> list[str]:
        """The relays that the topology file names for this site; then, where a neighbour is out
        of reach, as many of those that offer it as are missing."""
        named = self._book.listed_relays(self._own_peer_id)
        self._needed = self._needed or self._misses_a_neighbour()
        if not self._needed:
            return named
        others = [r for r in self._book.relays() if r != self._own_peer_id and r not in named]
        others.sort(key=lambda r: (r not in self.held, not self._access.is_up(r), r))
        return named + others[: max(0, RELAYS_HELD - len(named))]

    def _misses_a_neighbour(self) -> bool:
        now, known = trio.current_time(), self._unlinked_since_seconds
        self._unlinked_since_seconds = {peer: known.get(peer, now) for peer in self._unlinked()}
        return any(
            now - since >= self._patience_seconds for since in self._unlinked_since_seconds.values()
        )

    def _is_due(self, relay: str, reservation: _Reservation) -> bool:
        lost = reservation.held and not reservation.failures and not self._access.is_up(relay)
        return lost or trio.current_time() >= reservation.next_at_seconds

    async def _ask(self, relay: str, reservation: _Reservation) -> None:
        try:
            await self._access.reach(relay)
            await self._transport.reserve(relay, RESERVE_TIMEOUT_SECONDS)
        except TransportError as error:
            reservation.failures += 1
            pause_seconds = min(LOOK_SECONDS * 2**reservation.failures, MAX_RETRY_SECONDS)
            if reservation.held and reservation.failures >= LOST_ATTEMPTS:
                log.warning("relay lost", relay=relay, reason=str(error))
                reservation.held = False
            if relay not in self._neighbours():
                # Nothing else watches over a connection that only the relay is for.
                await self._transport.drop(relay, "it did not renew the reservation")
        else:
            if not reservation.held:
                log.info("reached through a relay", relay=relay)
            reservation.held, reservation.failures = True, 0
            pause_seconds = RENEW_SECONDS
        reservation.next_at_seconds = trio.current_time() + pause_seconds
