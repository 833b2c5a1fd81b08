"""Records read under a seed of their own, so that what they draw does not depend on who reads."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

_GOLDEN = 0x9E3779B97F4A7C15  # odd: different positions give different seeds
_MASK = (1 << 63) - 1

Draw = tuple[int, int]
"""A record's seed, and its index in the dataset."""


def record_seed(seed: int, position: int) -> int:
    """The seed under which a round's record at ``position`` is read.

    :param seed: of the round.
    :param position: place among all that the round draws, at all processes together.
    """
    return (seed + (position + 1) * _GOLDEN) & _MASK


class SeededRecords(Dataset[Any]):
    """Items by :data:`Draw`: torch's, numpy's and Python's generators are seeded for each, so a
    random augmentation is the same whichever process reads the record, and in which order.

    A dataset that reads many items at once (``__getitems__``) draws them under the first's seed.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitems__(self, draws: Sequence[Draw]) -> list[Any]:
        at_once = getattr(self._dataset, "__getitems__", None)
        if callable(at_once):
            seed_generators(draws[0][0])
            items: list[Any] = at_once([index for _, index in draws])
            return items
        return [self[draw] for draw in draws]

    def __getitem__(self, draw: Draw) -> Any:
        seed, index = draw
        seed_generators(seed)
        return self._dataset[index]


def seed_generators(seed: int) -> None:
    """Seed the generators that a dataset may draw from on the CPU."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def unchanged_generators() -> Iterator[None]:
    """Leave the generators as they are now: the model's own draws go on where they were."""
    torch_state = torch.default_generator.get_state()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
