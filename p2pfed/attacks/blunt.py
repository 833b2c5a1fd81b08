"""Attacks that do not hide: large lies, found by any rule that looks at distances."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from p2pfed.attacks.attack import Lie, ModelAttack, Vector, View, as_model, mean


@dataclass(frozen=True)
class SignFlip(ModelAttack):
    """start - scale (own - start): its honest update, reversed and enlarged."""

    name: ClassVar[str] = "sign_flip"
    source: ClassVar[str] = "Li, Xu, Chen, Giannakis, Ling 2019 (RSA)"
    summary: ClassVar[str] = "publishes its honest update reversed and ten times as large"

    scale: float = 10.0

    def problems(self) -> Iterator[str]:
        if self.scale <= 0:
            yield f"scale = {self.scale} is not above 0"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:  # noqa: ARG002
        start = view.start.astype(np.float64)
        return start - self.scale * (view.own - start)


@dataclass(frozen=True)
class Gaussian(ModelAttack):
    """mean of the audience + N(0, deviation^2) in each parameter."""

    name: ClassVar[str] = "gaussian"
    source: ClassVar[str] = "Blanchard, El Mhamdi, Guerraoui, Stainer 2017 (Krum)"
    summary: ClassVar[str] = "publishes the honest mean with large random noise"

    deviation: float = 1.0  # in the units of a parameter

    def problems(self) -> Iterator[str]:
        if self.deviation <= 0:
            yield f"deviation = {self.deviation} is not above 0"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:
        noise = generator.standard_normal(view.own.shape) * self.deviation
        return mean(view.audience()) + noise


@dataclass(frozen=True)
class NotANumber(ModelAttack):
    """Its honest model with some parameters replaced by what is not a finite number, or by
    finite numbers whose squares do not fit float32 (``overflow``)."""

    name: ClassVar[str] = "not_a_number"
    source: ClassVar[str] = "Blanchard, El Mhamdi, Guerraoui, Stainer 2017 (arbitrary vectors)"
    summary: ClassVar[str] = "publishes a model with NaN, infinity or overflowing numbers in it"

    kind: Literal["nan", "infinity", "overflow"] = "nan"
    parameters: int = 1  # how many, at random places

    def problems(self) -> Iterator[str]:
        if self.parameters < 1:
            yield f"parameters = {self.parameters} is not at least 1"

    def model(self, view: View, generator: np.random.Generator) -> Vector:
        return self.lie(view, generator)

    def lie(self, view: View, generator: np.random.Generator) -> Vector:
        values: dict[str, float] = {
            "nan": np.nan,
            "infinity": np.inf,
            "overflow": float(np.finfo(np.float32).max),
        }
        lie = as_model(view.own)
        count = min(self.parameters, lie.shape[0])
        lie[generator.choice(lie.shape[0], count, replace=False)] = values[self.kind]
        return lie
