"""Kernels for a given number of large models, with every value of a coordinate in a register.

The general kernels pass through the cache once for each step; these read each model once and do
nothing else in memory. They are generated, because compiled code needs the number of models
written out; each is compiled at its first use, so they serve models that are worth a second.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from p2pfed.aggregation.sorting_network import selection_network

MOST_MODELS = 16  # more do not fit the registers of a vector unit
WORTHWHILE_PARAMETERS = 1 << 20


def worthwhile(models: int, parameters: int) -> bool:
    """Whether a kernel of its own pays for this many models of this size."""
    return models <= MOST_MODELS and parameters >= WORTHWHILE_PARAMETERS


@lru_cache(maxsize=64)
def order_statistic_kernel(models: int, first: int, last: int) -> Callable[..., bool]:
    """``kernel(vectors, start, stop, out)``: out = the mean of ranks first..last, over the range.

    ``vectors`` is a tuple of ``models`` arrays of shape (d,), float32. It returns
    whether any of them holds a value there that is not finite.
    """
    lines = [f"v{j} = x{j}[i]" for j in range(models)]
    lines.append("bad |= " + " | ".join(f"(not isfinite(v{j}))" for j in range(models)))
    for low, high in selection_network(models, first, last):
        lines.append(
            f"v{low}, v{high} = (v{low}, v{high}) if v{low} < v{high} else (v{high}, v{low})"
        )
    if first == last:
        lines.append(f"y[i] = v{first}")
    else:
        total = " + ".join(f"float64(v{j})" for j in range(first, last + 1))
        lines.append(f"y[i] = float32(({total}) / {last - first + 1})")
    return _compiled(models, "vectors, start, stop, out", lines)


@lru_cache(maxsize=64)
def combine_kernel(models: int) -> Callable[..., bool]:
    """``kernel(vectors, weights, start, stop, out)``: out = v_0 + sum_j w_j (v_j - v_0).

    ``weights`` has one entry for each vector after the first.
    """
    differences = [f"w{j} * (float64(x{j}[i]) - own)" for j in range(1, models)]
    lines = [
        "own = float64(x0[i])",
        "y[i] = float32(own + (" + " + ".join(differences) + "))",
    ]
    weights = [f"w{j} = weights[{j - 1}]" for j in range(1, models)]
    return _compiled(models, "vectors, weights, start, stop, out", lines, weights)


def _compiled(
    models: int, parameters: str, body: Sequence[str], before: Sequence[str] = ()
) -> Callable[..., bool]:
    """A loop over ``i`` with ``body``, compiled without the GIL. It indexes slices from 0: the
    compiler cannot know that ``start`` is not negative, and would not vectorise."""
    slices = [f"x{j} = vectors[{j}][start:stop]" for j in range(models)]
    head = [*slices, "y = out[start:stop]", *before, "bad = False"]
    source = (
        f"def kernel({parameters}):\n"
        + "".join(f"    {line}\n" for line in head)
        + "    for i in range(y.shape[0]):\n"
        + "".join(f"        {line}\n" for line in body)
        + "    return bad\n"
    )
    namespace: dict[str, Any] = {
        "float32": np.float32,
        "float64": np.float64,
        "isfinite": np.isfinite,
    }
    exec(source, namespace)  # noqa: S102 - the source is made above, of numbers alone
    kernel: Callable[..., bool] = njit(nogil=True)(namespace["kernel"])
    return kernel
