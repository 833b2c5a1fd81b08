"""What several donors' models come to, for a peer whose own is of long ago."""

from collections.abc import Mapping
from dataclasses import replace

from p2pfed.aggregation.rules import Outcome, aggregate
from p2pfed.aggregation.streaming import NeighbourModel, Vector

GATHERING_RULE = "coordinate_median"


def gather(donors: Mapping[str, Vector], out: Vector) -> Outcome:
    """Write the coordinate-wise median of the donors' models to ``out``; all count alike.

    :param donors: by site name, at least one; shape (d,) each, float32, as ``out``.
    :raises AggregationError: unlike shapes, or values that are not finite.
    """
    share = 1.0 / len(donors)
    (_, first), *others = donors.items()
    models = [NeighbourModel(site, vector, share) for site, vector in others]
    outcome = aggregate(GATHERING_RULE, first, models, out)
    return replace(outcome, weights=dict.fromkeys(donors, share), distances={})
