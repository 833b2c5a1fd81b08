"""An envelope on its way from one site to another, as it should go."""

import stat
from pathlib import Path

import pytest
import trio.testing
from exchanging_sites import ONE_CHUNK, exchanging, make_envelope
from linked_sites import HIGH, LOW
from scripted_network import ScriptedStream

from p2pfed.daemon.delta_exchange import INLINE_BYTES, MEMORY_BYTES, SendOutcome
from p2pfed.errors import TransportError
from p2pfed.protocol import limits
from p2pfed.protocol.messages import (
    LENGTH_PREFIX,
    Answer,
    AnswerCode,
    decode_message,
)


@pytest.mark.parametrize(
    "parameters",
    [
        1,
        INLINE_BYTES // 4,
        MEMORY_BYTES // 4,
        MEMORY_BYTES // 4 + 1,
        ONE_CHUNK,
        ONE_CHUNK + 1,
        4 * ONE_CHUNK - 7,
    ],
)
async def test_a_payload_arrives_as_it_was_sealed(parameters: int, tmp_path: Path) -> None:
    envelope = make_envelope(tmp_path, parameters)
    async with exchanging(tmp_path, parameters) as exchange:
        outcome = await exchange.send(envelope)
        assert outcome == SendOutcome(True, AnswerCode.SEND, "")
        (received,) = exchange.delivered
        assert received.signed == envelope.offer.signed
        with received:
            chunks = list(received.chunks())
        assert b"".join(chunks) == envelope.plaintext
        assert len(chunks) == envelope.offer.signed.header.chunk_count
        assert exchange.spooled() == []
        assert exchange.aborted == []


async def test_a_small_payload_needs_no_file_and_a_large_one_has_a_private_one(
    tmp_path: Path,
) -> None:
    small = make_envelope(tmp_path, MEMORY_BYTES // 4)
    async with exchanging(tmp_path, MEMORY_BYTES // 4) as exchange:
        await exchange.send(small)
        assert exchange.spooled() == []
    large = make_envelope(tmp_path, MEMORY_BYTES // 4 + 1)
    async with exchanging(tmp_path, MEMORY_BYTES // 4 + 1) as exchange:
        await exchange.send(large)
        (name,) = exchange.spooled()
        assert stat.S_IMODE((exchange.spool / name).stat().st_mode) == 0o600
        exchange.delivered[0].close()
        assert exchange.spooled() == []


@pytest.mark.parametrize(
    ("code", "delivered"),
    [
        (AnswerCode.HAVE, True),
        (AnswerCode.NOT_NOW, False),
        (AnswerCode.STALE, False),
        (AnswerCode.REFUSED, False),
    ],
)
async def test_a_payload_that_is_not_wanted_is_not_sent(
    code: AnswerCode, delivered: bool, tmp_path: Path
) -> None:
    envelope = make_envelope(tmp_path, ONE_CHUNK)
    async with exchanging(tmp_path, ONE_CHUNK) as exchange:
        exchange.answer = (code, "because")
        assert await exchange.send(envelope) == SendOutcome(delivered, code, "because")
        assert exchange.decided == [envelope.offer.signed]
        assert exchange.delivered == exchange.aborted == []
        assert exchange.sender.bytes_sent(HIGH.peer_id) < 2048


async def test_a_broken_transfer_goes_on_from_what_was_checked(tmp_path: Path) -> None:
    parameters = 8 * ONE_CHUNK
    envelope = make_envelope(tmp_path, parameters)
    answers: list[Answer] = []
    chunks_sent = 0

    def cut_before_the_seventh_chunk(stream: ScriptedStream, data: bytes) -> bytes:
        nonlocal chunks_sent
        if stream.transport.peer_id == LOW.peer_id and len(data) > limits.CHUNK_BYTES:
            chunks_sent += 1
            if chunks_sent == 7:
                raise TransportError("the cable was cut")
        elif stream.transport.peer_id == HIGH.peer_id:
            message = decode_message(data[LENGTH_PREFIX.size :])
            if isinstance(message, Answer):
                answers.append(message)
        return data

    async with exchanging(tmp_path, parameters) as exchange:
        exchange.network.on_send = cut_before_the_seventh_chunk
        with pytest.raises(TransportError, match="cable"):
            await exchange.send(envelope)
        await exchange.until(lambda: bool(exchange.aborted))
        assert exchange.aborted == [envelope.offer.signed]
        assert [Path(name).suffix for name in exchange.spooled()] == [".partial"]
        await exchange.send(envelope)
        # At most one chunk was on its way and one half read when the stream broke.
        assert answers[0].first_chunk == 0
        assert answers[1].first_chunk >= 4
        assert chunks_sent == 7 + 8 - answers[1].first_chunk
        with exchange.delivered[0] as received:
            assert b"".join(received.chunks()) == envelope.plaintext
        assert exchange.spooled() == []


async def test_what_this_daemon_did_not_check_is_not_resumed_from(tmp_path: Path) -> None:
    parameters = 3 * ONE_CHUNK - 5
    envelope = make_envelope(tmp_path, parameters)
    async with exchanging(tmp_path, parameters) as exchange:
        name = f"{LOW.peer_id}-{envelope.offer.signed.digest.hex()}.partial"
        (exchange.spool / name).write_bytes(b"?" * (4 * limits.CHUNK_BYTES))
        await exchange.send(envelope)
        with exchange.delivered[0] as received:
            assert b"".join(received.chunks()) == envelope.plaintext


async def test_the_file_of_a_payload_that_was_used_takes_the_next(tmp_path: Path) -> None:
    parameters = 2 * ONE_CHUNK
    first, second = (make_envelope(tmp_path, parameters, sequence=number) for number in (1, 2))
    async with exchanging(tmp_path, parameters) as exchange:
        await exchange.send(first)
        file = (exchange.spool / exchange.spooled()[0]).stat().st_ino
        with exchange.delivered[0] as received:
            assert b"".join(received.chunks()) == first.plaintext
        await exchange.send(second)
        assert (exchange.spool / exchange.spooled()[0]).stat().st_ino == file
        with exchange.delivered[1] as received:
            assert b"".join(received.chunks()) == second.plaintext


async def test_one_neighbour_has_one_transfer_at_a_time(tmp_path: Path) -> None:
    envelopes = [make_envelope(tmp_path, 10, sequence=number) for number in (1, 2, 3)]
    held: list[int] = []

    def observe(stream: ScriptedStream, data: bytes) -> bytes:
        held.append(len(exchange.decided) - len(exchange.delivered))
        return data

    async with exchanging(tmp_path, 10) as exchange:
        exchange.network.on_send = observe
        async with trio.open_nursery() as nursery:
            for envelope in envelopes:
                nursery.start_soon(exchange.send, envelope)
        assert len(exchange.delivered) == 3
        assert max(held) == 1


async def test_what_an_earlier_daemon_left_in_the_spool_is_removed(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "left-over.partial").write_bytes(b"x")
    (spool / "left-over.payload").write_bytes(b"x")
    async with exchanging(tmp_path, 10) as exchange:
        assert exchange.spooled() == []
