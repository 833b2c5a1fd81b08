"""Canonical msgpack: one value, one encoding, and nothing but one error on any input."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfed.errors import MalformedMessageError
from p2pfed.protocol import limits
from p2pfed.protocol.canonical import pack, unpack

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
LISTS = st.lists(SCALARS, max_size=6)
VALUES = SCALARS | LISTS | st.lists(SCALARS | LISTS | st.lists(LISTS, max_size=3), max_size=6)


@given(VALUES)
def test_what_is_packed_is_unpacked(value: object) -> None:
    assert unpack(pack(value), max_bytes=4096) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_either_canonical_or_malformed(data: bytes) -> None:
    try:
        value = unpack(data, max_bytes=200)
    except MalformedMessageError:
        return
    assert pack(value) == data


@given(VALUES, st.data())
def test_a_truncated_message_is_malformed(value: object, data: st.DataObject) -> None:
    encoded = pack(value)
    length = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(MalformedMessageError):
        unpack(encoded[:length], max_bytes=4096)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xcc\x01", "integer 1 in two bytes"),
        (b"\xd0\xff", "integer -1 in two bytes"),
        (b"\xcf" + bytes(7) + b"\x01", "integer 1 in nine bytes"),
        (b"\xd9\x01a", "a short text with a long prefix"),
        (b"\xc5\x00\x01a", "short bytes with a long prefix"),
        (b"\xdc\x00\x01\xc0", "a short array with a long prefix"),
        (b"\xca\x3f\x80\x00\x00", "a float32"),
        (b"\x80", "an empty map"),
        (b"\x81\xa1a\x01", "a map"),
        (b"\xc7\x00\x05", "an empty extension"),
        (b"\xd4\x05\x00", "an extension"),
        (b"\xd6\xff" + bytes(4), "a timestamp"),
        (b"\xc1", "the byte that msgpack never uses"),
        (b"\xa1\xff", "text that is not UTF-8"),
        (b"\xc0\xc0", "two values"),
        (b"", "nothing"),
        (b"\x91" * (limits.MAX_NESTING + 1) + b"\xc0", "one array too deep"),
        (b"\x91" * 600 + b"\xc0", "deep nesting"),
        (b"\x91" * 5000 + b"\xc0", "deeper nesting than the decoder takes"),
        (pack([0] * (limits.MAX_MSGPACK_DEPTH_ITEMS + 1)), "a long array"),
        (b"\xdf\xff\xff\xff\xff", "a map that claims four thousand million entries"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_encoding_or_type_is_malformed(data: bytes, why: str) -> None:
    with pytest.raises(MalformedMessageError):
        unpack(data, max_bytes=10_000)


def test_nesting_within_the_limit_is_taken() -> None:
    encoded = b"\x91" * limits.MAX_NESTING + b"\xc0"
    assert pack(unpack(encoded, max_bytes=100)) == encoded


def test_a_long_message_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(MalformedMessageError, match="at most 10 are allowed"):
        unpack(bytes(11), max_bytes=10)


@pytest.mark.parametrize(
    "flood",
    [
        b"\x80" * 2**24,
        b"\x90" * 2**24,
        b"\xdd\xff\xff\xff\xff" + b"\x90" * 2**24,
        b"\xdf\xff\xff\xff\xff" + b"\x80" * 2**24,
        b"\xdc\x00\x40" * 2**22,
        b"\x91" * 2**24,
    ],
    ids=[
        "empty maps",
        "empty arrays",
        "an endless array",
        "an endless map",
        "arrays of 64",
        "nested arrays",
    ],
)
def test_a_flood_of_containers_costs_bounded_memory(flood: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessageError):
            unpack(flood, max_bytes=2**25)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * len(flood)
