"""Own envelopes on their way out: in order, bounded, tried again, and never in another's way."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
import trio
from exchanging_sites import PAYLOAD_KEY, Exchange, exchanging, make_envelope
from linked_sites import HIGH, LOW, MIDDLE, running
from scripted_network import ScriptedStream, address_of
from structlog.testing import capture_logs

from p2pfed.daemon.delta_exchange import SendOutcome
from p2pfed.daemon.links import Links
from p2pfed.daemon.outbox import ATTEMPTS, FIRST_RETRY_SECONDS, QUEUED_ENVELOPES, Outbox
from p2pfed.daemon.sendable import Sendable
from p2pfed.daemon.transport import Stream
from p2pfed.protocol import limits
from p2pfed.protocol.header import SignedHeader
from p2pfed.protocol.messages import AnswerCode

PARAMETERS = 100


def sendable(directory: Path, sequence: int, *, throw_away: bool = False) -> Sendable:
    """An own envelope; ``sequence`` tells it from the others."""
    envelope = make_envelope(directory, PARAMETERS, sequence=sequence)
    offer = envelope.offer
    return Sendable(
        offer.signed, offer.chunk_digests, PAYLOAD_KEY, envelope.ciphertext, throw_away=throw_away
    )


class LinkedPeers:
    """What the outbox sees of the links: who is linked, under which key."""

    def __init__(self) -> None:
        self.keys = {HIGH.peer_id: HIGH.encryption_public_key}
        self.reconnects: list[tuple[float, str, str]] = []

    def encryption_key(self, peer_id: str) -> bytes | None:
        return self.keys.get(peer_id)

    async def reconnect(self, peer_id: str, reason: str) -> None:
        self.reconnects.append((trio.current_time(), peer_id, reason))
        await trio.lowlevel.checkpoint()


@dataclass
class Sending:
    """LOW's outbox, and HIGH at the other end."""

    exchange: Exchange
    outbox: Outbox
    links: LinkedPeers
    directory: Path
    sent: list[tuple[int, SendOutcome]] = field(default_factory=list)
    _change: trio.Event = field(default_factory=trio.Event)

    def send(self, sequence: int, *, throw_away: bool = False) -> Sendable:
        item = sendable(self.directory, sequence, throw_away=throw_away)
        self.outbox.send(HIGH.peer_id, item)
        return item

    def note(self, _peer_id: str, signed: SignedHeader, outcome: SendOutcome) -> None:
        self.sent.append((signed.header.sequence, outcome))
        self._change.set()
        self._change = trio.Event()

    @property
    def sent_sequences(self) -> list[int]:
        return [sequence for sequence, _ in self.sent]

    @property
    def received_sequences(self) -> list[int]:
        return [payload.signed.header.sequence for payload in self.exchange.delivered]

    async def until_sent(self, count: int) -> None:
        while len(self.sent) < count:
            await self._change.wait()

    def cut(self) -> None:
        self.exchange.network.partition(LOW.peer_id, HIGH.peer_id)

    def mend(self) -> None:
        self.exchange.network.heal(LOW.peer_id, HIGH.peer_id)


@asynccontextmanager
async def sending(directory: Path) -> AsyncIterator[Sending]:
    async with exchanging(directory, PARAMETERS) as exchange:
        await exchange.sender.dial(HIGH.peer_id, address_of(HIGH.peer_id), 1.0)
        links = LinkedPeers()

        def on_sent(peer_id: str, signed: SignedHeader, outcome: SendOutcome) -> None:
            site.note(peer_id, signed, outcome)

        outbox = Outbox(exchange.sender, cast(Links, links), LOW, on_sent)
        site = Sending(exchange, outbox, links, directory)
        async with running(outbox.run):
            yield site


async def test_envelopes_arrive_in_the_order_in_which_they_were_queued(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        for sequence in (3, 1, 2):
            site.send(sequence)
        await site.until_sent(3)
        assert site.sent_sequences == site.received_sequences == [3, 1, 2]
        assert {outcome for _, outcome in site.sent} == {SendOutcome(True, AnswerCode.SEND, "")}
        for payload in site.exchange.delivered:
            sealed = make_envelope(
                tmp_path, PARAMETERS, sequence=payload.signed.header.sequence
            ).plaintext
            assert b"".join(payload.chunks()) == sealed


async def test_one_transfer_at_a_time_goes_to_a_neighbour(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        opened: list[ScriptedStream] = []
        under_way: list[int] = []

        def count_transfers(stream: ScriptedStream, data: bytes) -> bytes:
            if stream.transport is site.exchange.sender and stream not in opened:
                opened.append(stream)
                under_way.append(len(opened) - len(site.sent))
            return data

        site.exchange.network.on_send = count_transfers
        for sequence in range(1, 5):
            site.send(sequence)
        await site.until_sent(4)
        assert under_way == [1, 1, 1, 1]


async def test_what_the_neighbour_answers_is_passed_on(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        site.exchange.answer = (AnswerCode.NOT_NOW, "later")
        site.send(1)
        await site.until_sent(1)
        assert site.sent == [(1, SendOutcome(False, AnswerCode.NOT_NOW, "later"))]
        assert site.exchange.delivered == []
        assert site.links.reconnects == []


async def test_a_queue_that_is_full_drops_the_newest_and_says_so(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        site.cut()
        site.send(1)
        await trio.testing.wait_all_tasks_blocked()  # it is under way, and none is queued
        last = 1 + QUEUED_ENVELOPES
        for sequence in range(2, last + 1):
            site.send(sequence)
        with capture_logs() as lines:
            site.send(last + 1)
            dropped = site.send(last + 2, throw_away=True)
        assert [(line["event"], line["round"]) for line in lines] == [
            ("outbox full", last),
            ("outbox full", last + 1),
        ]
        assert not dropped.ciphertext.exists()
        assert not site.outbox.has_snapshot(HIGH.peer_id)
        site.mend()
        await site.until_sent(last)
        assert site.sent_sequences == list(range(1, last + 1))


async def test_a_transfer_that_fails_is_tried_again_after_growing_pauses(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        attempts = fail_offers(site, ATTEMPTS - 1)
        started = trio.current_time()
        site.send(1)
        site.send(2)
        await site.until_sent(2)
        assert site.received_sequences == [1, 2]
        assert [at - started for at in attempts] == pytest.approx(
            [0.0, FIRST_RETRY_SECONDS], abs=1e-6
        )
        assert trio.current_time() - started == pytest.approx(3 * FIRST_RETRY_SECONDS, abs=1e-6)
        assert site.links.reconnects == []


def fail_offers(site: Sending, count: int) -> list[float]:
    """Let the next offers break their stream; returns when that happened."""
    failed_at: list[float] = []

    def cut_short(stream: ScriptedStream, data: bytes) -> bytes:
        if stream.transport is not site.exchange.sender or len(failed_at) == count:
            return data
        failed_at.append(trio.current_time())
        return b"\xff\xff\xff\xff"  # a frame that is too long: the receiver resets the stream

    site.exchange.network.on_send = cut_short
    return failed_at


async def test_a_link_that_carries_no_envelope_is_made_anew_and_the_next_is_sent(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        fail_offers(site, ATTEMPTS)
        started = trio.current_time()
        site.send(1)
        site.send(2)
        await site.until_sent(1)
        assert site.sent_sequences == site.received_sequences == [2]
        [(at, peer_id, reason)] = site.links.reconnects
        assert (peer_id, reason) == (HIGH.peer_id, "envelopes do not get through")
        assert at - started == pytest.approx(3 * FIRST_RETRY_SECONDS, abs=1e-6)


async def test_nothing_is_offered_while_the_link_is_down(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        key = site.links.keys.pop(HIGH.peer_id)
        site.send(1)
        snapshot = site.send(2, throw_away=True)
        await trio.testing.wait_all_tasks_blocked()
        assert not snapshot.ciphertext.exists()
        site.links.keys[HIGH.peer_id] = key
        site.send(3)
        await site.until_sent(1)
        assert site.sent_sequences == [3]
        assert [signed.header.sequence for signed in site.exchange.decided] == [3]


async def test_an_envelope_that_is_not_retained_any_more_is_passed_over(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        old = sendable(tmp_path, 1)
        old.ciphertext.unlink()
        site.outbox.send(HIGH.peer_id, old)
        site.send(2)
        await site.until_sent(1)
        assert site.sent_sequences == [2]
        assert site.links.reconnects == []


async def test_a_snapshot_is_announced_until_it_is_sent_and_then_deleted(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        site.cut()
        delta = site.send(1)
        first = site.send(2, throw_away=True)
        assert site.outbox.has_snapshot(HIGH.peer_id)
        assert not site.outbox.has_snapshot(MIDDLE.peer_id)
        site.mend()
        await site.until_sent(2)
        await trio.testing.wait_all_tasks_blocked()
        assert not site.outbox.has_snapshot(HIGH.peer_id)
        assert delta.ciphertext.exists()
        assert not first.ciphertext.exists()
        # Another may take its place.
        second = site.send(3, throw_away=True)
        assert site.outbox.has_snapshot(HIGH.peer_id)
        await site.until_sent(3)
        await trio.testing.wait_all_tasks_blocked()
        assert not second.ciphertext.exists()
        assert site.received_sequences == [1, 2, 3]


async def test_a_snapshot_that_does_not_get_through_is_deleted_as_well(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        fail_offers(site, ATTEMPTS)
        snapshot = site.send(1, throw_away=True)
        site.send(2)
        await site.until_sent(1)
        assert not snapshot.ciphertext.exists()
        assert not site.outbox.has_snapshot(HIGH.peer_id)


async def test_a_neighbour_that_was_forgotten_and_is_one_again_has_one_transfer_at_a_time(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        under_way: list[int] = []

        def count_transfers(stream: ScriptedStream, data: bytes) -> bytes:
            if stream.transport is site.exchange.sender and stream not in opened:
                opened.append(stream)
                under_way.append(len(opened) - len(site.sent))
            return data

        opened: list[ScriptedStream] = []
        site.exchange.network.on_send = count_transfers
        site.cut()
        site.send(1)
        await trio.testing.wait_all_tasks_blocked()
        stale = site.send(2, throw_away=True)
        for sequence in (3, 5):
            site.outbox.forget(HIGH.peer_id)
            site.send(sequence)
            site.send(sequence + 1)
            await trio.testing.wait_all_tasks_blocked()
        site.mend()
        await site.until_sent(3)
        await trio.testing.wait_all_tasks_blocked()
        assert under_way == [1, 1, 1]
        # What was under way ends; what was queued for the former neighbour does not go out.
        assert site.sent_sequences == site.received_sequences == [1, 5, 6]
        assert not stale.ciphertext.exists()
        assert not site.outbox.has_snapshot(HIGH.peer_id)


async def test_a_forgotten_neighbour_leaves_no_task_behind(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        before = trio.lowlevel.current_statistics().tasks_living
        for sequence in (1, 2):
            site.send(sequence)
            await site.until_sent(sequence)
            site.outbox.forget(HIGH.peer_id)
            await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before


async def never_answer(_stream: Stream) -> None:
    await trio.sleep_forever()


async def test_a_slow_neighbour_delays_nobody_else(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        site.links.keys[MIDDLE.peer_id] = MIDDLE.encryption_public_key
        network = site.exchange.network
        slow = network.transport(MIDDLE.peer_id)
        slow.set_roster([LOW.peer_id])
        slow.set_handler(limits.DELTA_PROTOCOL, never_answer)
        async with running(slow.run):
            site.exchange.sender.roster |= {MIDDLE.peer_id}
            await site.exchange.sender.dial(MIDDLE.peer_id, address_of(MIDDLE.peer_id), 1.0)
            started = trio.current_time()
            site.outbox.send(MIDDLE.peer_id, sendable(tmp_path, 1))
            site.send(2)
            await site.until_sent(1)
            assert site.sent_sequences == [2]
            assert trio.current_time() == started


async def test_a_peer_that_is_no_neighbour_any_more_gets_nothing_until_it_is_one_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(tmp_path) as site:
        site.cut()
        site.send(1)
        await trio.testing.wait_all_tasks_blocked()
        queued = site.send(2, throw_away=True)
        key = site.links.keys.pop(HIGH.peer_id)
        site.outbox.forget(HIGH.peer_id)
        site.outbox.forget(MIDDLE.peer_id)  # to whom nothing was ever sent
        site.mend()
        await site.until_sent(1)
        await trio.testing.wait_all_tasks_blocked()
        assert site.sent_sequences == [1]
        assert not queued.ciphertext.exists()
        assert not site.outbox.has_snapshot(HIGH.peer_id)
        site.links.keys[HIGH.peer_id] = key
        site.send(3)
        await site.until_sent(2)
        assert site.received_sequences == [1, 3]
