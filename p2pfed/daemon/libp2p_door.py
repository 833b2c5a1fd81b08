"""Who may take up an inbound socket's time before it has proved to be a member.

Anybody can connect to the port and say nothing, or something endless. Sockets that have not
authenticated themselves are bounded in number, by address and in all; the oldest has to go for
a new one, so that an honest peer, which needs milliseconds, still comes in beside hundreds
that only wait. What each may send is bounded too: the library believes any length it is told.
"""

from collections.abc import Awaitable, Callable

import trio
from libp2p.abc import IRawConnection
from libp2p.io.trio import TrioTCPStream
from libp2p.transport.tcp.tcp import TCP, TCPListener

UNAUTHENTICATED_SOCKETS = 128
UNAUTHENTICATED_SOCKETS_PER_ADDRESS = 32  # hospitals share one address behind a NAT
UNAUTHENTICATED_BYTES = 16 * 1024  # a handshake takes about 500

Handler = Callable[[TrioTCPStream], Awaitable[None]]


class _InboundSocket(TrioTCPStream):  # type: ignore[misc]
    """A socket that somebody opened to this peer."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.authenticated = False
        self.ended = trio.CancelScope()
        # The library knows IPv4 addresses only.
        self._remote: tuple[str, int] = stream.socket.getpeername()[:2]
        self.host = str(self._remote[0])
        self._left_bytes = UNAUTHENTICATED_BYTES

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._remote

    async def read(self, n: int | None = None) -> bytes:
        if self.authenticated:
            data: bytes = await super().read(n)
            return data
        # Reading nothing looks like the end of the stream, which is what it then is.
        data = await super().read(self._left_bytes if n is None else min(self._left_bytes, n))
        self._left_bytes -= len(data)
        return data

    async def close(self) -> None:
        await super().close()
        self.ended.cancel()


class Door:
    """Keeps count of the inbound sockets of one peer."""

    def __init__(self) -> None:
        self._waiting: dict[_InboundSocket, None] = {}  # in the order in which they came

    def authenticated(self, connection: IRawConnection) -> None:
        """Told by the security layer that a member is at the other end."""
        socket = getattr(connection, "stream", None)
        if isinstance(socket, _InboundSocket):
            socket.authenticated = True
            self._waiting.pop(socket, None)

    def guard(self, handler: Handler) -> Handler:
        async def admit(stream: TrioTCPStream) -> None:
            try:
                socket = _InboundSocket(stream.stream)
            except OSError:  # it is gone again
                await stream.close()
                return
            await self._make_room(socket.host)
            self._waiting[socket] = None
            try:
                # The library's handler would stay until the peer stops, one task a socket.
                with socket.ended:
                    await handler(socket)
            finally:
                self._waiting.pop(socket, None)

        return admit

    async def _make_room(self, host: str) -> None:
        same_host = [socket for socket in self._waiting if socket.host == host]
        if len(same_host) >= UNAUTHENTICATED_SOCKETS_PER_ADDRESS:
            await self._close(same_host[0])
        elif len(self._waiting) >= UNAUTHENTICATED_SOCKETS:
            await self._close(next(iter(self._waiting)))

    async def _close(self, socket: _InboundSocket) -> None:
        self._waiting.pop(socket, None)
        await socket.close()


class GuardedTcp(TCP):  # type: ignore[misc]
    """TCP whose inbound sockets pass a door."""

    def __init__(self, door: Door) -> None:
        super().__init__()
        self._door = door

    def create_listener(self, handler_function: Handler) -> TCPListener:
        return super().create_listener(self._door.guard(handler_function))
