"""What of the network works from this machine, and what its firewall has to let through.

Two ways to ask: of a running daemon, whose links say what they reach, and alone, with this
site's key and files, while no daemon runs. Both try every known address with a TCP connection
that says nothing; whether the right site answers there is for the Noise handshake to tell.
"""

import errno
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import trio

from p2pfed.config import Site
from p2pfed.daemon.addresses import AddressBook
from p2pfed.daemon.links import DIAL_TIMEOUT_SECONDS, Links
from p2pfed.daemon.relaying import RelayAccess
from p2pfed.daemon.status import shown_path
from p2pfed.daemon.transport import (
    ANOTHER_KEY,
    ConnectionObserver,
    ConnectionPath,
    Direction,
    Transport,
)
from p2pfed.errors import TransportError
from p2pfed.topology import Topology
from p2pfed.topology.file import check_address, relay_of

REPORT_SCHEMA_VERSION = 1
PROBE_TIMEOUT_SECONDS = 5.0
FAMILIES = {
    "ip4": socket.AF_INET,
    "dns4": socket.AF_INET,
    "ip6": socket.AF_INET6,
    "dns6": socket.AF_INET6,
    "dns": socket.AF_UNSPEC,
}

Outcome = Literal["open", "refused", "timed out", "no route", "unknown name", "failed"]
Identity = Literal["proven", "another key", "not checked"]
CanDialUs = Literal["yes", "unknown"]


@dataclass(frozen=True, slots=True)
class AddressCheck:
    """A direct address, and what a TCP connection to it came to.

    :ivar seconds: until the outcome; of an open one, about a round trip.
    """

    address: str
    outcome: Outcome
    detail: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ListenCheck:
    """An address of this site's own: bound by the daemon, free, or taken by another program."""

    address: str
    state: Literal["bound", "free", "taken"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NeighbourCheck:
    """One neighbour.

    :ivar path: in use, as a person reads it; None where there is none.
    :ivar can_dial_us: yes where it does; otherwise only that site can tell.
    :ivar detail: why it is not reached.
    """

    name: str
    peer_id: str
    reachable: bool
    path: str | None
    relay: str | None
    round_trip_seconds: float | None
    identity: Identity
    can_dial_us: CanDialUs
    addresses: list[AddressCheck]
    relays: list[str]
    detail: str | None
    advice: list[str]


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. ``relays``: the members that take connections for this site now."""

    site: str
    daemon_running: bool
    listen: list[ListenCheck]
    relays: list[str]
    neighbours: list[NeighbourCheck] = field(default_factory=list)
    schema_version: int = REPORT_SCHEMA_VERSION

    @property
    def ok(self) -> bool:
        return all(neighbour.reachable for neighbour in self.neighbours)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Report":
        """Read what ``to_json`` wrote."""
        values = dict(document)
        values["listen"] = [ListenCheck(**each) for each in values["listen"]]
        values["neighbours"] = [
            NeighbourCheck(
                **{**each, "addresses": [AddressCheck(**item) for item in each["addresses"]]}
            )
            for each in values["neighbours"]
        ]
        return cls(**values)


async def probe(address: str, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> AddressCheck:
    """Open a TCP connection to a multiaddr, and close it at once."""
    started_at = trio.current_time()
    try:
        with trio.fail_after(timeout_seconds):
            outcome, detail = await _connect(check_address(address))
    except trio.TooSlowError:
        outcome, detail = "timed out", f"no answer within {timeout_seconds:g} s"
    except ValueError as error:
        outcome, detail = "failed", str(error)
    return AddressCheck(address, outcome, detail, round(trio.current_time() - started_at, 4))


async def _connect(address: str) -> tuple[Outcome, str]:
    _, kind, host, _, port = address.split("/")
    try:
        found = await trio.socket.getaddrinfo(
            host, int(port), FAMILIES[kind], trio.socket.SOCK_STREAM
        )
    except (socket.gaierror, UnicodeError) as error:
        return "unknown name", f"{host} has no address here: {error}"
    outcome: tuple[Outcome, str] = ("failed", "no address")
    for family, type_, protocol, _, target in found:
        try:
            with trio.socket.socket(family, type_, protocol) as connection:
                await connection.connect(target)
        except ConnectionRefusedError:
            outcome = ("refused", "the machine refuses the port")
        except OSError as error:
            unreachable = error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
            outcome = ("no route" if unreachable else "failed", error.strerror or str(error))
        else:
            return "open", "the port is open"
    return outcome


async def _probe_all(addresses: Sequence[str]) -> list[AddressCheck]:
    found: dict[str, AddressCheck] = {}

    async def one(address: str) -> None:
        found[address] = await probe(address)

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(one, address)
    return [found[address] for address in addresses]


class _Examination:
    """What both ways of asking have in common."""

    def __init__(
        self,
        site: Site,
        topology: Topology,
        book: AddressBook,
        transport: Transport,
        own_peer_id: str,
    ) -> None:
        self.site = site
        self.book = book
        self.transport = transport
        self._topology = topology
        self._own_peer_id = own_peer_id
        self._ports = [address.rsplit("/", 1)[1] for address in site.file.listen.addresses]

    @property
    def neighbours(self) -> Mapping[str, str]:
        """Name to peer id."""
        names = self._topology.all_neighbours(self.site.file.name)
        return {name: self._topology.peer(name).peer_id_text for name in names}

    def name_of(self, peer_id: str) -> str:
        peer = self._topology.peer_by_id(peer_id)
        return peer.name if peer is not None else peer_id

    def describe(
        self,
        name: str,
        addresses: list[AddressCheck],
        round_trip_seconds: float | None,
        detail: str | None,
    ) -> NeighbourCheck:
        peer_id = self.neighbours[name]
        path = self.transport.path(peer_id)
        relays = [r for r in map(relay_of, self.book.addresses(peer_id)) if r is not None]
        relay = self.name_of(path.relay) if path and path.relay else None
        identity: Identity = "proven" if path else "not checked"
        if path is None and detail is not None and ANOTHER_KEY in detail:
            identity = "another key"
        dials_us = path is not None and path.relay is None and path.direction == "inbound"
        return NeighbourCheck(
            name=name,
            peer_id=peer_id,
            reachable=path is not None,
            path=shown_path(path.address, path.direction, relay) if path else None,
            relay=relay,
            round_trip_seconds=round_trip_seconds if path else None,
            identity=identity,
            can_dial_us="yes" if dials_us else "unknown",
            addresses=addresses,
            relays=[self.name_of(r) for r in relays if r != self._own_peer_id],
            detail=None if path else detail,
            advice=self._advice(name, path, addresses, identity),
        )

    def _advice(
        self,
        name: str,
        path: ConnectionPath | None,
        addresses: Sequence[AddressCheck],
        identity: Identity,
    ) -> list[str]:
        if path is not None and path.relay is None:
            return []
        advice = [_advice_of(name, each, identity, self._inbound(name)) for each in addresses]
        if not addresses:
            advice.append(f"{name} gives no address, so it has to dial this site: {self._open()}")
        if path is not None:
            return [f"works through {self.name_of(path.relay or '')}; for a direct way: {line}"
                    for line in advice]  # fmt: skip
        if not self.site.reachable and not addresses:
            advice.append(
                f"as nobody can dial this site either, {name} and this site need a member that "
                "relays ([relay] enabled = true in its site file)"
            )
        return advice

    def _open(self) -> str:
        if not self._ports:
            return "set listen.addresses in the site file and open that TCP port inbound"
        return f"open inbound TCP {', '.join(self._ports)} here"

    def _inbound(self, name: str) -> str:
        if not self._ports:
            return f"or have {name} dial this site ({self._open()})"
        return f"or inbound TCP {', '.join(self._ports)} here from {name}"


def _advice_of(name: str, check: AddressCheck, identity: Identity, inbound: str) -> str:
    """What to do about one address at which a neighbour is not reached directly."""
    parts = check.address.split("/")
    place = f"{parts[2]}:{parts[4]}" if len(parts) == 5 else check.address
    match check.outcome:
        case "open" if identity == "another key":
            return (
                f"something else answers at {place}, a proxy or another site; compare the address "
                f"and the key of {name} in the topology file with what p2pfed init printed there"
            )
        case "open":
            return (
                f"{place} is open, but no session with {name} came about: see p2pfed status, and "
                "that no firewall inspects or rewrites the connection"
            )
        case "refused":
            return (
                f"{place} refuses: ask {name} whether its daemon runs and which port it listens "
                f"on; some firewalls refuse as well: allow outbound TCP {place}, {inbound}"
            )
        case "unknown name":
            return (
                f"the name {parts[2]} means nothing here: mend this machine's DNS, or ask {name} "
                "for an IP address"
            )
        case _:
            return f"open outbound TCP {place} to {name}, {inbound}; one of the two is enough"


async def check_running(
    site: Site,
    topology: Topology,
    own_peer_id: str,
    *,
    links: Links,
    transport: Transport,
    book: AddressBook,
    relays_held: Sequence[str],
) -> Report:
    """Ask the links of a running daemon; those that are down are tried again meanwhile."""
    examination = _Examination(site, topology, book, transport, own_peer_id)
    links.nudge_all()
    found: dict[str, NeighbourCheck] = {}

    async def one(name: str, peer_id: str) -> None:
        addresses = await _probe_all(book.direct_addresses(peer_id))
        state = links.state(peer_id)
        found[name] = examination.describe(
            name,
            addresses,
            state.round_trip_seconds if state else None,
            (state.refusal or state.last_error) if state else None,
        )

    await _each_neighbour(examination, one)
    return Report(
        site=site.file.name,
        daemon_running=True,
        listen=[ListenCheck(address, "bound") for address in transport.listen_addresses],
        relays=[examination.name_of(relay) for relay in relays_held],
        neighbours=[found[name] for name in examination.neighbours],
    )


async def _each_neighbour(examination: _Examination, check: Callable[[str, str], Any]) -> None:
    async with trio.open_nursery() as nursery:
        for name, peer_id in examination.neighbours.items():
            nursery.start_soon(check, name, peer_id)


class _Nobody(ConnectionObserver):
    """Whom a transport reports to that lives for one examination."""

    def connected(self, peer_id: str, address: str, direction: Direction) -> None: ...

    def disconnected(self, peer_id: str, reason: str) -> None: ...

    def refused(self, peer_id: str | None, address: str | None, reason: str) -> None: ...


async def check_alone(site: Site, topology: Topology, seed: bytes, own_peer_id: str) -> Report:
    """Dial every neighbour with this site's own key. Only while its daemon does not run: its
    neighbours would take this for the daemon.

    :param seed: the 32-byte Ed25519 seed of the site's identity.
    """
    # Imported late: libp2p costs seconds, and the other way of asking does without.
    from p2pfed.daemon.libp2p_transport import Libp2pTransport  # noqa: PLC0415

    transport = Libp2pTransport(seed, (), _Nobody())
    members = {peer.peer_id_text: peer.addresses for peer in topology.file.peers}
    transport.set_roster(set(members) - {own_peer_id})
    book = AddressBook(members, use_relays=site.file.relay.use)
    examination = _Examination(site, topology, book, transport, own_peer_id)
    access = RelayAccess(transport, book, own_peer_id)
    found: dict[str, NeighbourCheck] = {}

    async def one(name: str, peer_id: str) -> None:
        addresses = await _probe_all(book.direct_addresses(peer_id))
        closed = {each.address for each in addresses if each.outcome != "open"}
        detail = addresses[-1].detail if addresses else "no address is known"
        for address in book.addresses(peer_id):
            if address in closed:
                continue
            try:
                await access.dial(peer_id, address, DIAL_TIMEOUT_SECONDS)
                break
            except TransportError as error:
                detail = str(error)
        path = transport.path(peer_id)
        took = {each.address: each.seconds for each in addresses}
        found[name] = examination.describe(
            name, addresses, took.get(path.address) if path else None, detail
        )

    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        await _each_neighbour(examination, one)
        nursery.cancel_scope.cancel()
    return Report(
        site=site.file.name,
        daemon_running=False,
        listen=[_own_port(address) for address in site.file.listen.addresses],
        relays=[],
        neighbours=[found[name] for name in examination.neighbours],
    )


def _own_port(address: str) -> ListenCheck:
    from p2pfed.daemon.libp2p_transport import check_free  # noqa: PLC0415 - as above

    try:
        check_free(address)
    except TransportError as error:
        return ListenCheck(address, "taken", str(error))
    return ListenCheck(address, "free", "no daemon runs; nothing answers here")
