"""Reading a round's records from a task's dataset, collated and on the device."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
)

from p2pfed.training.loader_workers import LoaderWorkers
from p2pfed.training.seeded_records import Draw, SeededRecords, record_seed, unchanged_generators
from p2pfed.training.task import CollatingTask, Task, task_code

EVALUATION_BATCH_SIZE = 1024

Part = list[Draw]


def record_count(dataset: Dataset[Any]) -> int:
    """:raises TaskError: the dataset has no length."""
    with task_code("the length of the dataset"):
        return len(dataset)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Share:
    """Which part of each batch one of several processes takes; all of it where there is one."""

    rank: int = 0
    processes: int = 1

    def of(self, records: int) -> range:
        """Places in a batch of ``records``; sizes differ by one at most."""
        return range(
            records * self.rank // self.processes, records * (self.rank + 1) // self.processes
        )


class Reader:
    """Reads batches of a dataset in the order that is asked for.

    :param workers: processes that read ahead; with 0 this process reads each batch when its turn
        comes. A round's bytes do not depend on it.
    :param share: of each step's batch that is read here.
    :ivar waited_seconds: for how long steps have waited for records, since the beginning.
    """

    def __init__(
        self, task: Task, device: torch.device, workers: int = 0, share: Share | None = None
    ) -> None:
        self._collate: Callable[[list[Any]], Any] = (
            task.collate if isinstance(task, CollatingTask) else default_collate
        )
        self._device = device
        self._share = share or Share()
        self._workers = (
            LoaderWorkers(workers, self._collate, pinned=device.type == "cuda") if workers else None
        )
        self.waited_seconds = 0.0

    def steps(
        self, dataset: Dataset[Any], batches: Sequence[list[int]], part_size: int, seed: int = 0
    ) -> Iterator[Iterator[tuple[Any, int]]]:
        """For each of ``batches``, its records in parts of at most ``part_size``, each with its
        number of records. A step's parts are to be read before the next step is asked for.

        :param seed: of what a dataset draws while it reads; each record has its own from it.
        :raises TaskError: the dataset or the task's own collation raised.
        """
        parts = [
            [part[start : start + part_size] for start in range(0, len(part), part_size)]
            for part in self._own_draws(batches, seed)
        ]
        loaded = self._loaded(dataset, [part for batch in parts for part in batch])
        for batch in parts:
            yield self._parts(loaded, batch)

    def _own_draws(self, batches: Sequence[list[int]], seed: int) -> Iterator[list[Draw]]:
        position = 0
        for batch in batches:
            yield [
                (record_seed(seed, position + place), batch[place])
                for place in self._share.of(len(batch))
            ]
            position += len(batch)

    def _parts(self, loaded: Iterator[Any], parts: Sequence[Part]) -> Iterator[tuple[Any, int]]:
        for part in parts:
            started = time.perf_counter()
            with task_code("reading the training records"):
                batch = to_device(next(loaded), self._device)  # each tensor (B, ...)
            self.waited_seconds += time.perf_counter() - started
            yield batch, len(part)

    def _loaded(self, dataset: Dataset[Any], parts: list[Part]) -> Iterator[Any]:
        tensors = tensors_of(dataset) if self._collate is default_collate else None
        if tensors is not None:
            return self._gathered(tensors, parts)
        if self._workers is not None:
            return self._workers.read(dataset, parts)
        return self._read_here(SeededRecords(dataset), parts)

    def _gathered(self, tensors: "Tensors", parts: list[Part]) -> Iterator[Any]:
        """Records that are in memory as tensors: a whole batch at once."""
        for part in parts:
            batch = tensors.at([index for _, index in part])
            yield [tensor.pin_memory() for tensor in batch] if self._pins(batch) else batch

    def _pins(self, batch: Sequence[torch.Tensor]) -> bool:
        return self._device.type == "cuda" and all(t.device.type == "cpu" for t in batch)

    def _read_here(self, records: SeededRecords, parts: list[Part]) -> Iterator[Any]:
        for part in parts:
            with unchanged_generators():
                batch = self._collate(records.__getitems__(part))
            yield batch

    def everything(self, dataset: Dataset[Any]) -> Iterator[Any]:
        """All records of ``dataset`` in order, in batches."""
        loader = DataLoader(dataset, batch_size=EVALUATION_BATCH_SIZE, collate_fn=self._collate)
        for batch in loader:
            yield to_device(batch, self._device)


@dataclass(frozen=True)
class Tensors:
    """Some or all of the records of a ``TensorDataset``."""

    tensors: Sequence[torch.Tensor]
    chosen: torch.Tensor | None = None

    def at(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """What torch's default collation makes of these records."""
        index = torch.tensor(indices, dtype=torch.int64)
        if self.chosen is not None:
            index = self.chosen[index]
        return [tensor[index] for tensor in self.tensors]


def tensors_of(dataset: Dataset[Any]) -> Tensors | None:
    """The tensors behind a ``TensorDataset``, a ``Subset`` of one or a ``ConcatDataset`` of some.

    None for any other, also a class derived from these, whose items may be something else.
    """
    if type(dataset) is TensorDataset:
        return Tensors(dataset.tensors)
    if type(dataset) is ConcatDataset:
        parts = [one.tensors for one in dataset.datasets if type(one) is TensorDataset]
        if len(parts) == len(dataset.datasets):
            return Tensors([torch.cat(column) for column in zip(*parts, strict=True)])
    if type(dataset) is Subset and type(dataset.dataset) is TensorDataset:
        return Tensors(dataset.dataset.tensors, torch.as_tensor(dataset.indices))
    return None


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with every tensor in it moved to ``device``; from pinned memory without waiting."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=device.type == "cuda" and batch.is_pinned())
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
