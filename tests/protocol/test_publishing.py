"""From a trained vector to a neighbour's replica and back: publishing and receiving."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from wire_samples import PAYLOAD_KEY, header_of, payload_context, rebuild, sealed_payload

from p2pfed.errors import AggregationError, AuthenticationError, MalformedMessageError
from p2pfed.protocol import limits
from p2pfed.protocol.codecs import CODECS, get_codec
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.envelope import ChunkOpener, chunk_digest
from p2pfed.protocol.header import Header, Kind
from p2pfed.protocol.publishing import Publication, publish

Vector = npt.NDArray[np.float32]
VECTORS = hnp.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-(2.0**30), 2.0**30, width=32)
)


@pytest.fixture(params=sorted(CODECS))
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def normal(count: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def opened(header: Header, chunks: list[bytes]) -> list[bytes]:
    opener = ChunkOpener(header, b"".join(map(chunk_digest, chunks)), PAYLOAD_KEY)
    return [opener.open(index, chunk) for index, chunk in enumerate(chunks)]


@pytest.mark.parametrize("dimension", [1, 4096, 4097, limits.CHUNK_BYTES // 4 + 1, 2**20 + 3])
def test_a_neighbour_rebuilds_exactly_the_replica_that_was_published(
    codec: str, dimension: int
) -> None:
    base, model = normal(dimension), normal(dimension, seed=1)
    header, sealed, chunks, after = sealed_payload(model, base, codec)
    rebuilt, norm = rebuild(header, opened(header, chunks), base)
    assert rebuilt.tobytes() == after.tobytes()
    assert vector_digest(rebuilt) == header.replica_after == sealed.replica_after
    assert norm == pytest.approx(sealed.norm, rel=1e-2)
    assert sealed.norm == pytest.approx(float(np.linalg.norm(model - base)), rel=1e-4)


def test_publishing_a_constant_model_again_and_again_converges_to_it() -> None:
    model = normal(10_000, seed=1)
    replica = np.zeros_like(model)
    errors = []
    for seed in range(8):
        _, _, _, replica = sealed_payload(model, replica, "int8", seed=seed)
        errors.append(float(np.abs(replica - model).max()))
    assert all(later <= earlier / 50 + 1e-6 for earlier, later in pairwise(errors))
    assert errors[-1] <= 1e-6


def test_the_same_seed_gives_the_same_payload_and_another_seed_another() -> None:
    model, base = normal(10_000), normal(10_000, seed=1)
    first, again, other = (sealed_payload(model, base, "int8", seed=seed)[2] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_rounding_does_not_repeat_from_chunk_to_chunk() -> None:
    codec = get_codec("int8")
    model = np.tile(normal(codec.chunk_parameters), 2)
    header, _, chunks, _ = sealed_payload(model, np.zeros_like(model), "int8")
    first, second = opened(header, chunks)
    assert first != second


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 5000, 2**20])
def test_a_model_that_is_not_finite_is_not_published(codec: str, bad: float, position: int) -> None:
    base = normal(2**20 + 1)
    model = base.copy()
    model[position] = bad
    with pytest.raises(AggregationError, match="not finite between parameters"):
        sealed_payload(model, base, codec)


@given(VECTORS, st.sampled_from(sorted(CODECS)))
def test_a_snapshot_restates_the_published_replica_bit_for_bit(model: Vector, name: str) -> None:
    _, _, _, replica = sealed_payload(model, np.zeros_like(model), name)
    context = payload_context(model.shape[0], "float32", Kind.SNAPSHOT)
    chunks: list[bytes] = []
    whole = Publication(replica, np.zeros_like(replica), context=context, key=PAYLOAD_KEY, seed=0)
    sealed = publish(whole, write=chunks.append, keep=lambda _: None)
    header = header_of(context, sealed)
    assert sealed.replica_after == vector_digest(replica)
    rebuilt, _ = rebuild(header, opened(header, chunks), np.zeros_like(replica))
    assert rebuilt.tobytes() == replica.tobytes()


def test_applying_leaves_the_replica_before_intact(codec: str) -> None:
    base, model = normal(5000), normal(5000, seed=1)
    kept = base.copy()
    header, _, chunks, _ = sealed_payload(model, base, codec)
    base.flags.writeable = False
    rebuild(header, opened(header, chunks), base)
    assert base.tobytes() == kept.tobytes()


def test_a_delta_on_another_replica_is_refused(codec: str) -> None:
    base, model = normal(5000), normal(5000, seed=1)
    header, _, chunks, _ = sealed_payload(model, base, codec)
    base[17] += 1
    with pytest.raises(AuthenticationError, match="does not lead to the replica"):
        rebuild(header, opened(header, chunks), base)


def test_a_payload_that_does_not_lead_where_its_header_says_is_refused(codec: str) -> None:
    base, model = normal(5000), normal(5000, seed=1)
    header, _, chunks, _ = sealed_payload(model, base, codec)
    lying = dataclasses.replace(header, replica_after=bytes(32))
    with pytest.raises(AuthenticationError, match="does not lead to the replica"):
        rebuild(lying, opened(header, chunks), base)


def test_a_short_or_long_payload_is_malformed(codec: str) -> None:
    base, model = normal(2**20 + 1), normal(2**20 + 1, seed=1)
    header, _, chunks, _ = sealed_payload(model, base, codec)
    plaintext = opened(header, chunks)
    for damaged in [
        plaintext[:-1],
        [],
        [*plaintext, b"\x00"],
        [*plaintext[:-1], plaintext[-1] + b"\x00"],
        [plaintext[0][:-1], *plaintext[1:]],
        plaintext[::-1],
    ]:
        with pytest.raises(MalformedMessageError):
            rebuild(header, damaged, base)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_signed_payload_that_is_not_finite_is_refused(value: float) -> None:
    base = normal(100)
    header, _, _, _ = sealed_payload(base, base)
    change = np.zeros(100, "<f4")
    change[99] = value
    lying = dataclasses.replace(
        header, replica_after=vector_digest((base + change).astype(np.float32))
    )
    with pytest.raises(AuthenticationError, match="not finite"):
        rebuild(lying, [change.tobytes()], base)


def test_a_change_beyond_the_bound_is_refused_and_one_within_is_not(codec: str) -> None:
    base, model = np.zeros(5000, np.float32), normal(5000, seed=1)
    header, sealed, chunks, _ = sealed_payload(model, base, codec)
    plaintext = opened(header, chunks)
    rebuild(header, plaintext, base, max_norm=1.1 * sealed.norm)
    with pytest.raises(AuthenticationError, match="beyond the bound"):
        rebuild(header, plaintext, base, max_norm=0.9 * sealed.norm)


def test_publishing_reads_mapped_files(tmp_path: Path) -> None:
    model = normal(10_000, seed=1)
    mapped = np.memmap(tmp_path / "model", dtype=np.float32, mode="w+", shape=model.shape)
    mapped[:] = model
    base = normal(10_000)
    assert sealed_payload(mapped, base, "int8")[2] == sealed_payload(model, base, "int8")[2]


@pytest.mark.parametrize(
    "vector", [np.zeros(3, np.float64), np.zeros((2, 2), np.float32), np.zeros(3, np.int32)]
)
def test_only_a_flat_float32_vector_has_a_digest(vector: npt.NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="flat float32"):
        vector_digest(vector)
