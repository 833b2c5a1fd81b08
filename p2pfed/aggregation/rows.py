"""What a rule works on: rows, each a mixture of the own model and the neighbours'.

Without a pre-aggregation the rows are the models themselves. With one, nothing is copied: what a
rule needs to know of mixtures follows from the models' pairwise distances, and what it writes is
again a mixture of them. For points p_j with squared distances D and weights a, b that sum to one,

    ||sum_j a_j p_j - sum_j b_j p_j||^2 = -1/2 (a - b)' D (a - b)
    ||x - sum_j a_j p_j||^2 = sum_j a_j ||x - p_j||^2 - 1/2 a' D a

(Schoenberg, "Remarks to Maurice Frechet's article", Annals of Mathematics 36, 1935; the second is
Leibniz's theorem on the centre of mass).
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from p2pfed.aggregation.streaming import StreamedModels, Wide

Mask = npt.NDArray[np.bool_]


def nothing() -> Mask:
    """A mask that marks no row."""
    return np.zeros(0, dtype=bool)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule did with its rows after the own one: ``shares``, shape (rows - 1,), each row's
    part in the result; ``dropped``, of the same shape, those that it refused (empty: none), and
    ``forgiven`` those that it would have clipped, but for their returning; ``threshold``, the
    distance beyond which it clipped or refused; ``lengths``, shape (rows - 1,), what it compared
    with that."""

    shares: Wide
    dropped: Mask = field(default_factory=nothing)
    threshold: float | None = None
    forgiven: Mask = field(default_factory=nothing)
    lengths: Wide | None = None


class Rows:
    """The rows of one aggregation; row 0 is the peer's own.

    :param mixing: shape (rows, k + 1), each row's shares of y, y_1..y_k, summing to one; None:
        the rows are the models.
    :param weights: shape (rows - 1,): the mixing weight that each row after the first has.
    """

    def __init__(self, models: StreamedModels, mixing: Wide | None, weights: Wide) -> None:
        self.models = models
        self.weights = weights
        self._mixing = mixing

    @property
    def count(self) -> int:
        """Rows with the own one."""
        return len(self.weights) + 1

    def distances(self) -> Wide:
        """Of each row after the first to the own row, shape (rows - 1,).

        :raises AggregationError: a model is not finite.
        """
        if self._mixing is None:
            return self.models.distances()
        distances: Wide = np.sqrt(self.pairwise_squares()[0, 1:])
        return distances

    @property
    def start_is_known(self) -> bool:
        """Whether there is a model that the round began with."""
        return self.models.start is not None

    def distances_to_start(self) -> Wide:
        """Of each row after the first to the model that the round began with, (rows - 1,).

        :raises AggregationError: a model is not finite.
        """
        if self._mixing is None:
            return np.asarray(np.sqrt(self.models.squares_to_start(with_own=False)))
        squares = self.models.squares_to_start(with_own=True)
        pairwise = self.models.pairwise_squares()
        spread = 0.5 * np.einsum("ai,ij,aj->a", self._mixing, pairwise, self._mixing)
        return np.asarray(np.sqrt(np.maximum(self._mixing @ squares - spread, 0.0))[1:])

    def pairwise_squares(self) -> Wide:
        """The squared distances of all rows, shape (rows, rows).

        :raises AggregationError: a model is not finite.
        """
        squares = self.models.pairwise_squares()
        if self._mixing is None:
            return squares
        mixed = np.empty((self.count, self.count))
        for row, share in enumerate(self._mixing):
            differences = self._mixing - share
            mixed[row] = -0.5 * ((differences @ squares) * differences).sum(axis=1)
        return np.maximum(mixed, 0.0)

    def own_norm(self) -> float:
        """The norm of the own row."""
        if self._mixing is None:
            return math.sqrt(self.models.squared_norm(0))
        share = self._mixing[0]
        norms = sum(share[i] * self.models.squared_norm(i) for i in np.flatnonzero(share).tolist())
        squared = norms - 0.5 * float(share @ self.models.pairwise_squares() @ share)
        return math.sqrt(max(squared, 0.0))

    def combine(self, shares: Wide) -> None:
        """Write the own row + sum_j shares[j] (row_j - own row), shape (rows - 1,)."""
        self.models.combine(self.effective(shares))

    def order_statistic(self, first: int, last: int) -> None:
        """Write, per coordinate, the mean of the rows' ranks ``first`` to ``last``.

        :raises AggregationError: a model is not finite.
        """
        self.models.order_statistic(first, last, self._mixing)

    def products_and_squares_to_result(self) -> tuple[Wide, Wide]:
        """The inner products of the rows' differences to the own row, shape (rows, rows), and
        the squared distances of the rows to what was last written, shape (rows,)."""
        products, squares = self.models.products_and_squares_to_result()
        if self._mixing is None:
            return products, squares
        diagonal = np.diag(products)
        pairwise = diagonal[:, None] + diagonal[None, :] - 2.0 * products
        spread = 0.5 * np.einsum("ai,ij,aj->a", self._mixing, pairwise, self._mixing)
        differences = self._mixing - self._mixing[0]
        mixed = differences @ products @ differences.T
        return mixed, np.maximum(self._mixing @ squares - spread, 0.0)

    def effective(self, shares: Wide) -> Wide:
        """What ``shares`` of the rows after the first are of the neighbours, shape (k,)."""
        if self._mixing is None:
            return shares
        everyone = np.concatenate([[1.0 - shares.sum()], shares])
        shared: Wide = (everyone @ self._mixing)[1:]
        return shared
