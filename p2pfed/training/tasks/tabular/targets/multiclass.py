"""One of several classes that the topology file declares."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from p2pfed.training.evaluation.binary import auc
from p2pfed.training.tasks.tabular.columns import Fault, matches_of, missing_cells
from p2pfed.training.tasks.tabular.targets.target import (
    EncodedLabels,
    Figures,
    Labels,
    all_alike,
    missing_label,
)


@dataclass(frozen=True)
class Multiclass:
    """Scores are logits, one a class; labels, shape (n,), are places in ``classes``."""

    label: str
    classes: tuple[int | str, ...]
    bias: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.label,)

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
        return EncodedLabels(labels, tuple((self.label, fault) for fault in faults))

    def lacks(self, labels: Labels) -> tuple[str, str] | None:
        return all_alike(labels)

    def strata(self, labels: Labels) -> Figures:
        return labels.astype(np.float64)

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
        return multiclass_metrics(labels, scores)


def multiclass_metrics(labels: Figures, scores: Figures) -> dict[str, float]:
    """Accuracy, log loss in nats, and ``auc``, the mean over classes of one against the rest.

    A class that none or all of the records are of has no AUC and stays out of the mean (Fawcett,
    An introduction to ROC analysis, 2006, section 9, with equal weights); where that is every
    class, ``auc`` is left out. For two classes it is the usual AUC.

    :param labels: shape (n,), places of the classes.
    :param scores: shape (n, classes), logits.
    """
    places = labels.astype(np.int64)
    peak = scores.max(axis=1)
    log_total = peak + np.log(np.exp(scores - peak[:, None]).sum(axis=1))
    log_probabilities = scores - log_total[:, None]  # (n, classes)
    own = log_probabilities[np.arange(places.size), places]
    metrics = {
        "accuracy": float(np.mean(scores.argmax(axis=1) == places)),
        "loss": float(-own.mean()),
    }
    areas = []
    for place in range(scores.shape[1]):
        of_class = (places == place).astype(np.float64)
        if 0 < of_class.sum() < of_class.size:
            areas.append(auc(of_class, log_odds(log_probabilities, place)))
    if areas:
        metrics["auc"] = float(np.mean(areas))
    return metrics


def log_odds(log_probabilities: Figures, place: int) -> Figures:
    """Log-odds of one class against the rest, shape (n,).

    Ranks like the probability, and still tells apart records whose probabilities both round to
    1.
    """
    rest = np.delete(log_probabilities, place, axis=1)
    peak = rest.max(axis=1)
    log_rest = peak + np.log(np.exp(rest - peak[:, None]).sum(axis=1))
    odds: Figures = log_probabilities[:, place] - log_rest
    return odds
