"""Hostile certificates, records and header floods: what a signature alone does not prevent."""

import nacl.public
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import ALICE, BOB, signed_header

from p2pfed.errors import MalformedMessageError, RemoteProtocolError
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.canonical import pack
from p2pfed.protocol.certificates import (
    ADDRESS_DOMAIN,
    CERTIFICATE_DOMAIN,
    issue_address_record,
    issue_certificate,
    parse_address_record,
    parse_certificate,
)
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.messages import AddressRecordNotice, decode_message, encode_message


def statement(identity: Identity, domain: bytes, fields: list[object]) -> bytes:
    body = pack(fields)
    return pack([body, identity.sign(domain, body)])


# The points of small order on Curve25519 and their other encodings, as far as they are 32
# bytes with the top bit clear (RFC 7748, section 6.1; https://cr.yp.to/ecdh.html#validate).
SMALL_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    b"\xed" + b"\xff" * 30 + b"\x7f",
    b"\xee" + b"\xff" * 30 + b"\x7f",
]


@pytest.mark.parametrize("point", SMALL_ORDER, ids=lambda point: point.hex()[:8])
def test_an_encryption_key_that_nothing_can_be_encrypted_to_is_refused(point: bytes) -> None:
    certificate = statement(ALICE, CERTIFICATE_DOMAIN, [ALICE.public_key, point])
    with pytest.raises(MalformedMessageError, match="X25519"):
        parse_certificate(certificate)


@given(st.binary(min_size=32, max_size=32))
def test_every_real_encryption_key_is_taken(secret: bytes) -> None:
    identity = Identity(bytes(32), secret)
    parsed = parse_certificate(issue_certificate(identity))
    assert parsed.encryption_key == bytes(nacl.public.PrivateKey(secret).public_key)


@pytest.mark.parametrize("position", range(0, 136, 5))
def test_a_flipped_bit_in_a_certificate_is_refused(position: int) -> None:
    damaged = bytearray(issue_certificate(ALICE))
    damaged[position % len(damaged)] ^= 1
    with pytest.raises(RemoteProtocolError):
        parse_certificate(bytes(damaged))


def test_a_certificate_is_no_address_record_and_the_other_way_round() -> None:
    with pytest.raises(RemoteProtocolError):
        parse_address_record(issue_certificate(ALICE))
    with pytest.raises(RemoteProtocolError):
        parse_certificate(issue_address_record(ALICE, 1, ()))


@pytest.mark.parametrize(
    "fields",
    [
        [ALICE.public_key, -1, []],
        [ALICE.public_key, limits.MAX_SEQUENCE + 1, []],
        [ALICE.public_key, 1, ["/ip4/192.0.2.1/tcp/1"] * (limits.MAX_ADDRESSES + 1)],
        [ALICE.public_key, 1, ["x" * (limits.MAX_ADDRESS_CHARACTERS + 1)]],
        [ALICE.public_key, 1, [b"/ip4/192.0.2.1/tcp/1"]],
        [ALICE.public_key, 1, "/ip4/192.0.2.1/tcp/1"],
        [ALICE.public_key, 1],
        [ALICE.public_key[:-1], 1, []],
    ],
)
def test_an_address_record_out_of_bounds_is_malformed_even_when_signed(
    fields: list[object],
) -> None:
    with pytest.raises(MalformedMessageError):
        parse_address_record(statement(ALICE, ADDRESS_DOMAIN, fields))


def test_an_address_record_travels_in_its_notice() -> None:
    notice = AddressRecordNotice(issue_address_record(ALICE, 3, ("/ip4/192.0.2.1/tcp/7400",)))
    assert decode_message(encode_message(notice)[4:]) == notice


def test_the_largest_statements_fit_the_message_that_carries_them() -> None:
    longest = ("x" * limits.MAX_ADDRESS_CHARACTERS,) * limits.MAX_ADDRESSES
    record = issue_address_record(ALICE, limits.MAX_SEQUENCE, longest)
    assert len(record) <= limits.MAX_RECORD_BYTES
    assert parse_address_record(record).addresses == longest


def test_a_member_that_signs_headers_without_end_displaces_its_own_alone() -> None:
    log = HeaderLog()
    honest = [signed_header(BOB, round_number=number) for number in range(5)]
    for signed in honest:
        log.observe(signed)
    for number in range(3 * limits.HEADER_LOG_ROUNDS):
        log.observe(signed_header(ALICE, round_number=number))
    kept = log.entries()
    assert [kept[BOB.public_key, number] for number in range(5)] == honest
    assert len(kept) == 5 + limits.HEADER_LOG_ROUNDS


def test_old_headers_cannot_make_a_lie_about_a_recent_round_forgotten() -> None:
    log = HeaderLog()
    first = signed_header(ALICE, round_number=1000)
    log.observe(first)
    for number in range(2 * limits.HEADER_LOG_ROUNDS):
        log.observe(signed_header(ALICE, round_number=number))
    lie = signed_header(ALICE, round_number=1000, replica_after=b"z" * 32)
    assert log.observe(lie) is first


def test_a_header_older_than_what_is_kept_of_its_sender_is_not_passed_on() -> None:
    log = HeaderLog()
    for number in range(limits.HEADER_LOG_ROUNDS):
        log.observe(signed_header(ALICE, round_number=100 + number))
    assert log.observe(signed_header(ALICE, round_number=99)) is None
    assert len(log.entries()) == limits.HEADER_LOG_ROUNDS


def test_a_restored_log_keeps_the_same_headers() -> None:
    log = HeaderLog()
    for number in range(2 * limits.HEADER_LOG_ROUNDS):
        log.observe(signed_header(ALICE, round_number=number))
    restored = HeaderLog(reversed(log.entries().values()))
    assert restored.entries() == log.entries()
