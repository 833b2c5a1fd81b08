"""What an attack is: what a hostile site knows, and what it makes of it.

An attack is a frozen dataclass whose fields are its options. It holds no state, no clock and no
generator of its own: the same view and the same generator state give the same lie, in a
simulation, in a test and in a hostile daemon.
"""

import abc
import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from p2pfed.errors import UsageError

Vector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Lie = Vector | Wide
Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Envelope = TypeVar("Envelope")

LARGEST_PARAMETER = 1e6  # a lie beyond what float32 sums hold is refused outright, and so harmless


@dataclass(frozen=True, slots=True)
class View:
    """What an attacker knows when it must publish. All models are float32 of shape (d,).

    ``own`` is what honest training on its data gave it this round, from ``start``, its model
    before. ``published`` is its replica: what its neighbours believe its model to be.
    ``honest`` are the models of the honest sites that it knows of: all of them this round where
    it is omniscient, otherwise what it can tell from its neighbours' replicas; empty where it
    knows of none.

    ``recipient`` is the model of the neighbour that this lie is for, where each can be told
    another thing, and None where one message goes to all. ``around_recipient`` are the honest
    neighbours of that recipient, where it knows the topology, and ``byzantine_neighbours`` is
    how many of the recipient's neighbours lie, the speaker among them.
    """

    round_number: int
    own: Vector
    start: Vector
    published: Vector
    honest: Sequence[Vector]
    recipient: Vector | None = None
    around_recipient: Sequence[Vector] = ()
    byzantine_neighbours: int = 1

    def honest_models(self) -> Sequence[Vector]:
        """The honest models it knows of; its own where it knows of none."""
        return self.honest or (self.own,)

    def neighbourhood(self) -> Sequence[Vector]:
        """The honest neighbours of the recipient; all it knows of where it cannot tell."""
        return self.around_recipient or self.honest_models()

    def audience(self) -> Sequence[Vector]:
        """The honest models that the lie is held against, to hide among: the recipient's and its
        honest neighbours', or all it knows of where one message goes to all."""
        if self.recipient is None or not self.around_recipient:
            return self.honest_models()
        return (self.recipient, *self.around_recipient)


class Attack(abc.ABC):
    """One way to do harm. ``name`` is its name in files and on the command line, ``source`` the
    paper that it comes from, ``summary`` a sentence for an operator."""

    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]

    def __post_init__(self) -> None:
        """Check every option against the type of its field.

        :raises UsageError: for an option that is of the wrong type or out of its range.
        """
        kinds = typing.get_type_hints(type(self))
        for option in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, option.name)
            if not _is_of_kind(value, kinds[option.name]):
                expected = _kind_in_words(kinds[option.name])
                raise UsageError(f"attack {self.name}: {option.name} = {value!r} is not {expected}")
        for problem in self.problems():
            raise UsageError(f"attack {self.name}: {problem}")

    def problems(self) -> Iterator[str]:
        """What is wrong with the values of the options, a sentence each."""
        yield from ()


class ModelAttack(Attack):
    """An attack on the model that a site publishes."""

    def model(self, view: View, generator: np.random.Generator) -> Vector:
        """What it publishes as its model: float32 of shape (d,), never a view of an input, and
        finite whatever has become of the models that it knows of (``not_a_number`` excepted)."""
        with np.errstate(over="ignore", invalid="ignore"):
            return as_model(self.lie(view, generator))

    @abc.abstractmethod
    def lie(self, view: View, generator: np.random.Generator) -> Lie:
        """The formula of the attack, shape (d,), before it is made fit to publish."""


class DataAttack(Attack):
    """An attack on the data of a site, which then trains on them as an honest one does."""

    @abc.abstractmethod
    def poison(
        self, features: Features, labels: Labels, classes: int, generator: np.random.Generator
    ) -> tuple[Features, Labels]:
        """The poisoned data, as new arrays.

        :param features: shape (n, m).
        :param labels: shape (n,), each in [0, classes).
        """


@dataclass(frozen=True, slots=True)
class Offer(Generic[Envelope]):
    """One envelope on its way to one neighbour."""

    recipient: str
    envelope: Envelope


class MessageAttack(Attack):
    """An attack with envelopes that the hostile site has signed itself, whatever is in them."""

    versions: ClassVar[int] = 1  # how many different envelopes it must sign for each round

    @abc.abstractmethod
    def offers(
        self,
        round_number: int,
        recipients: Sequence[str],
        signed: Callable[[int], Sequence[Envelope]],
    ) -> list[Offer[Envelope]]:
        """What to offer to whom in this round, in the order of sending.

        :param recipients: the names of the neighbours, in an order that stays the same.
        :param signed: the envelopes that the attacker signed for a round, at most
            ``versions`` of them; empty for a round in which it published nothing.
        """


def mean(models: Sequence[Vector]) -> Wide:
    """The mean of at least one model of shape (d,), in float64."""
    total = np.zeros(models[0].shape, np.float64)
    for model in models:
        total += model
    return total / len(models)


def deviation(models: Sequence[Vector], centre: Wide) -> Wide:
    """The standard deviation of each parameter about ``centre``, shape (d,)."""
    total = np.zeros(centre.shape, np.float64)
    for model in models:
        total += (model - centre) ** 2
    return np.sqrt(total / len(models))


def distance(one: Vector | Wide, other: Vector | Wide) -> float:
    """The Euclidean distance of two models, in float64."""
    return float(np.linalg.norm(np.subtract(one, other, dtype=np.float64)))


def as_model(values: Vector | Wide) -> Vector:
    """``values`` as a new model that every receiver can hold: float32, finite, and no parameter
    beyond ``LARGEST_PARAMETER``. Where a broken federation has driven the attacker's own model
    out of the numbers, it goes on with 0 there."""
    wide = np.nan_to_num(values.astype(np.float64), nan=0.0)
    return np.clip(wide, -LARGEST_PARAMETER, LARGEST_PARAMETER).astype(np.float32)


def _is_of_kind(value: object, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if origin is tuple:
        return isinstance(value, tuple) and all(
            _is_of_kind(one, typing.get_args(kind)[0]) for one in value
        )
    if isinstance(value, bool):  # an int to Python, no number to a person
        return False
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


def _kind_in_words(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if origin is tuple:
        return "a list of whole numbers"
    return {float: "a finite number", int: "a whole number"}[kind]
