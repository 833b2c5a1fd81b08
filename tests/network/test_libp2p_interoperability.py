"""Our transport and py-libp2p's own host understand each other: the wire is the standard's."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import multiaddr
import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from transport_doubles import DIAL_SECONDS, GUARD_SECONDS, Site, identity

from p2pfed.daemon.transport import Stream

ECHO = "/test/echo/1"
SIZE_BYTES = 3_000_000


@asynccontextmanager
async def stock_host(number: int) -> AsyncIterator[BasicHost]:
    key_pair = create_new_key_pair(identity(number).seed)
    noise = Transport(key_pair, noise_privkey=create_noise_key_pair().private_key)
    listen = [multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = new_host(
        key_pair=key_pair,
        sec_opt={PROTOCOL_ID: noise},
        muxer_opt={TProtocol(YAMUX_PROTOCOL_ID): Yamux},
        listen_addrs=listen,
        disable_identify_address_discovery=True,
    )
    async with host.run(listen):
        yield host
        await host.close()


async def read_all(stream: NetStream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        received += await stream.read(65_536)
    return bytes(received)


async def test_the_stock_host_dials_us_and_gets_its_bytes_back() -> None:
    ours = Site(1)
    payload = os.urandom(SIZE_BYTES)

    async def echo(stream: Stream) -> None:
        await stream.send_all(await stream.receive_exactly(SIZE_BYTES))
        await stream.close()

    ours.transport.set_handler(ECHO, echo)
    ours.transport.set_roster([identity(2).peer_id])
    with trio.fail_after(GUARD_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(ours.transport.run)
            async with stock_host(2) as stock:
                peer_id = ID.from_string(ours.peer_id)
                await stock.get_network().dial_addr(multiaddr.Multiaddr(ours.address), peer_id)
                stream = await stock.new_stream(peer_id, [TProtocol(ECHO)])
                await stream.write(payload)
                assert await read_all(stream, SIZE_BYTES) == payload
                await stream.close()
            nursery.cancel_scope.cancel()


async def test_we_dial_the_stock_host_and_get_our_bytes_back() -> None:
    ours = Site(1)
    payload = os.urandom(SIZE_BYTES)

    async def echo(stream: NetStream) -> None:
        await stream.write(await read_all(stream, SIZE_BYTES))
        await stream.close()

    ours.transport.set_roster([identity(2).peer_id])
    with trio.fail_after(GUARD_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(ours.transport.run)
            async with stock_host(2) as stock:
                stock.set_stream_handler(TProtocol(ECHO), echo)
                address = str(stock.get_addrs()[0])
                await ours.transport.dial(identity(2).peer_id, address, DIAL_SECONDS)
                stream = await ours.transport.open_stream(identity(2).peer_id, ECHO)
                await stream.send_all(payload)
                assert await stream.receive_exactly(SIZE_BYTES) == payload
                assert await stream.receive_some() == b""
                await stream.close()
            await ours.recorder.wait("disconnected", identity(2).peer_id)
            nursery.cancel_scope.cancel()


async def test_the_end_of_our_stream_is_an_end_to_the_stock_host() -> None:
    ours = Site(1)

    async def end(stream: Stream) -> None:
        await stream.close()

    ours.transport.set_handler(ECHO, end)
    ours.transport.set_roster([identity(2).peer_id])
    with trio.fail_after(GUARD_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(ours.transport.run)
            async with stock_host(2) as stock:
                peer_id = ID.from_string(ours.peer_id)
                await stock.get_network().dial_addr(multiaddr.Multiaddr(ours.address), peer_id)
                stream = await stock.new_stream(peer_id, [TProtocol(ECHO)])
                with pytest.raises(StreamEOF):
                    await stream.read(1)
            nursery.cancel_scope.cancel()
