"""Bulk transfer between two processes over loopback: the transport against bare sockets.

    python benchmarks/transport.py [--megabytes 1 10 100] [--repetitions 5] [--only KIND]

Three ways to send the same bytes, taken in turn so that all of them see the same machine:

raw      a trio TCP socket
sealed   the same, in 64 KiB frames under ChaCha20-Poly1305 (RFC 8439)
p2pfed   this project's transport: TCP, Noise, Yamux, as the daemon uses it

A transfer ends when the receiver, which has read every byte, acknowledges it. The ratio is the
median over the repetitions of p2pfed's speed to that of each of the others.
"""

import argparse
import os
import statistics
import struct
import subprocess
import sys
import time
from contextlib import suppress
from typing import Protocol

import trio
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from p2pfed.daemon.libp2p_transport import Libp2pTransport
from p2pfed.daemon.transport import Direction, Stream, StreamHandler
from p2pfed.errors import TransportError
from p2pfed.keys import Identity

KINDS = ("raw", "sealed", "p2pfed")
TARGETS = {"sealed": 0.4}
BULK_PROTOCOL = "/p2pfed-benchmark/bulk/1"
FRAME_BYTES = 65_536
SOCKET_READ_BYTES = 262_144
LENGTH = struct.Struct("!Q")
FRAME_LENGTH = struct.Struct("!I")
NONCE = struct.Struct("!4xQ")
KEY = bytes(32)
SENDER, RECEIVER = (Identity(bytes([number]) * 32, bytes([number]) * 32) for number in (1, 2))
DIAL_TIMEOUT_SECONDS = 20.0


class Connection(Protocol):
    async def send_all(self, data: bytes | memoryview) -> None: ...

    async def receive_exactly(self, count: int) -> bytes: ...

    async def skip(self, count: int) -> None: ...


class Raw:
    def __init__(self, socket: trio.SocketStream) -> None:
        self._socket = socket

    async def send_all(self, data: bytes | memoryview) -> None:
        await self._socket.send_all(data)

    async def receive_exactly(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            received += await self._some(count - len(received))
        return bytes(received)

    async def skip(self, count: int) -> None:
        while count:
            count -= len(await self._some(count))

    async def _some(self, at_most: int) -> bytes:
        data = await self._socket.receive_some(min(SOCKET_READ_BYTES, at_most))
        if not data:
            raise trio.EndOfChannel
        return data


class Sealed(Raw):
    def __init__(self, socket: trio.SocketStream) -> None:
        super().__init__(socket)
        self._cipher = ChaCha20Poly1305(KEY)
        self._sent = self._opened = 0
        self._ahead = bytearray()

    async def send_all(self, data: bytes | memoryview) -> None:
        whole = memoryview(data)
        for start in range(0, len(whole), FRAME_BYTES):
            nonce = NONCE.pack(self._sent)
            sealed = self._cipher.encrypt(nonce, whole[start : start + FRAME_BYTES], None)
            self._sent += 1
            await self._socket.send_all(FRAME_LENGTH.pack(len(sealed)) + sealed)

    async def receive_exactly(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            received += await self._open_frame()
        return bytes(received)

    async def skip(self, count: int) -> None:
        while count:
            count -= len(await self._open_frame())

    async def _open_frame(self) -> bytes:
        (length,) = FRAME_LENGTH.unpack(await self._buffered(FRAME_LENGTH.size))
        plain = self._cipher.decrypt(NONCE.pack(self._opened), await self._buffered(length), None)
        self._opened += 1
        return plain

    async def _buffered(self, count: int) -> bytes:
        while len(self._ahead) < count:
            self._ahead += await self._some(SOCKET_READ_BYTES)
        taken = bytes(self._ahead[:count])
        del self._ahead[:count]
        return taken


class OverTransport:
    def __init__(self, stream: Stream) -> None:
        self.send_all = stream.send_all
        self.receive_exactly = stream.receive_exactly
        self._stream = stream

    async def skip(self, count: int) -> None:
        while count:
            count -= len(await self._stream.receive_some())


class Silent:
    """An observer with nothing to say."""

    def connected(self, peer_id: str, address: str, direction: Direction) -> None: ...

    def disconnected(self, peer_id: str, reason: str) -> None: ...

    def refused(self, peer_id: str | None, address: str | None, reason: str) -> None: ...


async def take_transfers(connection: Connection) -> None:
    while True:
        (length,) = LENGTH.unpack(await connection.receive_exactly(LENGTH.size))
        await connection.send_all(b"!")
        await connection.skip(length)
        await connection.send_all(b"!")


async def transfer(connection: Connection, data: bytes) -> float:
    """Seconds until the receiver has acknowledged ``data``."""
    await connection.send_all(LENGTH.pack(len(data)))
    await connection.receive_exactly(1)
    started = time.perf_counter()
    await connection.send_all(data)
    await connection.receive_exactly(1)
    return time.perf_counter() - started


def make_transport(own: Identity, other: Identity) -> Libp2pTransport:
    transport = Libp2pTransport(own.seed, ["/ip4/127.0.0.1/tcp/0"], Silent())
    transport.set_roster([other.peer_id])
    return transport


async def receive(kind: str) -> None:
    """The receiving process: prints where it listens."""

    async def over_stream(stream: Stream) -> None:
        with suppress(TransportError):
            await take_transfers(OverTransport(stream))

    async def over_socket(socket: trio.SocketStream) -> None:
        with suppress(trio.EndOfChannel):
            await take_transfers(Raw(socket) if kind == "raw" else Sealed(socket))

    async with trio.open_nursery() as nursery:
        if kind == "p2pfed":
            transport = make_transport(RECEIVER, SENDER)
            handler: StreamHandler = over_stream
            transport.set_handler(BULK_PROTOCOL, handler)
            await nursery.start(transport.run)
            print(transport.listen_addresses[0], flush=True)
        else:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            print(listeners[0].socket.getsockname()[1], flush=True)
            nursery.start_soon(trio.serve_listeners, over_socket, listeners)


async def connect(kind: str, address: str, nursery: trio.Nursery) -> Connection:
    if kind != "p2pfed":
        socket = await trio.open_tcp_stream("127.0.0.1", int(address))
        return Raw(socket) if kind == "raw" else Sealed(socket)
    transport = make_transport(SENDER, RECEIVER)
    await nursery.start(transport.run)
    await transport.dial(RECEIVER.peer_id, address, DIAL_TIMEOUT_SECONDS)
    return OverTransport(await transport.open_stream(RECEIVER.peer_id, BULK_PROTOCOL))


async def compare(kinds: list[str], addresses: list[str], sizes: list[int], count: int) -> None:
    print(f"{'MB':>6} {'kind':8} {'best MB/s':>10} {'median MB/s':>12}  p2pfed to it")
    async with trio.open_nursery() as nursery:
        connections = [
            await connect(kind, address, nursery)
            for kind, address in zip(kinds, addresses, strict=True)
        ]
        for size in sizes:
            data = os.urandom(size * 1_000_000)
            for connection in connections:
                await transfer(connection, data)
            rounds = [[await transfer(each, data) for each in connections] for _ in range(count)]
            for index, kind in enumerate(kinds):
                taken = [times[index] for times in rounds]
                ratio = statistics.median(times[index] / times[-1] for times in rounds)
                target = f" (target >= {TARGETS[kind]})" if kind in TARGETS and size >= 100 else ""
                print(
                    f"{size:6} {kind:8} {size / min(taken):10.0f} "
                    f"{size / statistics.median(taken):12.0f}  {ratio:.3f}{target}"
                )
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", choices=KINDS, help="no comparison: this kind alone")
    parser.add_argument("--receive", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.receive:
        trio.run(receive, arguments.receive)
        return
    kinds = [arguments.only] if arguments.only else list(KINDS)
    receivers: list[subprocess.Popen[str]] = []
    try:
        for kind in kinds:
            command = [sys.executable, __file__, "--receive", kind]
            receivers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        addresses = [each.stdout.readline().strip() for each in receivers if each.stdout]
        trio.run(compare, kinds, addresses, arguments.megabytes, arguments.repetitions)
    finally:
        for each in receivers:
            each.kill()
            each.wait()


if __name__ == "__main__":
    main()
