"""Passes over models that are too large to be held: in parts, each by one thread, in blocks that
stay in the first caches."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from p2pfed.aggregation.sorting_network import selection_network
from p2pfed.errors import AggregationError

Vector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
T = TypeVar("T")

PART_PARAMETERS = 1 << 19  # what one thread takes at a time; sums are added part by part, in
# order, so that a result does not depend on the number of threads


@dataclass(frozen=True, slots=True)
class NeighbourModel:
    """A neighbour's replica: ``vector`` has shape (d,), float32, and may be a mapped file;
    ``weight`` is the mixing weight of the edge, in (0, 1). ``returning``: this site lost sight
    of it for some rounds, and their models have not come near each other since."""

    name: str
    vector: Vector
    weight: float
    returning: bool = False


def distance(one: Vector, other: Vector) -> float:
    """||one - other||, shape (d,) each, summed in float64 without a copy of either."""
    total = 0.0
    for start in range(0, one.shape[0], PART_PARAMETERS):
        part = slice(start, start + PART_PARAMETERS)
        total += float(np.square(np.subtract(one[part], other[part], dtype=np.float64)).sum())
    return math.sqrt(total)


class StreamedModels:
    """The own model y, its k >= 1 neighbours' in a fixed order, and where the result goes.

    :param neighbours: in the order in which sums are taken.
    :param out: shape (d,), float32; every method that writes a result writes it here.
    :param start: x, shape (d,), float32: the own model before this round's training.
    """

    def __init__(
        self,
        own: Vector,
        neighbours: tuple[NeighbourModel, ...],
        out: Vector,
        threads: int,
        start: Vector | None = None,
    ) -> None:
        self.own = own
        self.start = start
        self.neighbours = neighbours
        self.names = [neighbour.name for neighbour in neighbours]
        self.vectors = (own, *(neighbour.vector for neighbour in neighbours))
        self._out = out
        self._threads = threads
        self._pairwise: Wide | None = None
        self.known_distances: Wide | None = None  # from the first pass that measures them

    def _listed(self, vectors: tuple[Vector, ...]) -> Any:
        from p2pfed.aggregation import kernels  # noqa: PLC0415 - loads numba

        return kernels.as_list(list(vectors))

    def _over_parts(self, work: Callable[[int, int], T]) -> list[T]:
        """``work(start, stop)`` for every part of the parameters, its results in order."""
        dimension = self.own.shape[0]
        starts = range(0, dimension, PART_PARAMETERS)
        stops = [min(start + PART_PARAMETERS, dimension) for start in starts]
        if self._threads == 1 or len(starts) == 1:
            return [work(start, stop) for start, stop in zip(starts, stops, strict=True)]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(work, starts, stops))

    def distances(self) -> Wide:
        """||y_j - y||, shape (k,), in one pass.

        :raises AggregationError: a model is not finite.
        """
        if self.known_distances is None:
            squares = self._squares_to(self.own, self.vectors[1:])
            self._refuse_unless_finite(squares)
            self.known_distances = np.sqrt(squares)
        return self.known_distances

    def squares_to_start(self, *, with_own: bool) -> Wide:
        """||y_j - x||^2, shape (k,), in one pass; ``with_own``: ||y - x||^2 first, (k + 1,).

        :raises AggregationError: a model is not finite.
        """
        assert self.start is not None  # noqa: S101 - asked for only where it is known
        squares = self._squares_to(self.start, self.vectors if with_own else self.vectors[1:])
        self._refuse_unless_finite(squares[1:] if with_own else squares)
        return squares

    def _squares_to(self, centre: Vector, vectors: tuple[Vector, ...]) -> Wide:
        from p2pfed.aggregation import kernels  # noqa: PLC0415 - loads numba

        count, models = len(vectors), self._listed(vectors)

        def part(start: int, stop: int) -> Wide:
            squares = np.zeros(count)
            kernels.squared_distances(centre, models, start, stop, squares)
            return squares

        return sum(self._over_parts(part), np.zeros(count))

    def pairwise_squares(self) -> Wide:
        """The squared distances of y, y_1..y_k, shape (k + 1, k + 1), in one pass.

        :raises AggregationError: a model is not finite.
        """
        from p2pfed.aggregation import kernels  # noqa: PLC0415 - loads numba

        if self._pairwise is None:
            count, models = len(self.vectors), self._listed(self.vectors)

            def part(start: int, stop: int) -> Wide:
                squares = np.zeros((count, count))
                kernels.pairwise_squared_distances(models, start, stop, squares)
                return squares

            upper = sum(self._over_parts(part), np.zeros((count, count)))
            self._refuse_unless_finite(upper[0, 1:])
            self._pairwise = upper + upper.T
            self.known_distances = np.sqrt(upper[0, 1:])
        return self._pairwise

    def _refuse_unless_finite(self, squares_to_own: Wide) -> None:
        """:raises AggregationError: a sum is not finite, so a model is not."""
        finite = np.isfinite(squares_to_own)
        if finite.all():
            return
        if not all(np.isfinite(one).all() for one in (self.own, self.start) if one is not None):
            raise AggregationError("the own model is not finite")
        name = self.names[int(np.argmin(finite))]
        raise AggregationError(f"the model of {name} is not finite", name)

    def squared_norm(self, index: int) -> float:
        """||y||^2 for 0, ||y_j||^2 for j."""
        vector = self.vectors[index]

        def part(start: int, stop: int) -> float:
            return float(np.square(vector[start:stop], dtype=np.float64).sum())

        return sum(self._over_parts(part))

    def combine(self, shares: Wide) -> None:
        """Write y + sum_j shares[j] (y_j - y), ``shares`` of shape (k,)."""
        from p2pfed.aggregation import kernels, specialised  # noqa: PLC0415 - loads numba

        chosen = np.flatnonzero(shares)
        if len(chosen) == 1 and shares[chosen[0]] == 1.0:
            # y + (y_j - y) would round where y is much the larger.
            np.copyto(self._out, self.neighbours[chosen[0]].vector)
            return
        count = len(self.vectors)
        if specialised.worthwhile(count, self.own.shape[0]):
            own_kernel = specialised.combine_kernel(count)

            def part(start: int, stop: int) -> None:
                own_kernel(self.vectors, shares, start, stop, self._out)
        else:
            models = self._listed(self.vectors[1:])

            def part(start: int, stop: int) -> None:
                kernels.combine(self.own, models, shares, start, stop, self._out)

        self._over_parts(part)

    def order_statistic(self, first: int, last: int, mixing: Wide | None) -> None:
        """Write, per coordinate, the mean of the ranks ``first`` to ``last`` (from 0).

        :param mixing: shape (rows, k + 1): of these mixtures of {y, y_1..y_k}; None: of the
            models themselves.
        :raises AggregationError: a model is not finite.
        """
        from p2pfed.aggregation import kernels, specialised  # noqa: PLC0415 - loads numba

        count = len(self.vectors)
        if mixing is not None:
            network = selection_network(len(mixing), first, last)
            everyone = self._listed(self.vectors)

            def part(start: int, stop: int) -> bool:
                return bool(
                    kernels.order_statistic_of_mixtures(
                        everyone, mixing, network, (first, last), start, stop, self._out
                    )
                )
        elif specialised.worthwhile(count, self.own.shape[0]):
            own_kernel = specialised.order_statistic_kernel(count, first, last)

            def part(start: int, stop: int) -> bool:
                return own_kernel(self.vectors, start, stop, self._out)
        else:
            network, models = selection_network(count, first, last), self._listed(self.vectors[1:])

            def part(start: int, stop: int) -> bool:
                return bool(
                    kernels.order_statistic(
                        self.own, models, network, (first, last), start, stop, self._out
                    )
                )

        if any(self._over_parts(part)):
            self.distances()  # finds the model that is not finite, and raises

    def products_and_squares_to_result(self) -> tuple[Wide, Wide]:
        """In one pass: the inner products of y - y, y_1 - y..y_k - y, shape (k + 1, k + 1), and
        the squared distances of y, y_1..y_k to what was last written, shape (k + 1,)."""
        from p2pfed.aggregation import kernels  # noqa: PLC0415 - loads numba

        count, models = len(self.vectors), self._listed(self.vectors[1:])

        def part(start: int, stop: int) -> tuple[Wide, Wide]:
            products, squares = np.zeros((count - 1, count - 1)), np.zeros(count)
            kernels.inner_products(self.own, models, start, stop, products)
            kernels.squared_distances(self._out, models, start, stop, squares[1:])
            squares[0] = kernels.squared_distance(self.own[start:stop], self._out[start:stop])
            return products, squares

        parts = self._over_parts(part)
        upper = sum((one for one, _ in parts), np.zeros((count - 1, count - 1)))
        products = np.zeros((count, count))
        products[1:, 1:] = upper + np.triu(upper, 1).T
        return products, sum((other for _, other in parts), np.zeros(count))
