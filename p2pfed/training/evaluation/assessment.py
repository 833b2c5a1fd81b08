"""What an evaluation on a hold-out comes to: a task's metrics, and how far they can be trusted.

A task has to offer ``metrics`` alone. Two further methods, each optional, let its figures have
confidence intervals:

- ``predictions(model, batches)``: a tuple of numpy arrays, each with one entry a record, in order.
  :class:`~p2pfed.training.evaluation.binary.Predictions` where there are two classes: then area
  under the curve, accuracy and loss get the intervals that statisticians have for them, and the
  calibration is measured.
- ``figures(predictions)``: metrics by name of such a tuple. Then every metric that has no interval
  by now gets one from the bootstrap.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from p2pfed.training.evaluation.binary import Predictions, auc, log_losses
from p2pfed.training.evaluation.bootstrap import bootstrap_intervals
from p2pfed.training.evaluation.calibration import ReliabilityBin, calibration_of
from p2pfed.training.evaluation.intervals import (
    Interval,
    auc_interval,
    mean_interval,
    wilson_interval,
)

SAME_FIGURE = 1e-5  # relative; a task may compute in float32 what is computed here in float64


@runtime_checkable
class PredictingTask(Protocol):
    """A task that shows what it predicts for each record."""

    def predictions(self, model: Any, batches: Iterable[Any]) -> tuple[NDArray[Any], ...]:
        """One entry a record along the first axis of each array."""


@runtime_checkable
class FiguringTask(PredictingTask, Protocol):
    """A task that computes its metrics from what it predicts."""

    def figures(self, predictions: Any) -> Mapping[str, float]:
        """Metrics by name of a tuple like that of ``predictions``."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """How far an evaluation's metrics can be trusted; empty where the task does not say enough.

    :ivar intervals: 95 % confidence intervals, by the name of a metric or of a calibration figure.
    :ivar calibration: figures of the calibration, by name.
    :ivar bins: the reliability curve, the smallest predictions first.
    """

    intervals: dict[str, Interval] = field(default_factory=dict)
    calibration: dict[str, float] = field(default_factory=dict)
    bins: tuple[ReliabilityBin, ...] = ()


def assess(
    task: object, predictions: tuple[NDArray[Any], ...], metrics: Mapping[str, float]
) -> Assessment:
    """The assessment of ``metrics``, which ``task`` computed from the same records.

    An interval goes only with a metric that has the value which the interval was made for: a
    metric of another meaning under the same name gets none.
    """
    found: dict[str, tuple[float, Interval]] = {}
    calibration = None
    if isinstance(predictions, Predictions) and _is_binary(predictions):
        found = _binary_intervals(predictions)
        if any(_is_same(metrics.get(name), value) for name, (value, _) in found.items()):
            calibration = calibration_of(
                predictions.labels.astype(np.float64), predictions.scores.astype(np.float64)
            )
    intervals = {
        name: interval
        for name, (value, interval) in found.items()
        if _is_same(metrics.get(name), value)
    }
    if isinstance(task, FiguringTask) and set(metrics) - set(intervals):
        strata = predictions.labels if isinstance(predictions, Predictions) else None
        classes = strata if strata is not None and _is_nominal(strata) else None
        drawn = bootstrap_intervals(task.figures, predictions, classes)
        intervals = {name: drawn[name] for name in metrics if name in drawn} | intervals
    if calibration is None:
        return Assessment(intervals)
    return Assessment(intervals | calibration.intervals, calibration.figures, calibration.bins)


def _is_binary(predictions: Predictions) -> bool:
    labels, scores = predictions
    return bool(
        labels.ndim == scores.ndim == 1
        and 0 < labels.size == scores.size
        and np.isin(labels, (0, 1)).all()
        and np.isfinite(scores).all()
    )


def _is_nominal(labels: NDArray[Any]) -> bool:
    """Whether they are classes: whole numbers, most of them more than once."""
    return bool(
        labels.ndim == 1
        and np.array_equal(labels, np.round(labels))
        and 2 * np.unique(labels).size <= labels.size
    )


def _binary_intervals(predictions: Predictions) -> dict[str, tuple[float, Interval]]:
    """Value and interval by the names of ``binary_metrics``."""
    labels = predictions.labels.astype(np.float64)
    scores = predictions.scores.astype(np.float64)
    right = int(((scores > 0) == (labels == 1)).sum())
    found = {"accuracy": (right / labels.size, wilson_interval(right, labels.size))}
    losses = log_losses(labels, scores)
    spread = mean_interval(losses)
    if spread is not None:
        found["loss"] = (float(losses.mean()), (max(0.0, spread[0]), spread[1]))
    if 0 < labels.sum() < labels.size:
        found["auc"] = (auc(labels, scores), auc_interval(labels, scores))
    return found


def _is_same(one: float | None, other: float) -> bool:
    return one is not None and math.isclose(one, other, rel_tol=SAME_FIGURE, abs_tol=SAME_FIGURE)
