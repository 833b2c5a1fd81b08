"""Medians, and the trimmed mean: rules of ranks per coordinate, and the point of least summed
distance."""

import numpy as np

from p2pfed.aggregation.rows import Decision, Rows
from p2pfed.aggregation.rule import Parameters
from p2pfed.aggregation.streaming import Wide


def _equal_shares(rows: Rows) -> Wide:
    return np.full(rows.count - 1, 1.0 / rows.count)


def coordinate_median(rows: Rows, parameters: Parameters) -> Decision:  # noqa: ARG001
    """Per coordinate, the median; of an even number, the mean of the middle two (Yin, Chen,
    Ramchandran, Bartlett, ICML 2018)."""
    rows.order_statistic((rows.count - 1) // 2, rows.count // 2)
    return Decision(_equal_shares(rows))


def trimmed_mean(rows: Rows, parameters: Parameters) -> Decision:
    """Per coordinate, the mean without the b highest and the b lowest (Yin, Chen, Ramchandran,
    Bartlett, ICML 2018)."""
    rows.order_statistic(parameters.byzantine, rows.count - 1 - parameters.byzantine)
    return Decision(_equal_shares(rows))


def geometric_median(rows: Rows, parameters: Parameters) -> Decision:
    """Weiszfeld's iteration from the coordinate median (Pillutla, Kakade, Harchaoui 2022).

    After the first step every iterate is a weighted mean of the rows, so its distances follow
    from inner products alone: one pass collects those, and one writes the result, whatever the
    number of steps.
    """
    rows.distances()
    rows.order_statistic((rows.count - 1) // 2, rows.count // 2)
    products, squared = rows.products_and_squares_to_result()
    for _ in range(int(parameters.options["iterations"])):
        lengths = np.sqrt(np.maximum(squared, 0.0))
        inverse = 1.0 / np.maximum(lengths, parameters.options["floor"])
        weights = inverse / inverse.sum()
        # ||z_i - sum_j w_j z_j||^2
        cross = products @ weights
        squared = np.diag(products) - 2 * cross + weights @ cross
    rows.combine(weights[1:])
    return Decision(weights[1:])
