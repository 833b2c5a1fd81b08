"""What a federation is compared with: training on one site's records, or on all of them pooled.

Both use the federation's own loop and settings. Pooling needs the records of several sites in
one place; only a demonstration on public data has that.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import ConcatDataset, TensorDataset

from p2pfed.training.evaluation.binary import Predictions
from p2pfed.training.frames import Progress
from p2pfed.training.loop import Learner, RoundInput, genesis_model, round_seed
from p2pfed.training.optimiser import initial_state
from p2pfed.training.regions import Vector
from p2pfed.training.schema import prepare, read_vector, schema_of
from p2pfed.training.tasks.tabular.task import Tabular

CPU = torch.device("cpu")


def train_baseline(
    task: Tabular, training: Sequence[TensorDataset], *, total_steps: int, seed: int, name: str
) -> Vector:
    """Train the genesis model of ``seed`` on the records of all ``training`` together.

    A step draws ``batch_size`` records for each dataset, as many as that many sites draw
    together. Changes the class weights of ``task`` to those of these records.

    :param name: stands where the site's name stands in the seed of a federation's round.
    :returns: the model, shape (d,).
    :raises TrainingError: a loss or the model is not finite.
    """
    learner = _learner(task, seed, sites=len(training))
    task.weigh_classes(training)
    genesis = np.empty(schema_of(learner.model).dimension, np.float32)
    read_vector(learner.model, genesis)
    given = RoundInput(
        parameters=genesis,
        optimiser=initial_state(learner.model, learner.settings),
        round_number=0,
        local_steps=total_steps,
        seed=round_seed(seed, name, 0),
    )
    parameters, optimiser = np.empty_like(given.parameters), np.empty_like(given.optimiser)
    learner.train(ConcatDataset(training), given, parameters, optimiser, _unheard)
    return parameters


def predict(task: Tabular, parameters: Vector, dataset: TensorDataset) -> Predictions:
    """Labels and scores that the model ``parameters``, shape (d,), gives to ``dataset``."""
    learner = _learner(task, seed=0, sites=1)
    learner.load(parameters)
    learner.model.eval()
    with torch.no_grad():
        return task.predict(learner.model, learner.batches(dataset))


def _learner(task: Tabular, seed: int, sites: int) -> Learner:
    model = genesis_model(task, seed)
    prepare(model)
    settings = task.options.model_copy(update={"batch_size": task.options.batch_size * sites})
    return Learner(task, model, settings, CPU)


def _unheard(_: Progress) -> None:
    """A baseline's steps are not reported."""
