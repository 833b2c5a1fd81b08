"""How long local steps wait for records that are slow to read, by the number of loader workers.

    OMP_NUM_THREADS=1 python benchmarks/slow_records.py [--workers 0 1 2 4] [--milliseconds 2]
        [--batch-size 16] [--steps 20] [--rounds 3]

Each record takes so many milliseconds to come, as from a network share; the model is the
convolutional one of ``local_step.py``. Printed for each number of workers: milliseconds a step,
the share of the round that steps waited for records, which ``p2pfed status`` shows as well, and
memory that each worker has to itself (unique set size), all medians over the rounds but the first.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from local_step import SEED, Classification, cnn
from torch.utils.data import Dataset

from p2pfed.training.child import PROGRESS_INTERVAL_SECONDS, prepare_torch
from p2pfed.training.frames import Progress
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.records import Reader
from p2pfed.training.round_input import RoundInput
from p2pfed.training.schema import prepare
from p2pfed.training.settings import LoopSettings
from p2pfed.training.task import Datasets


class SlowRecords(Dataset[Any]):
    """The same records, each after a while."""

    def __init__(self, seconds: float, count: int) -> None:
        self._seconds, self._count = seconds, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        time.sleep(self._seconds)
        return torch.randn(1, 28, 28), index % 10


class SlowTask:
    """The convolutional network over slow records."""

    def __init__(self, records: SlowRecords) -> None:
        self._records = records

    def build_model(self) -> torch.nn.Module:
        return cnn()

    def datasets(self) -> Datasets:
        return Datasets(training=self._records, holdout=self._records)

    loss = Classification.loss

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, Any]:
        return {"loss": sum(self.loss(model, batch) for batch in batches)}  # type: ignore[misc]


@dataclass
class Measured:
    step_milliseconds: list[float] = field(default_factory=list)
    wait_shares: list[float] = field(default_factory=list)
    worker_megabytes: float = 0.0


def measure(workers: int, records: SlowRecords, arguments: argparse.Namespace) -> Measured:
    """Train rounds with one reader; the first, in which the workers start, does not count."""
    task = SlowTask(records)
    model = genesis_model(task, SEED)
    prepare(model)
    settings = LoopSettings(batch_size=arguments.batch_size, learning_rate=1e-3)
    device = torch.device("cpu")
    learner = Learner(task, model, settings, device, reader=Reader(task, device, workers))
    model_now = learner.fresh()
    out = np.empty_like(model_now.parameters), np.empty_like(model_now.state)
    found = Measured()
    for number in range(arguments.rounds + 1):
        heard: list[Progress] = []
        given = RoundInput.at_site(
            model_now, seed=SEED, site="site", round_number=number, local_steps=arguments.steps
        )
        summary = learner.train(records, given, *out, heard.append, PROGRESS_INTERVAL_SECONDS)
        if number:
            found.step_milliseconds.append(summary.seconds / arguments.steps * 1e3)
            found.wait_shares.append(heard[-1].data_wait_share)
    sizes = [unshared_kilobytes(child.pid or 0) for child in multiprocessing.active_children()]
    found.worker_megabytes = max(sizes, default=0) * 1024 / 1e6
    return found


def unshared_kilobytes(pid: int) -> int:
    """KiB of memory that a process has to itself; Linux only, see proc_pid_smaps(5)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2, 4])
    parser.add_argument("--milliseconds", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prepare_torch()
    records = SlowRecords(arguments.milliseconds / 1e3, 1024)
    print(f"{arguments.batch_size} records a step, {arguments.milliseconds:g} ms each")
    print("workers   ms a step   waits for data   MB of a worker")
    for workers in arguments.workers:
        found = measure(workers, records, arguments)
        print(
            f"{workers:7} {statistics.median(found.step_milliseconds):11.1f} "
            f"{statistics.median(found.wait_shares):16.1%} {found.worker_megabytes:16.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
