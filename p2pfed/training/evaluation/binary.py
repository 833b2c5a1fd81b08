"""Figures of a classifier of two classes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Predictions(NamedTuple):
    """``labels`` (0 or 1) and ``scores`` (log-odds of class 1), both of shape (n,), float64."""

    labels: FloatArray
    scores: FloatArray


def binary_metrics(labels: FloatArray, scores: FloatArray) -> dict[str, float]:
    """Accuracy and log loss, and the area under the ROC curve where there are both classes.

    :param labels: shape (n,), 0 or 1.
    :param scores: shape (n,), log-odds of class 1.
    """
    metrics = {"accuracy": accuracy(labels, scores), "loss": log_loss(labels, scores)}
    if 0 < labels.sum() < labels.size:
        metrics["auc"] = auc(labels, scores)
    return metrics


def auc(labels: FloatArray, scores: FloatArray) -> float:
    """The area under the ROC curve, ties counted half: the Mann-Whitney statistic of the ranks.

    Hanley and McNeil, The meaning and use of the area under a ROC curve, Radiology 143 (1982).

    :raises ValueError: only one class.
    """
    positive = labels == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        raise ValueError("the area under the ROC curve needs both classes")
    _, tie, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[tie]  # mean rank of each tied group, from 1
    above = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def accuracy(labels: FloatArray, scores: FloatArray) -> float:
    """The share classified rightly when class 1 is called at log-odds above 0."""
    return float(np.mean((scores > 0) == (labels == 1)))


def log_loss(labels: FloatArray, scores: FloatArray) -> float:
    """Mean negative log-likelihood, in nats."""
    return float(np.mean(log_losses(labels, scores)))


def log_losses(labels: FloatArray, scores: FloatArray) -> FloatArray:
    """The negative log-likelihood of each record, shape (n,), in nats."""
    return np.asarray(np.logaddexp(0.0, scores) - labels * scores, np.float64)
