"""What a classifier tells: one of several classes, or any of several findings."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from p2pfed.training.evaluation.binary import Predictions, binary_metrics
from p2pfed.training.evaluation.multiclass import multiclass_metrics, multilabel_metrics

MAX_CLASSES = 1_000


@dataclass(frozen=True)
class Classes:
    """The classes that a federation knows, in their order.

    :ivar names: at least two; of several findings, at least one.
    :ivar several: a record may have any of them, not exactly one.
    """

    names: tuple[str, ...]
    several: bool = False

    @property
    def outputs(self) -> int:
        """Scores a record: log-odds of the second of two classes; else one a class."""
        return 1 if self._two else len(self.names)

    @property
    def _two(self) -> bool:
        return len(self.names) == 2 and not self.several

    def loss(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy in nats, () .

        :param scores: (B, ``outputs``), float.
        :param labels: (B,), int64, the number of the class; of several findings (B, classes),
            0 or 1.
        """
        if self.several:
            return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels.float())
        if self._two:
            return torch.nn.functional.binary_cross_entropy_with_logits(
                scores[:, 0], labels.to(scores.dtype)
            )
        return torch.nn.functional.cross_entropy(scores, labels)

    def figures(self, predictions: Predictions) -> dict[str, float]:
        """Accuracy, log loss, and the area under the ROC curve where it is defined.

        :param predictions: labels (n,), or (n, classes) of several findings; and scores, (n,) of
            two classes and else (n, classes).
        """
        labels, scores = predictions
        if self.several:
            return multilabel_metrics(labels, scores)
        if self._two:
            return binary_metrics(labels, scores)
        return multiclass_metrics(labels, scores)

    def predictions(
        self, model: torch.nn.Module, batches: Iterable[Any], batch_size: int
    ) -> Predictions:
        """Labels and scores of every record of ``batches``, shaped as ``figures`` takes them.

        :param batch_size: records that the model is given at once: a batch to evaluate may hold
            more than the activations of a network leave room for.
        """
        labels, scores = [], []
        for inputs, part in batches:
            labels.append(part.double().cpu().numpy())
            for chunk in inputs.split(batch_size):
                scores.append(model(chunk).double().cpu().numpy())
        found = np.concatenate(scores)
        return Predictions(np.concatenate(labels), found[:, 0] if self._two else found)
