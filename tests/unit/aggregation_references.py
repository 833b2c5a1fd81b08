"""The aggregation rules written out in plain float64, and small inputs for them."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pfed.aggregation import NeighbourModel, Outcome, aggregate, round_seed
from p2pfed.aggregation.preaggregation import bucketing
from p2pfed.aggregation.streaming import StreamedModels
from p2pfed.rules_catalogue import NO_PRE_AGGREGATION, PRE_AGGREGATIONS, RULES

Vector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
SEED = round_seed("test", 7)
UNPROTECTED = {"mean"}
ROBUST = [rule for rule in RULES if rule not in UNPROTECTED]
PRE_AGGREGATED = [name for name in PRE_AGGREGATIONS if name != NO_PRE_AGGREGATION]


def neighbours(others: list[Vector], weight: float | None = None) -> list[NeighbourModel]:
    share = 1.0 / (len(others) + 1) if weight is None else weight
    return [NeighbourModel(f"n{i:02}", other, share) for i, other in enumerate(others)]


def run(
    rule: str,
    own: Vector,
    others: list[Vector],
    b: int = 1,
    weight: float | None = None,
    before: str = NO_PRE_AGGREGATION,
    **more: object,
) -> tuple[Vector, Outcome]:
    out = np.empty_like(own)
    outcome = aggregate(
        rule,
        own,
        neighbours(others, weight),
        out,
        byzantine_neighbours=b,
        pre_aggregation=before,
        seed=SEED,
        **more,
    )
    return out, outcome


def cloud(dimension: int = 3000, k: int = 5, seed: int = 0) -> tuple[Vector, list[Vector]]:
    """An own model and k others around one centre."""
    generator = np.random.default_rng(seed)
    centre = generator.normal(size=dimension)
    drawn = [
        (centre + generator.normal(scale=0.1, size=dimension)).astype(np.float32)
        for _ in range(k + 1)
    ]
    return drawn[0], drawn[1:]


def scattered(dimension: int, k: int, seed: int) -> tuple[Vector, list[Vector]]:
    """An own model and k others at unlike distances from it."""
    generator = np.random.default_rng(seed)
    own = generator.normal(size=dimension).astype(np.float32)
    others = [
        (own + generator.normal(scale=generator.exponential(), size=dimension)).astype(np.float32)
        for _ in range(k)
    ]
    return own, others


def groups_of(k: int, seed: bytes) -> list[list[int]]:
    """The groups of neighbours that bucketing draws, as indices in the order of their names."""
    own = np.zeros(1, np.float32)
    models = StreamedModels(own, tuple(neighbours([own.copy() for _ in range(k)])), own.copy(), 1)
    rows = bucketing(models, 0, seed)
    alone = np.eye(rows.count - 1)
    return [np.flatnonzero(rows.effective(row)).tolist() for row in alone]


@dataclass(frozen=True)
class Seen:
    """What a rule sees: ``everyone``, shape (rows, d), row 0 the own; each other's weight."""

    everyone: Wide
    weights: Wide

    @property
    def distances(self) -> Wide:
        return np.linalg.norm(self.everyone[1:] - self.everyone[0], axis=1)


def seen(own: Vector, others: list[Vector], b: int, before: str) -> Seen:
    everyone = np.stack([own, *others]).astype(np.float64)
    count = len(everyone)
    weights = np.full(count - 1, 1.0 / count)
    if before == "nearest_neighbour_mixing":
        kept = count - min(b, (count - 1) // 2)
        mixed = [
            everyone[np.argsort(np.linalg.norm(everyone - row, axis=1), kind="stable")[:kept]].mean(
                axis=0
            )
            for row in everyone
        ]
        return Seen(np.stack(mixed), weights)
    if before == "bucketing":
        key = hashlib.blake2b(SEED).digest()
        drawn = sorted(
            range(count - 1), key=lambda i: hashlib.blake2b(f"n{i:02}".encode(), key=key).digest()
        )
        groups = [drawn[i : i + 2] for i in range(0, len(drawn), 2)]
        means = [everyone[1:][group].mean(axis=0) for group in groups]
        return Seen(
            np.stack([everyone[0], *means]), np.array([len(group) / count for group in groups])
        )
    return Seen(everyone, weights)


def _clip(
    data: Seen, threshold: float, *, drop: float | None = None, lengths: Wide | None = None
) -> Wide:
    total = data.everyone[0].copy()
    lengths = data.distances if lengths is None else lengths
    for row, length, weight in zip(data.everyone[1:], lengths, data.weights, strict=True):
        z = row - data.everyone[0]
        if length <= threshold:
            total += weight * z
        elif drop is None or len(data.weights) < 3 or length <= drop * threshold:
            total += weight * threshold / length * z
    return total


def _krum_order(everyone: Wide, b: int) -> npt.NDArray[np.intp]:
    squares = np.array([((everyone - row) ** 2).sum(axis=1) for row in everyone])
    nearest = max(len(everyone) - b - 2, 1)
    scores = [np.sort(np.delete(row, i))[:nearest].sum() for i, row in enumerate(squares)]
    return np.argsort(scores, kind="stable")


def reference(  # noqa: PLR0912 - one branch a rule
    rule: str,
    own: Vector,
    others: list[Vector],
    b: int,
    before: str = NO_PRE_AGGREGATION,
    progress: float = 0.0,
    start: Vector | None = None,
) -> Wide:
    """The rule's result with the options' defaults, shape (d,)."""
    data = seen(own, others, b, before)
    everyone, k = data.everyone, len(data.weights)
    ordered = np.sort(data.distances)
    most = RULES[rule].tolerates(k)
    if b > 0 and most == 0 and RULES[rule].asks_for_b:
        return own.astype(np.float64)
    b = min(b, most)
    if rule == "mean":
        return everyone[0] + data.weights @ (everyone[1:] - everyone[0])
    if rule == "start_clipping" and start is not None:
        lengths = np.linalg.norm(everyone[1:] - start.astype(np.float64), axis=1)
        threshold = np.sort(lengths)[k // 2 if k > 2 else 0]
        return _clip(data, threshold, drop=3.0, lengths=lengths)
    if rule in ("median_clipping", "start_clipping"):
        return _clip(data, ordered[(k - 1) // 2], drop=3.0)
    if rule == "clipped_gossip":
        return _clip(data, ordered[k - 2 * b - 1], drop=3.0)
    if rule == "centred_clipping":
        order = np.argsort(data.distances)
        near = (data.weights * data.distances**2)[order[: k - b]].sum()
        far = data.weights[order[k - b :]].sum()
        return _clip(data, np.sqrt(near / far) if b else np.inf)
    if rule == "coordinate_median":
        return np.median(everyone, axis=0)
    if rule == "trimmed_mean":
        return np.sort(everyone, axis=0)[b : k + 1 - b].mean(axis=0)
    if rule == "nearest_neighbour_averaging":
        return everyone[np.argsort([0.0, *data.distances], kind="stable")[: k + 1 - b]].mean(axis=0)
    if rule == "krum":
        return everyone[_krum_order(everyone, b)[0]]
    if rule == "multi_krum":
        return everyone[_krum_order(everyone, b)[: k + 1 - b]].mean(axis=0)
    if rule == "balance":
        near = data.distances <= 2.0 * np.exp(-progress) * np.linalg.norm(everyone[0])
        if not near.any():
            return everyone[0]
        return 0.5 * everyone[0] + 0.5 * everyone[1:][near].mean(axis=0)
    assert rule == "geometric_median"
    centre = np.median(everyone, axis=0)
    for _ in range(8):
        inverse = 1 / np.maximum(np.linalg.norm(everyone - centre, axis=1), 1e-3)
        centre = (inverse[:, None] * everyone).sum(axis=0) / inverse.sum()
    return centre
