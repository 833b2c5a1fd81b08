"""Messages, certificates and evidence: what is taken, and what is refused."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import ALICE, BOB, signed_header

from p2pfed.errors import AuthenticationError, MalformedMessageError, RemoteProtocolError
from p2pfed.protocol import limits
from p2pfed.protocol.canonical import pack, unpack
from p2pfed.protocol.certificates import (
    issue_address_record,
    issue_certificate,
    parse_address_record,
    parse_certificate,
)
from p2pfed.protocol.evidence import HeaderLog, conflict, verify_equivocation
from p2pfed.protocol.fields import FieldReader
from p2pfed.protocol.header import Kind
from p2pfed.protocol.messages import (
    Answer,
    AnswerCode,
    EquivocationProof,
    FrameReader,
    Goodbye,
    HeaderNotice,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Message,
    ProbeReport,
    ProbeRequest,
    Receipt,
    Refusal,
    RefusalCode,
    Want,
    decode_message,
    encode_message,
)
from p2pfed.protocol.texts import printable

digests = st.binary(min_size=32, max_size=32)
rounds = st.integers(0, limits.MAX_ROUND_NUMBER)


def shown_texts(most: int) -> st.SearchStrategy[str]:
    """What no receiver changes."""
    return st.text(max_size=most).map(lambda text: printable(text, most))


texts = shown_texts(limits.MAX_TEXT_CHARACTERS)
names = shown_texts(limits.MAX_NAME_CHARACTERS)
tokens = st.integers(0, 2**32 - 1)
signatures = st.binary(min_size=64, max_size=64)
encoded = st.binary(max_size=600)
messages = st.one_of(
    st.builds(
        Hello,
        rounds,
        names,
        names,
        digests,
        digests,
        digests,
        digests,
        encoded,
        encoded,
        rounds,
        names,
        st.integers(-1, limits.MAX_ROUND_NUMBER),
        digests,
    ),
    st.builds(Heartbeat, tokens, rounds, names),
    st.builds(HeartbeatReply, tokens, rounds, names),
    st.builds(Want, digests),
    st.builds(HeaderNotice, encoded, signatures),
    st.builds(EquivocationProof, encoded, signatures, encoded, signatures),
    st.builds(Refusal, st.sampled_from(RefusalCode), texts),
    st.builds(Goodbye, texts),
    st.builds(Answer, st.sampled_from(AnswerCode), st.integers(0, limits.MAX_CHUNKS), texts),
    st.builds(Receipt, st.booleans(), texts),
    st.builds(ProbeRequest, digests, tokens),
    st.builds(ProbeReport, digests, tokens, st.integers(-1, limits.MAX_HEARD_MILLISECONDS)),
)


@given(st.lists(messages, max_size=5), st.integers(1, 50))
def test_messages_survive_the_wire_in_any_pieces(sent: list[Message], piece: int) -> None:
    stream = b"".join(map(encode_message, sent))
    reader = FrameReader()
    bodies: list[bytes] = []
    for start in range(0, len(stream), piece):
        bodies.extend(reader.feed(stream[start : start + piece]))
    assert [decode_message(body) for body in bodies] == sent


@given(st.binary(max_size=300))
def test_garbage_is_malformed_and_nothing_else(data: bytes) -> None:
    for parse in (decode_message, parse_certificate, parse_address_record):
        with pytest.raises(RemoteProtocolError):
            parse(data)


@given(messages, st.data())
def test_a_changed_message_is_never_taken_for_the_same(message: Message, data: Any) -> None:
    body = encode_message(message)[4:]
    position = data.draw(st.integers(0, len(body) - 1))
    flipped = data.draw(st.integers(1, 255))
    changed = body[:position] + bytes([body[position] ^ flipped]) + body[position + 1 :]
    with contextlib.suppress(MalformedMessageError):
        assert decode_message(changed) != message


def test_a_long_frame_is_refused_by_its_length_alone() -> None:
    reader = FrameReader()
    with pytest.raises(MalformedMessageError, match="at most"):
        list(reader.feed((limits.MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")))


def test_a_text_that_is_too_long_is_cut_by_its_sender() -> None:
    message = decode_message(encode_message(Goodbye("x" * 10_000))[4:])
    assert message == Goodbye("x" * limits.MAX_TEXT_CHARACTERS)


@given(st.text(max_size=limits.MAX_TEXT_CHARACTERS))
def test_no_text_of_another_reaches_a_log_or_a_terminal_as_more_than_one_plain_line(
    said: str,
) -> None:
    for message in (Goodbye(said), Receipt(False, said), Refusal(RefusalCode.QUARANTINED, said)):
        shown = decode_message(encode_message(message)[4:])
        text = shown.reason if isinstance(shown, Goodbye) else shown.detail
        assert text.isprintable()
        assert len(text.splitlines()) <= 1
        assert len(text) <= limits.MAX_TEXT_CHARACTERS
        assert printable(text, limits.MAX_TEXT_CHARACTERS) == text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Datenträger voll: /srv/süd/ąćź 名古屋", "Datenträger voll: /srv/süd/ąćź 名古屋"),
        ("gone\n2026-01-01 [error] equivocation", "gone\\n2026-01-01 [error] equivocation"),
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("all is \u202ellew", "all is \\u202ellew"),
        ("1\u202f000 octets\xa0: plein", "1 000 octets : plein"),
        ("a\u2028b\x00", "a\\u2028b\\x00"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_does_not_print_is_shown_as_an_escape(said: str, shown: str) -> None:
    assert decode_message(encode_message(Goodbye(said))[4:]) == Goodbye(shown)


def test_escapes_do_not_make_a_text_longer_than_its_bound() -> None:
    shown = decode_message(encode_message(Goodbye("\x1b" * limits.MAX_TEXT_CHARACTERS))[4:])
    assert shown == Goodbye("\\x1b" * (limits.MAX_TEXT_CHARACTERS // 4))


@given(st.sampled_from(AnswerCode), st.data())
def test_no_disguise_passes_for_a_known_word(code: AnswerCode, data: Any) -> None:
    hidden = data.draw(st.characters(codec="utf-8").filter(lambda each: not each.isprintable()))
    position = data.draw(st.integers(0, len(code)))
    word = code[:position] + hidden + code[position:]
    assert FieldReader("answer", [word], 1).text() not in set(AnswerCode)
    with pytest.raises(MalformedMessageError):
        decode_message(pack([10, word, 0, ""]))


def test_addresses_are_shown_plainly_too() -> None:
    record = parse_address_record(issue_address_record(ALICE, 5, ("/dns/\x1b[31m/tcp/1",)))
    assert record.addresses == ("/dns/\\x1b[31m/tcp/1",)


def test_a_certificate_is_its_owners_alone() -> None:
    certificate = parse_certificate(issue_certificate(ALICE))
    assert certificate.owner == ALICE.public_key
    assert certificate.encryption_key == ALICE.encryption_public_key
    body, _ = unpack(issue_certificate(ALICE), max_bytes=4096)
    with pytest.raises(AuthenticationError):
        parse_certificate(pack([body, BOB.sign(b"p2pfed/1 encryption key\x00", body)]))
    with pytest.raises(AuthenticationError):
        parse_certificate(pack([body, ALICE.sign(b"another domain\x00", body)]))


def test_an_address_record_is_bounded() -> None:
    record = parse_address_record(issue_address_record(ALICE, 5, ("/ip4/192.0.2.1/tcp/7400",)))
    assert (record.sequence, record.addresses) == (5, ("/ip4/192.0.2.1/tcp/7400",))
    many = issue_address_record(ALICE, 5, tuple(f"/ip4/192.0.2.{n}/tcp/1" for n in range(50)))
    assert len(parse_address_record(many).addresses) == limits.MAX_ADDRESSES
    with pytest.raises(MalformedMessageError):
        parse_address_record(issue_address_record(ALICE, 5, ("x" * 257,)))


def test_two_deltas_for_one_round_prove_an_equivocation() -> None:
    first = signed_header()
    second = signed_header(replica_after=b"z" * 32)
    halves = [(one.encoded, one.signature) for one in (first, second)]
    assert verify_equivocation(halves[0], halves[1]) == (first, second)
    for honest in (
        first,
        signed_header(round_number=8),
        signed_header(kind=Kind.SNAPSHOT),
        signed_header(federation_id=b"g" * 32),
    ):
        assert not conflict(first, honest)
        with pytest.raises(RemoteProtocolError):
            verify_equivocation(halves[0], (honest.encoded, honest.signature))


def test_the_header_log_tells_new_known_and_contradicting_apart() -> None:
    log = HeaderLog()
    first = signed_header()
    second = signed_header(replica_after=b"z" * 32)
    assert log.observe(first) is first
    assert log.observe(first) is None
    assert log.observe(second) is first
    assert HeaderLog(log.entries().values()).observe(second) == first


def test_the_header_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_LOG_ENTRIES", 10)
    log = HeaderLog()
    for number in range(30):
        log.observe(signed_header(round_number=number))
    assert [number for _, number in log.entries()] == list(range(20, 30))
