"""Centre and scale of the numeric columns, agreed by the federation without sharing rows.

They are buffers of the model's first layer. In the first rounds each site puts the mean and the
variance of its own records there and then only gossips, so that they travel in signed deltas, are
folded by the federation's rule like every other part of the model, and are exported with it.

Each buffer is an average over the sites: ``shares`` of 1 where a site knows the column and 0
where it does not, ``means`` and ``log_variances`` of what those that know it said, and 0 for the
others. Their ratio is the mean over those that know it, whoever else takes part (Kempe, Dobra and
Gehrke, Gossip-Based Computation of Aggregate Information, 2003, section 3): a hospital that never
measured a column, or came too late to say anything, dilutes nothing. It is exact where the rule
is linear; a robust rule clips all of a site's buffers alike, or drops the site.

A logarithm, so that what is averaged stays positive and one site's tenfold spread counts as much
as another's tenth. All figures are in units of the centre and scale that the topology file
declares, so that they are of order 1 where it declares them roughly.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

MIN_SHARE = 0.01  # of the sites; a ratio of less than this would be noise
MIN_KNOWN_CELLS = 20  # a statistic of fewer records would give them away
# Variance, in units of the declared scale squared, beside the mean squared plus 1: below the
# resolution of float32 a column is constant.
RELATIVE_VARIANCE_FLOOR = 1e-12
PRIVATE_VARIANCE_FLOOR = 0.01  # with noise: less than a tenth of the declared scale is an accident
MIN_COUNT_DEVIATIONS = 2.0  # with noise: a count below this many of its own deviations says nothing
MAX_LOG_VARIANCE = -math.log(RELATIVE_VARIANCE_FLOOR)
READ_BATCH_SIZE = 65_536
# The largest 2-norm of what one record adds for one column: |(1, 1, 1/2)|.
COLUMN_SENSITIVITY = 1.5

Values = NDArray[np.float64]


class Standardise(torch.nn.Module):
    """Features (B, m) -> (B, m): numeric ones as deviations from the federation's mean.

    A missing cell (NaN) becomes 0, the mean; so does a column of which the federation knows
    nothing, such as one that is constant at every site.
    """

    places: torch.Tensor
    shares: torch.Tensor
    means: torch.Tensor
    log_variances: torch.Tensor

    def __init__(self, places: Sequence[int]) -> None:
        """:param places: which features are numeric columns, p of them."""
        super().__init__()
        self.register_buffer("places", torch.tensor(places, dtype=torch.int64), persistent=False)
        for name in ("shares", "means", "log_variances"):
            self.register_buffer(name, torch.zeros(len(places)))  # (p,), float32

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mean, variance, known = self.agreed()
        values = features[:, self.places]  # (B, p)
        scaled = (values - mean) * variance.rsqrt()
        standardised = features.clone()
        standardised[:, self.places] = scaled.masked_fill(values.isnan() | ~known, 0.0)
        return standardised

    def agreed(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean, variance and whether both are known, of each numeric column, shape (p,)."""
        known = self.shares >= MIN_SHARE
        divisor = torch.where(known, self.shares, 1.0)
        log_variance = (self.log_variances / divisor).clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
        return self.means / divisor, log_variance.exp(), known

    @torch.no_grad()
    def contribute(self, statistics: "Statistics") -> None:
        """Put a site's own statistics in the place of what stands there."""
        known = torch.from_numpy(statistics.known)
        means = torch.from_numpy(statistics.means).float()
        log_variances = torch.from_numpy(
            np.log(np.where(statistics.known, statistics.variances, 1))
        )
        self.shares.copy_(known.float())
        self.means.copy_(torch.where(known, means, 0.0))
        self.log_variances.copy_(log_variances.float())


@dataclass(frozen=True)
class Statistics:
    """What a site says of its numeric columns; each of shape (p,).

    :ivar counts: cells that are not missing, float64; with noise no whole numbers.
    :ivar means: float64, in units of the declared scale from the declared centre.
    :ivar variances: float64, in units of the declared scale squared.
    :ivar known: whether the site contributes the column, bool.
    """

    counts: NDArray[np.float64]
    means: NDArray[np.float64]
    variances: NDArray[np.float64]
    known: NDArray[np.bool_]


def exact_statistics(dataset: Dataset[Any], places: Sequence[int]) -> Statistics:
    """Mean and variance over the cells that are not missing, in one pass.

    Batches are merged by the formula of Chan, Golub and LeVeque, Algorithms for Computing the
    Sample Variance (1983). A column of fewer than ``MIN_KNOWN_CELLS`` cells, or that is
    constant, is not contributed: the mean of a constant would be the value of every patient.

    :param dataset: items (features (m,), labels), as the task makes them.
    """
    counts, means, squares = (np.zeros(len(places)) for _ in range(3))
    for values in _numeric_batches(dataset, places):
        present = ~np.isnan(values)
        added = present.sum(axis=0)
        batch_means = np.where(present, values, 0.0).sum(axis=0) / np.maximum(added, 1)
        deviations = np.where(present, values - batch_means, 0.0)
        total = np.maximum(counts + added, 1)
        shift = batch_means - means
        squares += (deviations**2).sum(axis=0) + shift**2 * counts * added / total
        means += shift * added / total
        counts += added
    variances = squares / np.maximum(counts, 1)
    varies = variances > RELATIVE_VARIANCE_FLOOR * (1 + means**2)
    return Statistics(counts, means, variances, (counts >= MIN_KNOWN_CELLS) & varies)


def private_statistics(
    dataset: Dataset[Any],
    places: Sequence[int],
    clip: float,
    noise_multiplier: float,
    generator: np.random.Generator,
) -> Statistics:
    """The same through the Gaussian mechanism (Dwork and Roth, The Algorithmic Foundations of
    Differential Privacy, 2014, appendix A).

    With cells x clipped to [-clip, clip], one record adds (1, x / clip, x^2 / clip^2 - 1/2) for
    each column it has, and nothing for the others: a 2-norm of at most
    ``COLUMN_SENSITIVITY`` * sqrt(p). The sums get noise of ``noise_multiplier`` times that; all
    else is computed from them, counts and what is contributed included.

    :param clip: in units of the declared scale.
    :param generator: nobody else may know its state.
    """
    sums = np.zeros((3, len(places)))
    for values in _numeric_batches(dataset, places):
        present = ~np.isnan(values)
        scaled = np.where(present, values, 0.0).clip(-clip, clip) / clip
        sums[0] += present.sum(axis=0)
        sums[1] += scaled.sum(axis=0)
        sums[2] += np.where(present, scaled**2 - 0.5, 0.0).sum(axis=0)
    deviation = noise_multiplier * COLUMN_SENSITIVITY * math.sqrt(len(places))
    # Half the sum of four draws, which closes the gaps that floating point leaves between the
    # values of one (Holohan and Braghin, Secure Random Sampling in Differential Privacy, 2021).
    sums += deviation * generator.standard_normal((4, *sums.shape)).sum(axis=0) / 2
    enough = sums[0] > max(MIN_KNOWN_CELLS, MIN_COUNT_DEVIATIONS * deviation)
    counts = np.where(enough, sums[0], 1.0)
    means = (clip * sums[1] / counts).clip(-clip, clip)
    variances = (clip**2 * (sums[2] / counts + 0.5) - means**2).clip(max=clip**2)
    return Statistics(sums[0], means, variances, enough & (variances > PRIVATE_VARIANCE_FLOOR))


def _numeric_batches(dataset: Dataset[Any], places: Sequence[int]) -> Iterator[Values]:
    """The numeric features of all records, (B, p) float64 a batch; NaN where missing."""
    for batch in DataLoader(dataset, batch_size=READ_BATCH_SIZE):
        yield batch[0][:, list(places)].double().numpy()
