"""A py-libp2p network made safe: members only, Noise only, and no stranger can end it.

The stock host of release 0.8.1 offers plaintext beside Noise, lets an exception in a stream
handler take the whole process down, never gives its inbound slots back, dials peers on its own
and asks every peer who it is. So the network is put together here from the library's parts
without the host, through the extension points that they offer; each trap has a test in
``tests/adversarial``.
"""

import logging

from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from p2pfed.daemon.libp2p_door import Door, GuardedTcp
from p2pfed.daemon.libp2p_noise import MembersOnlyNoise, Refused, Roster
from p2pfed.daemon.libp2p_yamux import YamuxConnection

UPGRADE_TIMEOUT_SECONDS = 10.0  # until an inbound socket has authenticated itself
UNLIMITED = 10**6  # limits of the library that are never given back; ours are in the transport


class _Upgrader(TransportUpgrader):  # type: ignore[misc]
    """Makes our multiplexer: the library's would ignore the class that it is given."""

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        try:
            await self.muxer_multistream.select_transport(conn)
        except (MultiselectError, MultiselectClientError) as error:
            raise MuxerUpgradeFailure("no multiplexer was agreed on") from error
        return YamuxConnection(conn, peer_id)


def quiet_library_logging() -> None:
    """Undo what importing libp2p does to logging: its records go where ours go.

    What strangers do makes it log errors; the transport reports what an operator can use.
    """
    library = logging.getLogger("libp2p")
    library.handlers.clear()
    library.propagate = True
    library.setLevel(logging.CRITICAL)
    for name in logging.root.manager.loggerDict:
        if name.startswith("libp2p."):
            logging.getLogger(name).setLevel(logging.NOTSET)


def make_network(seed: bytes, roster: Roster, refused: Refused) -> Swarm:
    """A network that listens nowhere yet and has no protocols.

    :param seed: the 32-byte Ed25519 seed of the site's identity.
    :param roster: says whether a peer id may connect.
    :param refused: told of who was turned away: peer id, address, reason.
    """
    quiet_library_logging()
    key_pair = create_new_key_pair(seed)
    peer_id = ID.from_pubkey(key_pair.public_key)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer_id, key_pair)
    door = Door()
    noise = MembersOnlyNoise(key_pair, roster, refused, door.authenticated)
    return Swarm(
        peer_id,
        peerstore,
        _Upgrader({NOISE_PROTOCOL_ID: noise}, {TProtocol(YAMUX_PROTOCOL_ID): YamuxConnection}),
        transports=[GuardedTcp(door)],
        retry_config=RetryConfig(max_retries=0),  # back-off is the link's own
        connection_config=ConnectionConfig(
            min_connections=0,
            low_watermark=0,
            high_watermark=UNLIMITED,
            max_connections=UNLIMITED,
            max_connections_per_peer=UNLIMITED,
            inbound_upgrade_timeout=UPGRADE_TIMEOUT_SECONDS,
            outbound_upgrade_timeout=UPGRADE_TIMEOUT_SECONDS,
        ),
    )
