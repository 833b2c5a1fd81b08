"""The in-memory transport keeps the promises of the interface that others test against."""

import pytest
import trio
from memory_transport import MemoryNetwork, MemoryTransport
from transport_doubles import Recorder

from p2pfed.daemon.transport import Stream
from p2pfed.errors import TransportError

ECHO = "/test/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)
    await stream.close()


async def pair(
    nursery: trio.Nursery,
) -> tuple[MemoryNetwork, MemoryTransport, MemoryTransport, Recorder]:
    network = MemoryNetwork()
    recorder = Recorder()
    first = network.make("first", Recorder())
    first.set_roster(["second"])
    await nursery.start(first.run)
    second = network.make("second", recorder)
    second.set_roster(["first"])
    second.set_handler(ECHO, echo)
    await nursery.start(second.run)
    return network, first, second, recorder


async def test_bytes_come_back_whole_and_the_end_is_seen(nursery: trio.Nursery) -> None:
    _, first, second, _ = await pair(nursery)
    await first.dial("second", second.listen_addresses[0], 1.0)
    stream = await first.open_stream("second", ECHO)
    payload = bytes(range(256)) * 4096

    async with trio.open_nursery() as both:
        both.start_soon(stream.send_all, payload)
        assert await stream.receive_exactly(len(payload)) == payload
    await stream.close()
    assert await stream.receive_some() == b""
    assert first.bytes_sent("second") == first.bytes_received("second") == len(payload)


async def test_a_stranger_is_refused_and_reported(nursery: trio.Nursery) -> None:
    network, _, second, recorder = await pair(nursery)
    stranger = network.make("stranger", Recorder())
    stranger.set_roster(["second"])
    await nursery.start(stranger.run)
    with pytest.raises(TransportError, match="hung up"):
        await stranger.dial("second", second.listen_addresses[0], 1.0)
    assert recorder.count("refused", "stranger") == 1
    assert second.path("stranger") is None


async def test_dropping_a_connection_fails_both_ends(nursery: trio.Nursery) -> None:
    _, first, second, recorder = await pair(nursery)
    await first.dial("second", second.listen_addresses[0], 1.0)
    stream = await first.open_stream("second", ECHO)
    await first.drop("second", "test")
    with pytest.raises(TransportError):
        await stream.receive_some()
    with pytest.raises(TransportError):
        await first.open_stream("second", ECHO)
    assert recorder.count("disconnected", "first") == 1
    assert second.path("first") is None


async def test_a_member_that_leaves_the_roster_is_dropped(nursery: trio.Nursery) -> None:
    _, first, second, recorder = await pair(nursery)
    await first.dial("second", second.listen_addresses[0], 1.0)
    second.set_roster([])
    assert first.path("second") is None
    assert recorder.count("disconnected", "first") == 1


async def test_a_partition_silences_a_stream_until_it_heals(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    network, first, second, _ = await pair(nursery)
    await first.dial("second", second.listen_addresses[0], 1.0)
    stream = await first.open_stream("second", ECHO)
    network.partition("first", "second")
    with trio.move_on_after(10.0) as silence:
        await stream.send_all(b"hello")
    assert silence.cancelled_caught
    network.heal("first", "second")
    await stream.send_all(b"hello")
    assert await stream.receive_exactly(5) == b"hello"


async def test_a_dial_across_a_partition_times_out(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    network, first, second, _ = await pair(nursery)
    network.partition("first", "second")
    with pytest.raises(TransportError, match="no answer within 15 s"):
        await first.dial("second", second.listen_addresses[0], 15.0)


async def test_a_receiver_that_stops_reading_holds_the_sender_up(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    _, first, second, _ = await pair(nursery)

    async def read_nothing(stream: Stream) -> None:
        await trio.sleep_forever()

    second.set_handler("/test/deaf/1", read_nothing)
    await first.dial("second", second.listen_addresses[0], 1.0)
    stream = await first.open_stream("second", "/test/deaf/1")
    with pytest.raises(TransportError, match="nothing was taken"):
        await stream.send_all(bytes(10_000_000))
    assert first.path("second") is None
