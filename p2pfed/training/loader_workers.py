"""Processes that read a site's records ahead of the step that needs them."""

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from p2pfed.errors import P2pfedError, TrainingError
from p2pfed.training.seeded_records import Draw, SeededRecords
from p2pfed.training.task import task_code

PREFETCHED_PARTS = 2  # of each worker; more takes memory and hides no slowness that lasts
WORKER_DIED = "DataLoader worker"  # how torch's message of a worker that died begins


class LoaderWorkers:
    """Worker processes that last from round to round.

    They are spawned, never forked, because a fork of a process that uses CUDA is broken. Each has
    its own copy of the dataset, and Python and torch of its own.

    :param collate: joins the items of a part; runs in the worker.
    :param pinned: batches come in memory from which a GPU copies without waiting.
    """

    def __init__(self, workers: int, collate: Callable[[list[Any]], Any], *, pinned: bool) -> None:
        self._workers = workers
        self._collate = collate
        self._pinned = pinned
        self._parts = _Parts()
        self._dataset: Dataset[Any] | None = None
        self._loader: DataLoader[Any] | None = None

    def read(self, dataset: Dataset[Any], parts: Sequence[list[Draw]]) -> Iterator[Any]:
        """The collated records of each of ``parts``, in their order.

        :raises TrainingError: a worker died; the next round starts others.
        """
        self._parts.parts = parts
        try:
            for batch in self._loader_of(dataset):
                if isinstance(batch, _Raised):
                    raise batch.error
                yield batch
        except RuntimeError as error:
            if WORKER_DIED not in str(error):
                raise
            self._loader = None
            raise TrainingError(
                f"a process that reads records ahead died: {error}; if memory ran out, lower "
                "training.loader_workers of the site file"
            ) from error

    def _loader_of(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        if self._loader is None or self._dataset is not dataset:
            self._dataset = dataset
            self._loader = DataLoader(
                _Collated(dataset, self._collate),
                batch_sampler=self._parts,
                collate_fn=_only,
                num_workers=self._workers,
                multiprocessing_context="spawn",
                persistent_workers=True,
                prefetch_factor=PREFETCHED_PARTS,
                pin_memory=self._pinned,
                # Its own: the loader draws a seed for its workers, and the model's draws must not
                # depend on how many rounds this loader has seen.
                generator=torch.Generator(),
            )
        return self._loader


class _Parts:
    """What the loader is to read in the round under way."""

    def __init__(self) -> None:
        self.parts: Sequence[list[Draw]] = ()

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


@dataclass(frozen=True)
class _Raised:
    """An error on its way from a worker; torch would pass on its text alone."""

    error: P2pfedError


class _Collated(Dataset[Any]):
    """Collated parts by their :data:`Draw` rows; goes to a worker by value.

    Torch would otherwise pass every tensor in the dataset as an open file.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self._dataset, self._collate = dataset, collate
        self._records = SeededRecords(dataset)

    def __getstate__(self) -> bytes:
        return pickle.dumps((self._dataset, self._collate))

    def __setstate__(self, state: bytes) -> None:
        self.__init__(*pickle.loads(state))  # type: ignore[misc]  # noqa: S301 - from the trainer

    def __getitems__(self, draws: list[Draw]) -> list[Any]:
        """One item: the part, or why there is none."""
        try:
            with task_code("reading the training records"):
                return [self._collate(self._records.__getitems__(draws))]
        except P2pfedError as error:
            return [_Raised(error)]


def _only(items: list[Any]) -> Any:
    return items[0]


def why_not_passed_on(*values: object) -> str | None:
    """Why ``values`` cannot go to another process; None where they can."""
    try:
        pickle.Pickler(_Discarding()).dump(values)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


class _Discarding(io.RawIOBase):
    """Keeps nothing: what is taken apart may be as large as the data."""

    def write(self, data: Any) -> int:
        return len(data)
