"""A number."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from p2pfed.training.tasks.tabular.columns import missing_cells, numbers
from p2pfed.training.tasks.tabular.targets.target import (
    EncodedLabels,
    Figures,
    Labels,
    OneLabel,
    numeric_label,
)


@dataclass(frozen=True)
class Regression(OneLabel):
    """Scores and labels, shape (n,), are in units of ``scale`` from ``centre``."""

    centre: float
    scale: float
    outputs: int = 1
    class_count: int = 0
    bias: bool = True

    def encode(self, cells: "pd.DataFrame") -> EncodedLabels:
        column = cells[self.label]
        missing = missing_cells(column)
        values, _ = numbers(column, missing)
        with np.errstate(over="ignore"):
            values = (values - self.centre) / self.scale
        fits, faults = numeric_label(missing, values)
        labels = np.where(fits, values, 0.0).astype(np.float32)
        return self.of_column(labels, faults)

    def strata(self, labels: Labels) -> Figures:
        return np.zeros(len(labels))

    def loss(
        self,
        scores: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor | None,  # noqa: ARG002 - there are no classes
    ) -> torch.Tensor:
        """Mean squared error, in units of ``scale`` squared."""
        return torch.nn.functional.mse_loss(scores[:, 0], labels)

    def metrics(self, labels: Figures, scores: Figures) -> Mapping[str, float]:
        return regression_metrics(labels, scores, self.scale)


def regression_metrics(labels: Figures, scores: Figures, scale: float) -> dict[str, float]:
    """Mean absolute error and root of the mean squared one, in the label's unit; their share of
    the label's variance that is told, ``r2``, where it varies; ``loss`` in ``scale`` squared.

    ``r2`` is 1 - (squared error) / (squared error of the records' own mean): below 0 the model
    is worse than that mean (Draper and Smith, Applied Regression Analysis, 1998).

    :param labels: shape (n,), in units of ``scale``; so are ``scores``.
    """
    errors = scores - labels
    squared = float(np.mean(errors**2))
    metrics = {
        "loss": squared,
        "mae": float(np.mean(np.abs(errors))) * scale,
        "rmse": float(np.sqrt(squared)) * scale,
    }
    if (labels != labels[0]).any():
        metrics["r2"] = 1.0 - squared / float(labels.var())
    return metrics
