"""Envelopes that are wrong, and neighbours that do not keep to the exchange."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from exchanging_sites import ONE_CHUNK, Exchange, exchanging, make_envelope
from linked_sites import HIGH, LOW
from scripted_network import ScriptedStream, address_of
from trio.testing import MockClock

from p2pfed.daemon.delta_exchange import (
    CHUNK_TIMEOUT_SECONDS,
    CHUNKS_IN_FLIGHT,
    REPLY_TIMEOUT_SECONDS,
    RESUMABLE_PER_PEER,
)
from p2pfed.daemon.transport import Stream
from p2pfed.errors import TransportError
from p2pfed.protocol import limits
from p2pfed.protocol.messages import (
    LENGTH_PREFIX,
    Answer,
    AnswerCode,
    Goodbye,
    Message,
    Receipt,
    encode_message,
    frame,
)


async def open_by_hand(exchange: Exchange) -> Stream:
    await exchange.sender.dial(HIGH.peer_id, address_of(HIGH.peer_id), 1.0)
    return await exchange.sender.open_stream(HIGH.peer_id, limits.DELTA_PROTOCOL)


async def test_a_falsified_chunk_is_refused_before_the_rest_is_taken(tmp_path: Path) -> None:
    parameters = 16 * ONE_CHUNK
    envelope = make_envelope(tmp_path, parameters)
    sealed = bytearray(envelope.ciphertext.read_bytes())
    sealed[limits.CHUNK_BYTES + 100] ^= 1  # in the second chunk
    envelope.ciphertext.write_bytes(sealed)
    async with exchanging(tmp_path, parameters) as exchange:
        with pytest.raises(TransportError):
            await exchange.send(envelope)
        await exchange.until(lambda: bool(exchange.aborted))
        assert exchange.delivered == []
        assert exchange.spooled() == []
        # The bad one, those that may be read while it is checked, and one half read.
        most = (2 + CHUNKS_IN_FLIGHT + 2) * (limits.CHUNK_BYTES + limits.SEAL_BYTES)
        assert exchange.receiver.bytes_received(LOW.peer_id) <= most


async def test_a_falsified_small_payload_is_refused(tmp_path: Path) -> None:
    envelope = make_envelope(tmp_path, 10)
    envelope.ciphertext.write_bytes(bytes(40 + limits.SEAL_BYTES))
    async with exchanging(tmp_path, 10) as exchange:
        with pytest.raises(TransportError, match=r"not accept.*chunk 0 is not the one"):
            await exchange.send(envelope)
        assert exchange.delivered == []
        assert exchange.aborted == [envelope.offer.signed]


async def test_a_payload_of_another_length_is_refused_before_anything_is_decided(
    tmp_path: Path,
) -> None:
    envelope = make_envelope(tmp_path, 4 * ONE_CHUNK)
    async with exchanging(tmp_path, 4 * ONE_CHUNK - 1) as exchange:
        with pytest.raises(TransportError):
            await exchange.send(envelope)
        assert exchange.decided == []
        assert exchange.spooled() == []
        assert exchange.receiver.bytes_received(LOW.peer_id) < 2048


async def test_chunk_digests_that_were_not_signed_are_refused(tmp_path: Path) -> None:
    envelope = make_envelope(tmp_path, 10)
    forged = replace(envelope, offer=replace(envelope.offer, chunk_digests=bytes(32)))
    async with exchanging(tmp_path, 10) as exchange:
        with pytest.raises(TransportError):
            await exchange.send(forged)
        assert exchange.decided == []


async def test_a_key_that_the_header_does_not_commit_to_is_refused(tmp_path: Path) -> None:
    envelope = make_envelope(tmp_path, 10)
    async with exchanging(tmp_path, 10) as exchange:
        exchange.unwrap = lambda _peer_id, _offer: b"z" * 32
        with pytest.raises(TransportError):
            await exchange.send(envelope)
        assert exchange.aborted == [envelope.offer.signed]
        assert exchange.delivered == []


async def test_an_accepted_transfer_whose_link_went_down_is_given_back(tmp_path: Path) -> None:
    def link_down(_peer_id: str, _offer: object) -> bytes:
        raise TransportError("its link went down")

    envelope = make_envelope(tmp_path, 10)
    async with exchanging(tmp_path, 10) as exchange:
        exchange.unwrap = link_down
        with pytest.raises(TransportError):
            await exchange.send(envelope)
        assert exchange.aborted == [envelope.offer.signed]


async def test_an_offer_is_refused_by_its_claimed_length_alone(tmp_path: Path) -> None:
    async with exchanging(tmp_path, 10) as exchange:
        stream = await open_by_hand(exchange)
        await stream.send_all(LENGTH_PREFIX.pack(limits.MAX_OFFER_BYTES + 1))
        with pytest.raises(TransportError):
            await stream.receive_exactly(1)
        assert exchange.receiver.bytes_received(LOW.peer_id) == LENGTH_PREFIX.size


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x94\xc4\x00\xc4\x00\xc4\x00\xc4\x00"])
async def test_garbage_in_place_of_an_offer_costs_only_the_stream(
    garbage: bytes, tmp_path: Path
) -> None:
    envelope = make_envelope(tmp_path, 10)
    async with exchanging(tmp_path, 10) as exchange:
        stream = await open_by_hand(exchange)
        await stream.send_all(frame(garbage))
        with pytest.raises(TransportError):
            await stream.receive_exactly(1)
        assert (await exchange.send(envelope)).delivered


async def test_a_neighbour_that_sends_nothing_after_the_answer_is_freed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    envelope = make_envelope(tmp_path, 10)
    async with exchanging(tmp_path, 10) as exchange:
        start = trio.current_time()
        stream = await open_by_hand(exchange)
        await stream.send_all(frame(envelope.offer.encode()))
        await exchange.until(lambda: bool(exchange.aborted))
        assert trio.current_time() - start == pytest.approx(CHUNK_TIMEOUT_SECONDS)
        assert (await exchange.send(envelope)).delivered


async def test_a_neighbour_that_sends_a_byte_now_and_then_is_freed_as_well(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    envelope = make_envelope(tmp_path, 1000)
    async with exchanging(tmp_path, 1000) as exchange:
        start = trio.current_time()
        stream = await open_by_hand(exchange)
        await stream.send_all(frame(envelope.offer.encode()))
        with pytest.raises(TransportError):
            while True:
                await trio.sleep(1.0)
                await stream.send_all(b"x")
        assert exchange.aborted == [envelope.offer.signed]
        assert trio.current_time() - start <= CHUNK_TIMEOUT_SECONDS + 2.0


async def test_a_stream_without_an_offer_does_not_keep_others_waiting_for_ever(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    envelope = make_envelope(tmp_path, 10)
    async with exchanging(tmp_path, 10) as exchange:
        await open_by_hand(exchange)
        assert (await exchange.send(envelope)).delivered


async def test_a_neighbour_that_never_answers_is_given_up(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def keep_silent(_stream: Stream) -> None:
        await trio.sleep_forever()

    envelope = make_envelope(tmp_path, 10)
    async with exchanging(tmp_path, 10) as exchange:
        exchange.receiver.set_handler(limits.DELTA_PROTOCOL, keep_silent)
        start = trio.current_time()
        with pytest.raises(TransportError, match="did not come within"):
            await exchange.send(envelope)
        assert trio.current_time() - start == pytest.approx(REPLY_TIMEOUT_SECONDS)


@pytest.mark.parametrize(
    ("replies", "complaint"),
    [
        ([Goodbye("no")], "not an answer"),
        ([Receipt(True, "")], "something else"),
        ([Answer(AnswerCode.SEND, 2, "")], "does not exist"),
        ([Answer(AnswerCode.SEND, 0, ""), Answer(AnswerCode.HAVE, 0, "")], "without a receipt"),
        ([Answer(AnswerCode.SEND, 0, ""), Receipt(False, "disk")], "not accept.*disk"),
    ],
)
async def test_a_wrong_reply_fails_the_transfer_and_says_why(
    replies: list[Message], complaint: str, tmp_path: Path
) -> None:
    async def reply(stream: Stream) -> None:
        for message in replies:
            await stream.send_all(encode_message(message))
        await trio.sleep_forever()

    envelope = make_envelope(tmp_path, 10)
    async with exchanging(tmp_path, 10) as exchange:
        exchange.receiver.set_handler(limits.DELTA_PROTOCOL, reply)
        with pytest.raises(TransportError, match=complaint):
            await exchange.send(envelope)


async def test_an_own_envelope_that_was_cut_short_is_not_passed_off_as_whole(
    tmp_path: Path,
) -> None:
    envelope = make_envelope(tmp_path, 10)
    os.truncate(envelope.ciphertext, 20)
    async with exchanging(tmp_path, 10) as exchange:
        with pytest.raises(TransportError, match="shorter than its header says"):
            await exchange.send(envelope)


async def test_an_own_envelope_that_is_not_retained_any_more_is_reported_as_such(
    tmp_path: Path,
) -> None:
    envelope = make_envelope(tmp_path, 10)
    envelope.ciphertext.unlink()
    async with exchanging(tmp_path, 10) as exchange:
        with pytest.raises(FileNotFoundError):
            await exchange.send(envelope)


async def break_off_transfer(exchange: Exchange, directory: Path, sequence: int) -> None:
    """Have a transfer of four chunks break off after the third."""
    envelope = make_envelope(directory, 4 * ONE_CHUNK, sequence=sequence)
    chunks = 0

    def cut(stream: ScriptedStream, data: bytes) -> bytes:
        nonlocal chunks
        chunks += len(data) > limits.CHUNK_BYTES
        if chunks == 4:
            raise TransportError("cut")
        return data

    before = len(exchange.aborted)
    exchange.network.on_send = cut
    with pytest.raises(TransportError, match="cut"):
        await exchange.send(envelope)
    exchange.network.on_send = lambda _stream, data: data
    await exchange.until(lambda: len(exchange.aborted) > before)


async def test_interrupted_transfers_are_bounded_and_never_displace_whole_payloads(
    tmp_path: Path,
) -> None:
    parameters = 4 * ONE_CHUNK
    waiting = [make_envelope(tmp_path, parameters, sequence=number) for number in (1, 2, 3)]
    async with exchanging(tmp_path, parameters) as exchange:
        for envelope in waiting:
            await exchange.send(envelope)
        for sequence in (4, 5, 6, 7):
            await break_off_transfer(exchange, tmp_path, sequence)
        suffixes = [Path(name).suffix for name in exchange.spooled()]
        assert suffixes.count(".partial") == RESUMABLE_PER_PEER
        assert suffixes.count(".payload") == len(waiting)
        for envelope, received in zip(waiting, exchange.delivered, strict=True):
            with received:
                assert b"".join(received.chunks()) == envelope.plaintext


async def test_a_full_disk_fails_the_transfer_and_not_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = 2 * ONE_CHUNK
    envelope = make_envelope(tmp_path, parameters)
    real_write: Callable[[int, bytes | memoryview], int] = os.write
    room_bytes = limits.CHUNK_BYTES + 1000

    def write(descriptor: int, data: bytes | memoryview) -> int:
        nonlocal room_bytes
        if len(data) < limits.CHUNK_BYTES // 2:
            return real_write(descriptor, data)  # not of the spool
        if room_bytes == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real_write(descriptor, data[:room_bytes])
        room_bytes -= written
        return written

    async with exchanging(tmp_path, parameters) as exchange:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            with pytest.raises(TransportError):
                await exchange.send(envelope)
            await exchange.until(lambda: bool(exchange.aborted))
        assert exchange.delivered == []
        await exchange.send(envelope)  # there is room again
        with exchange.delivered[0] as received:
            assert b"".join(received.chunks()) == envelope.plaintext
