"""Reading records: at once, by this process, or by others that read ahead; the same bytes."""

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate

from p2pfed.errors import DataError, Problem, TrainingError
from p2pfed.training.loader_workers import why_not_passed_on
from p2pfed.training.records import Reader, Share, tensors_of
from p2pfed.training.task import TaskError

CPU = torch.device("cpu")
BATCHES = [[3, 0, 7, 1], [2, 2, 6, 5], [4, 9, 8, 1]]


class NoTask:
    """A reader asks a task only whether it collates."""


class Augmented(Dataset[Any]):
    """Draws from all three generators for each record."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        drawn = float(torch.rand(())), random.random(), float(np.random.rand())
        return {"index": index, "drawn": torch.tensor(drawn, dtype=torch.float64)}


class AtOnce(Augmented):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [{"index": index, "drawn": torch.rand(2)} for index in indices]


class Ends(Augmented):
    def __getitem__(self, index: int) -> Any:
        if index == 9:
            os._exit(3)
        return super().__getitem__(index)


class Corrupt(Augmented):
    def __getitem__(self, index: int) -> Any:
        if index == 9:
            raise DataError([Problem("scan.dcm", "", None, "is damaged", "export it again")])
        if index == 8:
            return 1 / (index - 8)
        return super().__getitem__(index)


class Unopened(Augmented):
    def __init__(self) -> None:
        self.read = lambda index: index


def read(reader: Reader, dataset: Dataset[Any], part_size: int = 4, seed: int = 5) -> list[Any]:
    steps = reader.steps(dataset, BATCHES, part_size, seed)
    return [[part for part, _ in batch] for batch in steps]


def flat(parts: list[Any]) -> tuple[list[int], torch.Tensor]:
    joined = [part for batch in parts for part in batch]
    indices = [int(index) for part in joined for index in part["index"]]
    return indices, torch.cat([part["drawn"] for part in joined])


@pytest.fixture
def reader_of() -> Callable[..., Reader]:
    def make(*, workers: int = 0, share: Share | None = None) -> Reader:
        return Reader(NoTask(), CPU, workers, share)  # type: ignore[arg-type]

    return make


def test_what_is_read_does_not_depend_on_who_reads(reader_of: Callable[..., Reader]) -> None:
    here = reader_of()
    indices, drawn = flat(read(here, Augmented()))
    assert indices == [index for batch in BATCHES for index in batch]
    assert len({float(value) for value in drawn.flatten()}) == drawn.numel(), "all draws differ"

    workers = reader_of(workers=2)
    dataset = Augmented()
    for seed in (5, 6, 5):  # the same processes, round after round
        other_indices, other = flat(read(workers, dataset, seed=seed))
        assert other_indices == indices
        assert torch.equal(other, drawn) == (seed == 5)
    shares = [reader_of(share=Share(rank, 3)) for rank in range(3)]
    steps = zip(*(read(share, Augmented()) for share in shares), strict=True)
    joined = [[part for of_rank in step for part in of_rank] for step in steps]
    assert flat(joined)[0] == indices
    assert torch.equal(flat(joined)[1], drawn)
    assert torch.equal(flat(read(here, Augmented(), part_size=3))[1], drawn)


def test_reading_leaves_the_models_own_draws_alone(reader_of: Callable[..., Reader]) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    read(reader_of(), Augmented())
    read(reader_of(), AtOnce())
    assert torch.equal(torch.rand(3), expected)


def test_records_read_many_at_once_are_seeded_too(reader_of: Callable[..., Reader]) -> None:
    first, second = (flat(read(reader_of(), AtOnce()))[1] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, flat(read(reader_of(), AtOnce(), seed=6))[1])


def test_tensors_are_taken_as_the_default_collation_joins_them(
    reader_of: Callable[..., Reader],
) -> None:
    whole = TensorDataset(torch.randn(20, 3), torch.arange(20))
    halves = ConcatDataset([TensorDataset(*(t[:7] for t in whole.tensors)), whole])
    for dataset in (whole, Subset(whole, list(range(19, 9, -1))), halves):
        assert tensors_of(dataset) is not None
        for parts, batch in zip(read(reader_of(), dataset), BATCHES, strict=True):
            expected = default_collate([dataset[index] for index in batch])
            assert all(torch.equal(*pair) for pair in zip(parts[0], expected, strict=True))

    class Doubled(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return tuple(2 * value for value in super().__getitem__(index))

    assert tensors_of(Doubled(torch.ones(2))) is None
    assert tensors_of(Subset(Doubled(torch.ones(2)), [0])) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_record_reaches_the_round_as_it_was_raised(
    reader_of: Callable[..., Reader], workers: int
) -> None:
    reader, dataset = reader_of(workers=workers), Corrupt()
    with pytest.raises(DataError, match=r"scan\.dcm"):
        list(next(reader.steps(dataset, [[9]], 4)))
    with pytest.raises(TaskError, match="reading the training records raised ZeroDivisionError"):
        list(next(reader.steps(dataset, [[8]], 4)))
    assert flat([[part for part, _ in next(reader.steps(dataset, [[1]], 4))]])[0] == [1]


def test_a_worker_that_dies_costs_the_round_and_is_replaced(
    reader_of: Callable[..., Reader],
) -> None:
    reader, dataset = reader_of(workers=1), Ends()
    with pytest.raises(TrainingError, match=r"reads records ahead died.*loader_workers"):
        list(next(reader.steps(dataset, [[9]], 4)))
    assert flat([[part for part, _ in next(reader.steps(dataset, [[1]], 4))]])[0] == [1]


def test_waiting_for_records_is_measured(reader_of: Callable[..., Reader]) -> None:
    reader = reader_of()
    read(reader, Augmented())
    first = reader.waited_seconds
    read(reader, Augmented())
    assert 0 < first < reader.waited_seconds


def test_what_cannot_go_to_another_process_is_said() -> None:
    assert why_not_passed_on(Augmented()) is None
    assert "lambda" in str(why_not_passed_on(Unopened()))
