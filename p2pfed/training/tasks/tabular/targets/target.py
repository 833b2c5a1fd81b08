"""What a table task tells: how labels are read, what the loss is, and how good a model is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from p2pfed.training.tasks.tabular.columns import Fault

Labels = NDArray[np.float32]
Figures = NDArray[np.float64]


@dataclass(frozen=True)
class EncodedLabels:
    """The labels of n records, shape (n,) or (n, 2), float32, and what did not fit, by column."""

    labels: Labels
    faults: tuple[tuple[str, Fault], ...]


class Target(Protocol):
    """One kind of target. ``scores`` are the model's outputs, (B, ``outputs``)."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold it."""

    @property
    def outputs(self) -> int:
        """Figures that the model gives for a record."""

    @property
    def class_count(self) -> int:
        """Classes that can be weighed against each other; 0 where the target has none."""

    @property
    def bias(self) -> bool:
        """Whether adding a constant to every score means anything."""

    def encode(self, cells: "pd.DataFrame") -> EncodedLabels:
        """The labels in ``columns``; whatever does not fit is a fault, none is raised."""

    def lacks(self, labels: Labels) -> tuple[str, str] | None:
        """Why nothing can be learnt from these labels, and a remedy; None where it can."""

    def strata(self, labels: Labels) -> Figures:
        """Which stratum each record is in, shape (n,); a split keeps their proportions."""

    def loss(
        self, scores: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Mean loss of a batch, a scalar.

        :param weights: of each class, shape (classes,), float32; None: all alike.
        """

    def metrics(self, labels: Figures, scores: Figures) -> Mapping[str, float]:
        """Figures of n records; one that these records do not define is left out.

        :param labels: shape (n,) or (n, 2), float64, as encoded.
        :param scores: shape (n,), or (n, ``outputs``) where that is more than 1, float64.
        """


@dataclass(frozen=True)
class OneLabel:
    """What targets of one column have in common; labels have shape (n,).

    :ivar label: the column.
    """

    label: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.label,)

    def lacks(self, labels: Labels) -> tuple[str, str] | None:
        """See :class:`Target`: where every label is the same, nothing can be told apart."""
        if (labels != labels[0]).any():
            return None
        return (
            f"all {len(labels)} labels are alike; there is nothing to tell apart",
            "check the label column, or that the table is complete",
        )

    def of_column(self, labels: Labels, faults: Iterable[Fault]) -> EncodedLabels:
        return EncodedLabels(labels, tuple((self.label, fault) for fault in faults))


@dataclass(frozen=True)
class ClassLabel(OneLabel):
    """One of some classes; a split keeps their proportions."""

    def strata(self, labels: Labels) -> Figures:
        return labels.astype(np.float64)


def numeric_label(
    missing: NDArray[np.bool_], values: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], list[Fault]]:
    """Which labels are finite numbers, shape (n,), and the faults of the others.

    :param values: the cells as numbers, NaN where there is none.
    """
    unreadable = np.isnan(values) & ~missing
    with np.errstate(over="ignore"):
        infinite = np.isinf(values.astype(np.float32))
    faults = [
        missing_label(missing),
        Fault("is not a number", "correct it", unreadable),
        Fault("is infinite or too large", "correct it", infinite),
    ]
    return ~(missing | unreadable | infinite), faults


def missing_label(missing: NDArray[np.bool_]) -> Fault:
    return Fault("is missing", "a record without its label cannot be used", missing)


def balanced_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """The weight of each class, shape (classes,), float32, so that all weigh the same.

    King and Zeng, Logistic Regression in Rare Events Data (2001): a record weighs n over
    (classes that occur * records of its class), so that the mean weight is 1. A class that does
    not occur weighs 0.
    """
    counts = torch.bincount(labels.long(), minlength=classes).float()
    present = counts > 0
    weights = len(labels) / (present.sum() * counts.clamp(min=1.0))
    return torch.where(present, weights, 0.0)
