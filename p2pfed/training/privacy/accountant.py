"""What private training spends: Renyi differential privacy of the subsampled Gaussian mechanism.

Mironov, Talwar, Zhang, *Renyi Differential Privacy of the Sampled Gaussian Mechanism* (2019), as
Opacus computes it, for neighbouring sets of records of which one has a record more than the
other. Renyi divergences add up over steps, also where rate and noise changed between them; they
become an epsilon by theorem 21 of Balle et al., *Hypothesis Testing Interpretations and Renyi
Differential Privacy* (AISTATS 2020).
"""

import warnings
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from opacus.accountants.rdp import RDPAccountant

ORDERS: tuple[float, ...] = tuple(RDPAccountant.DEFAULT_ALPHAS)
KEPT_CURVES = 64


def epsilon_of(spent: Iterable[tuple[float, float, int]], delta: float) -> float:
    """The epsilon of everything in ``spent`` together.

    :param spent: sampling rate (0 to 1), noise multiplier and number of steps of each part, in
        any order.
    :param delta: greater than 0, less than 1.
    :returns: an upper bound, at least 0; 0.0 where no step was taken.
    """
    total = np.zeros(len(ORDERS))
    for sampling_rate, noise_multiplier, steps in spent:
        if steps and sampling_rate:
            total += steps * _curve(sampling_rate, noise_multiplier)
    if not total.any():
        return 0.0
    with warnings.catch_warnings():
        # At the end of the orders the bound is looser than it might be, and a bound still.
        warnings.filterwarnings("ignore", "Optimal order is the (largest|smallest) alpha")
        epsilon, _ = get_privacy_spent(orders=list(ORDERS), rdp=total, delta=delta)
    return max(0.0, float(epsilon))


@lru_cache(KEPT_CURVES)
def _curve(sampling_rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    """The divergence of one step at each of ``ORDERS``."""
    curve: NDArray[np.float64] = np.asarray(
        compute_rdp(
            q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(ORDERS)
        ),
        np.float64,
    )
    return curve
