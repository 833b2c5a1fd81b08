"""What somebody who is not in the topology file can do to the port: nothing that lasts."""

import os

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID
from libp2p.security.secio.transport import ID as SECIO_PROTOCOL_ID
from libp2p.security.tls.transport import PROTOCOL_ID as TLS_PROTOCOL_ID
from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID
from libp2p.utils.varint import encode_uvarint
from transport_doubles import DIAL_SECONDS, Site, running

from p2pfed.daemon.libp2p_door import (
    UNAUTHENTICATED_BYTES,
    UNAUTHENTICATED_SOCKETS_PER_ADDRESS,
)
from p2pfed.daemon.transport import Stream
from p2pfed.errors import TransportError

ECHO = "/test/echo/1"
MULTISTREAM = b"/multistream/1.0.0\n"


async def echo(stream: Stream) -> None:
    await stream.send_all(await stream.receive_exactly(4))


async def assert_still_serves(victim: Site, honest: Site) -> None:
    await honest.dial(victim)
    stream = await honest.transport.open_stream(victim.peer_id, ECHO)
    await stream.send_all(b"ping")
    assert await stream.receive_exactly(4) == b"ping"


async def connect(site: Site) -> trio.SocketStream:
    port = int(site.address.rsplit("/", 1)[1])
    return await trio.open_tcp_stream("127.0.0.1", port)


def delimited(message: bytes) -> bytes:
    return encode_uvarint(len(message)) + message


async def closed_by_the_other_end(stream: trio.SocketStream) -> bool:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass
    return True


async def test_an_unlisted_peer_is_refused_before_any_handler_and_named() -> None:
    victim, honest, stranger = Site(1), Site(2), Site(3)
    handled: list[str] = []

    async def note(stream: Stream) -> None:
        handled.append(stream.peer_id)
        await echo(stream)

    victim.transport.set_handler(ECHO, note)
    async with running(victim, honest), trio.open_nursery() as nursery:
        stranger.transport.set_roster([victim.peer_id])
        await nursery.start(stranger.transport.run)
        with pytest.raises(TransportError, match="its own copy of the topology file"):
            await stranger.dial(victim)
        await victim.recorder.wait("refused", stranger.peer_id)
        assert victim.transport.path(stranger.peer_id) is None
        await assert_still_serves(victim, honest)
        nursery.cancel_scope.cancel()
    assert handled == [honest.peer_id]


@pytest.mark.parametrize(
    "protocol", [PLAINTEXT_PROTOCOL_ID, str(SECIO_PROTOCOL_ID), str(TLS_PROTOCOL_ID)]
)
async def test_nothing_but_noise_is_offered(protocol: str) -> None:
    victim, honest = Site(1), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, honest):
        async with await connect(victim) as stranger:
            await stranger.send_all(delimited(MULTISTREAM) + delimited(protocol.encode() + b"\n"))
            expected = delimited(MULTISTREAM) + delimited(b"na\n")
            answer = b""
            while len(answer) < len(expected):
                answer += await stranger.receive_some()
            assert answer == expected
            await stranger.send_all(delimited(b"ls\n"))
            assert await stranger.receive_some() == delimited(b"/noise\n\n")
        await assert_still_serves(victim, honest)


async def test_nothing_but_yamux_is_offered_to_a_member() -> None:
    victim, member = Site(1), Site(2)
    async with running(victim, member):
        upgrader = member.transport._network.upgrader
        upgrader.muxer_multistream.transports.clear()
        upgrader.muxer_multistream.add_transport(TProtocol(MPLEX_PROTOCOL_ID), object)
        with pytest.raises(TransportError):
            await member.dial(victim)
        assert victim.transport.path(member.peer_id) is None


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: hospital\r\n\r\n",
        bytes(4096),
        b"\xff" * 4096,
        delimited(b"\xff\xfe\n"),
        delimited(MULTISTREAM) + delimited(b"/noise\n") + b"\xff\xff" + bytes(10_000),
        delimited(MULTISTREAM) + delimited(b"/noise\n") + b"\x00\x20" + bytes(32) + bytes(300),
    ],
    ids=["http", "zeros", "ones", "no text", "endless noise", "short noise"],
)
async def test_garbage_costs_the_one_who_sends_it_the_connection(garbage: bytes) -> None:
    victim, honest = Site(1), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, honest):
        async with await connect(victim) as stranger:
            await stranger.send_all(garbage)
            await stranger.send_eof()
            assert await closed_by_the_other_end(stranger)
        await assert_still_serves(victim, honest)


async def test_a_stranger_cannot_make_the_port_read_more_than_a_handshake() -> None:
    victim, honest = Site(1), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, honest):
        async with await connect(victim) as stranger:
            endless = encode_uvarint(2**40)
            await stranger.send_all(endless + os.urandom(UNAUTHENTICATED_BYTES))
            assert await closed_by_the_other_end(stranger)
        await assert_still_serves(victim, honest)


async def test_four_hundred_failed_connections_do_not_use_up_the_port() -> None:
    victim, honest = Site(1), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, honest):
        for _ in range(400):
            async with await connect(victim) as stranger:
                await stranger.send_all(b"\x00")
        await assert_still_serves(victim, honest)


async def test_three_hundred_good_connections_do_not_use_up_the_port() -> None:
    victim, honest = Site(1), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, honest):
        async with trio.open_nursery() as dropping:
            for count in range(1, 301):
                await honest.dial(victim)
                await victim.recorder.wait("connected", honest.peer_id, count)
                dropping.start_soon(honest.transport.drop, victim.peer_id, "test")
                await honest.recorder.wait("disconnected", victim.peer_id, count)
        await victim.recorder.wait("disconnected", honest.peer_id, 300)
        assert victim.transport._network._inbound_limiter.borrowed_tokens == 0
        await assert_still_serves(victim, honest)


async def test_sockets_that_say_nothing_are_bounded_and_keep_nobody_out() -> None:
    victim, honest = Site(1), Site(2)
    victim.transport.set_handler(ECHO, echo)
    async with running(victim, honest):
        silent = [await connect(victim) for _ in range(4 * UNAUTHENTICATED_SOCKETS_PER_ADDRESS)]
        surplus = silent[:-UNAUTHENTICATED_SOCKETS_PER_ADDRESS]
        for stranger in surplus:
            assert await closed_by_the_other_end(stranger)
        await assert_still_serves(victim, honest)
        for stranger in silent:
            await stranger.aclose()


async def test_a_stranger_who_answers_the_phone_of_a_member_is_noticed() -> None:
    """Whoever sits at a member's address, without its key, is not taken for it."""
    victim, member, stranger = Site(1), Site(2), Site(3)
    async with running(victim), trio.open_nursery() as nursery:
        stranger.transport.set_roster([victim.peer_id])
        await nursery.start(stranger.transport.run)
        victim.transport.set_roster([member.peer_id])
        with pytest.raises(TransportError, match="another key answers there"):
            await victim.transport.dial(member.peer_id, stranger.address, DIAL_SECONDS)
        assert victim.transport.path(member.peer_id) is None
        nursery.cancel_scope.cancel()
