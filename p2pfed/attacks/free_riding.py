"""Free riders: they take the federation's model and contribute nothing of their own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import numpy as np

from p2pfed.attacks.attack import Lie, ModelAttack, View, distance


@dataclass(frozen=True)
class Echo(ModelAttack):
    """The model of a neighbour, another one each round."""

    name: ClassVar[str] = "echo"
    source: ClassVar[str] = "Lin, Du, Liu 2019 (free riders)"
    summary: ClassVar[str] = "publishes a neighbour's model as its own"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:
        models = view.honest_models()
        return models[int(generator.integers(len(models)))]


@dataclass(frozen=True)
class Zero(ModelAttack):
    """What it has published before: a delta of zeros."""

    name: ClassVar[str] = "zero"
    source: ClassVar[str] = "Lin, Du, Liu 2019 (free riders)"
    summary: ClassVar[str] = "never changes its model"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:  # noqa: ARG002
        return view.published


@dataclass(frozen=True)
class Noise(ModelAttack):
    """start + noise of the size of an honest update: the median distance of the honest models
    from start, times ``scale``. It follows the federation and looks as if it trained."""

    name: ClassVar[str] = "noise"
    source: ClassVar[str] = "Fraboni, Vidal, Lorenzi 2021 (disguised free riders)"
    summary: ClassVar[str] = "publishes noise of the size of an honest update instead of training"

    scale: float = 1.0

    def problems(self) -> Iterator[str]:
        if self.scale <= 0:
            yield f"scale = {self.scale} is not above 0"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:
        typical = median(distance(model, view.start) for model in view.honest_models())
        noise = generator.standard_normal(view.start.shape)
        return view.start + self.scale * typical / math.sqrt(noise.shape[0]) * noise
