"""The aggregation rules: one entry point, streaming over blocks, never all models in memory.

Notation: y is the peer's own model, y_j the neighbours', z_j = y_j - y, w_j the mixing weight
of the edge (Metropolis-Hastings), k the number of neighbours present, b how many of them are
assumed Byzantine.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from p2pfed.aggregation.sorting_network import selection_network
from p2pfed.errors import AggregationError
from p2pfed.rules_catalogue import RULES

Vector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
T = TypeVar("T")

PART_PARAMETERS = 1 << 19  # what one thread takes at a time; sums are added part by part, in
# order, so that a result does not depend on the number of threads
DROP_FACTOR = 3.0  # a neighbour beyond this many thresholds has no weight
DROP_NEIGHBOURS = 3  # fewer cannot tell an outlier from an unlike site
WEISZFELD_STEPS = 8
WEISZFELD_FLOOR = 1e-3  # smallest distance that is divided by


@dataclass(frozen=True, slots=True)
class NeighbourModel:
    """A neighbour's replica: ``vector`` has shape (d,), float32, and may be a mapped file;
    ``weight`` is the mixing weight of the edge, in (0, 1)."""

    name: str
    vector: Vector
    weight: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule did. ``weights`` are effective: after clipping, 0 where dropped; a
    coordinate-wise rule has no such thing and reports equal shares. ``distances`` are
    ||z_j||, where the rule looks at them."""

    rule: str
    weights: Mapping[str, float]
    distances: Mapping[str, float]
    threshold: float | None = None
    dropped: tuple[str, ...] = ()
    local_only: bool = False


@dataclass(frozen=True, slots=True)
class _Inputs:
    own: Vector
    neighbours: tuple[NeighbourModel, ...]  # sorted by name: the order of sums is fixed
    out: Vector
    byzantine_neighbours: int
    threads: int

    @property
    def names(self) -> list[str]:
        return [neighbour.name for neighbour in self.neighbours]

    def models(self) -> Any:
        from p2pfed.aggregation import kernels  # noqa: PLC0415 - loads numba

        return kernels.as_list([neighbour.vector for neighbour in self.neighbours])

    def vectors(self) -> tuple[Vector, ...]:
        """y, y_1..y_k, as the kernels made for their number take them."""
        return (self.own, *(neighbour.vector for neighbour in self.neighbours))

    def over_parts(self, work: Callable[[int, int], T]) -> list[T]:
        """``work(start, stop)`` for every part of the parameters, its results in order."""
        dimension = self.own.shape[0]
        starts = range(0, dimension, PART_PARAMETERS)
        stops = [min(start + PART_PARAMETERS, dimension) for start in starts]
        if self.threads == 1 or len(starts) == 1:
            return [work(start, stop) for start, stop in zip(starts, stops, strict=True)]
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(work, starts, stops))


def aggregate(
    rule: str,
    own: Vector,
    neighbours: Sequence[NeighbourModel],
    out: Vector,
    *,
    byzantine_neighbours: int = 0,
    threads: int = 1,
) -> Outcome:
    """Write R(own; neighbours) to ``out``.

    The result does not depend on the order of ``neighbours``. Without any, it is ``own``.

    :param own: shape (d,), float32; so is every neighbour's vector, and ``out``, which is
        overwritten and must share no memory with them.
    :param byzantine_neighbours: b, for rules that ask for it; clamped to what those present
        allow.
    :param threads: that share a large model; the result does not depend on their number.
    :raises AggregationError: unknown rule, unlike shapes, or values that are not finite; it
        names the neighbour where one is at fault. ``out`` is then meaningless.
    """
    if rule not in RULES:
        raise AggregationError(f"unknown rule {rule!r}; known: {', '.join(RULES)}")
    _check(own, neighbours, out)
    ordered = tuple(sorted(neighbours, key=lambda neighbour: neighbour.name))
    inputs = _Inputs(
        np.asarray(own),
        tuple(NeighbourModel(n.name, np.asarray(n.vector), n.weight) for n in ordered),
        np.asarray(out),
        byzantine_neighbours,
        threads,
    )
    if not ordered:
        np.copyto(out, own)
        return Outcome(rule, {}, {}, local_only=True)
    return _IMPLEMENTATIONS[rule](inputs)


def _check(own: Vector, neighbours: Sequence[NeighbourModel], out: Vector) -> None:
    names = [neighbour.name for neighbour in neighbours]
    if len(set(names)) < len(names):
        raise AggregationError("two neighbours have one name")
    labelled = [(None, own), (None, out), *((n.name, n.vector) for n in neighbours)]
    for name, vector in labelled:
        if vector.dtype != np.float32 or vector.shape != (own.shape[0],):
            raise AggregationError(
                f"{name or 'own model'}: {vector.dtype} {vector.shape}, expected float32 "
                f"({own.shape[0]},)",
                name,
            )
    for name, vector in (labelled[0], *labelled[2:]):
        if np.may_share_memory(vector, out):
            raise AggregationError("the result would overwrite an input", name)


def _distances(inputs: _Inputs) -> dict[str, float]:
    """||z_j|| of every neighbour, in one pass.

    :raises AggregationError: a model is not finite.
    """
    from p2pfed.aggregation import kernels  # noqa: PLC0415 - loads numba

    models = inputs.models()

    def part(start: int, stop: int) -> Wide:
        squares = np.zeros(len(inputs.neighbours))
        kernels.squared_distances(inputs.own, models, start, stop, squares)
        return squares

    return _roots(inputs, sum(inputs.over_parts(part), np.zeros(len(inputs.neighbours))))


def _roots(inputs: _Inputs, squares: Wide) -> dict[str, float]:
    """:raises AggregationError: a sum is not finite, so a model is not."""
    finite = np.isfinite(squares)
    if not finite.all():
        if not np.isfinite(inputs.own).all():
            raise AggregationError("the own model is not finite")
        name = inputs.names[int(np.argmin(finite))]
        raise AggregationError(f"the model of {name} is not finite", name)
    return dict(zip(inputs.names, np.sqrt(squares).tolist(), strict=True))


def _combine(inputs: _Inputs, weights: Mapping[str, float]) -> None:
    """out = y + sum_j weights[j] z_j."""
    from p2pfed.aggregation import kernels, specialised  # noqa: PLC0415 - loads numba

    shares = np.array([weights[name] for name in inputs.names])
    count = len(inputs.neighbours) + 1
    if specialised.worthwhile(count, inputs.own.shape[0]):
        own_kernel = specialised.combine_kernel(count)
        vectors = inputs.vectors()

        def part(start: int, stop: int) -> None:
            own_kernel(vectors, shares, start, stop, inputs.out)
    else:
        models = inputs.models()

        def part(start: int, stop: int) -> None:
            kernels.combine(inputs.own, models, shares, start, stop, inputs.out)

    inputs.over_parts(part)


def _mean(inputs: _Inputs) -> Outcome:
    distances = _distances(inputs)
    weights = {neighbour.name: neighbour.weight for neighbour in inputs.neighbours}
    _combine(inputs, weights)
    return Outcome("mean", weights, distances)


def _clip(inputs: _Inputs, rule: str, distances: dict[str, float], threshold: float) -> Outcome:
    """y + sum_j w_j clip(z_j, t), without those beyond DROP_FACTOR t. What an edge loses in
    weight stays with y."""
    may_drop = len(inputs.neighbours) >= DROP_NEIGHBOURS
    weights: dict[str, float] = {}
    dropped: list[str] = []
    for neighbour in inputs.neighbours:
        distance = distances[neighbour.name]
        if distance <= threshold:
            weights[neighbour.name] = neighbour.weight
        elif may_drop and distance > DROP_FACTOR * threshold:
            weights[neighbour.name] = 0.0
            dropped.append(neighbour.name)
        else:
            weights[neighbour.name] = neighbour.weight * threshold / distance
    _combine(inputs, weights)
    return Outcome(rule, weights, distances, threshold, tuple(dropped))


def _median_clipping(inputs: _Inputs) -> Outcome:
    """t = the lower median of the distances, so a minority of neighbours cannot raise it."""
    distances = _distances(inputs)
    ordered = sorted(distances.values())
    return _clip(inputs, "median_clipping", distances, ordered[(len(ordered) - 1) // 2])


def _clipped_gossip(inputs: _Inputs) -> Outcome:
    """CS+ of Gaucher, Dieuleveut, Hendrikx: t = the (k-2b)-th smallest distance."""
    distances = _distances(inputs)
    count = len(distances)
    byzantine = min(inputs.byzantine_neighbours, (count - 1) // 2)
    threshold = sorted(distances.values())[count - 2 * byzantine - 1]
    return _clip(inputs, "clipped_gossip", distances, threshold)


def _order_statistic(inputs: _Inputs, rule: str, first: int, last: int) -> Outcome:
    """Per coordinate, the mean of ranks ``first`` to ``last`` among {y, y_1..y_k}."""
    from p2pfed.aggregation import kernels, specialised  # noqa: PLC0415 - loads numba

    count = len(inputs.neighbours) + 1
    if specialised.worthwhile(count, inputs.own.shape[0]):
        own_kernel = specialised.order_statistic_kernel(count, first, last)
        vectors = inputs.vectors()

        def part(start: int, stop: int) -> bool:
            return own_kernel(vectors, start, stop, inputs.out)
    else:
        network, models = selection_network(count, first, last), inputs.models()

        def part(start: int, stop: int) -> bool:
            ranks = (first, last)
            return bool(
                kernels.order_statistic(inputs.own, models, network, ranks, start, stop, inputs.out)
            )

    if any(inputs.over_parts(part)):
        _distances(inputs)  # finds the model that is not finite, and raises
    return Outcome(rule, dict.fromkeys(inputs.names, 1.0 / count), {})


def _coordinate_median(inputs: _Inputs) -> Outcome:
    count = len(inputs.neighbours) + 1
    return _order_statistic(inputs, "coordinate_median", (count - 1) // 2, count // 2)


def _trimmed_mean(inputs: _Inputs) -> Outcome:
    """Without the b highest and the b lowest; at least one value stays."""
    count = len(inputs.neighbours) + 1
    trimmed = min(inputs.byzantine_neighbours, (count - 1) // 2)
    return _order_statistic(inputs, "trimmed_mean", trimmed, count - 1 - trimmed)


def _geometric_median(inputs: _Inputs) -> Outcome:
    """Weiszfeld's iteration from the coordinate median (Pillutla, Kakade, Harchaoui 2022).

    After the first step every iterate is a weighted mean of the inputs, so its distances
    follow from the inner products of the z_j alone: one pass collects those, and one writes
    the result, whatever the number of steps.
    """
    from p2pfed.aggregation import kernels  # noqa: PLC0415 - loads numba

    count = len(inputs.neighbours) + 1
    distances = _distances(inputs)
    _order_statistic(inputs, "geometric_median", (count - 1) // 2, count // 2)
    models = inputs.models()

    def part(start: int, stop: int) -> tuple[Wide, Wide]:
        products, to_median = np.zeros((count - 1, count - 1)), np.zeros(count)
        median = inputs.out
        kernels.inner_products(inputs.own, models, start, stop, products)
        kernels.squared_distances(median, models, start, stop, to_median[1:])
        to_median[0] = kernels.squared_distance(inputs.own[start:stop], median[start:stop])
        return products, to_median

    parts = inputs.over_parts(part)
    products = np.zeros((count, count))  # of z_0 = 0, z_1..z_k
    upper = sum((one for one, _ in parts), np.zeros((count - 1, count - 1)))
    products[1:, 1:] = upper + np.triu(upper, 1).T
    squared = sum((other for _, other in parts), np.zeros(count))
    for _ in range(WEISZFELD_STEPS):
        inverse = 1.0 / np.maximum(np.sqrt(np.maximum(squared, 0.0)), WEISZFELD_FLOOR)
        weights = inverse / inverse.sum()
        # ||z_i - sum_j w_j z_j||^2
        cross = products @ weights
        squared = np.diag(products) - 2 * cross + weights @ cross
    effective = dict(zip(inputs.names, weights[1:].tolist(), strict=True))
    _combine(inputs, effective)
    return Outcome("geometric_median", effective, distances)


_IMPLEMENTATIONS: Mapping[str, Callable[[_Inputs], Outcome]] = MappingProxyType(
    {
        "mean": _mean,
        "median_clipping": _median_clipping,
        "coordinate_median": _coordinate_median,
        "geometric_median": _geometric_median,
        "trimmed_mean": _trimmed_mean,
        "clipped_gossip": _clipped_gossip,
    }
)
