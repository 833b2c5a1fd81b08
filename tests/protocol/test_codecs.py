"""Codecs: unbiased, bounded, and decoded to the same bits everywhere."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from p2pfed.errors import MalformedMessageError
from p2pfed.protocol import limits
from p2pfed.protocol.codecs import CODECS, Codec, get_codec

Vector = npt.NDArray[np.float32]
BLOCK = limits.CODEC_BLOCK_PARAMETERS
LARGEST = float(np.finfo(np.float32).max)
SPLITMIX_INCREMENT = 0x9E3779B97F4A7C15
VECTORS = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-(2.0**60), 2.0**60, width=32),
)


@pytest.fixture(params=sorted(CODECS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return get_codec(request.param)


def normal(count: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def split_mix_uniform(seed: int, index: int) -> np.float32:
    """The uniform number of one parameter, as SPEC.md defines it, in plain integers."""
    word = 2**64
    mixed = (seed + index * SPLITMIX_INCREMENT) % word
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % word
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % word
    mixed ^= mixed >> 31
    return np.float32(mixed >> 40) * np.float32(2.0**-24)


def reference_int8(model: Vector, base: Vector, seed: int, first_index: int) -> bytes:
    """The int8 encoding in plain numpy and integers."""
    change = model - base
    scales, codes = [], []
    for start in range(0, change.shape[0], BLOCK):
        part = change[start : start + BLOCK]
        scale = np.abs(part).max() / np.float32(127.0)
        inverse = np.float32(1.0) / scale if scale > 0 else np.float32(0.0)
        uniform = np.array(
            [split_mix_uniform(seed, first_index + start + i) for i in range(part.shape[0])],
            dtype=np.float32,
        )
        scales.append(scale)
        codes.append(np.clip(np.floor(part * inverse + uniform), -127, 127).astype(np.int8))
    return np.array(scales, "<f4").tobytes() + np.concatenate(codes).tobytes()


def reference_int8_decode(encoded: bytes, base: Vector) -> Vector:
    count = base.shape[0]
    blocks = -(-count // BLOCK)
    scales = np.frombuffer(encoded, "<f4", blocks).repeat(BLOCK)[:count]
    codes = np.frombuffer(encoded, np.int8, offset=4 * blocks)
    change = codes.astype(np.float32) * scales  # rounded to float32 here
    return base + change  # and once more here


@pytest.mark.parametrize("count", [1, 100, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
def test_int8_is_encoded_as_the_plain_reference_does(count: int) -> None:
    model, base = normal(count), normal(count, seed=1)
    seed, first_index = 2**64 - 3, 12 * BLOCK
    encoded, _ = get_codec("int8").encode(model, base, seed, first_index)
    assert encoded == reference_int8(model, base, seed, first_index)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_int8_is_decoded_to_the_bits_of_two_separate_roundings(scale: float) -> None:
    count = 50 * BLOCK + 17
    base = normal(count, seed=2)
    model = base + normal(count, seed=3) * np.float32(scale)
    encoded, _ = get_codec("int8").encode(model, base, 5, 0)
    out = np.empty_like(base)
    get_codec("int8").decode_add(encoded, base, out)
    assert out.tobytes() == reference_int8_decode(encoded, base).tobytes()


def test_two_roundings_differ_from_a_fused_one_on_these_data() -> None:
    count = 20 * BLOCK
    base = normal(count, seed=2)
    encoded, _ = get_codec("int8").encode(base + normal(count, seed=3), base, 5, 0)
    blocks = count // BLOCK
    scales = np.frombuffer(encoded, "<f4", blocks).astype(np.float64).repeat(BLOCK)
    codes = np.frombuffer(encoded, np.int8, offset=4 * blocks)
    fused = (base.astype(np.float64) + codes * scales).astype(np.float32)
    assert (fused != reference_int8_decode(encoded, base)).any()


@given(VECTORS, st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_int8_is_off_by_at_most_one_step(model: Vector, seed: int, first_index: int) -> None:
    base = np.zeros_like(model)
    encoded, squares = get_codec("int8").encode(model, base, seed, first_index)
    out = np.empty_like(model)
    get_codec("int8").decode_add(encoded, base, out)
    largest = float(np.abs(model).max())
    assert np.isfinite(squares)
    assert np.abs(out.astype(np.float64) - model).max() <= largest / 127 * (1 + 1e-4) + 1e-36


def test_int8_never_leaves_its_range_at_the_ends_of_float32() -> None:
    model = np.array([LARGEST, -LARGEST, LARGEST / 2, 0.0], dtype=np.float32)
    for seed in range(200):
        encoded, squares = get_codec("int8").encode(model, np.zeros_like(model), seed, 0)
        codes = np.frombuffer(encoded, np.int8, offset=4)
        assert set(np.abs(codes[:2])) <= {126, 127}
        assert np.sign(codes[:2]).tolist() == [1, -1]
        assert np.isfinite(squares)


def test_int8_rounding_is_unbiased() -> None:
    value, scale = np.float32(0.3), np.float32(1.0)
    model = np.full(BLOCK, value * scale, dtype=np.float32)
    model[0] = 127.0  # fixes the scale of the block at 1
    base = np.zeros_like(model)
    total, rounds = 0, 250
    for seed in range(rounds):
        encoded, _ = get_codec("int8").encode(model, base, 1_000_003 * seed, 0)
        codes = np.frombuffer(encoded, np.int8, offset=4)[1:]
        assert set(np.unique(codes)) <= {0, 1}
        total += int(codes.sum())
    samples = rounds * (BLOCK - 1)
    six_deviations = 6 * np.sqrt(0.3 * 0.7 / samples)
    assert abs(total / samples - 0.3) < six_deviations


def test_int8_rounding_of_neighbouring_parameters_and_seeds_is_uncorrelated() -> None:
    model = np.full(BLOCK, 0.5, dtype=np.float32)
    model[0] = 127.0
    base = np.zeros_like(model)
    rows = [get_codec("int8").encode(model, base, seed, 0)[0] for seed in range(64)]
    codes = np.array([np.frombuffer(row, np.int8, offset=4)[1:] for row in rows], dtype=np.float64)
    codes -= codes.mean()
    along = (codes[:, 1:] * codes[:, :-1]).mean() / codes.var()
    across = (codes[1:] * codes[:-1]).mean() / codes.var()
    assert max(abs(along), abs(across)) < 6 / np.sqrt(codes.size)


@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-40])
def test_a_change_too_small_for_a_scale_is_left_for_later(tiny: float) -> None:
    model = np.full(10, tiny, dtype=np.float32)
    base = np.zeros_like(model)
    encoded, _ = get_codec("int8").encode(model, base, 1, 0)
    assert encoded == bytes(14)


@given(VECTORS, st.integers(0, 2**40))
def test_float32_restores_the_model_but_for_one_rounding(model: Vector, first: int) -> None:
    base = np.roll(model, 1)
    encoded, _ = get_codec("float32").encode(model, base, 0, first)
    out = np.empty_like(model)
    get_codec("float32").decode_add(encoded, base, out)
    assert out.tobytes() == (base + (model - base)).tobytes()


def test_both_ends_agree_on_the_norm_of_the_change(codec: Codec) -> None:
    model, base = normal(3 * BLOCK + 5), normal(3 * BLOCK + 5, seed=1)
    encoded, at_sender = codec.encode(model, base, 9, 0)
    out = np.empty_like(model)
    at_receiver = codec.decode_add(encoded, base, out)
    exact = float(np.sum((model.astype(np.float64) - base) ** 2))
    assert at_sender == pytest.approx(exact, rel=1e-5)
    assert at_receiver == pytest.approx(exact, rel=1e-2)


def test_the_norm_of_large_finite_values_does_not_overflow(codec: Codec) -> None:
    model = np.full(1000, 1e30, dtype=np.float32)
    _, squares = codec.encode(model, np.zeros_like(model), 1, 0)
    assert squares == pytest.approx(1e63, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 4095, 5000])
def test_a_value_that_is_not_finite_makes_the_norm_nan(
    codec: Codec, bad: float, position: int
) -> None:
    clean = normal(5001)
    damaged = clean.copy()
    damaged[position] = bad
    for model, base in [(damaged, clean), (clean, damaged), (damaged, damaged)]:
        assert not np.isfinite(codec.encode(model, base, 1, 0)[1])


def test_a_difference_that_overflows_makes_the_norm_nan(codec: Codec) -> None:
    model = np.full(4, LARGEST, dtype=np.float32)
    assert not np.isfinite(codec.encode(model, -model, 1, 0)[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, LARGEST])
def test_decoding_to_a_value_that_is_not_finite_is_reported(codec: Codec, bad: float) -> None:
    base = np.full(4, LARGEST, dtype=np.float32)
    if codec.name == "int8":
        encoded = np.array([bad], "<f4").tobytes() + bytes([0, 0, 0, 127])
    else:
        encoded = np.array([0, 0, 0, bad], "<f4").tobytes()
    assert not np.isfinite(codec.decode_add(encoded, base, np.empty_like(base)))


@pytest.mark.parametrize("difference", [-5, -1, 1, 4])
def test_an_encoding_of_another_length_is_malformed(codec: Codec, difference: int) -> None:
    base = normal(BLOCK + 1)
    encoded = bytes(codec.encoded_bytes(base.shape[0]) + difference)
    with pytest.raises(MalformedMessageError, match=codec.name):
        codec.decode_add(encoded, base, np.empty_like(base))


def test_chunks_are_whole_blocks_within_the_limit(codec: Codec) -> None:
    assert codec.chunk_parameters % BLOCK == 0
    assert codec.encoded_bytes(codec.chunk_parameters) <= limits.CHUNK_BYTES
    assert codec.encoded_bytes(codec.chunk_parameters + BLOCK) > limits.CHUNK_BYTES


@given(st.sampled_from(sorted(CODECS)), st.integers(1, limits.MAX_PARAMETERS))
def test_the_chunks_of_any_model_add_up_to_its_payload(name: str, dimension: int) -> None:
    codec = get_codec(name)
    count = codec.chunk_count(dimension)
    last = dimension - (count - 1) * codec.chunk_parameters
    assert 0 < last <= codec.chunk_parameters
    whole = (count - 1) * codec.encoded_bytes(codec.chunk_parameters)
    assert codec.payload_bytes(dimension) == whole + codec.encoded_bytes(last)
    assert count <= limits.MAX_CHUNKS


def test_the_base_is_left_as_it_was(codec: Codec) -> None:
    model, base = normal(100), normal(100, seed=1)
    kept = base.copy()
    encoded, _ = codec.encode(model, base, 1, 0)
    codec.decode_add(encoded, base, np.empty_like(base))
    assert base.tobytes() == kept.tobytes()


def test_an_unknown_codec_is_malformed() -> None:
    with pytest.raises(MalformedMessageError, match=r"'zip'; known: float32, int8"):
        get_codec("zip")


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import caching

    from p2pfed.protocol.compiled import compiled

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    def double(value: int) -> int:
        return 2 * value

    assert compiled()(double)(21) == 42
