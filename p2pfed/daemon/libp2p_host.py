"""A py-libp2p host made safe: members only, Noise only, and no stranger can end it.

The stock host of release 0.8.1 offers plaintext beside Noise, lets an exception in a stream
handler take the whole process down, never gives its inbound slots back, dials peers on its
own and does not enforce the receive window. Each of these is closed here, through the
extension points that the library offers; each has a test in ``tests/adversarial``.
"""

import logging
from collections.abc import Callable
from typing import Any

import multiaddr
from libp2p import new_host
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from libp2p.stream_muxer.yamux.yamux import Yamux

INBOUND_UPGRADE_TIMEOUT_SECONDS = 10.0  # until an inbound socket has authenticated itself
NEGOTIATION_TIMEOUT_SECONDS = 60.0  # of a stream's protocol, beside a bulk transfer on 0.3 MB/s
UNLIMITED = 10**6  # limits of the library that are never given back; ours are in the transport
BUFFERED_BYTES_PER_CONNECTION = 40 * 1024 * 1024  # the largest window twice, and frames on the way

Roster = Callable[[str], bool]
Refused = Callable[[str | None, str | None, str], None]


def quiet_library_logging() -> None:
    """Undo what importing libp2p does to logging: its records go where ours go."""
    for name in list(logging.root.manager.loggerDict):
        if name == "libp2p" or name.startswith("libp2p."):
            library = logging.getLogger(name)
            library.handlers.clear()
            library.propagate = True
            library.setLevel(logging.CRITICAL)


class MembersOnlyNoise(NoiseTransport):  # type: ignore[misc]
    """Noise that refuses strangers right after the handshake, before the multiplexer."""

    def __init__(self, key_pair: KeyPair, roster: Roster, refused: Refused) -> None:
        super().__init__(key_pair, noise_privkey=create_noise_key_pair().private_key)
        self._roster = roster
        self._refused = refused

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        secure = await super().secure_inbound(conn)
        peer_id = str(secure.get_remote_peer())
        if not self._roster(peer_id):
            address = conn.get_remote_address()
            await secure.close()
            where = f"{address[0]}:{address[1]}" if address else None
            self._refused(peer_id, where, "its key is not in the topology file")
            raise HandshakeFailure(f"{peer_id} is not in the topology file")
        return secure

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        if not self._roster(str(peer_id)):
            raise HandshakeFailure(f"{peer_id} is not in the topology file")
        return await super().secure_outbound(conn, peer_id)


class _Buffers(dict[int, bytearray]):
    """The unread bytes of a connection's streams, bounded together."""

    def __setitem__(self, stream_id: int, buffer: bytearray) -> None:
        super().__setitem__(stream_id, _BoundedBuffer(buffer, self))

    def check(self, more: int) -> None:
        held = sum(map(len, self.values()))
        if held + more > BUFFERED_BYTES_PER_CONNECTION:
            raise MuxedConnUnavailable(f"a peer sent {held + more} bytes that nobody asked for")


class _BoundedBuffer(bytearray):
    def __init__(self, initial: bytearray, buffers: _Buffers) -> None:
        super().__init__(initial)
        self._buffers = buffers

    def extend(self, data: Any) -> None:
        self._buffers.check(len(data))
        super().extend(data)


class BoundedYamux(Yamux):  # type: ignore[misc]
    """Yamux whose connection ends when a peer sends far beyond its window.

    The library only logs an exceeded window and keeps the bytes; without this bound a member
    could fill the memory.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.stream_buffers = _Buffers()


def make_host(
    seed: bytes, listen_addresses: list[str], roster: Roster, refused: Refused
) -> BasicHost:
    """A host that listens once it runs; it has no other protocols than the library's own.

    :param seed: the 32-byte Ed25519 seed of the site's identity.
    """
    quiet_library_logging()
    key_pair = create_new_key_pair(seed)
    config = ConnectionConfig(
        min_connections=0,
        low_watermark=0,
        high_watermark=UNLIMITED,
        max_connections=UNLIMITED,
        max_connections_per_peer=2,
        inbound_upgrade_timeout=INBOUND_UPGRADE_TIMEOUT_SECONDS,
        inbound_stream_protocol_negotiation_timeout=NEGOTIATION_TIMEOUT_SECONDS,
        outbound_stream_protocol_negotiation_timeout=NEGOTIATION_TIMEOUT_SECONDS,
    )
    host = new_host(
        key_pair=key_pair,
        sec_opt={NOISE_PROTOCOL_ID: MembersOnlyNoise(key_pair, roster, refused)},
        muxer_opt={TProtocol(YAMUX_PROTOCOL_ID): BoundedYamux},
        listen_addrs=[multiaddr.Multiaddr(address) for address in listen_addresses],
        connection_config=config,
        disable_identify_address_discovery=True,
    )
    assert isinstance(host, BasicHost)  # noqa: S101 - no routing was asked for
    network: Any = host.get_network()
    network.retry_config = RetryConfig(max_retries=0)  # back-off is the link's own
    return host
