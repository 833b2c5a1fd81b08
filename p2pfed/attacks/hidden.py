"""Attacks that stay near what honest sites could have published, to pass for one of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import ClassVar, Literal

import numpy as np

from p2pfed.attacks.attack import (
    Lie,
    ModelAttack,
    Vector,
    View,
    Wide,
    deviation,
    distance,
    mean,
)


@dataclass(frozen=True)
class ALittleIsEnough(ModelAttack):
    """mean of the audience - z deviations of it, in each parameter.

    ``largest_deviations`` gives the z that the paper derives; it is small for few sites, and
    1.5 does more harm there.
    """

    name: ClassVar[str] = "alie"
    source: ClassVar[str] = "Baruch, Baruch, Goldberg 2019 (A Little Is Enough)"
    summary: ClassVar[str] = "shifts every parameter by a little less than honest sites differ"

    z: float = 1.5  # standard deviations

    def problems(self) -> Iterator[str]:
        if self.z <= 0:
            yield f"z = {self.z} is not above 0"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:  # noqa: ARG002
        models = view.audience()
        centre = mean(models)
        return centre - self.z * deviation(models, centre)


def largest_deviations(sites: int, byzantine: int) -> float:
    """z of Baruch, Baruch, Goldberg 2019: the largest shift, in standard deviations, at which
    enough honest sites are expected beyond the lie for the liars to form a majority with them.

    :param sites: of the whole neighbourhood, the ``byzantine`` among them.
    :raises ValueError: unless 0 < byzantine < sites / 2.
    """
    if not 0 < byzantine < sites / 2:
        raise ValueError(f"{byzantine} of {sites} is not a minority")
    supporters = sites // 2 + 1 - byzantine
    honest = sites - byzantine
    return max(0.0, NormalDist().inv_cdf((honest - supporters) / honest))


@dataclass(frozen=True)
class InnerProductManipulation(ModelAttack):
    """start - epsilon (mean of the audience - start): the mean honest update, reversed."""

    name: ClassVar[str] = "ipm"
    source: ClassVar[str] = "Xie, Koyejo, Gupta 2020 (Fall of Empires)"
    summary: ClassVar[str] = "publishes the honest sites' mean update with its sign reversed"

    epsilon: float = 0.5

    def problems(self) -> Iterator[str]:
        if self.epsilon <= 0:
            yield f"epsilon = {self.epsilon} is not above 0"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:  # noqa: ARG002
        start = view.start.astype(np.float64)
        return start - self.epsilon * (mean(view.audience()) - start)


@dataclass(frozen=True)
class MinMax(ModelAttack):
    """mean of the audience + gamma p, with the largest gamma at which no honest model is farther
    from the lie than the two most distant honest models are from each other.

    The paper looks for gamma by halving an interval. For each honest model x the condition
    ||mean + gamma p - x|| <= farthest is quadratic in gamma, so the root is taken instead.
    """

    name: ClassVar[str] = "min_max"
    source: ClassVar[str] = "Shejwalkar, Houmansadr 2021 (Manipulating the Byzantine)"
    summary: ClassVar[str] = "goes as far from the honest as the honest are from each other"

    # p: against the deviation of honest models, their mean update, or the sign of that
    direction: Literal["deviation", "update", "sign"] = "deviation"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:  # noqa: ARG002
        models = view.audience()
        centre = mean(models)
        direction = self._direction(view, centre)
        length = float(np.linalg.norm(direction))
        if length == 0.0:
            return centre
        direction /= length
        reach = _farthest(models) ** 2
        gamma = math.inf
        for model in models:
            offset = centre - model
            along = float(offset @ direction)
            outside = max(0.0, along**2 - float(offset @ offset) + reach)
            gamma = min(gamma, math.sqrt(outside) - along)
        return centre + gamma * direction

    def _direction(self, view: View, centre: Wide) -> Wide:
        if self.direction == "deviation":
            return -deviation(view.audience(), centre)
        update = view.start - centre
        return np.sign(update) if self.direction == "sign" else update


def _farthest(models: Sequence[Vector]) -> float:
    """The largest distance between two of the models; 0 for a single one."""
    return max(
        (distance(one, other) for at, one in enumerate(models) for other in models[:at]),
        default=0.0,
    )


@dataclass(frozen=True)
class Dissensus(ModelAttack):
    """recipient - epsilon / b * sum over its honest neighbours of (model - recipient), b of its
    neighbours lying: it cancels the pull of the honest and drives their models apart.

    Where one message must serve all, it speaks to the site that is farthest out already.
    """

    name: ClassVar[str] = "dissensus"
    source: ClassVar[str] = "He, Karimireddy, Jaggi 2022 (self-centred clipping)"
    summary: ClassVar[str] = "pushes each neighbour away from that neighbour's own neighbours"

    epsilon: float = 1.5

    def problems(self) -> Iterator[str]:
        if self.epsilon <= 0:
            yield f"epsilon = {self.epsilon} is not above 0"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:  # noqa: ARG002
        recipient = view.recipient if view.recipient is not None else _outermost(view)
        around = view.neighbourhood()
        pull = len(around) * (mean(around) - recipient)
        return recipient - self.epsilon / view.byzantine_neighbours * pull


def _outermost(view: View) -> Vector:
    centre = mean(view.honest_models())
    return max(view.honest_models(), key=lambda model: distance(model, centre))


@dataclass(frozen=True)
class Drift(ModelAttack):
    """recipient + D u: always the same unit vector u, at the median distance D of the
    recipient's honest neighbours from it. Liars with one ``direction_seed`` drift together."""

    name: ClassVar[str] = "drift"
    source: ClassVar[str] = "Karimireddy, He, Jaggi 2021 (attacks coupled over time)"
    summary: ClassVar[str] = "pulls in one direction for ever, never farther than others do"

    direction_seed: int = 0

    def problems(self) -> Iterator[str]:
        if self.direction_seed < 0:
            yield f"direction_seed = {self.direction_seed} is below 0"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:  # noqa: ARG002
        base, reach = _unsuspicious(view)
        signs = np.random.default_rng(self.direction_seed).choice((-1.0, 1.0), base.shape[0])
        direction: Wide = signs / math.sqrt(base.shape[0])
        return base + reach * direction


def _unsuspicious(view: View) -> tuple[Lie, float]:
    """Where to lie from, and how far away honest neighbours are from there, by their median."""
    base: Lie = mean(view.honest_models()) if view.recipient is None else view.recipient
    return base, median(distance(model, base) for model in view.neighbourhood())


@dataclass(frozen=True)
class Shrink(ModelAttack):
    """recipient - reach D m / ||m||, with m the honest sites' mean and D as for ``Drift``: weight
    decay that nobody asked for, against the whole of what has been learned."""

    name: ClassVar[str] = "shrink"
    source: ClassVar[str] = "after Fang, Cao, Jia, Gong 2020 (directed deviation)"
    summary: ClassVar[str] = "pulls every model towards zero, never farther than others are"

    reach: float = 1.0

    def problems(self) -> Iterator[str]:
        if self.reach <= 0:
            yield f"reach = {self.reach} is not above 0"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:  # noqa: ARG002
        base, reach = _unsuspicious(view)
        centre = mean(view.honest_models())
        length = float(np.linalg.norm(centre))
        return base - (self.reach * reach / length if length > 0.0 else 0.0) * centre


@dataclass(frozen=True)
class Mimic(ModelAttack):
    """The model of one honest site, always the same: its data count twice, others' less."""

    name: ClassVar[str] = "mimic"
    source: ClassVar[str] = "Karimireddy, He, Jaggi 2022 (heterogeneous data, bucketing)"
    summary: ClassVar[str] = "copies one honest site for ever, so that its data count too much"

    victim: int = 0  # its place among the honest sites that the attacker knows of

    def problems(self) -> Iterator[str]:
        if self.victim < 0:
            yield f"victim = {self.victim} is below 0"

    def lie(self, view: View, generator: np.random.Generator) -> Lie:  # noqa: ARG002
        models = view.honest_models()
        return models[self.victim % len(models)]
