"""Compiled loops over chunks of models. Import late: this loads numba.

Strict floating point (no fastmath), so that the result of a chunk depends on its input alone.
All of them release the GIL.
"""

import numpy as np
import numpy.typing as npt

from p2pfed.protocol.compiled import compiled

Vector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

TILE = 1024  # columns sorted at a time: rows of a tile stay in the first-level cache


@compiled
def squared_distance(own: Vector, other: Vector) -> float:
    """The sum of (other - own)^2 in float64, shape (n,) each.

    Not finite exactly where an input is not: float32 cannot overflow float64. Eight partial
    sums, because one sum in order would wait for each addition.
    """
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    count = own.shape[0]
    whole = count - count % 8
    for i in range(0, whole, 8):
        d0 = np.float64(other[i]) - np.float64(own[i])
        d1 = np.float64(other[i + 1]) - np.float64(own[i + 1])
        d2 = np.float64(other[i + 2]) - np.float64(own[i + 2])
        d3 = np.float64(other[i + 3]) - np.float64(own[i + 3])
        d4 = np.float64(other[i + 4]) - np.float64(own[i + 4])
        d5 = np.float64(other[i + 5]) - np.float64(own[i + 5])
        d6 = np.float64(other[i + 6]) - np.float64(own[i + 6])
        d7 = np.float64(other[i + 7]) - np.float64(own[i + 7])
        s0 += d0 * d0
        s1 += d1 * d1
        s2 += d2 * d2
        s3 += d3 * d3
        s4 += d4 * d4
        s5 += d5 * d5
        s6 += d6 * d6
        s7 += d7 * d7
    for i in range(whole, count):
        d0 = np.float64(other[i]) - np.float64(own[i])
        s0 += d0 * d0
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@compiled
def add_scaled_difference(total: Wide, own: Vector, other: Vector, weight: float) -> None:
    """total += weight * (other - own), in float64, shape (n,)."""
    for i in range(own.shape[0]):
        total[i] += weight * (np.float64(other[i]) - np.float64(own[i]))


@compiled
def add_to(own: Vector, total: Wide, out: Vector) -> None:
    """out = own + total, rounded once to float32."""
    for i in range(own.shape[0]):
        out[i] = np.float32(np.float64(own[i]) + total[i])


@compiled
def compare_and_exchange(rows: Vector, network: npt.NDArray[np.int64], count: int) -> None:
    """Run a sorting network over the columns of ``rows``, shape (m, >= count).

    :param network: shape (c, 2): pairs of rows (low, high), in order.
    """
    for start in range(0, count, TILE):
        end = min(start + TILE, count)
        for step in range(network.shape[0]):
            low, high = rows[network[step, 0]], rows[network[step, 1]]
            for i in range(start, end):
                a, b = low[i], high[i]
                low[i] = a if a < b else b
                high[i] = b if a < b else a


@compiled
def mean_of_rows(rows: Vector, first: int, last: int, out: Vector) -> None:
    """out = the mean of rows first..last (inclusive) in float64, shape (n,)."""
    count = last - first + 1
    for i in range(out.shape[0]):
        total = 0.0
        for row in range(first, last + 1):
            total += np.float64(rows[row, i])
        out[i] = np.float32(total / count)
