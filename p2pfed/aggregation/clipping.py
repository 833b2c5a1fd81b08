"""Gossip averaging in which a neighbour pulls no further than a threshold: y + sum_j w_j
clip(z_j, t), where z_j = y_j - y and clip shortens a vector to the length t. What an edge loses
in weight stays with y.

After a partition each side is far from the other, and to a robust rule that looks like a lie: on
a graph whose sides hang together by few edges, both would drop the other for ever. So a row that
is returning pulls by at least ``floor``, and is not dropped, until it would not be clipped: were
it left to itself as soon as it is near enough not to be dropped, it would be driven off again.
"""

import numpy as np

from p2pfed.aggregation.rows import Decision, Rows
from p2pfed.aggregation.rule import Parameters
from p2pfed.aggregation.streaming import Wide

DROP_FACTOR = 3.0  # a neighbour beyond this many thresholds has no weight
DROP_NEIGHBOURS = 3  # fewer cannot tell an outlier from an unlike site


def _clip(
    rows: Rows,
    lengths: Wide,
    threshold: float,
    parameters: Parameters,
    drop_factor: float | None = None,
) -> Decision:
    """Shorten each difference by threshold / length, where that is below one.

    :param lengths: shape (rows - 1,).
    :param drop_factor: beyond so many thresholds a row has no share; None: none is dropped.
    """
    far = lengths > threshold
    shares = rows.weights.copy()
    shares[far] = rows.weights[far] * threshold / lengths[far]
    dropped = np.zeros(rows.count - 1, dtype=bool)
    if drop_factor is not None and rows.count - 1 >= DROP_NEIGHBOURS:
        dropped = lengths > drop_factor * threshold
    forgiven = parameters.returning & far
    if parameters.returning.any():
        dropped = dropped & ~parameters.returning
        reach = max(threshold, parameters.floor)
        back = parameters.returning & (lengths > reach)
        shares[parameters.returning] = rows.weights[parameters.returning]
        shares[back] = rows.weights[back] * reach / lengths[back]
    shares[dropped] = 0.0
    rows.combine(shares)
    return Decision(shares, dropped, threshold, forgiven, lengths)


def median_clipping(rows: Rows, parameters: Parameters) -> Decision:
    """t = the lower median of the distances, so a minority of neighbours cannot raise it."""
    lengths = rows.distances()
    threshold = float(np.sort(lengths)[(len(lengths) - 1) // 2])
    return _clip(rows, lengths, threshold, parameters, DROP_FACTOR)


def start_clipping(rows: Rows, parameters: Parameters) -> Decision:
    """t = the median of the lengths ||y_j - x||, x the own model before this round's training;
    z_j is shortened by t / ||y_j - x||.

    Distances from y contain the own model's last step, all alike, so a liar that keeps within
    them may pull by as much as well; lengths from x do not (centring at the result of the last
    aggregation: Karimireddy, He, Jaggi, ICML 2021). The upper median of k is no more than the
    largest honest length while b <= (k - 1) // 2, as is the lower; it clips fewer honest sites.

    Where x is not known (a round resumed on a damaged disk) this is ``median_clipping``.
    """
    if not rows.start_is_known:
        return median_clipping(rows, parameters)
    lengths = rows.distances_to_start()
    # Of two neighbours the nearer sets the limit: neither can be told from a liar.
    rank = len(lengths) // 2 if len(lengths) >= DROP_NEIGHBOURS else (len(lengths) - 1) // 2
    return _clip(rows, lengths, float(np.sort(lengths)[rank]), parameters, DROP_FACTOR)


def clipped_gossip(rows: Rows, parameters: Parameters) -> Decision:
    """t = the (k-2b)-th smallest distance (CS+ of Gaucher, Dieuleveut, Hendrikx, "Unified
    Breakdown Analysis for Byzantine Robust Gossip", ICML 2025)."""
    lengths = rows.distances()
    threshold = float(np.sort(lengths)[len(lengths) - 2 * parameters.byzantine - 1])
    return _clip(rows, lengths, threshold, parameters, DROP_FACTOR)


def centred_clipping(rows: Rows, parameters: Parameters) -> Decision:
    """Centred clipping (Karimireddy, He, Jaggi, ICML 2021), centred at the own model (He,
    Karimireddy, Jaggi, "Byzantine-robust decentralized learning via ClippedGossip", 2022).

    A distance of their analysis that no peer knows, that of the honest neighbours, is taken
    from the k - b nearest: t^2 = their sum of w_j ||z_j||^2 over the b farthest's sum of w_j.
    With b = 0 nothing is clipped. The option ``threshold`` fixes t instead.
    """
    distances = rows.distances()
    if parameters.options["threshold"] > 0.0:
        return _clip(rows, distances, parameters.options["threshold"], parameters)
    if parameters.byzantine == 0:
        rows.combine(rows.weights)
        return Decision(rows.weights)
    order = np.argsort(distances, kind="stable")
    near, far = order[: -parameters.byzantine], order[-parameters.byzantine :]
    spread = float((rows.weights[near] * distances[near] ** 2).sum())
    threshold = float(np.sqrt(spread / rows.weights[far].sum()))
    return _clip(rows, distances, threshold, parameters)
