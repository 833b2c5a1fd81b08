"""Which relays a site keeps, and for how long; and when it looks for a direct way."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import trio
from linked_sites import HIGH, LOW, RecordingHandler, make_hello
from linked_sites import running as running_services
from relayed_sites import Triple
from scripted_network import ScriptedNetwork, address_of
from transport_doubles import LOOPBACK, Site, identity, running
from trio.testing import MockClock

from p2pfed.config import SITE_TEMPLATE, load_site
from p2pfed.config import Site as ConfiguredSite
from p2pfed.daemon import relaying
from p2pfed.daemon.addresses import MAX_HINTS, AddressBook
from p2pfed.daemon.links import DIAL_HEAD_START_SECONDS, Links
from p2pfed.daemon.relaying import (
    DIRECT_RETRY_SECONDS,
    LOOK_SECONDS,
    LOST_ATTEMPTS,
    MAX_DIRECT_RETRY_SECONDS,
    RELAYS_HELD,
    RENEW_SECONDS,
    UNLINKED_SECONDS,
    UNLINKED_UNREACHABLE_SECONDS,
    RelayAccess,
    Relaying,
    announced_addresses,
    terms_of,
)
from p2pfed.daemon.transport import ConnectionPath
from p2pfed.errors import TransportError
from p2pfed.protocol.certificates import issue_address_record
from p2pfed.topology.file import circuit_address, relay_of

OWN, BETA, *RELAYS = (identity(number).peer_id for number in range(1, 7))
DIRECT = "/ip4/192.0.2.1/tcp/7400"
OUTSIDE = "/dns/p2pfed.hospital.example/tcp/443"


class Wire:
    """A transport that connects to whom the test allows, and notes what it is asked."""

    def __init__(self) -> None:
        self.paths: dict[str, ConnectionPath] = {}
        self.down: set[str] = set()
        self.dials: list[tuple[float, str, str]] = []
        self.reservations: list[tuple[float, str]] = []
        self.dropped: list[str] = []

    def path(self, peer_id: str) -> ConnectionPath | None:
        return self.paths.get(peer_id)

    async def dial(self, peer_id: str, address: str, timeout_seconds: float) -> None:
        self.dials.append((trio.current_time(), peer_id, address))
        if peer_id in self.down:
            raise TransportError(f"{address}: refused")
        self.paths[peer_id] = ConnectionPath(address, "outbound", trio.current_time())

    async def reserve(self, relay: str, timeout_seconds: float) -> None:
        self.reservations.append((trio.current_time(), relay))
        if relay in self.down:
            raise TransportError("the relay did not answer")

    async def drop(self, peer_id: str, reason: str) -> None:
        self.dropped.append(peer_id)
        self.paths.pop(peer_id, None)


class Setting:
    """A site with one neighbour, beta, and members that offer to relay."""

    def __init__(self, *, reachable: bool = True, offering: int = 3, named: int = 0) -> None:
        self.wire = Wire()
        relays = {peer: (DIRECT, circuit_address(peer)) for peer in RELAYS[:offering]}
        listed = {OWN: tuple(map(circuit_address, RELAYS[:named])), BETA: (), **relays}
        self.book = AddressBook(listed)
        self.unlinked: set[str] = set()
        self.changes: list[tuple[str, ...]] = []
        self.access = RelayAccess(self.wire, self.book, OWN)  # type: ignore[arg-type]
        self.relaying = Relaying(
            self.wire,  # type: ignore[arg-type]
            self.access,
            self.book,
            OWN,
            reachable=reachable,
            neighbours=lambda: [BETA],
            unlinked=lambda: self.unlinked,
            changed=lambda: self.changes.append(self.relaying.held),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.relaying.run)
            yield
            nursery.cancel_scope.cancel()


async def test_a_site_whose_neighbours_are_all_linked_asks_nobody(
    autojump_clock: MockClock,
) -> None:
    setting = Setting()
    async with setting.running():
        await trio.sleep(1000)
    assert setting.wire.dials == setting.wire.reservations == setting.changes == []


@pytest.mark.parametrize(
    ("reachable", "patience_seconds"),
    [(True, UNLINKED_SECONDS), (False, UNLINKED_UNREACHABLE_SECONDS)],
)
async def test_a_neighbour_out_of_reach_has_relays_asked_and_announced(
    reachable: bool, patience_seconds: float, autojump_clock: MockClock
) -> None:
    setting = Setting(reachable=reachable)
    async with setting.running():
        await trio.sleep(100.5)
        setting.unlinked = {BETA}
        await trio.sleep(patience_seconds)
        assert setting.changes == []
        await trio.sleep(2 * LOOK_SECONDS)
        assert setting.changes == [setting.relaying.held]
        assert len(setting.relaying.held) == RELAYS_HELD
        assert setting.book.relays_held == setting.relaying.held
        # Beta may have come to the same relays.
        assert setting.book.addresses(BETA) == tuple(map(circuit_address, setting.relaying.held))


async def test_a_short_absence_is_not_a_wall(autojump_clock: MockClock) -> None:
    setting = Setting()
    async with setting.running():
        for _ in range(10):
            setting.unlinked = {BETA}
            await trio.sleep(UNLINKED_SECONDS - 2 * LOOK_SECONDS)
            setting.unlinked = set()
            await trio.sleep(2 * LOOK_SECONDS)
    assert setting.wire.reservations == []


async def test_relays_that_the_file_names_are_asked_at_once(autojump_clock: MockClock) -> None:
    setting = Setting(named=3)
    async with setting.running():
        await trio.sleep(LOOK_SECONDS / 2)
        assert set(setting.relaying.held) == set(RELAYS[:3])
        setting.unlinked = {BETA}
        await trio.sleep(10 * UNLINKED_SECONDS)
        assert set(setting.relaying.held) == set(RELAYS[:3])


async def test_reservations_are_renewed_and_kept(autojump_clock: MockClock) -> None:
    setting = Setting(named=1)
    async with setting.running():
        await trio.sleep(10 * RENEW_SECONDS + LOOK_SECONDS / 2)
    times = [at for at, _ in setting.wire.reservations]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == [pytest.approx(RENEW_SECONDS, abs=LOOK_SECONDS)] * len(gaps)
    assert len(gaps) >= 9
    assert len(setting.wire.dials) == len(setting.changes) == 1


async def test_a_lost_relay_is_replaced_and_comes_back_when_the_file_names_it(
    autojump_clock: MockClock,
) -> None:
    setting = Setting(named=1)
    (named,) = RELAYS[:1]
    async with setting.running():
        await trio.sleep(LOOK_SECONDS / 2)
        assert setting.relaying.held == (named,)
        setting.wire.down.add(named)
        del setting.wire.paths[named]
        setting.unlinked = {BETA}
        await trio.sleep(2 * UNLINKED_SECONDS)
        assert len(setting.relaying.held) == RELAYS_HELD - 1
        assert named not in setting.relaying.held
        setting.wire.down.clear()
        await trio.sleep(2 * RENEW_SECONDS)
        assert named in setting.relaying.held


async def test_a_relay_that_is_only_slow_once_stays_announced(autojump_clock: MockClock) -> None:
    assert LOST_ATTEMPTS > 1
    setting = Setting(named=1)
    (named,) = RELAYS[:1]
    async with setting.running():
        await trio.sleep(RENEW_SECONDS - LOOK_SECONDS / 2)
        setting.wire.down.add(named)
        await trio.sleep(2 * LOOK_SECONDS)
        assert setting.wire.dropped == [named]
        setting.wire.down.clear()
        await trio.sleep(2 * RENEW_SECONDS)
    assert setting.changes == [(named,)]


async def test_attempts_become_rarer_at_a_relay_that_is_down(autojump_clock: MockClock) -> None:
    setting = Setting(named=1)
    setting.wire.down.update(RELAYS)
    async with setting.running():
        await trio.sleep(600)
    assert 10 < len(setting.wire.dials) < 25
    assert setting.relaying.held == ()
    assert setting.changes == []


async def test_a_direct_way_is_sought_rarely_and_no_longer_once_it_is_there(
    autojump_clock: MockClock,
) -> None:
    setting = Setting()
    setting.book.learn_hint(BETA, DIRECT)
    setting.wire.down.add(BETA)
    setting.wire.paths[BETA] = ConnectionPath(circuit_address(RELAYS[0]), "outbound", 0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setting.access.seek_direct, BETA, lambda _low, high: high)
        await trio.sleep(3 * MAX_DIRECT_RETRY_SECONDS)
        setting.wire.down.clear()
        # The task ends by itself.
    times = [at for at, _, _ in setting.wire.dials]
    assert times[0] == DIRECT_RETRY_SECONDS
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] == 2 * DIRECT_RETRY_SECONDS
    assert max(gaps) == MAX_DIRECT_RETRY_SECONDS
    assert setting.wire.paths[BETA].relay is None


async def test_two_that_want_one_relay_at_once_dial_it_once(autojump_clock: MockClock) -> None:
    setting = Setting()
    relay = RELAYS[0]
    slow = setting.wire.dial
    setting.wire.dials.clear()

    async def dial(peer_id: str, address: str, timeout_seconds: float) -> None:
        if setting.wire.path(peer_id) is None:
            await trio.sleep(1)
            await slow(peer_id, address, timeout_seconds)

    setting.wire.dial = dial  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(setting.access.reach, relay)
    assert len(setting.wire.dials) == 1


async def test_a_peer_that_is_reached_through_this_site_has_to_dial() -> None:
    setting = Setting()
    with pytest.raises(TransportError, match="through this site"):
        await setting.access.dial(BETA, circuit_address(OWN), 1.0)


def test_direct_addresses_come_first_and_a_circuit_is_not_remembered() -> None:
    gamma = RELAYS[0]
    book = AddressBook({BETA: (circuit_address(gamma), DIRECT), gamma: ()})
    book.worked(BETA, circuit_address(gamma))
    assert book.addresses(BETA) == (DIRECT, circuit_address(gamma))
    for number in range(MAX_HINTS):
        book.learn_hint(BETA, f"/ip4/192.0.2.9/tcp/{number + 1}")
    assert [relay_of(address) for address in book.addresses(BETA)][:-1] == [None] * (MAX_HINTS + 1)
    assert book.direct_addresses(BETA) == book.addresses(BETA)[:-1]


def test_a_record_says_who_relays_and_through_whom_its_owner_is_reached() -> None:
    owner, gamma, stranger = LOW, RELAYS[0], RELAYS[3]
    listed = {owner.peer_id: (), gamma: (DIRECT,)}
    addresses = tuple(map(circuit_address, (owner.peer_id, gamma, stranger)))
    book, without = AddressBook(listed), AddressBook(listed, use_relays=False)
    for each in (book, without):
        each.learn_record(issue_address_record(owner, 1, addresses))
    assert book.relays() == [owner.peer_id]
    # Neither itself nor somebody who is no member.
    assert book.addresses(owner.peer_id) == (circuit_address(gamma),)
    assert without.addresses(owner.peer_id) == ()


def test_what_is_announced_follows_from_the_site_file(tmp_path: Path) -> None:
    listening = ("/ip4/0.0.0.0/tcp/7400", DIRECT)
    relays = [circuit_address(RELAYS[0])]
    for tables, expected in (
        ("", [*relays, DIRECT]),
        ("[relay]\nenabled = true", [*relays, circuit_address(OWN), DIRECT]),
        ("[listen]\nreachable = false", relays),
        (f"[listen]\nannounce = ['{OUTSIDE}']", [*relays, OUTSIDE]),
    ):
        site = site_with(tmp_path, tables)
        assert list(announced_addresses(site, OWN, listening, RELAYS[:1])) == expected


def test_the_terms_are_those_of_the_site_file(tmp_path: Path) -> None:
    site = site_with(
        tmp_path,
        "[relay]\ncircuits = 3\nmegabytes_per_second = 1.5\ncircuit_megabytes = 7\n"
        "circuit_hours = 0.5",
    )
    terms = terms_of(site.file.relay)
    assert (terms.circuits, terms.bytes_per_second) == (3, 1_500_000.0)
    assert (terms.circuit_bytes, terms.circuit_seconds) == (7_000_000, 1800)


def test_the_template_of_a_site_file_relays_for_nobody(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(SITE_TEMPLATE.format(name="alpha"))
    site = load_site(path)
    assert not site.file.relay.enabled
    assert site.file.relay.use
    assert site.reachable
    assert not site_with(tmp_path, "[listen]\naddresses = []").reachable


def site_with(directory: Path, tables: str) -> ConfiguredSite:
    path = directory / "site.toml"
    path.write_text(f"schema_version = 1\nname = 'alpha'\n{tables}\n")
    return load_site(path)


class LinkedSite:
    """Links over a real transport."""

    def __init__(self, site: Site, other: Site, relay: Site) -> None:
        self.handler = RecordingHandler(make_hello(site.identity))
        self.book = AddressBook({site.peer_id: (), other.peer_id: (), relay.peer_id: ()})
        self.links = Links(site.transport, site.peer_id, self.book, self.handler, Random(4711))
        self.links.set_neighbours({other.peer_id: "other"})


@pytest.mark.parametrize("reachable", [True, False])
async def test_who_cannot_be_dialled_does_not_wait_to_be(
    reachable: bool, autojump_clock: MockClock
) -> None:
    network = ScriptedNetwork()
    start = trio.current_time()
    high, low = network.transport(HIGH.peer_id), network.transport(LOW.peer_id)
    for transport in (high, low):
        transport.set_roster([HIGH.peer_id, LOW.peer_id])
    book = AddressBook({LOW.peer_id: (address_of(LOW.peer_id),), HIGH.peer_id: ()})
    links = Links(
        high,
        HIGH.peer_id,
        book,
        RecordingHandler(make_hello(HIGH)),
        Random(4711),
        reachable=reachable,
    )
    links.set_neighbours({LOW.peer_id: "low"})
    async with running_services(low.run, high.run, links.run):
        await trio.sleep(2 * DIAL_HEAD_START_SECONDS)
    waited_seconds = network.dials[0][0] - start
    assert waited_seconds == (pytest.approx(DIAL_HEAD_START_SECONDS) if reachable else 0.0)


async def test_a_link_moves_to_a_direct_way_once_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relaying, "DIRECT_RETRY_SECONDS", 0.2)
    triple = Triple()
    triple.beta = Site(2, listen=LOOPBACK)
    sites = alpha, beta, gamma = (triple.alpha, triple.beta, triple.gamma)
    async with running(*sites), trio.open_nursery() as nursery:
        await triple.reserve(beta)
        await alpha.dial(gamma)
        ends = LinkedSite(alpha, beta, gamma), LinkedSite(beta, alpha, gamma)
        for end in ends:
            end.book.relays_held = (gamma.peer_id,)
            await nursery.start(end.links.run)
        for end, other in zip(ends, (beta, alpha), strict=True):
            await end.handler.until(lambda end=end: len(end.handler.up) == 1)
            state = end.links.state(other.peer_id)
            assert state is not None
            assert relay_of(state.address or "") == gamma.peer_id
        ends[0].book.learn_hint(beta.peer_id, beta.address)  # the firewall was opened
        for end, other in zip(ends, (beta, alpha), strict=True):
            await end.handler.until(lambda end=end: len(end.handler.up) == 2)
            state = end.links.state(other.peer_id)
            assert state is not None
            assert relay_of(state.address or "") is None
            assert len(end.handler.down) == 1
            assert await end.links.ping(other.peer_id, 5.0) < 5.0
        # The relayed connection and the direct one, which nothing of the former's end hit.
        assert alpha.recorder.count("connected", beta.peer_id) == 2
        assert beta.recorder.count("connected", alpha.peer_id) == 2
        nursery.cancel_scope.cancel()


async def test_two_sites_meet_through_a_member_that_is_no_neighbour_of_theirs() -> None:
    """From the topology file alone: before the first link no record can reach them."""
    triple = Triple()
    alpha, beta, gamma = triple.sites
    async with running(*triple.sites), trio.open_nursery() as nursery:
        ends = LinkedSite(alpha, beta, gamma), LinkedSite(beta, alpha, gamma)
        for end, site, other in zip(ends, (alpha, beta), (beta, alpha), strict=True):
            end.book.set_listed(
                {
                    alpha.peer_id: (),
                    beta.peer_id: (),
                    gamma.peer_id: (gamma.address, triple.address),
                }
            )
            await nursery.start(end.links.run)
            choice = Relaying(
                site.transport,
                end.links.relays,
                end.book,
                site.peer_id,
                reachable=False,
                neighbours=lambda other=other: [other.peer_id],
                unlinked=end.links.unlinked,
                changed=end.links.nudge_all,
            )
            nursery.start_soon(choice.run)
        for end, other in zip(ends, (beta, alpha), strict=True):
            await end.handler.until(lambda end=end: bool(end.handler.up))
            state = end.links.state(other.peer_id)
            assert state is not None
            assert relay_of(state.address or "") == gamma.peer_id
        nursery.cancel_scope.cancel()
