"""What two ends must agree on before a link carries anything, and what happens when they do
not."""

from contextlib import suppress
from dataclasses import replace

import pytest
import trio
import trio.testing
from linked_sites import (
    HIGH,
    LOW,
    MIDDLE,
    RawPeer,
    Site,
    make_hello,
    read_message,
    read_to_end,
    running_pair,
)
from scripted_network import ScriptedNetwork, address_of
from trio.testing import MockClock

from p2pfed.daemon.links import HANDSHAKE_TIMEOUT_SECONDS, REFUSED_RETRY_SECONDS
from p2pfed.errors import TransportError
from p2pfed.protocol import limits
from p2pfed.protocol.certificates import issue_address_record, issue_certificate
from p2pfed.protocol.messages import (
    LENGTH_PREFIX,
    AddressRecordNotice,
    FrameReader,
    Goodbye,
    Hello,
    Refusal,
    RefusalCode,
    Want,
    encode_message,
)


async def test_each_end_learns_the_hello_and_the_certified_key_of_the_other(
    autojump_clock: MockClock,
) -> None:
    async with running_pair() as (low, high, _):
        assert low.handler.up == [(HIGH.peer_id, high.handler.hello)]
        assert high.handler.up == [(LOW.peer_id, low.handler.hello)]
        assert low.links.encryption_key(HIGH.peer_id) == HIGH.encryption_public_key
        assert high.links.encryption_key(LOW.peer_id) == LOW.encryption_public_key
        assert low.state(HIGH).software == "p2pfed test"
        assert low.links.encryption_key(MIDDLE.peer_id) is None


async def test_what_is_said_the_moment_a_link_is_up_arrives(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,))
    want = Want(b"w" * 32)
    sent: list[bool] = []
    low.handler.on_up = lambda peer_id: sent.append(low.links.post(peer_id, want))
    async with high.running(), low.running():
        await high.handler.until(lambda: want in high.handler.messages)
    assert sent == [True]


async def test_address_records_are_passed_on_to_a_new_neighbour(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,))
    record = issue_address_record(MIDDLE, 5, (address_of(MIDDLE.peer_id),))
    low.book.learn_record(record)
    async with high.running(), low.running():
        await high.handler.until(lambda: AddressRecordNotice(record) in high.handler.messages)


async def test_both_ends_of_a_mismatch_say_so_and_neither_hangs(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,))
    high.handler.hello = make_hello(HIGH, topology_digest=b"u" * 32)
    async with high.running(), low.running():
        await trio.sleep(10)
        for site, other in ((low, HIGH), (high, LOW)):
            state = site.state(other)
            assert state.phase == "refused"
            assert "7474" in (state.refusal or "")
            assert "7575" in (state.refusal or "")
            assert site.handler.up == []
            assert site.links.encryption_key(other.peer_id) is None
            assert site.transport.path(other.peer_id) is None


async def test_a_refused_neighbour_is_asked_again_only_slowly(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,))
    high.handler.hello = make_hello(HIGH, topology_digest=b"u" * 32)
    async with high.running(), low.running():
        await trio.sleep(10 * REFUSED_RETRY_SECONDS)
        assert 8 <= len(network.dials) <= 22  # both ends try, each after its own pause


async def test_a_refused_dialler_is_not_hurried_by_its_own_connections(
    autojump_clock: MockClock,
) -> None:
    network = ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,), knows_addresses=False)
    high.handler.hello = make_hello(HIGH, topology_digest=b"u" * 32)
    # As the daemon does: every connection is news for the supervisor.
    low.transport.observer.connected = (  # type: ignore[method-assign]
        lambda peer_id, _address, _direction: low.links.nudge(peer_id)
    )
    async with high.running(), low.running():
        await trio.sleep(10 * REFUSED_RETRY_SECONDS)
        assert 8 <= len(network.dials) <= 11


async def test_a_link_is_made_at_once_after_the_difference_is_gone(
    autojump_clock: MockClock,
) -> None:
    network = ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,))
    high.handler.hello = make_hello(HIGH, topology_digest=b"u" * 32)
    async with high.running(), low.running():
        await trio.sleep(10)
        high.handler.hello = make_hello(HIGH)
        before = trio.current_time()
        await high.links.reconnect(LOW.peer_id, "the topology file was reloaded")
        await low.handler.until(lambda: low.linked(HIGH))
        await high.handler.until(lambda: high.linked(LOW))
        assert trio.current_time() == before
        assert low.state(HIGH).refusal is None


async def test_a_change_at_one_end_of_a_live_link_is_noticed_at_both(
    autojump_clock: MockClock,
) -> None:
    async with running_pair() as (low, high, _):
        low.handler.hello = make_hello(LOW, topology_digest=b"u" * 32)
        await low.links.reconnect(HIGH.peer_id, "the topology file was reloaded")
        await trio.sleep(10)
        assert low.state(HIGH).phase == "refused"
        assert high.state(LOW).phase == "refused"


async def test_a_refusal_by_one_end_alone_is_known_at_the_other(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,))
    refusal = Refusal(RefusalCode.QUARANTINED, "quarantined for equivocation")
    high.handler.check_hello = lambda _peer_id, _hello: refusal  # type: ignore[method-assign]
    async with high.running(), low.running():
        await trio.sleep(5)
        assert low.state(HIGH).phase == "refused"
        assert "refuses: quarantined" in (low.state(HIGH).refusal or "")
        assert high.state(LOW).phase == "refused"


async def test_one_who_is_no_neighbour_is_told_so(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, ())
    async with high.running(), low.running():
        await trio.sleep(5)
        assert low.state(HIGH).phase == "refused"
        assert "no neighbour of yours" in (low.state(HIGH).refusal or "")
        assert high.handler.up == []


async def test_another_protocol_version_is_refused_with_both_numbers(
    autojump_clock: MockClock,
) -> None:
    network = ScriptedNetwork()
    low, old = Site(network, LOW, (HIGH,)), RawPeer(network, HIGH)
    async with old.running(), low.running():
        stream, reader = await old.next_stream(), FrameReader()
        await stream.send_all(encode_message(make_hello(HIGH, version=7)))
        assert isinstance(await read_message(stream, reader), Hello)
        refusal = await read_message(stream, reader)
        assert isinstance(refusal, Refusal)
        assert refusal.code is RefusalCode.OTHER_VERSION
        assert f"protocol 7, this site {limits.PROTOCOL_VERSION}" in refusal.detail
        await read_to_end(stream)
        assert low.state(HIGH).phase == "refused"


TOO_LONG = LENGTH_PREFIX.pack(limits.MAX_MESSAGE_BYTES + 1) + b"x"
GARBAGE = LENGTH_PREFIX.pack(3) + b"\xff\xff\xff"
FOREIGN_KEY = encode_message(make_hello(HIGH, certificate=issue_certificate(MIDDLE)))
FORGED_KEY = encode_message(
    replace(make_hello(HIGH), certificate=issue_certificate(HIGH)[:-1] + b"\x00")
)
NO_HELLO = encode_message(Goodbye("good day"))


@pytest.mark.parametrize(
    "opening",
    [TOO_LONG, GARBAGE, FOREIGN_KEY, FORGED_KEY, NO_HELLO],
    ids=["too_long", "garbage", "foreign_key", "forged_key", "no_hello"],
)
async def test_a_false_start_costs_the_neighbour_its_link_and_slows_it_down(
    opening: bytes, autojump_clock: MockClock
) -> None:
    network = ScriptedNetwork()
    low, liar = Site(network, LOW, (HIGH,)), RawPeer(network, HIGH)
    async with liar.running(), low.running():
        stream = await liar.next_stream()
        await stream.send_all(opening)
        await read_to_end(stream)
        await trio.testing.wait_all_tasks_blocked()
        state = low.state(HIGH)
        assert state.offences == 1
        assert state.last_error
        assert low.links.encryption_key(HIGH.peer_id) is None
        assert liar.transport.path(LOW.peer_id) is None
        first_dial = network.dials[0][0]
        await liar.next_stream()
        assert network.dials[-1][0] - first_dial >= REFUSED_RETRY_SECONDS
        assert low.handler.up == []


async def test_a_neighbour_that_never_says_hello_is_given_up(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    low, mute = Site(network, LOW, (HIGH,)), RawPeer(network, HIGH)
    start = trio.current_time()
    async with mute.running(), low.running():
        stream = await mute.next_stream()
        await read_to_end(stream)
        assert trio.current_time() - start == pytest.approx(HANDSHAKE_TIMEOUT_SECONDS)
        await mute.next_stream()  # and tried again


async def test_of_two_control_streams_opened_crosswise_the_lower_ids_is_kept(
    autojump_clock: MockClock,
) -> None:
    network = ScriptedNetwork()
    low, raw = Site(network, LOW, (HIGH,)), RawPeer(network, HIGH)
    async with raw.running(), low.running():
        from_low = await raw.next_stream()
        crossing = await raw.transport.open_stream(LOW.peer_id, limits.CONTROL_PROTOCOL)
        await read_to_end(crossing)
        await raw.greet(from_low)
        await low.handler.until(lambda: low.linked(HIGH))
        assert low.handler.down == []


async def test_the_newest_control_stream_of_a_neighbour_wins(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    high, raw = Site(network, HIGH, (LOW,), knows_addresses=False), RawPeer(network, LOW)
    async with high.running(), raw.running():
        first = await raw.open(high)
        await raw.greet(first)
        await high.handler.until(lambda: high.linked(LOW))
        second = await raw.open(high)
        await raw.greet(second)
        await read_to_end(first)
        await high.handler.until(lambda: len(high.handler.up) == 2)
        assert [peer_id for peer_id, _ in high.handler.down] == [LOW.peer_id]
        await second.send_all(encode_message(Want(b"w" * 32)))
        await high.handler.until(lambda: Want(b"w" * 32) in high.handler.messages)
        assert high.transport.dropped == []


async def test_many_control_streams_at_once_leave_one_link(autojump_clock: MockClock) -> None:
    network = ScriptedNetwork()
    high, raw = Site(network, HIGH, (LOW,), knows_addresses=False), RawPeer(network, LOW)
    async with high.running(), raw.running():
        streams = [await raw.open(high) for _ in range(6)]
        for stream in streams:
            with suppress(TransportError):  # all but the newest were reset meanwhile
                await stream.send_all(encode_message(make_hello(LOW)))
        await high.handler.until(lambda: high.linked(LOW))
        await trio.testing.wait_all_tasks_blocked()
        assert len(high.handler.up) == len(high.handler.down) + 1
        assert high.linked(LOW)
    assert network.failures == []
