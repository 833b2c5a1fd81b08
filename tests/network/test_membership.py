"""Who a daemon takes for a member, and what it makes of what members say."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import topology_documents
from wire_samples import sample_header

from p2pfed.daemon.addresses import AddressBook
from p2pfed.daemon.links import Links
from p2pfed.daemon.membership import Membership
from p2pfed.daemon.probing import Probing
from p2pfed.daemon.runtime import Runtime
from p2pfed.errors import RemoteProtocolError
from p2pfed.keys import Identity
from p2pfed.protocol import events as on
from p2pfed.protocol.certificates import issue_address_record, issue_certificate
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.header import Kind, SignedHeader, sign_header
from p2pfed.protocol.messages import (
    AddressRecordNotice,
    EquivocationProof,
    HeaderNotice,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Message,
    ProbeReport,
    ProbeRequest,
    Receipt,
    RefusalCode,
    Want,
)
from p2pfed.protocol.neighbours import NEVER_PUBLISHED
from p2pfed.protocol.own_state import OwnState
from p2pfed.protocol.rounds import RoundEngine
from p2pfed.topology import Topology
from p2pfed.topology.plan import peer_ids_of, plan_of

# Sites of a ring a - b - c - d; Membership is that of a.
A, B, C, D = (topology_documents.identity(name) for name in "abcd")
STRANGER = Identity(b"\x7f" * 32, b"\x7f" * 32)
SCHEMA, GENESIS = b"s" * 32, b"g" * 32
RECORD_SEQUENCE = 5


@dataclass
class PostedMessages:
    """The links, as far as membership uses them."""

    posted: list[tuple[str, Message]] = field(default_factory=list)
    nudged: list[str] = field(default_factory=list)

    def post(self, peer_id: str, message: Message) -> bool:
        self.posted.append((peer_id, message))
        return True

    def nudge(self, peer_id: str) -> None:
        self.nudged.append(peer_id)


@dataclass
class RecordedProbing:
    """The failure detector's shell, as far as membership uses it."""

    told: list[tuple[str, str]] = field(default_factory=list)
    taken: list[tuple[str, Message]] = field(default_factory=list)
    topologies: list[Topology] = field(default_factory=list)

    def change_topology(self, topology: Topology) -> None:
        self.topologies.append(topology)

    def linked(self, name: str) -> None:
        self.told.append(("linked", name))

    def unlinked(self, name: str) -> None:
        self.told.append(("unlinked", name))

    def heard(self, name: str) -> None:
        self.told.append(("heard", name))

    def take(self, sender: str, message: Message) -> None:
        self.taken.append((sender, message))


class Site:
    """Site a's membership over a real engine; what it reports is kept in ``events``."""

    def __init__(
        self,
        topology: Topology,
        *,
        published: SignedHeader | None = None,
        quarantined: tuple[str, ...] = (),
    ) -> None:
        plan = plan_of(topology, "a", SCHEMA, GENESIS)
        own = OwnState(4, b"o" * 32, published)
        self.engine = RoundEngine(plan, own, {}, (), HeaderLog(), quarantined)
        self.engine.handle(on.Started(), 0.0)
        self.events: list[on.Event] = []
        self.runtime = runtime = SimpleNamespace(
            plan=plan,
            engine=self.engine,
            headers=HeaderLog(),
            work=SimpleNamespace(own_digest=b"o" * 32),
            peer_ids=peer_ids_of(topology),
            dispatch=self.events.append,
        )
        self.book = AddressBook({peer.peer_id_text: () for peer in topology.file.peers})
        self.links = PostedMessages()
        self.outbids: list[int] = []
        self.membership = Membership(
            cast(Runtime, runtime),
            topology,
            self.book,
            own_name="a",
            certificate=issue_certificate(A),
            address_record=issue_address_record(A, 0, ()),
            outbid=self.outbids.append,
        )
        self.probing = RecordedProbing()
        self.membership.links = cast(Links, self.links)
        self.membership.probing = cast(Probing, self.probing)

    def hello_of(self, identity: Identity, **changes: Any) -> Hello:
        """The hello of an honest neighbour that holds the same files."""
        hello = replace(
            self.membership.local_hello(),
            certificate=issue_certificate(identity),
            address_record=issue_address_record(
                identity, RECORD_SEQUENCE, ("/ip4/10.0.0.9/tcp/1",)
            ),
        )
        return replace(hello, **changes)

    def header_of(self, identity: Identity, **changes: Any) -> SignedHeader:
        federation_id = self.membership.local_hello().federation_id
        header = sample_header(sender=identity.public_key, federation_id=federation_id)
        return sign_header(identity, replace(header, **changes))


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    return topology_documents.load(tmp_path, topology_documents.document("abcd"))


@pytest.fixture
def site(topology: Topology) -> Site:
    return Site(topology)


def notice(signed: SignedHeader) -> HeaderNotice:
    return HeaderNotice(signed.encoded, signed.signature)


def proof(first: SignedHeader, second: SignedHeader) -> EquivocationProof:
    return EquivocationProof(first.encoded, first.signature, second.encoded, second.signature)


def test_the_hello_says_where_the_site_stands(site: Site, topology: Topology) -> None:
    hello = site.membership.local_hello()
    assert hello.federation_name == "test"
    assert hello.topology_digest == topology.digest
    assert (hello.schema_digest, hello.genesis_digest) == (SCHEMA, GENESIS)
    assert (hello.round_number, hello.phase) == (4, "training")
    assert (hello.published_round, hello.published_replica) == (NEVER_PUBLISHED, b"o" * 32)


def test_the_hello_names_the_round_that_was_published_last(topology: Topology) -> None:
    published = sign_header(A, sample_header(sender=A.public_key, round_number=3))
    site = Site(topology, published=published)
    assert site.membership.local_hello().published_round == 3


def test_the_own_addresses_are_said_once_they_are_known(site: Site) -> None:
    record = issue_address_record(A, 9, ("/ip4/192.0.2.1/tcp/7400",))
    site.membership.announce(record)
    assert site.membership.local_hello().address_record == record


def test_a_neighbour_with_the_same_files_is_accepted(site: Site) -> None:
    assert site.membership.check_hello(B.peer_id, site.hello_of(B)) is None


DIFFERENCES = {
    "federation_name": ("other", RefusalCode.OTHER_FEDERATION, "'other'"),
    "topology_digest": (b"\xaa" * 32, RefusalCode.OTHER_TOPOLOGY, "p2pfed topology diff"),
    "schema_digest": (b"\xaa" * 32, RefusalCode.OTHER_SCHEMA, "same task code and options"),
    "genesis_digest": (b"\xaa" * 32, RefusalCode.OTHER_GENESIS, "same task seed"),
    "federation_id": (b"\xaa" * 32, RefusalCode.OTHER_FEDERATION, "compare the topology files"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_neighbour_that_differs_is_refused_with_both_sides_and_a_remedy(
    name: str, site: Site
) -> None:
    value, code, says = DIFFERENCES[name]
    refusal = site.membership.check_hello(B.peer_id, site.hello_of(B, **{name: value}))
    assert refusal is not None
    assert refusal.code is code
    assert says in refusal.detail
    assert re.search(r"\bb (has|is in)\b.*\ba (has|in)\b", refusal.detail)
    if isinstance(value, bytes):
        assert value.hex()[:12] in refusal.detail
        assert getattr(site.membership.local_hello(), name).hex()[:12] in refusal.detail


def test_of_several_differences_the_most_telling_is_named(site: Site) -> None:
    order = list(DIFFERENCES)
    for position, first in enumerate(order):
        changes = {name: DIFFERENCES[name][0] for name in order[position:]}
        refusal = site.membership.check_hello(B.peer_id, site.hello_of(B, **changes))
        assert refusal is not None
        assert refusal.code is DIFFERENCES[first][1]
        assert DIFFERENCES[first][2] in refusal.detail


def test_a_quarantined_neighbour_is_refused_before_all_else(topology: Topology) -> None:
    site = Site(topology, quarantined=("b",))
    for hello in (site.hello_of(B), site.hello_of(B, federation_name="other")):
        refusal = site.membership.check_hello(B.peer_id, hello)
        assert refusal is not None
        assert refusal.code is RefusalCode.QUARANTINED
        assert refusal.detail.startswith("b signed two different deltas")
    assert site.membership.check_hello(D.peer_id, site.hello_of(D)) is None


def test_a_link_is_reported_with_what_its_hello_said(site: Site) -> None:
    hello = site.hello_of(B, round_number=7, published_round=6, published_replica=b"q" * 32)
    said = replace(site.membership.local_hello(), published_replica=b"o" * 32)
    site.membership.link_up(B.peer_id, hello, said)
    site.membership.link_down(B.peer_id, "a cable")
    assert site.events == [on.LinkUp("b", 7, b"q" * 32, 6, b"o" * 32), on.LinkDown("b")]
    assert site.book.addresses(B.peer_id) == ("/ip4/10.0.0.9/tcp/1",)


def test_the_failure_detector_is_told_of_links_messages_and_probes(site: Site) -> None:
    site.membership.link_up(B.peer_id, site.hello_of(B), site.membership.local_hello())
    probes = (ProbeRequest(C.public_key, 1), ProbeReport(C.public_key, 2, 30))
    for message in (Heartbeat(1, 8, "training"), *probes):
        site.membership.heard(B.peer_id, message)
    site.membership.link_down(B.peer_id, "a cable")
    heard = [("heard", "b")] * 3
    assert site.probing.told == [("linked", "b"), *heard, ("unlinked", "b")]
    assert site.probing.taken == [("b", message) for message in probes]


def test_a_neighbour_is_shown_the_newest_header_of_its_own(site: Site) -> None:
    """Its state may be older than what it signed."""
    for number in (3, 7, 5):
        site.runtime.headers.observe(site.header_of(B, round_number=number))
    site.runtime.headers.observe(site.header_of(C, round_number=9))
    site.membership.link_up(B.peer_id, site.hello_of(B), site.membership.local_hello())
    shown = [m for to, m in site.links.posted if isinstance(m, HeaderNotice) and to == B.peer_id]
    assert shown == [notice(site.header_of(B, round_number=7))]


def test_an_own_header_that_a_neighbour_shows_is_reported(site: Site) -> None:
    mine = site.header_of(A)
    site.membership.heard(B.peer_id, notice(mine))
    assert site.events == [on.OwnHeaderHeard("b", mine)]


def test_a_peer_that_is_not_in_the_file_goes_by_its_peer_id(site: Site) -> None:
    assert site.membership.name_of(C.peer_id) == "c"
    assert site.membership.name_of(STRANGER.peer_id) == STRANGER.peer_id


def test_progress_and_wants_are_reported_by_site_name(site: Site) -> None:
    for message in (Heartbeat(1, 8, "training"), HeartbeatReply(1, 9, "collecting")):
        site.membership.heard(B.peer_id, message)
    site.membership.heard(D.peer_id, Want(b"w" * 32))
    assert site.events == [
        on.NeighbourProgress("b", 8),
        on.NeighbourProgress("b", 9),
        on.WantArrived("d", b"w" * 32),
    ]


def test_a_header_is_reported_with_its_signer_and_who_passed_it_on(site: Site) -> None:
    signed = site.header_of(C)
    site.membership.heard(B.peer_id, notice(signed))
    assert site.events == [on.HeaderHeard("b", "c", signed)]


def test_headers_that_concern_nobody_here_are_passed_over(site: Site) -> None:
    for signed in (
        site.header_of(STRANGER),
        site.header_of(C, federation_id=b"x" * 32),
    ):
        site.membership.heard(B.peer_id, notice(signed))
    assert site.events == []


def test_a_header_that_no_member_may_pass_on_is_an_offence(site: Site) -> None:
    signed = site.header_of(C)
    for bad in (
        notice(site.header_of(C, kind=Kind.SNAPSHOT)),
        HeaderNotice(signed.encoded, bytes(64)),
        HeaderNotice(b"\x00", signed.signature),
    ):
        with pytest.raises(RemoteProtocolError):
            site.membership.heard(B.peer_id, bad)
    assert site.events == []


def test_a_proof_of_equivocation_is_reported(site: Site) -> None:
    first, second = site.header_of(C), site.header_of(C, replica_after=b"z" * 32)
    site.membership.heard(B.peer_id, proof(first, second))
    assert site.events == [on.EquivocationHeard("b", "c", first, second)]


def test_a_proof_that_proves_nothing_is_an_offence(site: Site) -> None:
    first = site.header_of(C)
    for other in (first, site.header_of(C, round_number=8), site.header_of(D)):
        with pytest.raises(RemoteProtocolError):
            site.membership.heard(B.peer_id, proof(first, other))
    assert site.events == []


@pytest.mark.parametrize(("signer", "changes"), [(STRANGER, {}), (C, {"federation_id": b"x" * 32})])
def test_a_proof_against_nobody_here_is_passed_over(
    signer: Identity, changes: dict[str, Any], site: Site
) -> None:
    first = site.header_of(signer, **changes)
    second = site.header_of(signer, replica_after=b"z" * 32, **changes)
    site.membership.heard(B.peer_id, proof(first, second))
    assert site.events == []


def test_a_message_that_belongs_to_another_stream_is_an_offence(site: Site) -> None:
    with pytest.raises(RemoteProtocolError, match="Receipt is not expected"):
        site.membership.heard(B.peer_id, Receipt(True, ""))


def test_news_of_an_address_is_passed_on_once_and_not_back(site: Site) -> None:
    record = issue_address_record(C, 1, ("/ip4/192.0.2.7/tcp/7400",))
    for _ in range(2):
        site.membership.heard(B.peer_id, AddressRecordNotice(record))
    assert site.book.addresses(C.peer_id) == ("/ip4/192.0.2.7/tcp/7400",)
    assert site.links.nudged == [C.peer_id]
    assert site.links.posted == [(D.peer_id, AddressRecordNotice(record))]


def test_a_neighbour_is_not_told_its_own_address(site: Site) -> None:
    record = issue_address_record(D, 1, ("/ip4/192.0.2.7/tcp/7400",))
    site.membership.heard(B.peer_id, AddressRecordNotice(record))
    assert site.links.nudged == [D.peer_id]
    assert site.links.posted == []


def test_an_own_address_record_that_somebody_holds_is_told_once_and_not_passed_on(
    site: Site,
) -> None:
    record = issue_address_record(A, 5, ("/ip4/192.0.2.7/tcp/7400",))
    for _ in range(2):
        site.membership.heard(B.peer_id, AddressRecordNotice(record))
    assert site.outbids == [5]
    assert site.links.posted == []


def test_an_address_of_a_stranger_is_not_taken_and_a_forged_one_is_an_offence(site: Site) -> None:
    stranger = issue_address_record(STRANGER, 1, ("/ip4/192.0.2.7/tcp/7400",))
    site.membership.heard(B.peer_id, AddressRecordNotice(stranger))
    forged = bytearray(issue_address_record(C, 1, ("/ip4/192.0.2.7/tcp/7400",)))
    forged[-1] ^= 1
    with pytest.raises(RemoteProtocolError):
        site.membership.heard(B.peer_id, AddressRecordNotice(bytes(forged)))
    assert site.book.addresses(STRANGER.peer_id) == site.book.addresses(C.peer_id) == ()
    assert site.links.posted == []


def test_a_changed_topology_changes_names_and_hello(site: Site, tmp_path: Path) -> None:
    before = site.membership.local_hello()
    changed = topology_documents.load(tmp_path, topology_documents.document("abc"))
    site.membership.change_topology(changed)
    assert site.probing.topologies == [changed]
    assert site.membership.local_hello().topology_digest == changed.digest
    assert before.topology_digest != changed.digest
    assert site.membership.name_of(D.peer_id) == D.peer_id
    of_old_file = site.hello_of(B, topology_digest=before.topology_digest)
    refusal = site.membership.check_hello(B.peer_id, of_old_file)
    assert refusal is not None
    assert refusal.code is RefusalCode.OTHER_TOPOLOGY
