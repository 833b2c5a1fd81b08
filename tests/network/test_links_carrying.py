"""A link at work: messages, heartbeats, slow and silent neighbours, and its end."""

import pytest
import trio
import trio.testing
from linked_sites import HIGH, LOW, RawPeer, Site, make_hello, read_to_end, running_pair
from scripted_network import ScriptedNetwork, ScriptedStream
from trio.testing import MockClock

from p2pfed.daemon.links import (
    GOODBYE_TIMEOUT_SECONDS,
    HEARTBEAT_SECONDS,
    LINK_TIMEOUT_SECONDS,
    OUTGOING_MESSAGES,
    REFUSED_RETRY_SECONDS,
)
from p2pfed.daemon.transport import Stream
from p2pfed.errors import RemoteProtocolError, TransportError
from p2pfed.protocol.messages import (
    LENGTH_PREFIX,
    Goodbye,
    Heartbeat,
    HeartbeatReply,
    Message,
    Want,
    encode_message,
)

IDLE_BYTES_PER_SECOND = 250  # a link and direction; eight links stay under 2 KB/s a peer
SIDE_PROTOCOL = "/p2pfed/test/1"


async def test_messages_arrive_in_both_directions_and_in_order(autojump_clock: MockClock) -> None:
    wants: list[Message] = [Want(bytes([number] * 32)) for number in range(100)]
    async with running_pair() as (low, high, _):
        for want in wants:
            assert low.links.post(HIGH.peer_id, want)
            assert high.links.post(LOW.peer_id, want)
        for site in (low, high):
            heard = site.handler.messages
            await site.handler.until(lambda heard=heard: wants[-1] in heard)  # type: ignore[misc]
            assert [message for message in heard if isinstance(message, Want)] == wants


async def test_heartbeats_tell_each_end_how_far_the_other_is(autojump_clock: MockClock) -> None:
    async with running_pair() as (low, high, _):
        high.handler.hello = make_hello(HIGH, round_number=12, phase="collecting")
        await trio.sleep(2 * HEARTBEAT_SECONDS)
        state = low.state(HIGH)
        assert (state.round_number, state.remote_phase) == (12, "collecting")
        assert state.round_trip_seconds == 0.0
        kinds = {type(message) for message in low.handler.messages}
        assert kinds == {Heartbeat, HeartbeatReply}


async def test_an_idle_link_costs_next_to_nothing(autojump_clock: MockClock) -> None:
    async with running_pair() as (low, _, _):
        before = low.transport.bytes_sent(HIGH.peer_id)
        await trio.sleep(600)
        sent = low.transport.bytes_sent(HIGH.peer_id) - before
        assert 0 < sent < 600 * IDLE_BYTES_PER_SECOND


async def test_a_neighbour_that_falls_silent_is_given_up(autojump_clock: MockClock) -> None:
    async with running_pair() as (low, high, network):
        network.partition(LOW.peer_id, HIGH.peer_id)
        silent_since = trio.current_time()
        await low.handler.until(lambda: bool(low.handler.down))
        await high.handler.until(lambda: bool(high.handler.down))
        waited = trio.current_time() - silent_since
        assert LINK_TIMEOUT_SECONDS < waited <= LINK_TIMEOUT_SECONDS + 2 * HEARTBEAT_SECONDS
        assert "nothing was heard" in low.handler.down[0][1]
        assert low.transport.path(HIGH.peer_id) is None
        assert low.links.encryption_key(HIGH.peer_id) is None
        assert not low.links.post(HIGH.peer_id, Want(b"w" * 32))
        network.heal(LOW.peer_id, HIGH.peer_id)
        await low.handler.until(lambda: low.linked(HIGH))
        await high.handler.until(lambda: high.linked(LOW))


async def test_a_pause_of_this_process_is_no_silence_of_the_neighbour(
    autojump_clock: MockClock,
) -> None:
    async with running_pair() as (low, high, network):
        for _ in range(3):
            autojump_clock.jump(2 * LINK_TIMEOUT_SECONDS)
            await trio.sleep(HEARTBEAT_SECONDS)
        assert low.handler.down == high.handler.down == []
        # Nor does it buy the neighbour any time beyond the pause itself.
        network.partition(LOW.peer_id, HIGH.peer_id)
        silent_since = trio.current_time()
        autojump_clock.jump(2 * LINK_TIMEOUT_SECONDS)
        await low.handler.until(lambda: bool(low.handler.down))
        waited = trio.current_time() - silent_since - 2 * LINK_TIMEOUT_SECONDS
        assert abs(waited - LINK_TIMEOUT_SECONDS) <= 2 * HEARTBEAT_SECONDS
        network.heal(LOW.peer_id, HIGH.peer_id)


async def test_any_byte_of_a_neighbour_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    def lose_heartbeats(stream: ScriptedStream, data: bytes) -> bytes:
        return data if stream.protocol == SIDE_PROTOCOL else b""

    async with running_pair() as (low, high, network):

        async def swallow(stream: Stream) -> None:
            await read_to_end(stream)

        low.transport.set_handler(SIDE_PROTOCOL, swallow)
        high.transport.set_handler(SIDE_PROTOCOL, swallow)
        to_high = await low.transport.open_stream(HIGH.peer_id, SIDE_PROTOCOL)
        to_low = await high.transport.open_stream(LOW.peer_id, SIDE_PROTOCOL)
        network.on_send = lose_heartbeats
        for _ in range(20):
            await trio.sleep(LINK_TIMEOUT_SECONDS / 3)
            await to_high.send_all(b"x")
            await to_low.send_all(b"x")
        assert low.handler.down == high.handler.down == []
        await low.handler.until(lambda: bool(low.handler.down))


async def test_the_queue_of_a_neighbour_is_bounded_and_posting_never_waits(
    autojump_clock: MockClock,
) -> None:
    async with running_pair() as (low, _, network):
        network.partition(LOW.peer_id, HIGH.peer_id)
        await trio.testing.wait_all_tasks_blocked()
        accepted = 0
        while low.links.post(HIGH.peer_id, Want(b"w" * 32)):
            accepted += 1
            assert accepted <= OUTGOING_MESSAGES + 1  # one may be in the hands of the writer
        with pytest.raises(TransportError, match="too many wait"):
            await low.links.ping(HIGH.peer_id, 1.0)
        await low.handler.until(lambda: bool(low.handler.down))
        network.heal(LOW.peer_id, HIGH.peer_id)


async def test_a_ping_measures_the_round_trip(autojump_clock: MockClock) -> None:
    async with running_pair() as (low, _, network):
        assert await low.links.ping(HIGH.peer_id, 1.0) == 0.0
        network.partition(LOW.peer_id, HIGH.peer_id)
        with pytest.raises(TransportError, match="no answer within 3 s"):
            await low.links.ping(HIGH.peer_id, 3.0)
        await low.handler.until(lambda: bool(low.handler.down))
        with pytest.raises(TransportError, match="no link"):
            await low.links.ping(HIGH.peer_id, 3.0)
        network.heal(LOW.peer_id, HIGH.peer_id)


async def test_a_goodbye_is_understood_and_the_one_who_left_makes_no_new_link(
    autojump_clock: MockClock,
) -> None:
    async with running_pair() as (low, high, network):
        network.dials.clear()
        await low.links.say_goodbye("its operator stopped it")
        await high.handler.until(lambda: bool(high.handler.down))
        assert high.handler.down == [(LOW.peer_id, "it stopped: its operator stopped it")]
        await trio.sleep(60)
        assert not low.linked(HIGH)
        assert not high.linked(LOW)
        assert {who for _, who, _ in network.dials} == {HIGH.peer_id}


async def test_a_goodbye_to_a_silent_neighbour_takes_bounded_time(
    autojump_clock: MockClock,
) -> None:
    async with running_pair() as (low, _, network):
        network.partition(LOW.peer_id, HIGH.peer_id)
        before = trio.current_time()
        await low.links.say_goodbye("its operator stopped it")
        assert trio.current_time() - before <= GOODBYE_TIMEOUT_SECONDS
        network.heal(LOW.peer_id, HIGH.peer_id)


@pytest.mark.parametrize(
    "offence",
    [
        LENGTH_PREFIX.pack(2**32 - 1),
        LENGTH_PREFIX.pack(1) + b"\xc1",
        encode_message(Want(b"w" * 32))[:-4] + b"\x00" * 4 + LENGTH_PREFIX.pack(2) + b"\x91\x63",
    ],
    ids=["oversized", "unparsable", "unknown_kind"],
)
async def test_a_malformed_message_ends_the_link_and_is_counted(
    offence: bytes, autojump_clock: MockClock
) -> None:
    network = ScriptedNetwork()
    low, liar = Site(network, LOW, (HIGH,)), RawPeer(network, HIGH)
    async with liar.running(), low.running():
        for offences in (1, 2):
            stream = await liar.next_stream()
            dialled_at = network.dials[-1][0]
            await liar.greet(stream)
            await low.handler.until(lambda: low.linked(HIGH))
            await stream.send_all(offence)
            await read_to_end(stream)
            await trio.testing.wait_all_tasks_blocked()
            assert low.state(HIGH).offences == offences
            assert not low.linked(HIGH)
            assert len(low.handler.down) == offences
        await liar.next_stream()
        assert network.dials[-1][0] - dialled_at >= REFUSED_RETRY_SECONDS


async def test_a_message_that_the_handler_refuses_ends_the_link(autojump_clock: MockClock) -> None:
    def refuse(message: Message) -> None:
        if isinstance(message, Want):
            raise RemoteProtocolError("not acceptable from a member")

    async with running_pair() as (low, high, _):
        high.handler.on_message = refuse
        low.links.post(HIGH.peer_id, Want(b"w" * 32))
        await high.handler.until(lambda: bool(high.handler.down))
        assert high.handler.down == [(LOW.peer_id, "not acceptable from a member")]
        assert high.state(LOW).offences == 1
        await low.handler.until(lambda: bool(low.handler.down))


async def test_a_goodbye_in_place_of_silence_ends_the_link_in_order(
    autojump_clock: MockClock,
) -> None:
    network = ScriptedNetwork()
    low, raw = Site(network, LOW, (HIGH,)), RawPeer(network, HIGH)
    async with raw.running(), low.running():
        stream = await raw.next_stream()
        await raw.greet(stream)
        await low.handler.until(lambda: low.linked(HIGH))
        await stream.send_all(encode_message(Goodbye("maintenance")))
        await low.handler.until(lambda: bool(low.handler.down))
        assert low.handler.down == [(HIGH.peer_id, "it stopped: maintenance")]
        assert low.state(HIGH).offences == 0
        await raw.next_stream()  # it is looked for again
