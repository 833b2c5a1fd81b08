"""Rules that average: everybody, or those that are near enough to the own model."""

import math

import numpy as np

from p2pfed.aggregation.rows import Decision, Rows
from p2pfed.aggregation.rule import Parameters

BALANCE_OWN_SHARE = 0.5


def mean(rows: Rows, parameters: Parameters) -> Decision:  # noqa: ARG001
    """Gossip averaging with Metropolis-Hastings weights (Xiao, Boyd 2004)."""
    rows.distances()
    rows.combine(rows.weights)
    return Decision(rows.weights)


def nearest_neighbour_averaging(rows: Rows, parameters: Parameters) -> Decision:
    """The plain mean of the own model and those that are not among the b farthest from it
    (NNA of MoNNA; Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, ICML 2023)."""
    distances = rows.distances()
    kept = np.argsort(distances, kind="stable")[: rows.count - 1 - parameters.byzantine]
    dropped = np.ones(rows.count - 1, dtype=bool)
    dropped[kept] = False
    shares = np.where(dropped, 0.0, 1.0 / (len(kept) + 1))
    rows.combine(shares)
    return Decision(shares, dropped)


def balance(rows: Rows, parameters: Parameters) -> Decision:
    """BALANCE (Fang, Zhang, Hairi, Khanduri, Liu, Lu, Liu, Gong, CCS 2024): half the own
    model and half the mean of those within gamma exp(-kappa t / T) ||y|| of it."""
    distances = rows.distances()
    shrunk = math.exp(-parameters.options["kappa"] * parameters.progress)
    radius = parameters.options["gamma"] * shrunk * rows.own_norm()
    dropped = distances > radius
    accepted = int((~dropped).sum())
    shares = np.where(dropped, 0.0, (1.0 - BALANCE_OWN_SHARE) / max(accepted, 1))
    rows.combine(shares)
    return Decision(shares, dropped, radius)
