"""Gossip averaging in which a neighbour pulls no further than a threshold: y + sum_j w_j
clip(z_j, t), where z_j = y_j - y and clip shortens a vector to the length t. What an edge loses
in weight stays with y.

After a partition each side is far from the other, and to a robust rule that looks like a lie: on
a graph whose sides hang together by few edges, both would drop the other for ever. So a row that
is returning pulls by at least ``floor``, and is not dropped, until it is near again.
"""

import numpy as np

from p2pfed.aggregation.rows import Decision, Mask, Rows
from p2pfed.aggregation.rule import Parameters

DROP_FACTOR = 3.0  # a neighbour beyond this many thresholds has no weight
DROP_NEIGHBOURS = 3  # fewer cannot tell an outlier from an unlike site


def _clip(
    rows: Rows, threshold: float, parameters: Parameters, drop: Mask | None = None
) -> Decision:
    """Without those marked in ``drop``, shape (rows - 1,)."""
    distances = rows.distances()
    far = distances > threshold
    shares = rows.weights.copy()
    shares[far] = rows.weights[far] * threshold / distances[far]
    dropped = np.zeros(rows.count - 1, dtype=bool) if drop is None else drop
    if parameters.returning.any():
        dropped = dropped & ~parameters.returning
        reach = max(threshold, parameters.floor)
        back = parameters.returning & (distances > reach)
        shares[parameters.returning] = rows.weights[parameters.returning]
        shares[back] = rows.weights[back] * reach / distances[back]
    shares[dropped] = 0.0
    rows.combine(shares)
    return Decision(shares, dropped, threshold)


def _clip_and_drop(rows: Rows, threshold: float, parameters: Parameters) -> Decision:
    """Also without those beyond DROP_FACTOR thresholds."""
    if rows.count - 1 < DROP_NEIGHBOURS:
        return _clip(rows, threshold, parameters)
    return _clip(rows, threshold, parameters, rows.distances() > DROP_FACTOR * threshold)


def median_clipping(rows: Rows, parameters: Parameters) -> Decision:
    """t = the lower median of the distances, so a minority of neighbours cannot raise it."""
    ordered = np.sort(rows.distances())
    return _clip_and_drop(rows, float(ordered[(len(ordered) - 1) // 2]), parameters)


def clipped_gossip(rows: Rows, parameters: Parameters) -> Decision:
    """t = the (k-2b)-th smallest distance (CS+ of Gaucher, Dieuleveut, Hendrikx, "Unified
    Breakdown Analysis for Byzantine Robust Gossip", ICML 2025)."""
    ordered = np.sort(rows.distances())
    threshold = float(ordered[len(ordered) - 2 * parameters.byzantine - 1])
    return _clip_and_drop(rows, threshold, parameters)


def centred_clipping(rows: Rows, parameters: Parameters) -> Decision:
    """Centred clipping (Karimireddy, He, Jaggi, ICML 2021), centred at the own model (He,
    Karimireddy, Jaggi, "Byzantine-robust decentralized learning via ClippedGossip", 2022).

    A distance of their analysis that no peer knows, that of the honest neighbours, is taken
    from the k - b nearest: t^2 = their sum of w_j ||z_j||^2 over the b farthest's sum of w_j.
    With b = 0 nothing is clipped. The option ``threshold`` fixes t instead.
    """
    if parameters.options["threshold"] > 0.0:
        return _clip(rows, parameters.options["threshold"], parameters)
    distances = rows.distances()
    if parameters.byzantine == 0:
        rows.combine(rows.weights)
        return Decision(rows.weights)
    order = np.argsort(distances, kind="stable")
    near, far = order[: -parameters.byzantine], order[-parameters.byzantine :]
    spread = float((rows.weights[near] * distances[near] ** 2).sum())
    return _clip(rows, float(np.sqrt(spread / rows.weights[far].sum())), parameters)
