"""Membership inference: was this record trained on?

The likelihood ratio attack of Carlini, Chien, Nasr, Song, Terzis, Tramer, *Membership Inference
Attacks From First Principles* (IEEE S&P 2022), online: shadow models are trained on random halves
of the records, so that each record has models that saw it and models that did not; a record's
confidence under a target model is more likely under the one or the other.

Every shadow model is a target in its turn, against all the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from p2pfed.training.audit.rounds import Setting, collated, last_model
from p2pfed.training.loop import Learner
from p2pfed.training.records import to_device
from p2pfed.training.site_state import SiteModel
from p2pfed.training.task import Task, task_code

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MIN_RECORDS_A_SHADOW = 2
_SMALLEST_LOSS = 1e-9  # nats; a confidence nearer to 1 is rounding
_SMALLEST_VARIANCE = 1e-8


@dataclass(frozen=True)
class Shadows:
    """Confidences of shadow models.

    :ivar confidences: shape (models, records): log(p / (1 - p)) of p = exp(-loss), the record's own
        loss under the model; for a loss that is no cross-entropy, a monotone function of it.
    :ivar inside: likewise, which records the model was trained on.
    :ivar outsiders: shape (models, others), confidences in records that no model was trained on.
    """

    confidences: FloatArray
    inside: BoolArray
    outsiders: FloatArray


def train_shadows(
    setting: Setting,
    records: Dataset[Any],
    indices: Sequence[int],
    outsiders: Dataset[Any],
    outsider_indices: Sequence[int],
    *,
    models: int,
    rounds: int,
    generator: np.random.Generator,
    on_progress: Callable[[int], None],
) -> Shadows:
    """Train ``models`` shadow models, each on its own half of ``indices`` by fair coins.

    :raises TrainingError: a model could not be trained.
    """
    inside = generator.random((models, len(indices))) < 0.5
    for row in inside:
        while row.sum() < MIN_RECORDS_A_SHADOW:
            row[:] = generator.random(row.size) < 0.5
    own = single_batches(setting.task, records, indices)
    other = single_batches(setting.task, outsiders, outsider_indices)
    confidences = np.empty((models, len(own)))
    of_outsiders = np.empty((models, len(other)))
    for number, row in enumerate(inside):
        chosen = [index for index, taken in zip(indices, row, strict=True) if taken]
        learner = setting.learner(len(chosen))
        seed = int(generator.integers(2**62))
        model = last_model(learner, Subset(records, chosen), rounds, setting.local_steps, seed)
        confidences[number] = confidences_of(learner, model, own)
        of_outsiders[number] = confidences_of(learner, model, other)
        on_progress(number + 1)
    return Shadows(confidences, inside, of_outsiders)


def likelihood_ratios(confidences: FloatArray, inside: BoolArray) -> FloatArray:
    """For each model as the target the log likelihood ratio of each record, shape (models,
    records): its confidence under a normal distribution fitted to the other models that saw the
    record, against one fitted to those that did not.

    The means are the record's own; the variances are shared by all records, which is better than
    a variance from few models (section VI-C there). 0.0 where a record has no other models of
    one kind.
    """
    ratios = np.zeros(confidences.shape)
    for target in range(len(confidences)):
        others = np.arange(len(confidences)) != target
        values, seen = confidences[others], inside[others]
        fits = [_fit(values, seen), _fit(values, ~seen)]
        (mean_in, variance_in, count_in), (mean_out, variance_out, count_out) = fits
        here = confidences[target]
        ratio = _log_density(here, mean_in, variance_in) - _log_density(
            here, mean_out, variance_out
        )
        ratios[target] = np.where((count_in > 0) & (count_out > 0), ratio, 0.0)
    return ratios


def _fit(values: FloatArray, chosen: BoolArray) -> tuple[FloatArray, float, NDArray[np.int64]]:
    """Mean of the chosen values of each column, the variance around it over all, and counts."""
    counts = chosen.sum(0)
    means = np.where(chosen, values, 0.0).sum(0) / np.maximum(counts, 1)
    squares = np.where(chosen, (values - means) ** 2, 0.0).sum()
    freedom = max(1, int(np.maximum(counts - 1, 0).sum()))
    return means, max(float(squares) / freedom, _SMALLEST_VARIANCE), counts


def _log_density(values: FloatArray, means: FloatArray, variance: float) -> FloatArray:
    result: FloatArray = -0.5 * ((values - means) ** 2 / variance + np.log(variance))
    return result


def single_batches(task: Task, dataset: Dataset[Any], indices: Sequence[int]) -> list[Any]:
    """Each record as a batch of its own, on the CPU."""
    with task_code("reading the records"):
        return [collated(task, [dataset[index]]) for index in indices]


@torch.no_grad()
def confidences_of(learner: Learner, model: SiteModel, batches: Sequence[Any]) -> FloatArray:
    """Of each record under ``model``, in evaluation mode, shape (len(batches),)."""
    learner.load(model.parameters, model.state)
    learner.model.eval()
    losses = np.empty(len(batches))
    for place, batch in enumerate(batches):
        record = to_device(batch, learner.device)
        with task_code("loss"):
            losses[place] = float(learner.task.loss(learner.model, record))
    losses = np.maximum(losses, _SMALLEST_LOSS)
    result: FloatArray = -losses - np.log(-np.expm1(-losses))
    return result
