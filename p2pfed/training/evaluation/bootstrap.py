"""Confidence intervals of any figure, by drawing the records anew with replacement.

B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: the percentile
interval. The draws come from a seed that follows from the number of records, so that the same
predictions have the same interval in every round.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfed.training.evaluation.intervals import CONFIDENCE_LEVEL, Interval

RESAMPLES = 200
MIN_RECORDS = 5  # of fewer, most draws look alike
MAX_RECORDS = 20_000  # beyond, drawing anew would take longer than a round
MIN_SHARE_OF_RESAMPLES = 0.9  # in which a figure must exist, such as one that needs both classes
SEED_CONTEXT = b"p2pfed/1 bootstrap seed"


def bootstrap_intervals(
    figures: Callable[[tuple[NDArray[Any], ...]], Mapping[str, float]],
    arrays: tuple[NDArray[Any], ...],
    strata: NDArray[Any] | None = None,
) -> dict[str, Interval]:
    """The percentile interval of each figure; none of a hold-out outside the bounds above.

    :param figures: figures by name of arrays like ``arrays``; called ``RESAMPLES`` times.
    :param arrays: one entry a record along the first axis of each, shape (n, ...); ``figures``
        gets a tuple of its type.
    :param strata: shape (n,): records are drawn anew within equal values of it, so that each draw
        has as many of each class as the hold-out has.
    """
    records = len(arrays[0])
    if not MIN_RECORDS <= records <= MAX_RECORDS:
        return {}
    generator = np.random.Generator(np.random.PCG64(_seed(records)))
    groups = (
        [np.arange(records)]
        if strata is None
        else [np.flatnonzero(strata == value) for value in np.unique(strata)]
    )
    drawn: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
        chosen = np.concatenate([generator.choice(group, group.size) for group in groups])
        for name, value in figures(_rows(arrays, chosen)).items():
            drawn.setdefault(name, []).append(float(value))
    tail = (1 - CONFIDENCE_LEVEL) / 2
    return {
        name: (float(np.quantile(values, tail)), float(np.quantile(values, 1 - tail)))
        for name, values in drawn.items()
        if len(values) >= MIN_SHARE_OF_RESAMPLES * RESAMPLES and np.isfinite(values).all()
    }


def _rows(arrays: tuple[NDArray[Any], ...], chosen: NDArray[np.intp]) -> tuple[NDArray[Any], ...]:
    """Those rows of every array, in a tuple of the same type."""
    rows = tuple(array[chosen] for array in arrays)
    return type(arrays)(*rows) if hasattr(arrays, "_fields") else rows


def _seed(records: int) -> int:
    digest = hashlib.blake2b(SEED_CONTEXT + records.to_bytes(8), digest_size=8).digest()
    return int.from_bytes(digest)
