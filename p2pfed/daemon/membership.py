"""Who this daemon talks to: its hello, its check of others' hellos, and what members say to it.

The handler of the links. What concerns rounds is handed to the runtime as events.
"""

from collections.abc import Callable

import structlog

from p2pfed import __version__
from p2pfed.daemon.addresses import AddressBook
from p2pfed.daemon.links import Links
from p2pfed.daemon.probing import Probing
from p2pfed.daemon.runtime import Runtime
from p2pfed.errors import RemoteProtocolError
from p2pfed.keys import peer_id_from_public_key, public_key_from_peer_id
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.evidence import verify_equivocation
from p2pfed.protocol.header import Kind, header_digest, parse_signed_header
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
    Refusal,
    RefusalCode,
    Want,
)
from p2pfed.protocol.neighbours import NEVER_PUBLISHED
from p2pfed.topology import Topology

log = structlog.get_logger(__name__)

SHOWN_DIGEST_CHARACTERS = 12


class Membership:
    """One daemon's side of every conversation.

    :param own_name: this site's name.
    :param certificate: this site's signed encryption key.
    :param address_record: this site's signed addresses.
    :param outbid: told the number of an address record of this site's own that somebody holds.
    """

    def __init__(
        self,
        runtime: Runtime,
        topology: Topology,
        book: AddressBook,
        *,
        own_name: str,
        certificate: bytes,
        address_record: bytes,
        outbid: Callable[[int], None],
    ) -> None:
        self._runtime = runtime
        self._topology = topology
        self._book = book
        self._own_name = own_name
        self._certificate = certificate
        self._address_record = address_record
        self._outbid = outbid
        self.links: Links
        self.probing: Probing

    def change_topology(self, topology: Topology) -> None:
        self._topology = topology
        self.probing.change_topology(topology)

    def announce(self, address_record: bytes) -> None:
        """Take this site's own addresses, once they are known."""
        self._address_record = address_record

    def name_of(self, peer_id: str) -> str:
        peer = self._topology.peer_by_id(peer_id)
        return peer.name if peer is not None else peer_id

    def local_hello(self) -> Hello:
        plan, engine = self._runtime.plan, self._runtime.engine
        published = engine.published
        return Hello(
            version=limits.PROTOCOL_VERSION,
            software=f"p2pfed {__version__}",
            federation_name=self._topology.file.federation.name,
            federation_id=plan.federation_id,
            topology_digest=self._topology.digest,
            schema_digest=plan.schema_digest,
            genesis_digest=plan.genesis_replica,
            certificate=self._certificate,
            address_record=self._address_record,
            round_number=engine.round_number,
            phase=engine.phase.value,
            published_round=published.header.round_number if published else NEVER_PUBLISHED,
            published_replica=self._runtime.work.own_digest,
        )

    def check_hello(self, peer_id: str, hello: Hello) -> Refusal | None:
        """Compare what must be the same everywhere, the most telling first."""
        mine, name = self.local_hello(), self.name_of(peer_id)
        if name in self._runtime.engine.quarantined:
            return Refusal(
                RefusalCode.QUARANTINED,
                f"{name} signed two different deltas for one round; {self._own_name} has the proof",
            )
        if hello.federation_name != mine.federation_name:
            return Refusal(
                RefusalCode.OTHER_FEDERATION,
                f"{name} is in federation {hello.federation_name!r}, {self._own_name} in "
                f"{mine.federation_name!r}",
            )
        for code, theirs, ours, what, remedy in (
            (
                RefusalCode.OTHER_TOPOLOGY,
                hello.topology_digest,
                mine.topology_digest,
                "topology file",
                "compare the files with p2pfed topology diff, then p2pfed reload",
            ),
            (
                RefusalCode.OTHER_SCHEMA,
                hello.schema_digest,
                mine.schema_digest,
                "model schema",
                "both sites need the same task code and options",
            ),
            (
                RefusalCode.OTHER_GENESIS,
                hello.genesis_digest,
                mine.genesis_digest,
                "genesis model",
                "both sites need the same task seed, task code and PyTorch release",
            ),
            (
                RefusalCode.OTHER_FEDERATION,
                hello.federation_id,
                mine.federation_id,
                "federation",
                "compare the topology files with p2pfed topology diff",
            ),
        ):
            if theirs != ours:
                return Refusal(
                    code,
                    f"the {what} differs: {name} has {_shown(theirs)}, {self._own_name} has "
                    f"{_shown(ours)}; {remedy}",
                )
        return None

    def link_up(self, peer_id: str, hello: Hello, said: Hello) -> None:
        self._learn_addresses(peer_id, hello.address_record)
        self._runtime.dispatch(
            on.LinkUp(
                self.name_of(peer_id),
                hello.round_number,
                hello.published_replica,
                hello.published_round,
                said.published_replica,
            )
        )
        self.probing.linked(self.name_of(peer_id))
        self._show_its_newest(peer_id)

    def _show_its_newest(self, peer_id: str) -> None:
        """Tell a neighbour the newest round that it has signed: its state may be an old one."""
        newest = self._runtime.headers.newest(public_key_from_peer_id(peer_id))
        if newest is not None:
            self.links.post(peer_id, HeaderNotice(newest.encoded, newest.signature))

    def link_down(self, peer_id: str, reason: str) -> None:
        log.info("link down", site=self.name_of(peer_id), reason=reason)
        self._runtime.dispatch(on.LinkDown(self.name_of(peer_id)))
        self.probing.unlinked(self.name_of(peer_id))

    def heard(self, peer_id: str, message: Message) -> None:
        """:raises RemoteProtocolError: not acceptable from a member."""
        name = self.name_of(peer_id)
        self.probing.heard(name)
        match message:
            case Heartbeat(_, round_number, _) | HeartbeatReply(_, round_number, _):
                self._runtime.dispatch(on.NeighbourProgress(name, round_number))
            case Want(replica_held):
                self._runtime.dispatch(on.WantArrived(name, replica_held))
            case HeaderNotice():
                self._take_header(name, message)
            case EquivocationProof():
                self._take_proof(name, message)
            case AddressRecordNotice(record):
                self._learn_addresses(peer_id, record)
            case ProbeRequest() | ProbeReport():
                self.probing.take(name, message)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not expected here")

    def _take_header(self, heard_from: str, notice: HeaderNotice) -> None:
        if self._runtime.headers.knows(header_digest(notice.encoded)):
            return  # several neighbours pass on the same ones
        signed = parse_signed_header(notice.encoded, notice.signature)
        sender = self._topology.peer_by_id(peer_id_from_public_key(signed.header.sender))
        if signed.header.kind is not Kind.DELTA:
            raise RemoteProtocolError("only delta headers are passed on")
        if sender is None or signed.header.federation_id != self._runtime.plan.federation_id:
            return  # of somebody who was a member until a moment ago
        if sender.name == self._own_name:
            self._runtime.dispatch(on.OwnHeaderHeard(heard_from, signed))
        else:
            self._runtime.dispatch(on.HeaderHeard(heard_from, sender.name, signed))

    def _take_proof(self, heard_from: str, proof: EquivocationProof) -> None:
        first, second = verify_equivocation(
            (proof.first_encoded, proof.first_signature),
            (proof.second_encoded, proof.second_signature),
        )
        sender = self._topology.peer_by_id(peer_id_from_public_key(first.header.sender))
        if sender is None or first.header.federation_id != self._runtime.plan.federation_id:
            return
        self._runtime.dispatch(on.EquivocationHeard(heard_from, sender.name, first, second))

    def _learn_addresses(self, heard_from: str, record: bytes) -> None:
        news = self._book.learn_record(record)
        if news is None:
            return
        if news == self._topology.peer(self._own_name).peer_id_text:
            self._outbid(self._book.newest_sequence(news))
            return
        self.links.nudge(news)
        for site in self._runtime.engine.neighbours:
            peer_id = self._runtime.peer_ids[site]
            if peer_id not in (heard_from, news):
                self.links.post(peer_id, AddressRecordNotice(record))


def _shown(digest: bytes) -> str:
    return digest.hex()[:SHOWN_DIGEST_CHARACTERS]
