"""Robust aggregation of models: rules over a peer's own model and its neighbours'."""

from p2pfed.aggregation.rules import NeighbourModel, Outcome, aggregate

__all__ = ["NeighbourModel", "Outcome", "aggregate"]
