"""A site's rounds without a daemon, for the tests of the built-in tasks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from p2pfed.training.frames import Progress
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.regions import Vector
from p2pfed.training.round_input import RoundInput
from p2pfed.training.schema import prepare
from p2pfed.training.site_state import SiteModel
from p2pfed.training.task import Task


@dataclass
class Trained:
    learner: Learner
    parameters: Vector
    state: Vector
    losses: list[float]

    def evaluate(self, dataset: Dataset[Any]) -> dict[str, float]:
        return self.learner.evaluate(dataset, self.parameters, self.state)


def learner_for(task: Any, seed: int = 0) -> Learner:
    model = genesis_model(task, seed)
    prepare(model)
    return Learner(task, model, task.options, torch.device("cpu"))


def train(task: Task, dataset: Dataset[Any], *, steps: int, rounds: int = 1) -> Trained:
    learner = learner_for(task)
    found = Trained(learner, learner.genesis(), np.zeros(learner.layout.floats, np.float32), [])
    losses: list[float] = []

    def hear(progress: Progress) -> None:
        losses.append(progress.loss)

    for number in range(rounds):
        given = RoundInput.at_site(
            SiteModel(found.parameters, found.state),
            seed=0,
            site="here",
            round_number=number,
            local_steps=steps,
        )
        parameters, state = np.empty_like(found.parameters), np.empty_like(found.state)
        learner.train(dataset, given, parameters, state, hear)
        found = Trained(learner, parameters, state, losses)
    return found
