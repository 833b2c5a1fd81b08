"""The aggregation rules: one entry point, streaming over chunks, never all models in memory.

Notation: y is the peer's own model, y_j the neighbours', z_j = y_j - y, w_j the mixing weight
of the edge (Metropolis-Hastings), k the number of neighbours present, b how many of them are
assumed Byzantine.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from p2pfed.aggregation.sorting_network import selection_network
from p2pfed.errors import AggregationError
from p2pfed.rules_catalogue import RULES

Vector = npt.NDArray[np.float32]

CHUNK_PARAMETERS = 1 << 14  # of one model; all models' chunks together stay in the second cache
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
    coordinate-wise rule has no such thing and reports equal shares."""

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

    def chunks(self) -> Iterator[slice]:
        for start in range(0, self.own.shape[0], CHUNK_PARAMETERS):
            yield slice(start, min(start + CHUNK_PARAMETERS, self.own.shape[0]))


def aggregate(
    rule: str,
    own: Vector,
    neighbours: Sequence[NeighbourModel],
    out: Vector,
    *,
    byzantine_neighbours: int = 0,
) -> Outcome:
    """Write R(own; neighbours) to ``out``.

    The result does not depend on the order of ``neighbours``. Without any, it is ``own``.

    :param own: shape (d,), float32; so is every neighbour's vector, and ``out``, which is
        overwritten and must share no memory with them.
    :param byzantine_neighbours: b, for rules that ask for it; clamped to what those present
        allow.
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
    for name, vector in labelled:
        if vector is not out and np.may_share_memory(vector, out):
            raise AggregationError("the result would overwrite an input", name)


def _distances(inputs: _Inputs) -> dict[str, float]:
    """||z_j|| of every neighbour, in one pass.

    :raises AggregationError: a model is not finite.
    """
    from p2pfed.aggregation import kernels  # noqa: PLC0415 - loads numba

    squares = dict.fromkeys((n.name for n in inputs.neighbours), 0.0)
    for part in inputs.chunks():
        own = inputs.own[part]
        for neighbour in inputs.neighbours:
            squares[neighbour.name] += kernels.squared_distance(own, neighbour.vector[part])
    return _roots(inputs, squares)


def _roots(inputs: _Inputs, squares: Mapping[str, float]) -> dict[str, float]:
    bad = [name for name, square in squares.items() if not math.isfinite(square)]
    if bad and not np.isfinite(inputs.own).all():
        raise AggregationError("the own model is not finite")
    if bad:
        raise AggregationError(f"the model of {bad[0]} is not finite", bad[0])
    return {name: math.sqrt(square) for name, square in squares.items()}


def _combine(inputs: _Inputs, weights: Mapping[str, float]) -> None:
    """out = y + sum_j weights[j] z_j."""
    from p2pfed.aggregation import kernels  # noqa: PLC0415 - loads numba

    total = np.empty(CHUNK_PARAMETERS, dtype=np.float64)
    for part in inputs.chunks():
        own = inputs.own[part]
        sums = total[: own.shape[0]]
        sums[:] = 0.0
        for neighbour in inputs.neighbours:
            weight = weights[neighbour.name]
            if weight:
                kernels.add_scaled_difference(sums, own, neighbour.vector[part], weight)
        kernels.add_to(own, sums, inputs.out[part])


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


def _rows(inputs: _Inputs) -> Iterator[tuple[slice, npt.NDArray[np.float32], dict[str, float]]]:
    """Chunks of {y, y_1..y_k} as rows of one small array, with this chunk's squared distances.

    The rows may be overwritten; they are filled anew for each chunk.
    """
    from p2pfed.aggregation import kernels  # noqa: PLC0415 - loads numba

    rows = np.empty((len(inputs.neighbours) + 1, CHUNK_PARAMETERS), dtype=np.float32)
    for part in inputs.chunks():
        count = part.stop - part.start
        rows[0, :count] = inputs.own[part]
        squares: dict[str, float] = {}
        for row, neighbour in zip(rows[1:], inputs.neighbours, strict=True):
            row[:count] = neighbour.vector[part]
            squares[neighbour.name] = kernels.squared_distance(rows[0, :count], row[:count])
        yield part, rows, squares


def _order_statistic(inputs: _Inputs, rule: str, first: int, last: int) -> Outcome:
    """Per coordinate, the mean of ranks ``first`` to ``last`` among {y, y_1..y_k}."""
    from p2pfed.aggregation import kernels  # noqa: PLC0415 - loads numba

    network = selection_network(len(inputs.neighbours) + 1, first, last)
    totals = dict.fromkeys((n.name for n in inputs.neighbours), 0.0)
    for part, rows, squares in _rows(inputs):
        for name, square in squares.items():
            totals[name] += square
        kernels.compare_and_exchange(rows, network, part.stop - part.start)
        kernels.mean_of_rows(rows, first, last, inputs.out[part])
    share = 1.0 / (len(inputs.neighbours) + 1)
    return Outcome(rule, dict.fromkeys(totals, share), _roots(inputs, totals))


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

    names = [neighbour.name for neighbour in inputs.neighbours]
    count = len(names) + 1
    network = selection_network(count, (count - 1) // 2, count // 2)
    totals = dict.fromkeys(names, 0.0)
    products = np.zeros((count, count))  # of z_0 = 0, z_1..z_k
    to_median = np.zeros(count)
    median = np.empty(CHUNK_PARAMETERS, dtype=np.float32)
    for part, rows, squares in _rows(inputs):
        width = part.stop - part.start
        for name, square in squares.items():
            totals[name] += square
        values = rows[:, :width].astype(np.float64)
        differences = values - values[0]
        products += differences @ differences.T
        kernels.compare_and_exchange(rows, network, width)
        kernels.mean_of_rows(rows, (count - 1) // 2, count // 2, median[:width])
        to_median += np.square(values - median[:width]).sum(axis=1)
    distances = _roots(inputs, totals)
    squared = to_median
    for _ in range(WEISZFELD_STEPS):
        inverse = 1.0 / np.maximum(np.sqrt(np.maximum(squared, 0.0)), WEISZFELD_FLOOR)
        weights = inverse / inverse.sum()
        # ||z_i - sum_j w_j z_j||^2
        cross = products @ weights
        squared = np.diag(products) - 2 * cross + weights @ cross
    effective = dict(zip(names, weights[1:].tolist(), strict=True))
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
