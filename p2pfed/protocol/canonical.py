"""Canonical msgpack: one value has one encoding, and decoding is bounded.

Signatures are over bytes, so bytes that decode to the same value must be the same bytes:
whatever decodes is encoded again and compared. That also refuses duplicate keys and integers
that are not minimal, which the decoder itself lets through.
"""

from typing import Any, Never

import msgpack

from p2pfed.errors import MalformedMessageError
from p2pfed.protocol import limits


def pack(value: Any) -> bytes:
    """Encode lists, bytes, text, integers, floats, booleans and None."""
    encoded: bytes = msgpack.packb(value, use_bin_type=True)
    return encoded


def unpack(data: bytes, *, max_bytes: int) -> Any:
    """Decode what ``pack`` made.

    :param max_bytes: longer input is refused before it is looked at.
    :raises MalformedMessageError: too long, not msgpack, beyond a limit, or not canonical.
    """
    if len(data) > max_bytes:
        raise MalformedMessageError(f"{len(data)} bytes, at most {max_bytes} are allowed")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_str_len=max_bytes,
            max_bin_len=max_bytes,
            max_array_len=limits.MAX_MSGPACK_DEPTH_ITEMS,
            max_map_len=0,
            max_ext_len=0,
            object_pairs_hook=_refuse_type,
            ext_hook=_refuse_type,
        )
        _check_nesting(value)
    # The decoder documents these four; RecursionError comes of nested arrays.
    except (ValueError, msgpack.exceptions.UnpackException, TypeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise MalformedMessageError(f"not a message of this protocol: {reason}") from error
    if pack(value) != data:
        raise MalformedMessageError("not canonical: the same message has a shorter encoding")
    return value


def _check_nesting(value: Any) -> None:
    """Arrays that decode may still be nested more deeply than the encoder goes."""
    items = [value]
    for _ in range(limits.MAX_NESTING + 1):
        items = [item for outer in items if isinstance(outer, list) for item in outer]
    if items:
        raise ValueError(f"arrays within arrays, more than {limits.MAX_NESTING} deep")


def _refuse_type(*_: object) -> Never:
    """Called for the empty map and the empty extension, which the length limits let through."""
    raise ValueError("maps and extension types are not used")
