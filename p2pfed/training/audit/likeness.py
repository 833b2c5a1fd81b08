"""How like a patient's record is to what an attack made of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from p2pfed.errors import TrainingError

FloatArray = NDArray[np.float64]

MIN_DEVIATION = 1e-6  # a value that varies less is known without an attack


@dataclass(frozen=True)
class Prior:
    """What records of this kind look like; each of shape (values,), one for each input value."""

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, inputs: torch.Tensor) -> "Prior":
        """:param inputs: shape (n, ...)."""
        flat = inputs.flatten(1)
        return cls(flat.mean(0), flat.std(0, unbiased=False))

    def standardised(self, inputs: torch.Tensor) -> FloatArray:
        """Shape (n, values that vary)."""
        varies = self.deviation > MIN_DEVIATION
        flat = (inputs.detach().flatten(1) - self.mean)[:, varies] / self.deviation[varies]
        result: FloatArray = flat.double().cpu().numpy()
        return result


@dataclass(frozen=True)
class Likeness:
    """How like the true records others are, matched so that the sum of errors is least.

    :ivar errors: for each true record the root mean square of its difference, in standard
        deviations of each value; shape (n,).
    :ivar correlations: of its standardised values with those of its match, shape (n,).
    """

    errors: FloatArray
    correlations: FloatArray


def inputs_of(batch: Any) -> torch.Tensor:
    """What a batch's model looks at: its largest tensor of floats, shape (B, ...).

    :raises TrainingError: none has more than one number a record.
    """
    found = [leaf for leaf in leaves(batch) if leaf.is_floating_point() and leaf.dim() > 1]
    if not found:
        raise TrainingError("the records hold no tensor of numbers that could be sought")
    return max(found, key=torch.numel)


def with_inputs(batch: Any, old: torch.Tensor, new: torch.Tensor) -> Any:
    """The batch with ``new`` in the place of ``old``, which is one of its tensors."""
    if batch is old:
        return new
    if isinstance(batch, Mapping):
        return {key: with_inputs(value, old, new) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(with_inputs(value, old, new) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(with_inputs(value, old, new) for value in batch)
    return batch


def leaves(batch: Any) -> list[torch.Tensor]:
    """Every tensor of a batch."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        return [leaf for part in batch for leaf in leaves(part)]
    return []


def likeness(found: torch.Tensor, true: torch.Tensor, prior: Prior) -> Likeness:
    """:param found: shape (n, ...) like ``true``; in any order."""
    guesses, truth = prior.standardised(found), prior.standardised(true)
    errors = np.sqrt(((truth[:, None, :] - guesses[None, :, :]) ** 2).mean(2))  # (n, n)
    rows, columns = linear_sum_assignment(errors)
    pairs = zip(truth[rows], guesses[columns], strict=True)
    correlations = np.array([_correlation(one, other) for one, other in pairs])
    return Likeness(errors[rows, columns], correlations)


def _correlation(one: FloatArray, other: FloatArray) -> float:
    norms = float(np.linalg.norm(one - one.mean()) * np.linalg.norm(other - other.mean()))
    if norms < MIN_DEVIATION:
        return 0.0
    return float((one - one.mean()) @ (other - other.mean()) / norms)
