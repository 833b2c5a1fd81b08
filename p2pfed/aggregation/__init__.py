"""Robust aggregation of models: rules over a peer's own model and its neighbours'."""

from p2pfed.aggregation.gathering import gather
from p2pfed.aggregation.mixing import Mixing
from p2pfed.aggregation.preaggregation import round_seed
from p2pfed.aggregation.rules import Outcome, aggregate
from p2pfed.aggregation.streaming import NeighbourModel

__all__ = ["Mixing", "NeighbourModel", "Outcome", "aggregate", "gather", "round_seed"]
