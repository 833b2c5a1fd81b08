"""Reading a round's records from a task's dataset, collated and on the device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from p2pfed.training.task import CollatingTask, Task, task_code

EVALUATION_BATCH_SIZE = 1024


def record_count(dataset: Dataset[Any]) -> int:
    """:raises TaskError: the dataset has no length."""
    with task_code("the length of the dataset"):
        return len(dataset)  # type: ignore[arg-type]


class Reader:
    """Reads batches of a dataset in the order that is asked for."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self._collate: Callable[[list[Any]], Any] | None = (
            task.collate if isinstance(task, CollatingTask) else None
        )
        self._device = device

    def steps(
        self, dataset: Dataset[Any], batches: Sequence[list[int]], part_size: int
    ) -> Iterator[Iterator[tuple[Any, int]]]:
        """For each of ``batches``, its records in parts of at most ``part_size``, each with its
        number of records. A step's parts are to be read before the next step is asked for.

        :raises TaskError: the dataset or the task's own collation raised.
        """
        parts = [
            batch[start : start + part_size]
            for batch in batches
            for start in range(0, len(batch), part_size)
        ]
        with task_code("reading the training records"):
            loader = iter(DataLoader(dataset, batch_sampler=parts, collate_fn=self._collate))
        for batch in batches:
            yield self._parts(loader, batch, part_size)

    def _parts(
        self, loader: Iterator[Any], batch: list[int], part_size: int
    ) -> Iterator[tuple[Any, int]]:
        for start in range(0, len(batch), part_size):
            with task_code("reading the training records"):
                part = to_device(next(loader), self._device)  # each tensor (B, ...)
            yield part, min(part_size, len(batch) - start)

    def everything(self, dataset: Dataset[Any]) -> Iterator[Any]:
        """All records of ``dataset`` in order, in batches."""
        loader = DataLoader(dataset, batch_size=EVALUATION_BATCH_SIZE, collate_fn=self._collate)
        for batch in loader:
            yield to_device(batch, self._device)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with every tensor in it moved to ``device``."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
