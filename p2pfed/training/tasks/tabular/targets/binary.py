"""Two classes, 0 and 1."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from p2pfed.training.evaluation.binary import binary_metrics
from p2pfed.training.tasks.tabular.columns import Fault, missing_cells, numbers
from p2pfed.training.tasks.tabular.targets.target import (
    ClassLabel,
    EncodedLabels,
    Figures,
    missing_label,
)


@dataclass(frozen=True)
class Binary(ClassLabel):
    """Scores are log-odds of class 1; labels have shape (n,)."""

    outputs: int = 1
    class_count: int = 2
    bias: bool = True

    def encode(self, cells: "pd.DataFrame") -> EncodedLabels:
        column = cells[self.label]
        missing = missing_cells(column)
        values, unreadable = numbers(column, missing)
        other = unreadable | (~missing & ~np.isin(values, (0.0, 1.0)))
        faults = [
            missing_label(missing),
            Fault("is neither 0 nor 1", "the tabular task tells two classes", other),
        ]
        return self.of_column(values.astype(np.float32), faults)

    def loss(
        self, scores: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Binary cross entropy in nats, each record weighted by its class."""
        each = None if weights is None else weights[labels.long()]  # (B,)
        return torch.nn.functional.binary_cross_entropy_with_logits(scores[:, 0], labels, each)

    def metrics(self, labels: Figures, scores: Figures) -> Mapping[str, float]:
        """Accuracy, log loss in nats, and AUC where the records are of both classes."""
        return binary_metrics(labels, scores)
