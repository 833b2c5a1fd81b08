"""Signed headers: every bit is under the signature, every field is checked."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import ALICE, BOB, sample_header, signed_header

from p2pfed.errors import AuthenticationError, MalformedMessageError, RemoteProtocolError
from p2pfed.protocol import limits
from p2pfed.protocol.canonical import pack, unpack
from p2pfed.protocol.header import Header, Kind, SignedHeader, parse_signed_header, sign_header

DIGESTS = st.binary(min_size=32, max_size=32)
HEADERS = st.builds(
    Header,
    version=st.just(limits.PROTOCOL_VERSION),
    federation_id=DIGESTS,
    kind=st.sampled_from(Kind),
    sender=st.just(ALICE.public_key),
    topology_digest=DIGESTS,
    schema_digest=DIGESTS,
    round_number=st.integers(0, limits.MAX_ROUND_NUMBER),
    sequence=st.integers(1, limits.MAX_SEQUENCE),
    since_round=st.just(0),
    previous=DIGESTS,
    replica_before=DIGESTS,
    replica_after=DIGESTS,
    codec=st.sampled_from(["float32", "int8"]),
    key_commitment=DIGESTS,
    chunks_root=DIGESTS,
    chunk_count=st.integers(1, limits.MAX_CHUNKS),
    payload_bytes=st.integers(1, limits.MAX_PAYLOAD_BYTES),
    privacy_spend=st.floats(0.0, 1e6),
    time_seconds=st.integers(0, limits.MAX_TIME_SECONDS),
)

# For each field, another value that is valid too, and values that are not.
CHANGES: dict[str, tuple[object, list[object]]] = {
    "version": (2, [0, 2, "1", True]),
    "federation_id": (b"x" * 32, [b"x" * 31, b"", "x" * 32, None]),
    "kind": ("snapshot", ["gradient", 0, b"delta"]),
    "sender": (BOB.public_key, [b"x" * 33, ""]),
    "topology_digest": (b"x" * 32, [b"x" * 33]),
    "schema_digest": (b"x" * 32, [b"x" * 31]),
    "round_number": (6, [-1, limits.MAX_ROUND_NUMBER + 1, 7.0, True, None]),
    "sequence": (9, [0, limits.MAX_SEQUENCE + 1]),
    "since_round": (4, [-1, limits.MAX_ROUND_NUMBER, "4"]),
    "previous": (b"x" * 32, [0]),
    "replica_before": (b"x" * 32, [b""]),
    "replica_after": (b"x" * 32, [[], None]),
    "codec": ("int8", [b"int8", "x" * 17]),
    "key_commitment": (b"x" * 32, [b"x" * 16]),
    "chunks_root": (b"x" * 32, [b"x" * 64]),
    "chunk_count": (2, [0, limits.MAX_CHUNKS + 1]),
    "payload_bytes": (404, [0, limits.MAX_PAYLOAD_BYTES + 1]),
    "privacy_spend": (0.5, [-0.5, float("inf"), float("nan"), 0, 1, 1e7]),
    "time_seconds": (1, [-1, "now", limits.MAX_TIME_SECONDS + 1]),
}
FIELD_NAMES = [field.name for field in dataclasses.fields(Header)]


def with_field(signed: SignedHeader, name: str, value: object) -> bytes:
    fields = unpack(signed.encoded, max_bytes=limits.MAX_HEADER_BYTES)
    fields[FIELD_NAMES.index(name)] = value
    return pack(fields)


@given(HEADERS)
def test_a_signed_header_is_parsed_to_itself(header: Header) -> None:
    signed = sign_header(ALICE, header)
    assert len(signed.encoded) <= limits.MAX_HEADER_BYTES
    assert parse_signed_header(signed.encoded, signed.signature) == signed


def test_every_field_has_a_tampering_case() -> None:
    assert list(CHANGES) == FIELD_NAMES


@pytest.mark.parametrize("name", FIELD_NAMES)
def test_a_changed_field_breaks_the_signature(name: str) -> None:
    signed = signed_header()
    tampered = with_field(signed, name, CHANGES[name][0])
    with pytest.raises(MalformedMessageError if name == "version" else AuthenticationError):
        parse_signed_header(tampered, signed.signature)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, (_, values) in CHANGES.items() for value in values],
)
def test_an_invalid_field_is_malformed_even_when_signed(name: str, value: object) -> None:
    encoded = with_field(signed_header(), name, value)
    signature = ALICE.sign(Kind.DELTA.signing_domain, encoded)
    with pytest.raises(MalformedMessageError):
        parse_signed_header(encoded, signature)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(position: int, bit: int) -> None:
    signed = signed_header()
    whole = bytearray(signed.encoded + signed.signature)
    whole[position % len(whole)] ^= 1 << bit
    encoded, signature = bytes(whole[: len(signed.encoded)]), bytes(whole[len(signed.encoded) :])
    with pytest.raises(RemoteProtocolError):
        parse_signed_header(encoded, signature)


@given(st.binary(max_size=600), st.binary(max_size=70))
def test_garbage_is_refused_with_a_protocol_error(encoded: bytes, signature: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_signed_header(encoded, signature)


def test_a_header_beyond_its_limit_is_malformed() -> None:
    with pytest.raises(MalformedMessageError, match="4096"):
        parse_signed_header(bytes(limits.MAX_HEADER_BYTES + 1), bytes(64))


@pytest.mark.parametrize("count", [0, 18, 20])
def test_a_missing_or_additional_field_is_malformed(count: int) -> None:
    fields = unpack(signed_header().encoded, max_bytes=limits.MAX_HEADER_BYTES)
    encoded = pack(([*fields, 0])[:count])
    with pytest.raises(MalformedMessageError, match="19 fields"):
        parse_signed_header(encoded, ALICE.sign(Kind.DELTA.signing_domain, encoded))


@pytest.mark.parametrize(
    ("kind", "other"), [(Kind.SNAPSHOT, Kind.DELTA), (Kind.DELTA, Kind.SNAPSHOT)]
)
def test_a_signature_of_one_kind_does_not_hold_for_the_other(kind: Kind, other: Kind) -> None:
    signed = signed_header(kind=kind)
    as_other = ALICE.sign(other.signing_domain, signed.encoded)
    with pytest.raises(AuthenticationError):
        parse_signed_header(signed.encoded, as_other)


def test_another_member_cannot_sign_in_the_senders_name() -> None:
    header = sample_header(sender=ALICE.public_key)
    forged = sign_header(BOB, header)
    with pytest.raises(AuthenticationError):
        parse_signed_header(forged.encoded, forged.signature)


def test_different_headers_have_different_digests() -> None:
    digests = {signed_header(sequence=number).digest for number in range(1, 20)}
    assert len(digests) == 19
