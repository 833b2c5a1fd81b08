"""Figures of a classifier of more than two classes, or of several findings at once."""

import numpy as np
from numpy.typing import NDArray

from p2pfed.training.evaluation.binary import auc

FloatArray = NDArray[np.float64]


def multiclass_metrics(labels: FloatArray, scores: FloatArray) -> dict[str, float]:
    """Accuracy, log loss in nats, and the macro area under the ROC curve of one class against
    the others (Provost and Domingos 2000), over the classes that the records tell apart.

    :param labels: shape (n,), the number of the class.
    :param scores: shape (n, classes), logits.
    """
    numbers = labels.astype(np.int64)
    highest = scores.max(axis=1, keepdims=True)
    log_sums = highest[:, 0] + np.log(np.exp(scores - highest).sum(axis=1))  # (n,)
    log_probabilities = scores - log_sums[:, None]
    metrics = {
        "accuracy": float(np.mean(scores.argmax(axis=1) == numbers)),
        "loss": float(-np.mean(log_probabilities[np.arange(numbers.size), numbers])),
    }
    # One class against the others is ranked by its probability, so the logits will not do.
    areas = _areas(np.equal.outer(numbers, np.arange(scores.shape[1])), log_probabilities)
    if areas:
        metrics["auc"] = float(np.mean(areas))
    return metrics


def multilabel_metrics(labels: FloatArray, scores: FloatArray) -> dict[str, float]:
    """Mean over the findings of accuracy, log loss in nats and area under the ROC curve.

    :param labels: shape (n, findings), 0 or 1.
    :param scores: shape (n, findings), log-odds.
    """
    metrics = {
        "accuracy": float(np.mean((scores > 0) == (labels == 1))),
        "loss": float(np.mean(np.logaddexp(0.0, scores) - labels * scores)),
    }
    areas = _areas(labels == 1, scores)
    if areas:
        metrics["auc"] = float(np.mean(areas))
    return metrics


def _areas(present: NDArray[np.bool_], scores: FloatArray) -> list[float]:
    """The area of each column that has records with and without it; both of shape (n, columns)."""
    return [
        auc(column.astype(np.float64), scores[:, index])
        for index, column in enumerate(present.T)
        if 0 < column.sum() < column.size
    ]
