"""Headers, messages, certificates: what is taken, and what is refused."""

import contextlib
import dataclasses
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfed.errors import AuthenticationError, MalformedMessageError, RemoteProtocolError
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.canonical import pack, unpack
from p2pfed.protocol.certificates import (
    issue_address_record,
    issue_certificate,
    parse_address_record,
    parse_certificate,
)
from p2pfed.protocol.evidence import HeaderLog, conflict, verify_equivocation
from p2pfed.protocol.header import Header, Kind, parse_signed_header, sign_header
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
    Receipt,
    Refusal,
    RefusalCode,
    Want,
    decode_message,
    encode_message,
)

SITE = Identity(b"\x01" * 32, b"\x02" * 32)


def header(**changes: Any) -> Header:
    fields: dict[str, Any] = {
        "version": 1,
        "federation_id": b"f" * 32,
        "kind": Kind.DELTA,
        "sender": SITE.public_key,
        "topology_digest": b"t" * 32,
        "schema_digest": b"s" * 32,
        "round_number": 7,
        "sequence": 8,
        "previous": b"p" * 32,
        "replica_before": b"b" * 32,
        "replica_after": b"a" * 32,
        "codec": "int8",
        "key_commitment": b"k" * 32,
        "chunks_root": b"r" * 32,
        "chunk_count": 1,
        "payload_bytes": 100,
        "privacy_spend": 0.0,
        "time_seconds": 1_700_000_000,
    }
    return Header(**{**fields, **changes})


digests = st.binary(min_size=32, max_size=32)
rounds = st.integers(0, limits.MAX_ROUND_NUMBER)
texts = st.text(max_size=limits.MAX_TEXT_CHARACTERS)
names = st.text(max_size=limits.MAX_NAME_CHARACTERS)
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
    with pytest.raises(RemoteProtocolError):
        parse_signed_header(data, bytes(64))


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


@pytest.mark.parametrize(
    "data",
    [
        b"\xcc\x05",  # 5, not minimal
        b"\xc7\x00\x01",  # an extension
        b"\x81\xa1a\x01",  # a map
        msgpack.packb([0] * 65),
        b"\x91" * 1000 + b"\x01",
        b"\xd9\x01a",  # text whose short form exists
        b"\x01\x01",  # something after the end
    ],
)
def test_what_is_not_canonical_or_too_large_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        unpack(data, max_bytes=4096)


def test_a_bomb_costs_no_memory() -> None:
    bomb = b"\x80" * (16 * 1024 * 1024)
    tracemalloc.start()
    for data in (bomb, b"\xdd\xff\xff\xff\xff" + bomb[:60_000], b"\xdf\xff\xff\xff\xff"):
        with pytest.raises(MalformedMessageError):
            unpack(data, max_bytes=limits.MAX_MESSAGE_BYTES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 1024 * 1024


@given(st.integers(0, 2**40), st.floats(0, 1e6))
def test_a_header_survives_the_wire(number: int, spend: float) -> None:
    signed = sign_header(SITE, header(round_number=number, privacy_spend=spend))
    assert parse_signed_header(signed.encoded, signed.signature) == signed
    assert len(signed.encoded) < limits.MAX_HEADER_BYTES


BAD_FIELDS = {
    "version": 2,
    "federation_id": b"f" * 31,
    "sender": b"f" * 33,
    "round_number": -1,
    "sequence": 0,
    "chunk_count": 0,
    "payload_bytes": limits.MAX_PAYLOAD_BYTES + 1,
    "privacy_spend": 1,
    "time_seconds": "now",
    "codec": "x" * 17,
    "replica_after": None,
}


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS.items())
def test_a_header_field_out_of_range_is_refused(name: str, value: object) -> None:
    signed = sign_header(SITE, header(**{name: value}))
    with pytest.raises(MalformedMessageError):
        parse_signed_header(signed.encoded, signed.signature)


def test_a_header_that_is_not_finite_or_of_unknown_kind_is_refused() -> None:
    for position, value in ((16, float("nan")), (2, "gossip")):
        fields = unpack(sign_header(SITE, header()).encoded, max_bytes=4096)
        fields[position] = value
        with pytest.raises(MalformedMessageError):
            parse_signed_header(msgpack.packb(fields), bytes(64))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Header)])
def test_no_field_can_be_changed_under_a_signature(name: str) -> None:
    signed = sign_header(SITE, header())
    original = getattr(signed.header, name)
    changes: dict[type, Callable[[Any], Any]] = {
        bytes: lambda value: bytes([value[0] ^ 1]) + value[1:],
        int: lambda value: value + 1,
        float: lambda value: value + 0.5,
        str: lambda value: value[:-1] + "X",
        Kind: lambda _: Kind.SNAPSHOT,
    }
    other = dataclasses.replace(signed.header, **{name: changes[type(original)](original)})
    forged = sign_header(Identity(b"\x09" * 32, b"\x02" * 32), other)
    with pytest.raises(RemoteProtocolError):
        parse_signed_header(forged.encoded, signed.signature)


def test_a_snapshot_signature_is_none_for_a_delta() -> None:
    snapshot = sign_header(SITE, header(kind=Kind.SNAPSHOT))
    fields = unpack(snapshot.encoded, max_bytes=4096)
    fields[2] = "delta"
    with pytest.raises(AuthenticationError):
        parse_signed_header(pack(fields), snapshot.signature)


def test_a_certificate_is_its_owners_alone() -> None:
    certificate = parse_certificate(issue_certificate(SITE))
    assert certificate.owner == SITE.public_key
    assert certificate.encryption_key == SITE.encryption_public_key
    other = Identity(b"\x03" * 32, b"\x04" * 32)
    body, _ = unpack(issue_certificate(SITE), max_bytes=4096)
    with pytest.raises(AuthenticationError):
        parse_certificate(pack([body, other.sign(b"p2pfed/1 encryption key\x00", body)]))
    with pytest.raises(AuthenticationError):
        parse_certificate(pack([body, SITE.sign(b"another domain\x00", body)]))


def test_an_address_record_is_bounded() -> None:
    record = parse_address_record(issue_address_record(SITE, 5, ("/ip4/192.0.2.1/tcp/7400",)))
    assert (record.sequence, record.addresses) == (5, ("/ip4/192.0.2.1/tcp/7400",))
    many = issue_address_record(SITE, 5, tuple(f"/ip4/192.0.2.{n}/tcp/1" for n in range(50)))
    assert len(parse_address_record(many).addresses) == limits.MAX_ADDRESSES
    with pytest.raises(MalformedMessageError):
        parse_address_record(issue_address_record(SITE, 5, ("x" * 257,)))


def test_two_deltas_for_one_round_prove_an_equivocation() -> None:
    first = sign_header(SITE, header())
    second = sign_header(SITE, header(replica_after=b"z" * 32))
    halves = [(one.encoded, one.signature) for one in (first, second)]
    assert verify_equivocation(halves[0], halves[1]) == (first, second)
    for honest in (
        first,
        sign_header(SITE, header(round_number=8)),
        sign_header(SITE, header(kind=Kind.SNAPSHOT)),
        sign_header(SITE, header(federation_id=b"g" * 32)),
    ):
        assert not conflict(first, honest)
        with pytest.raises(RemoteProtocolError):
            verify_equivocation(halves[0], (honest.encoded, honest.signature))


def test_the_header_log_tells_new_known_and_contradicting_apart() -> None:
    log = HeaderLog()
    first = sign_header(SITE, header())
    second = sign_header(SITE, header(replica_after=b"z" * 32))
    assert log.observe(first) is first
    assert log.observe(first) is None
    assert log.observe(second) is first
    assert HeaderLog(log.entries().values()).observe(second) == first


def test_the_header_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_LOG_ENTRIES", 10)
    log = HeaderLog()
    for number in range(30):
        log.observe(sign_header(SITE, header(round_number=number)))
    assert [number for _, number in log.entries()] == list(range(20, 30))
