"""What a federation is compared with: training on one site's records, or on all of them pooled.

Both use the federation's own loop and settings. Pooling needs the records of several sites in
one place; only a demonstration on public data has that.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import ConcatDataset, Dataset

from p2pfed.training.evaluation.assessment import FiguringTask
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.privacy.preparing import PricedPreparation
from p2pfed.training.round_input import RoundInput
from p2pfed.training.schema import prepare
from p2pfed.training.settings import LoopSettings
from p2pfed.training.site_state import SiteModel
from p2pfed.training.task import Task

CPU = torch.device("cpu")


class ComparableTask(Task, FiguringTask, Protocol):
    """A task that comes with p2pfed."""

    @property
    def options(self) -> LoopSettings:
        """``[task.options]``, the loop's settings among them."""


@runtime_checkable
class WeighingTask(Protocol):
    """A task whose loss weighs classes by how many records each has."""

    def weigh_classes(self, training: Sequence[Any]) -> None:
        """Take the weights from these records together."""


def train_baseline(
    task: ComparableTask,
    training: Sequence[Dataset[Any]],
    *,
    total_steps: int,
    seed: int,
    name: str,
) -> SiteModel:
    """Train the genesis model of ``seed`` on the records of all ``training`` together.

    A step draws ``batch_size`` records for each dataset, as many as that many sites draw
    together. Changes the class weights of ``task`` to those of these records.

    :param name: stands where the site's name stands in the seed of a federation's round.
    :raises TrainingError: a loss or the model is not finite.
    """
    learner = learner_of(task, seed, sites=len(training))
    if isinstance(task, WeighingTask):
        task.weigh_classes(training)
    pooled: ConcatDataset[Any] = ConcatDataset(training)
    prepared_rounds = 0
    if isinstance(task, PricedPreparation):
        task.prepare(learner.model, pooled, 0, seed, False)
        prepared_rounds = task.preparation_rounds
    given = RoundInput.at_site(
        learner.fresh(),
        seed=seed,
        site=name,
        round_number=prepared_rounds,
        local_steps=total_steps,
    )
    trained, _ = learner.train_new(pooled, given)
    return trained


def predict(task: ComparableTask, model: SiteModel, dataset: Dataset[Any]) -> Any:
    """The task's predictions that ``model`` gives to ``dataset``."""
    learner = learner_of(task, seed=0, sites=1)
    learner.load(model.parameters, model.state)
    learner.model.eval()
    with torch.no_grad():
        return task.predictions(learner.model, learner.batches(dataset))


def learner_of(task: ComparableTask, seed: int, sites: int) -> Learner:
    """A learner of the genesis model, which draws for as many sites together."""
    model = genesis_model(task, seed)
    prepare(model)
    # The loop's own keys alone: the task has its other options.
    options = {key: getattr(task.options, key) for key in LoopSettings.model_fields}
    options["batch_size"] *= sites
    return Learner(task, model, LoopSettings(**options), CPU)
