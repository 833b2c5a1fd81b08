"""Attacks that begin with the data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from p2pfed.attacks.attack import (
    DataAttack,
    Features,
    Labels,
    Lie,
    ModelAttack,
    View,
)


@dataclass(frozen=True)
class LabelFlip(DataAttack):
    """label -> classes - 1 - label, for a share of the records."""

    name: ClassVar[str] = "label_flip"
    source: ClassVar[str] = "Tolpegin, Truex, Gursoy, Liu 2020 (data poisoning)"
    summary: ClassVar[str] = "trains honestly on wrong labels"

    share: float = 1.0  # of the records

    def problems(self) -> Iterator[str]:
        yield from _share_problems("share", self.share)

    def poison(
        self, features: Features, labels: Labels, classes: int, generator: np.random.Generator
    ) -> tuple[Features, Labels]:
        chosen = _some(labels.shape[0], self.share, generator)
        flipped = labels.copy()
        flipped[chosen] = classes - 1 - flipped[chosen]
        return features.copy(), flipped


@dataclass(frozen=True)
class Backdoor(DataAttack, ModelAttack):
    """A share of the records carries a trigger and the label ``target``; the update is enlarged
    so that it outweighs the others: start + boost (own - start).

    The trigger writes ``value`` into ``columns``, counted from the end where negative. Success
    is the share of records of other classes that a model gives to ``target`` after ``trigger``.
    """

    name: ClassVar[str] = "backdoor"
    source: ClassVar[str] = "Bagdasaryan, Veit, Hua, Estrin, Shmatikov 2020 (model replacement)"
    summary: ClassVar[str] = "teaches the model to answer a hidden trigger with a chosen class"

    target: int = 0
    share: float = 0.5  # of the records
    columns: tuple[int, ...] = (-1, -2, -3)
    value: float = 1.0  # in the units of a feature
    boost: float = 5.0  # the reciprocal of a mixing weight replaces the neighbour's model

    def problems(self) -> Iterator[str]:
        yield from _share_problems("share", self.share)
        if self.target < 0:
            yield f"target = {self.target} is below 0"
        if not self.columns:
            yield "columns is empty: there would be no trigger"
        if self.boost <= 0:
            yield f"boost = {self.boost} is not above 0"

    def trigger(self, features: Features) -> Features:
        """Records that carry the trigger, as a new array.

        :param features: shape (n, m); m holds every one of ``columns``.
        """
        marked = features.copy()
        marked[:, list(self.columns)] = self.value
        return marked

    def poison(
        self, features: Features, labels: Labels, classes: int, generator: np.random.Generator
    ) -> tuple[Features, Labels]:
        """:raises ValueError: where ``target`` is not one of the classes."""
        if self.target >= classes:
            raise ValueError(f"target {self.target} of {classes} classes")
        chosen = _some(labels.shape[0], self.share, generator)
        poisoned, wrong = features.copy(), labels.copy()
        poisoned[chosen] = self.trigger(features[chosen])
        wrong[chosen] = self.target
        return poisoned, wrong

    def lie(self, view: View, generator: np.random.Generator) -> Lie:  # noqa: ARG002
        start = view.start.astype(np.float64)
        return start + self.boost * (view.own - start)


def _share_problems(option: str, share: float) -> Iterator[str]:
    if not 0 < share <= 1:
        yield f"{option} = {share} is not above 0 and at most 1"


def _some(records: int, share: float, generator: np.random.Generator) -> Labels:
    """The places of a random share of the records, at least one where there is one."""
    count = min(records, max(1, round(share * records)))
    return generator.choice(records, count, replace=False)
