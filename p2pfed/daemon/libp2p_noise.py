"""Noise for members only, and its messages with few copies.

The handshake is the library's (Noise XX, libp2p specification "noise"). What follows it is
done here: the library reads the length and the body of each message from the socket
separately and copies the plaintext four times, which costs more than the cipher.
"""

from collections.abc import Callable

import trio
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.security.base_session import BaseSession
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.secure_session import SecureSession
from multiaddr import Multiaddr
from noise.exceptions import NoiseInvalidMessage, NoiseMaxNonceError

LENGTH_BYTES = 2
TAG_BYTES = 16
MAX_MESSAGE_BYTES = 65_535  # Noise specification, section 3
MAX_PLAINTEXT_BYTES = MAX_MESSAGE_BYTES - TAG_BYTES
SOCKET_READ_BYTES = 262_144

Roster = Callable[[str], bool]
Refused = Callable[[str | None, str | None, str], None]
Authenticated = Callable[[IRawConnection], None]


class NoiseChannel(BaseSession):  # type: ignore[misc]
    """An established session: whole messages in, whole messages out.

    Writes are shielded from cancellation: half a message on the wire, or a nonce that was used
    up and not sent, would end the connection for all of its streams. ``receive`` may be cancelled
    at any time.
    """

    def __init__(self, session: SecureSession, raw: IRawConnection) -> None:
        super().__init__(
            local_peer=session.local_peer,
            local_private_key=session.local_private_key,
            remote_peer=session.remote_peer,
            remote_permanent_pubkey=session.remote_permanent_pubkey,
            is_initiator=session.is_initiator,
        )
        self._raw = raw
        self._state = session.conn.noise_state
        self._sealed = bytearray()
        self._next = 0
        self._plain = b""
        self._writing = trio.Lock()

    async def receive(self) -> bytes:
        """The plaintext that comes next; never empty.

        :raises ConnectionClosedError: the connection ended, or a message was not authentic.
        """
        plain, self._plain = self._plain, b""
        while not plain:
            plain = await self._open_message()
        return plain

    async def read(self, n: int | None = None) -> bytes:
        """Exactly ``n`` bytes, or what comes next where ``n`` is None.

        :raises ConnectionClosedError: as ``receive``, or more than one message was wanted: only
            negotiation reads this way, and the peer chooses the length.
        """
        if n is None:
            return await self.receive()
        if n > MAX_PLAINTEXT_BYTES:
            raise ConnectionClosedError("a negotiation message of absurd length")
        parts = bytearray()
        while len(parts) < n:
            plain = await self.receive()
            missing = n - len(parts)
            parts += plain[:missing]
            self._plain = plain[missing:]
        return bytes(parts)

    async def write(self, data: bytes) -> None:
        """:raises ConnectionClosedError: the connection is closed."""
        with trio.CancelScope(shield=True):
            for start in range(0, len(data), MAX_PLAINTEXT_BYTES):
                await self.write_last(data[start : start + MAX_PLAINTEXT_BYTES])

    async def write_last(self, message: bytes) -> None:
        """Write one message; nothing may be written after it if this is cancelled.

        :raises ConnectionClosedError: the connection is closed.
        """
        async with self._writing:
            try:
                sealed = self._state.encrypt(message)
            except NoiseMaxNonceError as error:
                raise ConnectionClosedError("the session's nonces are used up") from error
            await self._raw.write(len(sealed).to_bytes(LENGTH_BYTES, "big") + sealed)

    async def _open_message(self) -> bytes:
        while True:
            held = len(self._sealed) - self._next
            if held >= LENGTH_BYTES:
                body = self._next + LENGTH_BYTES
                length = int.from_bytes(self._sealed[self._next : body], "big")
                if held >= LENGTH_BYTES + length:
                    break
            await self._fill()
        self._next = body + length
        try:
            plain: bytes = self._state.decrypt(bytes(self._sealed[body : self._next]))
        except (NoiseInvalidMessage, NoiseMaxNonceError) as error:
            raise ConnectionClosedError("a message was not authentic") from error
        return plain

    async def _fill(self) -> None:
        del self._sealed[: self._next]
        self._next = 0
        more = await self._raw.read(SOCKET_READ_BYTES)
        if not more:
            raise ConnectionClosedError("the peer closed the connection")
        self._sealed += more

    async def close(self) -> None:
        await self._raw.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self._raw.get_remote_address()
        return address

    def get_transport_addresses(self) -> list[Multiaddr]:
        return list(self._raw.get_transport_addresses())

    def get_connection_type(self) -> ConnectionType:
        return self._raw.get_connection_type()


class MembersOnlyNoise(NoiseTransport):  # type: ignore[misc]
    """Noise that refuses strangers right after the handshake, before the multiplexer.

    :param authenticated: told of each inbound connection that got through.
    """

    def __init__(
        self, key_pair: KeyPair, roster: Roster, refused: Refused, authenticated: Authenticated
    ) -> None:
        super().__init__(key_pair, noise_privkey=create_noise_key_pair().private_key)
        self._roster = roster
        self._refused = refused
        self._authenticated = authenticated

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        session = await self._handshake_failing_cleanly(conn, None)
        peer_id = str(session.get_remote_peer())
        if not self._roster(peer_id):
            address = conn.get_remote_address()
            await session.close()
            where = f"{address[0]}:{address[1]}" if address else None
            self._refused(peer_id, where, "its key is not in the topology file")
            raise HandshakeFailure(f"{peer_id} is not in the topology file")
        self._authenticated(conn)
        return NoiseChannel(session, conn)

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        if not self._roster(str(peer_id)):
            raise HandshakeFailure(f"{peer_id} is not in the topology file")
        return NoiseChannel(await self._handshake_failing_cleanly(conn, peer_id), conn)

    async def _handshake_failing_cleanly(
        self, conn: IRawConnection, peer_id: ID | None
    ) -> SecureSession:
        """The library's handshake; bytes that make no sense raise all kinds of things in it."""
        try:
            if peer_id is None:
                return await super().secure_inbound(conn)
            return await super().secure_outbound(conn, peer_id)
        except HandshakeFailure:
            raise
        except Exception as error:
            raise HandshakeFailure(f"the Noise handshake failed: {error}") from error
