"""Codecs, sealing, and the way from a trained model to a neighbour's replica."""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfed.errors import AggregationError, AuthenticationError, MalformedMessageError
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.codecs import CODECS, Codec, get_codec
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.envelope import (
    ChunkOpener,
    ChunkSealer,
    Offer,
    PayloadContext,
    check_payload_shape,
    chunk_digest,
    chunks_root,
    sealed_chunk_bytes,
    unwrap_key,
    wrap_key,
)
from p2pfed.protocol.header import Header, Kind, SignedHeader, sign_header
from p2pfed.protocol.publishing import Sealed, publish, publish_snapshot
from p2pfed.protocol.receiving import apply_payload

Vector = npt.NDArray[np.float32]
SITE = Identity(b"\x01" * 32, b"\x02" * 32)
OTHER = Identity(b"\x03" * 32, b"\x04" * 32)
KEY = b"\x05" * 32


def context(dimension: int, codec: str = "int8", kind: Kind = Kind.DELTA) -> PayloadContext:
    shape = get_codec(codec)
    return PayloadContext(
        b"f" * 32,
        SITE.public_key,
        kind,
        3,
        4,
        codec,
        shape.payload_bytes(dimension),
        shape.chunk_count(dimension),
    )


def header_of(sealed: Sealed, given_context: PayloadContext, before: bytes) -> Header:
    return Header(
        version=1,
        federation_id=given_context.federation_id,
        kind=given_context.kind,
        sender=given_context.sender,
        topology_digest=b"t" * 32,
        schema_digest=b"s" * 32,
        round_number=given_context.round_number,
        sequence=given_context.sequence,
        previous=bytes(32),
        replica_before=before,
        replica_after=sealed.replica_after,
        codec=given_context.codec,
        key_commitment=sealed.key_commitment,
        chunks_root=sealed.chunks_root,
        chunk_count=given_context.chunk_count,
        payload_bytes=given_context.payload_bytes,
        privacy_spend=0.0,
        time_seconds=0,
    )


class Published:
    """A model published against a base, as its neighbour gets it."""

    def __init__(self, model: Vector, base: Vector, codec: str = "int8", seed: int = 1) -> None:
        self.context = context(model.shape[0], codec)
        self.chunks: list[bytes] = []
        self.replica = np.empty_like(model)
        self.sealed = publish(
            model,
            base,
            self.replica,
            context=self.context,
            key=KEY,
            seed=seed,
            write=self.chunks.append,
        )
        self.header = header_of(self.sealed, self.context, vector_digest(base))

    def opened(self) -> list[bytes]:
        opener = ChunkOpener(self.header, self.sealed.chunk_digests, KEY)
        return [opener.open(index, chunk) for index, chunk in enumerate(self.chunks)]


def model_of(dimension: int, seed: int = 0, scale: float = 1.0) -> Vector:
    return np.random.default_rng(seed).normal(scale=scale, size=dimension).astype(np.float32)


dimensions = st.sampled_from([1, 2, 4095, 4096, 4097, 20_000])


@pytest.mark.parametrize("codec", list(CODECS))
@given(dimension=dimensions, seed=st.integers(0, 2**63))
@settings(max_examples=25, deadline=None)
def test_a_neighbour_rebuilds_the_very_replica_that_was_published(
    codec: str, dimension: int, seed: int
) -> None:
    model, base = model_of(dimension, 1), model_of(dimension, 2)
    published = Published(model, base, codec, seed)
    out = np.empty_like(model)
    applied = apply_payload(published.opened(), published.header, base, out)
    assert out.tobytes() == published.replica.tobytes()
    assert vector_digest(out) == published.header.replica_after
    assert applied.norm == pytest.approx(float(np.linalg.norm(out - base)), rel=1e-3)
    largest = float(np.abs(model - base).max())
    tolerance = 1e-6 * 8 if codec == "float32" else largest / 127 * 1.01
    assert np.abs(out - model).max() <= tolerance


def test_more_than_one_chunk_is_cut_and_joined_where_the_header_says() -> None:
    for codec in CODECS.values():
        dimension = codec.chunk_parameters + 5000
        model, base = model_of(dimension, 1), np.zeros(dimension, np.float32)
        published = Published(model, base, codec.name)
        assert len(published.chunks) == published.header.chunk_count == 2
        lengths = [sealed_chunk_bytes(published.header, index) for index in range(2)]
        assert [len(chunk) for chunk in published.chunks] == lengths
        assert max(lengths) <= limits.CHUNK_BYTES + limits.SEAL_BYTES
        check_payload_shape(published.header, dimension)
        out = np.empty_like(model)
        apply_payload(published.opened(), published.header, base, out)
        assert vector_digest(out) == published.header.replica_after


def test_the_compiled_decoder_gives_the_bits_of_plain_float32_arithmetic() -> None:
    codec, dimension = get_codec("int8"), 10_000
    model, base = model_of(dimension, 1, 3.0), model_of(dimension, 2, 1e-3)
    encoded, _ = codec.encode(model, base, 9, 0)
    blocks = math.ceil(dimension / limits.CODEC_BLOCK_PARAMETERS)
    scales = np.frombuffer(encoded[: 4 * blocks], "<f4")
    codes = np.frombuffer(encoded[4 * blocks :], np.int8)
    spread = np.repeat(scales, limits.CODEC_BLOCK_PARAMETERS)[:dimension]
    expected = base + codes.astype(np.float32) * spread
    out = np.empty_like(base)
    codec.decode_add(encoded, base, out)
    assert out.tobytes() == expected.tobytes()


def test_int8_rounding_is_unbiased() -> None:
    dimension = 4096
    model, base = np.full(dimension, 0.3, np.float32), np.zeros(dimension, np.float32)
    model[0] = 12.7  # one step is 0.1
    codec, out = get_codec("int8"), np.empty(dimension, np.float32)
    total = 0.0
    for seed in range(50):
        encoded, _ = codec.encode(model, base, seed, 0)
        codec.decode_add(encoded, base, out)
        total += float(out[1:].mean())
    # Three standard errors of 200,000 draws of a value that is off by at most half a step.
    assert total / 50 == pytest.approx(0.3, abs=3 * 0.05 / math.sqrt(50 * dimension))


def test_what_rounding_lost_goes_out_with_later_deltas() -> None:
    model, base = model_of(5000), np.zeros(5000, np.float32)
    errors = []
    for seed in range(6):
        base = Published(model, base, seed=seed).replica
        errors.append(float(np.abs(model - base).max()))
    assert errors[-1] < 1e-6
    assert errors == sorted(errors, reverse=True)


def test_a_change_of_nothing_and_tiny_or_huge_changes_are_encoded() -> None:
    for scale in (0.0, 1e-44, 1e-30, 1e37):
        model = (np.ones(100) * scale).astype(np.float32)
        replica = Published(model, np.zeros(100, np.float32)).replica
        assert np.isfinite(replica).all()
        assert np.abs(replica - model).max() <= scale


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", list(CODECS))
def test_a_model_that_is_not_finite_does_not_leave(codec: str, bad: float) -> None:
    model = model_of(100)
    model[40] = bad
    with pytest.raises(AggregationError, match="not finite"):
        Published(model, np.zeros(100, np.float32), codec)


def test_a_change_beyond_float32_does_not_leave() -> None:
    model = np.full(10, 3e38, np.float32)
    with pytest.raises(AggregationError, match="not finite"):
        Published(model, -model, "float32")


def test_a_snapshot_needs_no_base() -> None:
    replica = model_of(5000)
    shape = context(5000, "float32", Kind.SNAPSHOT)
    chunks: list[bytes] = []
    sealed = publish_snapshot(
        replica, np.empty_like(replica), context=shape, key=KEY, write=chunks.append
    )
    assert sealed.replica_after == vector_digest(replica)
    header = header_of(sealed, shape, bytes(32))
    opener = ChunkOpener(header, sealed.chunk_digests, KEY)
    out = np.empty_like(replica)
    zero = np.zeros_like(replica)
    apply_payload([opener.open(0, chunks[0])], header, zero, out)
    assert out.tobytes() == replica.tobytes()


class TestAPayloadThatLies:
    def setup_method(self) -> None:
        self.base = model_of(5000, 2)
        self.published = Published(model_of(5000, 1), self.base)
        self.out = np.empty_like(self.base)

    def apply(self, chunks: list[bytes], header: Header, **options: Any) -> None:
        apply_payload(chunks, header, self.base, self.out, **options)

    def test_about_where_it_leads(self) -> None:
        header = dataclasses.replace(self.published.header, replica_after=b"x" * 32)
        with pytest.raises(AuthenticationError, match="does not lead"):
            self.apply(self.published.opened(), header)

    def test_about_its_length(self) -> None:
        [chunk] = self.published.opened()
        for wrong in (chunk[:-1], chunk + b"\0", b""):
            with pytest.raises(MalformedMessageError):
                self.apply([wrong], self.published.header)
        with pytest.raises(MalformedMessageError):
            self.apply([], self.published.header)
        with pytest.raises(MalformedMessageError):
            self.apply([chunk, chunk], self.published.header)

    def test_with_values_that_are_not_finite(self) -> None:
        [chunk] = self.published.opened()
        for scale in (np.nan, np.inf, 3e38):
            bad = np.float32(scale).tobytes() + chunk[4:]
            with pytest.raises(AuthenticationError, match="not finite"):
                self.apply([bad], self.published.header)

    def test_beyond_the_bound(self) -> None:
        with pytest.raises(AuthenticationError, match="beyond the bound"):
            self.apply(self.published.opened(), self.published.header, max_norm=1.0)


def test_a_chunk_is_refused_if_changed_moved_or_of_another_payload() -> None:
    codec = get_codec("int8")
    published = Published(
        model_of(2 * codec.chunk_parameters), np.zeros(2 * codec.chunk_parameters, np.float32)
    )
    opener = ChunkOpener(published.header, published.sealed.chunk_digests, KEY)
    first, second = published.chunks
    with pytest.raises(AuthenticationError, match="chunk 0 is not the one"):
        opener.open(0, bytes([first[0] ^ 1]) + first[1:])
    with pytest.raises(AuthenticationError, match="chunk 0 is not the one"):
        opener.open(0, second)
    lying = chunk_digest(second) + chunk_digest(first)
    with pytest.raises(AuthenticationError, match="seal of chunk 0"):
        ChunkOpener(published.header, lying, KEY).open(0, second)


def test_one_ciphertext_cannot_open_under_two_keys() -> None:
    published = Published(model_of(100), np.zeros(100, np.float32))
    with pytest.raises(AuthenticationError, match="commits to"):
        ChunkOpener(published.header, published.sealed.chunk_digests, b"\x06" * 32)


def test_a_chunk_is_bound_to_its_round() -> None:
    plain = context(100)
    sealed = ChunkSealer(KEY, plain).seal(0, b"payload")
    replayed = dataclasses.replace(plain, round_number=plain.round_number + 1)
    committed = ChunkSealer(KEY, replayed).key_commitment
    fake = Sealed(chunk_digest(sealed), chunks_root(chunk_digest(sealed)), committed, b"a" * 32, 0)
    header = header_of(fake, replayed, bytes(32))
    with pytest.raises(AuthenticationError, match="seal"):
        ChunkOpener(header, fake.chunk_digests, KEY).open(0, sealed)


def test_a_payload_key_opens_for_its_recipient_and_its_header_alone() -> None:
    wrapped = wrap_key(SITE, OTHER.encryption_public_key, KEY, b"h" * 32)
    assert unwrap_key(OTHER, SITE.encryption_public_key, wrapped, b"h" * 32) == KEY
    third = Identity(b"\x07" * 32, b"\x08" * 32)
    for recipient, sender, data, digest in (
        (third, SITE, wrapped, b"h" * 32),
        (OTHER, third, wrapped, b"h" * 32),
        (OTHER, SITE, wrapped, b"i" * 32),
        (OTHER, SITE, wrapped[:-1], b"h" * 32),
        (OTHER, SITE, b"", b"h" * 32),
    ):
        with pytest.raises(AuthenticationError):
            unwrap_key(recipient, sender.encryption_public_key, data, digest)


def signed_offer() -> tuple[SignedHeader, Offer]:
    published = Published(model_of(100), np.zeros(100, np.float32))
    signed = sign_header(SITE, published.header)
    return signed, Offer(signed, published.sealed.chunk_digests, b"w" * 88)


def test_an_offer_survives_the_wire_and_its_digests_must_match_the_root() -> None:
    signed, offer = signed_offer()
    assert Offer.decode(offer.encode()) == offer
    with pytest.raises(AuthenticationError, match="root"):
        Offer.decode(Offer(signed, b"\0" * 32, b"w").encode())
    with pytest.raises(MalformedMessageError, match="each chunk"):
        Offer.decode(Offer(signed, b"\0" * 64, b"w").encode())


def test_a_payload_of_another_shape_is_refused_before_it_is_sent() -> None:
    signed, _ = signed_offer()
    check_payload_shape(signed.header, 100)
    for dimension in (99, 101, 10**9):
        with pytest.raises(MalformedMessageError, match="this federation's model"):
            check_payload_shape(signed.header, dimension)
    snapshot = dataclasses.replace(signed.header, kind=Kind.SNAPSHOT)
    with pytest.raises(MalformedMessageError, match="float32"):
        check_payload_shape(snapshot, 100)
    unknown = dataclasses.replace(signed.header, codec="zip")
    with pytest.raises(MalformedMessageError, match="unknown codec"):
        check_payload_shape(unknown, 100)


def test_every_codec_says_its_length() -> None:
    for codec in CODECS.values():
        assert isinstance(codec, Codec)
        for dimension in (1, 4096, 4097, codec.chunk_parameters, codec.chunk_parameters + 1):
            published = Published(
                np.ones(dimension, np.float32), np.zeros(dimension, np.float32), codec.name
            )
            payload = sum(len(chunk) - limits.SEAL_BYTES for chunk in published.chunks)
            assert payload == codec.payload_bytes(dimension)
