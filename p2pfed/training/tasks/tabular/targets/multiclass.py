"""One of several classes that the topology file declares."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from p2pfed.training.evaluation.multiclass import multiclass_metrics
from p2pfed.training.tasks.tabular.columns import Fault, matches_of, missing_cells
from p2pfed.training.tasks.tabular.targets.target import (
    ClassLabel,
    EncodedLabels,
    Figures,
    missing_label,
)


@dataclass(frozen=True)
class Multiclass(ClassLabel):
    """Scores are logits, one a class; labels, shape (n,), are places in ``classes``."""

    classes: tuple[int | str, ...]
    bias: bool = True

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def class_count(self) -> int:
        return len(self.classes)

    def encode(self, cells: "pd.DataFrame") -> EncodedLabels:
        column = cells[self.label]
        missing = missing_cells(column)
        matches = matches_of(self.classes, column, missing)  # (n, classes)
        unknown = ~matches.any(axis=1) & ~missing
        faults = (
            missing_label(missing),
            Fault(
                "is unknown to the federation",
                "correct it, or have it declared in classes of the topology file",
                unknown,
            ),
        )
        labels = matches.argmax(axis=1).astype(np.float32)
        return self.of_column(labels, faults)

    def loss(
        self, scores: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Cross entropy in nats, each record weighted by its class; mean over the records."""
        each = torch.nn.functional.cross_entropy(scores, labels.long(), reduction="none")  # (B,)
        if weights is not None:
            # Not cross_entropy's own weight, which divides by the weights of the batch: a batch
            # without the rare class would then count as much as one with it.
            each = each * weights[labels.long()]
        return each.mean()

    def metrics(self, labels: Figures, scores: Figures) -> Mapping[str, float]:
        """Accuracy, log loss in nats, and the mean AUC of one class against the others."""
        return multiclass_metrics(labels, scores)
