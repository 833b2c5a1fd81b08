"""Sealed payloads and offers: who can open what, and what is refused when."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import (
    ALICE,
    BOB,
    CAROL,
    PAYLOAD_KEY,
    header_of,
    payload_context,
    sample_header,
    sample_offer,
    sealed_payload,
    signed_header,
)

from p2pfed.errors import AuthenticationError, MalformedMessageError, RemoteProtocolError
from p2pfed.protocol import limits
from p2pfed.protocol.canonical import pack, unpack
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.envelope import (
    ChunkOpener,
    ChunkSealer,
    Offer,
    check_payload_shape,
    chunk_digest,
    chunks_root,
    key_commitment,
    sealed_chunk_bytes,
    unwrap_key,
    wrap_key,
)
from p2pfed.protocol.header import Header, Kind, sign_header
from p2pfed.protocol.publishing import Sealed

CHUNK_PARAMETERS = get_codec("float32").chunk_parameters
THREE_CHUNKS = 2 * CHUNK_PARAMETERS + 5


@pytest.fixture(scope="module")
def transfer() -> tuple[Header, bytes, list[bytes]]:
    """A header, chunk digests and ciphertext of three chunks, the last of 20 bytes."""
    model = np.random.default_rng(1).standard_normal(THREE_CHUNKS).astype(np.float32)
    header, sealed, chunks, _ = sealed_payload(model, np.zeros_like(model))
    return header, sealed.chunk_digests, chunks


def test_every_chunk_opens_and_has_the_length_that_the_header_implies(
    transfer: tuple[Header, bytes, list[bytes]],
) -> None:
    header, digests, chunks = transfer
    assert [len(chunk) for chunk in chunks] == [sealed_chunk_bytes(header, i) for i in range(3)]
    assert max(map(len, chunks)) <= limits.CHUNK_BYTES + limits.SEAL_BYTES
    opener = ChunkOpener(header, digests, PAYLOAD_KEY)
    plaintext = b"".join(opener.open(index, chunk) for index, chunk in enumerate(chunks))
    assert len(plaintext) == header.payload_bytes


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("position", [0, -1])
def test_a_chunk_with_a_flipped_bit_is_refused(
    transfer: tuple[Header, bytes, list[bytes]], index: int, position: int
) -> None:
    header, digests, chunks = transfer
    damaged = bytearray(chunks[index])
    damaged[position] ^= 1
    with pytest.raises(AuthenticationError, match=f"chunk {index} is not the one"):
        ChunkOpener(header, digests, PAYLOAD_KEY).open(index, bytes(damaged))


def test_swapped_truncated_and_surplus_chunks_are_refused(
    transfer: tuple[Header, bytes, list[bytes]],
) -> None:
    header, digests, chunks = transfer
    opener = ChunkOpener(header, digests, PAYLOAD_KEY)
    for index, ciphertext in [(0, chunks[1]), (1, chunks[1][:-1]), (3, chunks[0]), (0, b"")]:
        with pytest.raises(AuthenticationError):
            opener.open(index, ciphertext)


def test_a_chunk_that_moves_with_its_digest_is_refused_by_its_seal(
    transfer: tuple[Header, bytes, list[bytes]],
) -> None:
    header, digests, chunks = transfer
    swapped = digests[32:64] + digests[:32] + digests[64:]
    with pytest.raises(AuthenticationError, match="seal of chunk 0"):
        ChunkOpener(header, swapped, PAYLOAD_KEY).open(0, chunks[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"federation_id": b"x" * 32},
        {"sender": BOB.public_key},
        {"kind": Kind.SNAPSHOT},
        {"round_number": 8},
        {"sequence": 9},
        {"codec": "int8"},
        {"payload_bytes": 1},
        {"chunk_count": 4},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_chunks_are_bound_to_the_header_fields_of_their_context(
    transfer: tuple[Header, bytes, list[bytes]], changes: dict[str, object]
) -> None:
    header, digests, chunks = transfer
    fields = {name: getattr(header, name) for name in Header.__slots__}
    moved = Header(**{**fields, **changes})
    with pytest.raises(AuthenticationError, match="commits to"):
        ChunkOpener(moved, digests, PAYLOAD_KEY)
    # Even a sender that commits to the key anew cannot reuse the ciphertext.
    other = payload_context(THREE_CHUNKS, "float32")
    fields_of_context = {name: getattr(other, name) for name in type(other).__slots__}
    context = type(other)(**{**fields_of_context, **changes})
    recommitted = Header(
        **{
            **fields,
            **changes,
            "key_commitment": key_commitment(PAYLOAD_KEY, context.digest()),
        }
    )
    with pytest.raises(AuthenticationError, match="seal of chunk 0"):
        ChunkOpener(recommitted, digests, PAYLOAD_KEY).open(0, chunks[0])


def test_another_key_is_refused_before_a_chunk_is_asked_for(
    transfer: tuple[Header, bytes, list[bytes]],
) -> None:
    header, digests, _ = transfer
    with pytest.raises(AuthenticationError, match="commits to"):
        ChunkOpener(header, digests, bytes(32))


POLY1305_PRIME = 2**130 - 5


def one_time_key(key: bytes, nonce: bytes) -> tuple[int, int]:
    """Poly1305's r (clamped) and s for a message under this key (RFC 8439, section 2.6)."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    stream = Cipher(ChaCha20(key, bytes(4) + nonce), mode=None).encryptor().update(bytes(32))
    clamp = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    return int.from_bytes(stream[:16], "little") & clamp, int.from_bytes(stream[16:], "little")


def colliding_ciphertext(keys: tuple[bytes, bytes], nonce: bytes, associated: bytes) -> bytes:
    """One ciphertext with one tag that is valid under both keys.

    The tag is linear in each 16-byte block, so one free block equates both, up to the carry
    of the final addition mod 2^128 and the range of the block: tried over a counter block.
    (Dodis, Grubbs, Ristenpart, Woodage 2018, "Fast message franking", for GCM; Len, Grubbs,
    Ristenpart 2021, "Partitioning oracle attacks", for ChaCha20-Poly1305.)
    """
    (r1, s1), (r2, s2) = (one_time_key(key, nonce) for key in keys)
    lengths = len(associated).to_bytes(8, "little") + (32).to_bytes(8, "little")

    def blocks_of(counter: bytes, free: bytes) -> list[int]:
        data = associated + bytes(-len(associated) % 16) + counter + free + lengths
        starts = range(0, len(data), 16)
        return [int.from_bytes(data[start : start + 16], "little") + 2**128 for start in starts]

    def evaluate(blocks: list[int], r: int) -> int:
        total = 0
        for block in blocks:
            total = (total + block) * r % POLY1305_PRIME
        return total

    for number in range(10_000):
        counter = number.to_bytes(16, "little")
        without = blocks_of(counter, bytes(16))
        gap = s2 + evaluate(without, r2) - s1 - evaluate(without, r1)
        slope = (pow(r1, 2, POLY1305_PRIME) - pow(r2, 2, POLY1305_PRIME)) % POLY1305_PRIME
        free = gap * pow(slope, -1, POLY1305_PRIME) % POLY1305_PRIME
        if free >= 2**128:
            continue
        blocks = blocks_of(counter, free.to_bytes(16, "little"))
        tags = {(evaluate(blocks, r) + s) % 2**128 for r, s in ((r1, s1), (r2, s2))}
        if len(tags) == 1:
            return counter + free.to_bytes(16, "little") + tags.pop().to_bytes(16, "little")
    raise AssertionError("no collision found")


def test_one_ciphertext_that_opens_under_two_keys_is_refused_for_the_second() -> None:
    context = payload_context(8, "float32")
    keys = (b"\x0a" * 32, b"\x0b" * 32)
    nonce, associated = bytes(12), context.digest() + bytes(8)  # of chunk 0
    ciphertext = colliding_ciphertext(keys, nonce, associated)
    openings = [ChaCha20Poly1305(key).decrypt(nonce, ciphertext, associated) for key in keys]
    assert openings[0] != openings[1]  # the cipher alone lets a sender tell two stories

    digests = chunk_digest(ciphertext)
    sealed = Sealed(
        digests, chunks_root(digests), key_commitment(keys[0], context.digest()), bytes(32), 0.0
    )
    header = header_of(context, sealed)
    assert ChunkOpener(header, digests, keys[0]).open(0, ciphertext) == openings[0]
    with pytest.raises(AuthenticationError, match="commits to"):
        ChunkOpener(header, digests, keys[1])


def test_a_payload_key_opens_for_its_recipient_alone() -> None:
    digest = signed_header().digest
    wrapped = wrap_key(ALICE, BOB.encryption_public_key, PAYLOAD_KEY, digest)
    assert len(wrapped) <= limits.MAX_WRAPPED_KEY_BYTES
    assert unwrap_key(BOB, ALICE.encryption_public_key, wrapped, digest) == PAYLOAD_KEY
    for identity, sender in [
        (CAROL, ALICE.encryption_public_key),
        (BOB, CAROL.encryption_public_key),
    ]:
        with pytest.raises(AuthenticationError, match="not wrapped for this site"):
            unwrap_key(identity, sender, wrapped, digest)


def test_a_wrapped_key_cannot_be_moved_to_another_header() -> None:
    wrapped = wrap_key(ALICE, BOB.encryption_public_key, PAYLOAD_KEY, signed_header().digest)
    with pytest.raises(AuthenticationError, match="another envelope"):
        unwrap_key(BOB, ALICE.encryption_public_key, wrapped, signed_header(sequence=9).digest)


@given(st.binary(max_size=limits.MAX_WRAPPED_KEY_BYTES))
def test_garbage_for_a_wrapped_key_is_refused(wrapped: bytes) -> None:
    with pytest.raises(AuthenticationError):
        unwrap_key(BOB, ALICE.encryption_public_key, wrapped, bytes(32))


def test_a_senders_key_of_small_order_is_refused_not_a_crash() -> None:
    with pytest.raises(AuthenticationError):
        unwrap_key(BOB, bytes(32), bytes(104), bytes(32))


def test_an_offer_is_decoded_to_itself() -> None:
    offer = sample_offer()
    assert Offer.decode(offer.encode()) == offer


def test_the_largest_offer_fits_its_limit() -> None:
    offer = Offer(signed_header(), bytes(limits.DIGEST_BYTES * limits.MAX_CHUNKS), bytes(256))
    assert len(offer.encode()) <= limits.MAX_OFFER_BYTES


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, signed_header(round_number=3).encoded),
        (0, b""),
        (0, bytes(limits.MAX_HEADER_BYTES + 1)),
        (1, bytes(64)),
        (1, bytes(63)),
        (2, bytes(32)),
        (2, b""),
        (2, bytes(64)),
        (2, None),
        (3, bytes(limits.MAX_WRAPPED_KEY_BYTES + 1)),
        (3, "key"),
    ],
)
def test_a_tampered_offer_is_refused(field: int, value: object) -> None:
    fields = unpack(sample_offer().encode(), max_bytes=limits.MAX_OFFER_BYTES)
    fields[field] = value
    with pytest.raises(RemoteProtocolError):
        Offer.decode(pack(fields))


@given(st.binary(max_size=300))
def test_garbage_is_no_offer(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Offer.decode(body)


def test_digests_that_do_not_match_the_signed_root_are_refused_in_the_offer() -> None:
    offer = sample_offer()
    with pytest.raises(AuthenticationError, match="root"):
        Offer.decode(Offer(offer.signed, bytes(32), offer.wrapped_key).encode())


@pytest.mark.parametrize("codec", ["float32", "int8"])
@pytest.mark.parametrize("dimension", [1, 4096, 4097, CHUNK_PARAMETERS, CHUNK_PARAMETERS + 1])
def test_the_payload_of_exactly_this_model_is_accepted(codec: str, dimension: int) -> None:
    shape = get_codec(codec)
    header = sample_header(
        codec=codec,
        payload_bytes=shape.payload_bytes(dimension),
        chunk_count=shape.chunk_count(dimension),
    )
    check_payload_shape(header, dimension)
    lengths = [sealed_chunk_bytes(header, index) for index in range(header.chunk_count)]
    assert sum(lengths) == header.payload_bytes + limits.SEAL_BYTES * header.chunk_count
    assert max(lengths) <= limits.CHUNK_BYTES + limits.SEAL_BYTES


@pytest.mark.parametrize(
    "changes",
    [
        {"payload_bytes": 404},
        {"payload_bytes": 396},
        {"chunk_count": 2},
        {"codec": "gzip"},
        {"codec": "int8"},
        {"kind": Kind.SNAPSHOT, "codec": "int8", "payload_bytes": 104},
    ],
    ids=str,
)
def test_a_payload_of_another_shape_is_refused(changes: dict[str, object]) -> None:
    check_payload_shape(sample_header(), 100)
    with pytest.raises(MalformedMessageError):
        check_payload_shape(sample_header(**changes), 100)


def test_a_sealed_chunk_never_repeats_a_nonce() -> None:
    sealer = ChunkSealer(PAYLOAD_KEY, payload_context(THREE_CHUNKS, "float32"))
    assert len({sealer.seal(index, bytes(64)) for index in range(8)}) == 8


def test_an_offer_signed_by_somebody_else_is_refused() -> None:
    offer = sample_offer()
    forged = sign_header(BOB, offer.signed.header)
    with pytest.raises(AuthenticationError, match="signature"):
        Offer.decode(Offer(forged, offer.chunk_digests, offer.wrapped_key).encode())
