"""The aggregation rules by name, and the one entry point to them.

Notation: y is the peer's own model, y_j the neighbours', z_j = y_j - y, w_j the mixing weight
of the edge (Metropolis-Hastings), k the number of neighbours present, b how many of them are
assumed Byzantine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from p2pfed.aggregation import averaging, clipping, krum, medians, preaggregation
from p2pfed.aggregation.rows import Decision, Rows
from p2pfed.aggregation.rule import Parameters, Rule
from p2pfed.aggregation.streaming import NeighbourModel, StreamedModels, Vector, distance
from p2pfed.errors import AggregationError
from p2pfed.rules_catalogue import NO_PRE_AGGREGATION, RULES, RuleDescription

RETURNING_REACH = 2.0  # own updates

PreAggregation = Callable[[StreamedModels, int, bytes | None], Rows]

IMPLEMENTATIONS: Mapping[str, Rule] = MappingProxyType(
    {
        name: Rule(RULES[name], apply)
        for name, apply in (
            ("mean", averaging.mean),
            ("median_clipping", clipping.median_clipping),
            ("start_clipping", clipping.start_clipping),
            ("coordinate_median", medians.coordinate_median),
            ("geometric_median", medians.geometric_median),
            ("trimmed_mean", medians.trimmed_mean),
            ("clipped_gossip", clipping.clipped_gossip),
            ("centred_clipping", clipping.centred_clipping),
            ("nearest_neighbour_averaging", averaging.nearest_neighbour_averaging),
            ("krum", krum.krum),
            ("multi_krum", krum.multi_krum),
            ("balance", averaging.balance),
        )
    }
)

PRE_AGGREGATORS: Mapping[str, PreAggregation] = MappingProxyType(
    {
        NO_PRE_AGGREGATION: preaggregation.none,
        "nearest_neighbour_mixing": preaggregation.nearest_neighbour_mixing,
        "bucketing": preaggregation.bucketing,
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule did. ``weights`` are effective: after clipping, 0 where dropped; a
    coordinate-wise rule has no such thing and reports equal shares. ``distances`` are those that
    the rule looked at, ||z_j|| or ||y_j - x||. After a pre-aggregation, ``weights`` are those of
    the neighbours' own models in the result, ``dropped`` has those without any, and
    ``threshold`` is a distance between what the pre-aggregation made. ``returned`` are the
    returning neighbours that are near again."""

    rule: str
    weights: Mapping[str, float]
    distances: Mapping[str, float]
    threshold: float | None = None
    dropped: tuple[str, ...] = ()
    local_only: bool = False
    returned: tuple[str, ...] = ()


def aggregate(
    rule: str,
    own: Vector,
    neighbours: Sequence[NeighbourModel],
    out: Vector,
    *,
    byzantine_neighbours: int = 0,
    threads: int = 1,
    pre_aggregation: str = NO_PRE_AGGREGATION,
    progress: float = 0.0,
    seed: bytes | None = None,
    options: Mapping[str, float] = MappingProxyType({}),
    start: Vector | None = None,
) -> Outcome:
    """Write R(own; neighbours) to ``out``.

    The result does not depend on the order of ``neighbours``. Without any, it is ``own``.

    :param own: shape (d,), float32; so is every neighbour's vector, and ``out``, which is
        overwritten and must share no memory with them.
    :param byzantine_neighbours: b, for rules that ask for it; clamped to what those present
        allow. Where they allow none, though some were assumed, the result is ``own``.
    :param threads: that share a large model; the result does not depend on their number.
    :param pre_aggregation: what is done to the models before the rule sees them.
    :param progress: the fraction of the planned rounds that is done, in [0, 1]; ``balance``
        narrows with it.
    :param seed: at least 1 byte, of the round's groups; ``bucketing`` needs it, see
        ``round_seed``.
    :param options: of the rule, by the names in its description; the others keep their
        defaults.
    :param start: x, the own model before this round's training, shape (d,), float32; None:
        not known. A rule that clips lets a returning neighbour pull by RETURNING_REACH
        times ||y - x|| at least, where nothing is done to the models before.
    :raises AggregationError: unknown rule, pre-aggregation or option, unlike shapes, or values
        that are not finite; it names the neighbour where one is at fault. ``out`` is then
        meaningless.
    """
    if rule not in IMPLEMENTATIONS:
        raise AggregationError(f"unknown rule {rule!r}; known: {', '.join(IMPLEMENTATIONS)}")
    if pre_aggregation not in PRE_AGGREGATORS:
        raise AggregationError(
            f"unknown pre-aggregation {pre_aggregation!r}; known: {', '.join(PRE_AGGREGATORS)}"
        )
    if not 0.0 <= progress <= 1.0:
        raise AggregationError(f"progress is {progress}, expected a fraction of the rounds")
    implementation = IMPLEMENTATIONS[rule]
    chosen = _options(implementation.description, options)
    _check(own, start, neighbours, out)
    if not neighbours:
        np.copyto(out, own)
        return Outcome(rule, {}, {}, local_only=True)
    # The order of sums is fixed, so that the result does not depend on that of the arguments.
    ordered = sorted(neighbours, key=lambda neighbour: neighbour.name)
    models = StreamedModels(
        np.asarray(own),
        tuple(replace(n, vector=np.asarray(n.vector)) for n in ordered),
        np.asarray(out),
        threads,
        None if start is None else np.asarray(start),
    )
    rows = PRE_AGGREGATORS[pre_aggregation](models, byzantine_neighbours, seed)
    most = implementation.description.tolerates(rows.count - 1)
    byzantine = min(byzantine_neighbours, most)
    if byzantine_neighbours > 0 and most == 0 and implementation.description.asks_for_b:
        # So few are present that the rule could bear none of the liars it was told of. What is
        # not finite is refused all the same.
        models.distances()
        np.copyto(out, own)
        return Outcome(rule, dict.fromkeys(models.names, 0.0), {}, local_only=True)
    mixed = pre_aggregation != NO_PRE_AGGREGATION
    returning = np.array([n.returning for n in ordered], dtype=bool)
    if mixed:  # rows are nobody's own
        returning = np.zeros(rows.count - 1, dtype=bool)
    floor = 0.0
    if start is not None and returning.any():
        floor = RETURNING_REACH * distance(own, start)
    decision = implementation.apply(rows, Parameters(byzantine, progress, chosen, returning, floor))
    return _outcome(rule, rows, decision, mixed=mixed)


def _options(description: RuleDescription, given: Mapping[str, float]) -> dict[str, float]:
    unknown = sorted(set(given) - set(description.options))
    if unknown:
        known = ", ".join(description.options) or "none"
        raise AggregationError(f"{description.name} has no option {unknown[0]!r}; known: {known}")
    for name, value in given.items():
        # Written so that NaN is refused as well.
        if not description.options[name].least <= value < float("inf"):
            raise AggregationError(
                f"{description.name}: {name} is {value}, at least "
                f"{description.options[name].least} is expected"
            )
    defaults = {name: option.default for name, option in description.options.items()}
    return {**defaults, **given}


def _check(
    own: Vector, start: Vector | None, neighbours: Sequence[NeighbourModel], out: Vector
) -> None:
    names = [neighbour.name for neighbour in neighbours]
    if len(set(names)) < len(names):
        raise AggregationError("two neighbours have one name")
    mine = [(None, own)] if start is None else [(None, own), (None, start)]
    labelled = [(None, out), *mine, *((n.name, n.vector) for n in neighbours)]
    for name, vector in labelled:
        if vector.dtype != np.float32 or vector.shape != (own.shape[0],):
            raise AggregationError(
                f"{name or 'own model'}: {vector.dtype} {vector.shape}, expected float32 "
                f"({own.shape[0]},)",
                name,
            )
    for name, vector in labelled[1:]:
        if np.may_share_memory(vector, out):
            raise AggregationError("the result would overwrite an input", name)


def _outcome(rule: str, rows: Rows, decision: Decision, *, mixed: bool) -> Outcome:
    names = rows.models.names
    shares = rows.effective(decision.shares)
    refused = shares == 0.0 if mixed else decision.dropped
    # Those of mixtures are of nobody.
    lengths = rows.models.known_distances if mixed or decision.lengths is None else decision.lengths
    forgiven = {name for name, yes in zip(names, decision.forgiven.tolist(), strict=False) if yes}
    return Outcome(
        rule,
        dict(zip(names, shares.tolist(), strict=True)),
        {} if lengths is None else dict(zip(names, lengths.tolist(), strict=True)),
        decision.threshold,
        tuple(name for name, out in zip(names, refused.tolist(), strict=False) if out),
        returned=tuple(
            neighbour.name
            for neighbour in rows.models.neighbours
            if neighbour.returning and neighbour.name not in forgiven
        ),
    )
