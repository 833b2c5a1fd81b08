"""Sorting networks: fixed sequences of compare-exchange steps, so that many columns are sorted
at once without a branch."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt


def batcher(width: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort for ``width`` inputs (Knuth, The Art of Computer
    Programming 3, 5.2.2, Algorithm M), as pairs (low, high)."""
    steps: list[tuple[int, int]] = []
    p = 1
    while p < width:
        k = p
        while k >= 1:
            for j in range(k % p, width - k, 2 * k):
                for i in range(min(k, width - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        steps.append((i + j, i + j + k))
            k //= 2
        p *= 2
    return steps


@lru_cache(maxsize=128)
def selection_network(width: int, first: int, last: int) -> npt.NDArray[np.int64]:
    """The steps that leave ranks ``first`` to ``last`` in their places, shape (c, 2).

    Steps that cannot influence those outputs are left out, walking backwards.
    """
    needed = set(range(first, last + 1))
    kept: list[tuple[int, int]] = []
    for low, high in reversed(batcher(width)):
        if low in needed or high in needed:
            kept.append((low, high))
            needed |= {low, high}
    return np.array(kept[::-1], dtype=np.int64).reshape(-1, 2)
