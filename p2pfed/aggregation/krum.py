"""Krum and Multi-Krum (Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017): models that
have many near them."""

import numpy as np
import numpy.typing as npt

from p2pfed.aggregation.rows import Decision, Rows
from p2pfed.aggregation.rule import Parameters
from p2pfed.aggregation.streaming import Wide


def ranking(squares: Wide, nearest: int) -> npt.NDArray[np.intp]:
    """Rows by Krum's score, the sum of the squared distances to the ``nearest`` other rows; the
    best first, and of equals the first.

    :param squares: shape (n, n), squared distances.
    """
    others = np.sort(squares, axis=1)[:, 1 : 1 + max(nearest, 1)]  # the first is the row itself
    return np.argsort(others.sum(axis=1), kind="stable")


def _mean_of_best(rows: Rows, byzantine: int, kept: int) -> Decision:
    best = ranking(rows.pairwise_squares(), rows.count - byzantine - 2)[:kept]
    everyone = np.zeros(rows.count)
    everyone[best] = 1.0 / kept
    rows.combine(everyone[1:])
    return Decision(everyone[1:], everyone[1:] == 0.0)


def krum(rows: Rows, parameters: Parameters) -> Decision:
    """The one row with the best score."""
    return _mean_of_best(rows, parameters.byzantine, 1)


def multi_krum(rows: Rows, parameters: Parameters) -> Decision:
    """The mean of the n - b rows with the best scores."""
    return _mean_of_best(rows, parameters.byzantine, rows.count - parameters.byzantine)
