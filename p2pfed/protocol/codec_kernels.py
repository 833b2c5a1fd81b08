"""Compiled loops of the codecs. Import this module late: it loads numba.

No fastmath where models are made: the decoder must give the same bits on every machine, so a
product and a sum stay two separately rounded float32 operations.
"""

import numpy as np
import numpy.typing as npt

from p2pfed.protocol.compiled import compiled

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@compiled()
def quantise(
    model: npt.NDArray[np.float32],
    base: npt.NDArray[np.float32],
    seed: np.uint64,
    first_index: int,
    block: int,
    scales: npt.NDArray[np.float32],
    codes: npt.NDArray[np.int8],
) -> float:
    """Write ``model - base``, shape (n,), as int8 codes and one scale a block.

    Stochastic rounding: the code is floor(x + u) with u uniform in [0, 1), taken from a
    SplitMix64 hash of seed and index (Steele, Lea, Flood 2014), so that it is unbiased and
    needs no state.

    :returns: the squared norm of the change in float64; NaN or infinity where an input is.
    """
    total = 0.0
    count = model.shape[0]
    for number in range(scales.shape[0]):
        start = number * block
        end = min(start + block, count)
        largest = np.float32(0.0)
        squares = 0.0
        for i in range(start, end):
            change = model[i] - base[i]
            squares += np.float64(change) * np.float64(change)
            largest = max(largest, abs(change))
        total += squares
        if not np.isfinite(squares) or not np.isfinite(largest):
            return np.nan
        scale = largest / np.float32(127.0)
        scales[number] = scale
        inverse = np.float32(0.0)
        if scale > np.float32(0.0):
            inverse = np.float32(1.0) / scale
        if not np.isfinite(inverse):
            # Below the smallest normal scale nothing can be said in int8; error feedback
            # carries it until it has grown.
            inverse = np.float32(0.0)
            scales[number] = np.float32(0.0)
        for i in range(start, end):
            mixed = seed + np.uint64(first_index + i) * _GOLDEN
            mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
            mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
            mixed = mixed ^ (mixed >> np.uint64(31))
            uniform = np.float32(mixed >> np.uint64(40)) * np.float32(2.0**-24)
            value = np.floor((model[i] - base[i]) * inverse + uniform)
            value = min(max(value, np.float32(-127.0)), np.float32(127.0))
            codes[i] = np.int8(value)
    return total


@compiled()
def dequantise_add(
    scales: npt.NDArray[np.float32],
    codes: npt.NDArray[np.int8],
    block: int,
    base: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
) -> float:
    """out = base + code * scale, all shape (n,).

    :returns: the squared norm of the change in float64; NaN where a result is not finite.
    """
    total = 0.0
    count = codes.shape[0]
    bad = False
    for number in range(scales.shape[0]):
        start = number * block
        end = min(start + block, count)
        scale = scales[number]
        squares = 0.0
        for i in range(start, end):
            code = np.float32(codes[i])
            change = code * scale
            result = base[i] + change
            out[i] = result
            squares += np.float64(code) * np.float64(code)
            bad |= not np.isfinite(result)
        total += squares * np.float64(scale) * np.float64(scale)
    return np.nan if bad else total


@compiled(fastmath={"reassoc"})
def squared_norm(change: npt.NDArray[np.float32]) -> float:
    """The sum of squares in float64, shape (n,); not finite exactly where an element is not.

    Only this sum may be reordered: it decides about plausibility, not about a model's bits.
    """
    total = 0.0
    for i in range(change.shape[0]):
        total += np.float64(change[i]) * np.float64(change[i])
    return total
