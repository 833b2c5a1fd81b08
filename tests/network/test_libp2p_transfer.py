"""The libp2p transport between honest peers, over real sockets on loopback."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import trio
from transport_doubles import GUARD_SECONDS, Recorder, Site, running

from p2pfed.daemon.libp2p_transport import Libp2pTransport
from p2pfed.daemon.transport import Stream
from p2pfed.errors import TransportError

BULK = "/test/bulk/1"
BULK_BYTES = 20_000_000


def loopback_connections() -> int:
    return len(psutil.Process().net_connections("inet"))


async def test_twenty_megabytes_each_way_at_once_arrive_unchanged() -> None:
    first, second = Site(1), Site(2)
    payloads = os.urandom(BULK_BYTES), os.urandom(BULK_BYTES)
    received: list[bytes] = []

    async def answer(stream: Stream) -> None:
        async with trio.open_nursery() as both:
            both.start_soon(stream.send_all, payloads[1])
            received.append(await stream.receive_exactly(BULK_BYTES))
        await stream.close()

    second.transport.set_handler(BULK, answer)
    async with running(first, second):
        await first.dial(second)
        stream = await first.transport.open_stream(second.peer_id, BULK)
        async with trio.open_nursery() as both:
            both.start_soon(stream.send_all, payloads[0])
            assert await stream.receive_exactly(BULK_BYTES) == payloads[1]
        assert await stream.receive_some() == b""
        await stream.close()
        assert first.transport.bytes_sent(second.peer_id) == BULK_BYTES
        assert first.transport.bytes_received(second.peer_id) == BULK_BYTES
    assert received == [payloads[0]]


async def test_small_messages_pass_beside_a_stalled_bulk_transfer() -> None:
    first, second = Site(1), Site(2)
    release = trio.Event()

    async def stall(stream: Stream) -> None:
        await release.wait()
        await stream.receive_exactly(BULK_BYTES)
        await stream.send_all(b"!")

    async def echo(stream: Stream) -> None:
        await stream.send_all(await stream.receive_exactly(4))

    second.transport.set_handler(BULK, stall)
    second.transport.set_handler("/test/echo/1", echo)
    async with running(first, second):
        await first.dial(second)
        bulk = await first.transport.open_stream(second.peer_id, BULK)
        async with trio.open_nursery() as both:
            both.start_soon(bulk.send_all, bytes(BULK_BYTES))
            for _ in range(20):
                small = await first.transport.open_stream(second.peer_id, "/test/echo/1")
                await small.send_all(b"ping")
                assert await small.receive_exactly(4) == b"ping"
                await small.close()
            release.set()
            assert await bulk.receive_exactly(1) == b"!"


async def test_a_thousand_streams_one_after_another_leave_nothing_behind() -> None:
    first, second = Site(1), Site(2)

    async def hang_up(stream: Stream) -> None:
        await stream.close()

    second.transport.set_handler(BULK, hang_up)
    async with running(first, second):
        await first.dial(second)
        for _ in range(1000):
            stream = await first.transport.open_stream(second.peer_id, BULK)
            assert await stream.receive_some() == b""
            await stream.close()
        for site in (first, second):
            (link,) = site.transport._links.values()
            assert len(link.connection.muxed_conn._streams) <= 1
            assert len(link.connection.get_streams()) <= 1


async def test_a_cancelled_idle_read_leaves_the_stream_usable() -> None:
    first, second = Site(1), Site(2)

    async def echo(stream: Stream) -> None:
        while data := await stream.receive_some():
            await stream.send_all(data)

    second.transport.set_handler(BULK, echo)
    async with running(first, second):
        await first.dial(second)
        stream = await first.transport.open_stream(second.peer_id, BULK)
        for _ in range(50):
            with trio.move_on_after(0):
                await stream.receive_some()
        await stream.send_all(b"still here")
        assert await stream.receive_exactly(10) == b"still here"


async def test_cancelling_transfers_midway_never_harms_the_connection() -> None:
    first, second = Site(1), Site(2)

    async def swallow(stream: Stream) -> None:
        while await stream.receive_some():
            pass

    async def echo(stream: Stream) -> None:
        await stream.send_all(await stream.receive_exactly(4))

    second.transport.set_handler(BULK, swallow)
    second.transport.set_handler("/test/echo/1", echo)
    async with running(first, second):
        await first.dial(second)
        for count in range(1, 30):
            stream = await first.transport.open_stream(second.peer_id, BULK)
            async with trio.open_nursery() as sending:
                sending.start_soon(stream.send_all, bytes(BULK_BYTES))
                while first.transport.bytes_sent(second.peer_id) < count * 100_000:
                    await trio.lowlevel.checkpoint()
                sending.cancel_scope.cancel()
            await stream.abort()
        check = await first.transport.open_stream(second.peer_id, "/test/echo/1")
        await check.send_all(b"ping")
        assert await check.receive_exactly(4) == b"ping"
        assert first.recorder.count("disconnected", second.peer_id) == 0


async def test_who_breaks_off_a_transfer_is_heard_to_the_end() -> None:
    first, second = Site(1), Site(2)

    async def refuse(stream: Stream) -> None:
        await stream.send_all(b"because")
        await stream.abort()

    second.transport.set_handler(BULK, refuse)
    async with running(first, second):
        await first.dial(second)
        stream = await first.transport.open_stream(second.peer_id, BULK)
        with pytest.raises(TransportError):
            await stream.send_all(bytes(BULK_BYTES))
        assert await stream.receive_exactly(7) == b"because"
        with pytest.raises(TransportError):
            await stream.receive_some()


async def test_an_unknown_protocol_is_an_error_and_nothing_more() -> None:
    first, second = Site(1), Site(2)
    async with running(first, second):
        await first.dial(second)
        with pytest.raises(TransportError, match="/test/unknown/1"):
            await first.transport.open_stream(second.peer_id, "/test/unknown/1")
        assert first.transport.path(second.peer_id) is not None


async def test_both_ends_dialling_at_once_leave_one_usable_link() -> None:
    first, second = Site(1), Site(2)

    async def echo(stream: Stream) -> None:
        await stream.send_all(await stream.receive_exactly(4))

    for site in (first, second):
        site.transport.set_handler(BULK, echo)
    lower = min(first, second, key=lambda site: site.peer_id)
    higher = second if lower is first else first
    async with running(first, second):
        async with trio.open_nursery() as both:
            both.start_soon(first.dial, second)
            both.start_soon(second.dial, first)

        def settled() -> bool:
            paths = lower.transport.path(higher.peer_id), higher.transport.path(lower.peer_id)
            return [path.direction for path in paths if path] == ["outbound", "inbound"] and all(
                len(site.transport._network.get_connections()) == 1 for site in (first, second)
            )

        while not settled():
            await trio.lowlevel.checkpoint()
        for near, far in ((first, second), (second, first)):
            stream = await near.transport.open_stream(far.peer_id, BULK)
            await stream.send_all(b"ping")
            assert await stream.receive_exactly(4) == b"ping"
            await stream.close()


async def test_leaving_the_roster_drops_the_link() -> None:
    first, second = Site(1), Site(2)
    async with running(first, second):
        await first.dial(second)
        await second.recorder.wait("connected", first.peer_id)
        second.transport.set_roster([])
        await first.recorder.wait("disconnected", second.peer_id)
        assert ("disconnected", first.peer_id, "no longer in the topology file") in (
            second.recorder.events
        )
        with pytest.raises(TransportError, match="its own copy of the topology file"):
            await first.dial(second)


async def test_a_dial_to_another_key_says_so() -> None:
    first, second, third = Site(1), Site(2), Site(3)
    async with running(first, second, third):
        with pytest.raises(TransportError, match="another key answers there"):
            await first.transport.dial(second.peer_id, third.address, 10.0)
        await first.dial(second)


async def test_a_dial_to_a_closed_port_says_refused_and_is_not_remembered() -> None:
    first, second = Site(1), Site(2)
    async with running(first, second):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = f"/ip4/127.0.0.1/tcp/{unused.getsockname()[1]}"
        with pytest.raises(TransportError, match="refused"):
            await first.transport.dial(second.peer_id, address, 10.0)
        await first.dial(second)


async def test_a_dial_that_nobody_answers_ends_in_time_without_a_socket_left() -> None:
    first, second = Site(1), Site(2)
    async with running(first, second):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            before = loopback_connections()
            with pytest.raises(TransportError, match=r"no answer within 0\.2 s"):
                await first.transport.dial(
                    second.peer_id, f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}", 0.2
                )
            assert loopback_connections() == before


async def test_a_taken_port_is_named_whoever_has_it() -> None:
    first, second = Site(1), Site(2)
    async with running(first):
        again = Libp2pTransport(second.identity.seed, [first.address], Recorder())
        with pytest.raises(TransportError, match=f"{first.address}.*another program has the port"):
            await again.run()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"
        with pytest.raises(TransportError, match=os.strerror(errno.EADDRINUSE)):
            await Libp2pTransport(second.identity.seed, [address], Recorder()).run()


async def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(TransportError, match=r"/ip4/192\.0\.2\.1/tcp/0.*listen\.addresses"):
        await Libp2pTransport(Site(1).identity.seed, ["/ip4/192.0.2.1/tcp/0"], Recorder()).run()


async def test_closing_leaves_no_socket_and_tells_the_other_end() -> None:
    before = loopback_connections()
    first, second = Site(1), Site(2)
    with trio.fail_after(GUARD_SECONDS):
        async with trio.open_nursery() as outer:
            second.transport.set_roster([first.peer_id])
            await outer.start(second.transport.run)
            async with running(first):
                first.transport.set_roster([second.peer_id])
                await first.dial(second)
                address = first.address
            await second.recorder.wait("disconnected", first.peer_id)
            with pytest.raises(TransportError, match="refused"):
                await second.transport.dial(first.peer_id, address, 10.0)
            outer.cancel_scope.cancel()
    assert loopback_connections() == before


@pytest.mark.parametrize("listen", ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"])
async def test_a_path_says_what_was_dialled_and_who_came_in(listen: str) -> None:
    first, second = Site(1), Site(2, listen=[listen])
    async with running(first, second):
        await first.dial(second)
        await second.recorder.wait("connected", first.peer_id)
        outbound = first.transport.path(second.peer_id)
        inbound = second.transport.path(first.peer_id)
        assert outbound is not None
        assert inbound is not None
        assert (outbound.address, outbound.direction) == (second.address, "outbound")
        assert inbound.direction == "inbound"
        assert inbound.address.startswith(listen.removesuffix("0"))


async def test_a_site_behind_a_firewall_may_listen_nowhere() -> None:
    first, second = Site(1, listen=()), Site(2)

    async def echo(stream: Stream) -> None:
        await stream.send_all(await stream.receive_exactly(4))

    first.transport.set_handler(BULK, echo)
    async with running(first, second):
        assert first.transport.listen_addresses == ()
        await first.dial(second)
        await second.recorder.wait("connected", first.peer_id)
        stream = await second.transport.open_stream(first.peer_id, BULK)
        await stream.send_all(b"ping")
        assert await stream.receive_exactly(4) == b"ping"


def test_importing_libp2p_leaves_logging_and_directories_alone(tmp_path: Path) -> None:
    script = (
        "import logging\n"
        "from p2pfed.daemon.libp2p_transport import Libp2pTransport\n"
        "class Silent: refused = None\n"
        "Libp2pTransport(bytes(32), [], Silent())\n"
        "library = logging.getLogger('libp2p')\n"
        "assert not library.handlers and library.propagate\n"
        "assert not logging.getLogger().handlers\n"
    )
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-B", "-W", "error", "-c", script]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []
