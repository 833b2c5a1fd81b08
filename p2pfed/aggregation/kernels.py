"""Compiled loops over models. Import late: this loads numba.

All release the GIL and work on a range ``[start, stop)`` of the parameters in blocks that stay
in the first caches, so that every model is read from memory once a pass. Only the sums of
squares may be reordered by the compiler (``reassoc``): they would otherwise wait for each
addition; nothing else is relaxed, and what is not finite stays so.
"""

import numpy as np
import numpy.typing as npt
from numba.typed import List

from p2pfed.protocol.compiled import compiled

Vector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

BLOCK = 1024  # parameters of one model at a time


def as_list(vectors: list[Vector]) -> "List[Vector]":
    """Models as compiled code takes them: one type whatever their number, so that no number
    of neighbours needs a compilation of its own."""
    result = List()
    for vector in vectors:
        result.append(vector)
    return result


@compiled(fastmath={"reassoc"})
def squared_distance(own: Vector, other: Vector) -> float:
    """The sum of (other - own)^2 in float64, shape (n,) each.

    Not finite exactly where an input is not: float32 cannot overflow float64.
    """
    total = 0.0
    for i in range(own.shape[0]):
        difference = np.float64(other[i]) - np.float64(own[i])
        total += difference * difference
    return total


@compiled()
def squared_distances(
    own: Vector, others: "List[Vector]", start: int, stop: int, squares: Wide
) -> None:
    """squares[j] += the squared distance of model j, over the range."""
    for low in range(start, stop, BLOCK):
        high = min(low + BLOCK, stop)
        mine = own[low:high]
        for j in range(len(others)):
            squares[j] += squared_distance(mine, others[j][low:high])


@compiled()
def add_scaled_difference(total: Wide, own: Vector, other: Vector, weight: float) -> None:
    """total += weight * (other - own), in float64, shape (n,)."""
    for i in range(own.shape[0]):
        total[i] += weight * (np.float64(other[i]) - np.float64(own[i]))


@compiled()
def combine(
    own: Vector, others: "List[Vector]", weights: Wide, start: int, stop: int, out: Vector
) -> None:
    """out = own + sum_j weights[j] (other_j - own), rounded once to float32."""
    total = np.empty(BLOCK, np.float64)
    for low in range(start, stop, BLOCK):
        high = min(low + BLOCK, stop)
        mine, sums = own[low:high], total[: high - low]
        sums[:] = 0.0
        for j in range(len(others)):
            if weights[j] != 0.0:
                add_scaled_difference(sums, mine, others[j][low:high], weights[j])
        for i in range(high - low):
            out[low + i] = np.float32(np.float64(mine[i]) + sums[i])


@compiled(fastmath={"nnan", "nsz"})
def compare_and_exchange(low: Vector, high: Vector) -> None:
    """Leave the smaller of each pair in ``low`` and the larger in ``high``, shape (n,).

    Without NaN (``nnan``) this is one instruction each; where there is one the model is refused
    by its distance, and the result is thrown away.
    """
    for i in range(low.shape[0]):
        a, b = low[i], high[i]
        low[i] = a if a < b else b
        high[i] = b if a < b else a


@compiled()
def select_ranks(
    rows: npt.NDArray[np.float32],
    width: int,
    network: npt.NDArray[np.int64],
    ranks: tuple[int, int],
    out: Vector,
) -> bool:
    """out = the mean of the ranks first..last of the rows in each of the first ``width`` columns.

    :param rows: shape (n, BLOCK); left in another order.
    :param network: shape (c, 2): the pairs (low, high) that a sorting network exchanges.
    :returns: whether one of these values is not finite.
    """
    first, last = ranks
    bad = False
    for j in range(rows.shape[0]):
        bad |= not np.isfinite(rows[j, :width]).all()
    for step in range(network.shape[0]):
        compare_and_exchange(rows[network[step, 0], :width], rows[network[step, 1], :width])
    if first == last:
        out[:] = rows[first, :width]
    else:
        for i in range(width):
            total = 0.0
            for row in range(first, last + 1):
                total += np.float64(rows[row, i])
            out[i] = np.float32(total / (last - first + 1))
    return bad


@compiled()
def order_statistic(
    own: Vector,
    others: "List[Vector]",
    network: npt.NDArray[np.int64],
    ranks: tuple[int, int],
    start: int,
    stop: int,
    out: Vector,
) -> bool:
    """out = the mean of the ranks first..last of {own, others} in each coordinate.

    :param network: as for ``select_ranks``.
    :returns: whether a value of the range is not finite.
    """
    count = len(others) + 1
    rows = np.empty((count, BLOCK), np.float32)
    bad = False
    for begin in range(start, stop, BLOCK):
        end = min(begin + BLOCK, stop)
        width = end - begin
        rows[0, :width] = own[begin:end]
        for j in range(count - 1):
            rows[j + 1, :width] = others[j][begin:end]
        bad |= select_ranks(rows, width, network, ranks, out[begin:end])
    return bad


@compiled()
def order_statistic_of_mixtures(
    models: "List[Vector]",
    mixing: Wide,
    network: npt.NDArray[np.int64],
    ranks: tuple[int, int],
    start: int,
    stop: int,
    out: Vector,
) -> bool:
    """As ``order_statistic``, of the rows ``mixing @ models`` rounded to float32.

    :param mixing: shape (rows, n), n the number of models.
    """
    count = mixing.shape[0]
    rows = np.empty((count, BLOCK), np.float32)
    total = np.empty(BLOCK, np.float64)
    bad = False
    for begin in range(start, stop, BLOCK):
        end = min(begin + BLOCK, stop)
        width = end - begin
        for row in range(count):
            total[:width] = 0.0
            for j in range(len(models)):
                if mixing[row, j] != 0.0:
                    model = models[j][begin:end]
                    for i in range(width):
                        total[i] += mixing[row, j] * np.float64(model[i])
            for i in range(width):
                rows[row, i] = np.float32(total[i])
        bad |= select_ranks(rows, width, network, ranks, out[begin:end])
    return bad


@compiled()
def pairwise_squared_distances(
    models: "List[Vector]", start: int, stop: int, squares: Wide
) -> None:
    """squares[i, j] += the squared distance of models i and j over the range, i < j."""
    for low in range(start, stop, BLOCK):
        high = min(low + BLOCK, stop)
        for i in range(len(models)):
            for j in range(i + 1, len(models)):
                squares[i, j] += squared_distance(models[i][low:high], models[j][low:high])


@compiled(fastmath={"reassoc"})
def inner_product(own: Vector, one: Vector, other: Vector) -> float:
    """The sum of (one - own) (other - own) in float64, shape (n,) each."""
    total = 0.0
    for i in range(own.shape[0]):
        mine = np.float64(own[i])
        total += (np.float64(one[i]) - mine) * (np.float64(other[i]) - mine)
    return total


@compiled()
def inner_products(
    own: Vector, others: "List[Vector]", start: int, stop: int, products: Wide
) -> None:
    """products[i, j] += the inner product of models i and j relative to ``own``, i <= j."""
    for low in range(start, stop, BLOCK):
        high = min(low + BLOCK, stop)
        mine = own[low:high]
        for i in range(len(others)):
            for j in range(i, len(others)):
                products[i, j] += inner_product(mine, others[i][low:high], others[j][low:high])
