"""A round's local steps in p2pfed's loop against a bare PyTorch loop over the same model and data.

    OMP_NUM_THREADS=1 python benchmarks/local_step.py [--device cpu] [--models small cnn mlp]
        [--steps 3 20] [--instances 5] [--rounds 5] [--batch-size 64] [--fused] [--wall]

Both take the same local steps in one process, turn by turn, so that noise meets both. The bare
loop is what one writes without a federation: index the tensors, zero_grad, loss, backward, step;
its model and its optimiser stay where they are from round to round. p2pfed's round takes the model
and the optimiser's state out of the daemon's vectors, draws its batches, seeds, looks at every
loss, reports progress, checks that the model is finite, and lays everything into vectors again.
Torch is set as in the trainer process while it runs (deterministic algorithms) and left at its
defaults for the bare loop; ``--fused`` gives that the fused optimiser, which p2pfed always takes.

Both are built anew ``--instances`` times, in turns the one or the other first: where a model's
tensors happen to lie in memory moves the time of a step by a tenth and more.

Printed for each model and number of local steps: milliseconds a step of both, their ratio (the
median over pairs of neighbouring rounds), the ratio of the fastest round of each, which a busy
machine disturbs least, and what a round costs more, in milliseconds. On a CPU
times are those that the thread spent computing, which other processes disturb less; ``--wall``
takes the clock instead, as on a GPU. A model under a million parameters has steps so short that
only the cost a round says something.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from p2pfed.training.child import PROGRESS_INTERVAL_SECONDS, prepare_torch
from p2pfed.training.frames import Progress
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.round_input import RoundInput
from p2pfed.training.schema import prepare
from p2pfed.training.settings import LoopSettings
from p2pfed.training.site_state import SiteModel
from p2pfed.training.task import Datasets

SEED = 0
TARGET_RATIO = 1.05
RECORDS = 4096
SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "momentum": 0.9}


def small() -> torch.nn.Module:
    """As many inputs as the heart demo's table has, and 16 hidden units."""
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(25, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
    )


def cnn() -> torch.nn.Module:
    """2.5 million parameters for images of 28 x 28."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 64, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64 * 7 * 7, 784),
        torch.nn.ReLU(),
        torch.nn.Linear(784, 10),
    )


def mlp() -> torch.nn.Module:
    """24 million parameters, nearly all of them in matrices: the most to carry for a step."""
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(784, 4096),
        torch.nn.ReLU(),
        torch.nn.Linear(4096, 4096),
        torch.nn.ReLU(),
        torch.nn.Linear(4096, 1024),
        torch.nn.ReLU(),
        torch.nn.Linear(1024, 10),
    )


MODELS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "small": (small, (25,)),
    "cnn": (cnn, (1, 28, 28)),
    "mlp": (mlp, (1, 28, 28)),
}


class Classification:
    """Ten classes, records at random: time does not depend on what they say."""

    def __init__(self, name: str) -> None:
        self._build, shape = MODELS[name]
        generator = torch.Generator().manual_seed(SEED)
        self.data = TensorDataset(
            torch.randn(RECORDS, *shape, generator=generator),
            torch.randint(10, (RECORDS,), generator=generator),
        )

    def build_model(self) -> torch.nn.Module:
        return self._build()

    def datasets(self) -> Datasets:
        return Datasets(training=self.data, holdout=self.data)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        images, labels = batch
        return torch.nn.functional.cross_entropy(model(images), labels)

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, Any]:
        return {"loss": sum(self.loss(model, batch) for batch in batches)}


class BareLoop:
    """The steps, and nothing else."""

    def __init__(
        self, task: Classification, batch_size: int, device: torch.device, fused: bool
    ) -> None:
        self._task, self._batch_size, self._device = task, batch_size, device
        self._model = genesis_model(task, SEED).to(device)
        self._optimiser = torch.optim.SGD(
            self._model.parameters(), lr=1e-3, momentum=0.9, fused=fused or None
        )
        self._model.train()
        self._features, self._labels = (tensor.to(device) for tensor in task.data.tensors)

    def round(self, steps: int) -> None:
        order = torch.randperm(RECORDS, device=self._device)
        for start in range(0, steps * self._batch_size, self._batch_size):
            batch = order[start % RECORDS : start % RECORDS + self._batch_size]
            self._optimiser.zero_grad()
            loss = self._task.loss(self._model, (self._features[batch], self._labels[batch]))
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()


class FederatedLoop:
    """Rounds as the trainer process trains them, each from what the last one left."""

    def __init__(self, task: Classification, batch_size: int, device: torch.device) -> None:
        model = genesis_model(task, SEED)
        prepare(model)
        settings = LoopSettings(batch_size=batch_size, **SETTINGS)
        self._task = task
        self._learner = Learner(task, model, settings, device)
        self._model = self._learner.fresh()
        self._model_out = SiteModel(
            np.empty_like(self._model.parameters), np.empty_like(self._model.state)
        )
        self._round = 0

    @property
    def parameters(self) -> int:
        return self._learner.schema.dimension

    def round(self, steps: int) -> None:
        given = RoundInput.at_site(
            self._model, seed=SEED, site="site", round_number=self._round, local_steps=steps
        )
        self._learner.train(
            self._task.data,
            given,
            self._model_out.parameters,
            self._model_out.state,
            _unheard,
            PROGRESS_INTERVAL_SECONDS,
        )
        self._model, self._model_out = self._model_out, self._model
        self._round += 1


def _unheard(_: Progress) -> None:
    """Made, and sent nowhere."""


@dataclass(frozen=True)
class Comparison:
    """Seconds of each round, in pairs."""

    steps: int
    bare: list[float]
    federated: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(
            ours / bare for ours, bare in zip(self.federated, self.bare, strict=True)
        )

    @property
    def ratio_of_fastest(self) -> float:
        """Of the round of each that was disturbed least."""
        return min(self.federated) / min(self.bare)

    @property
    def round_overhead_seconds(self) -> float:
        return statistics.median(
            ours - bare for ours, bare in zip(self.federated, self.bare, strict=True)
        )


class Stopwatch:
    def __init__(self, device: torch.device, wall: bool) -> None:
        self._device = device
        self._clock = time.perf_counter if wall else time.thread_time

    def seconds(self, job: Callable[[], None]) -> float:
        self._wait()
        started = self._clock()
        job()
        self._wait()
        return self._clock() - started

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def compare(
    bare: BareLoop,
    federated: FederatedLoop,
    comparison: Comparison,
    rounds: int,
    stopwatch: Stopwatch,
) -> None:
    """Time ``rounds`` pairs; who is first alternates."""
    steps = comparison.steps

    def time_bare() -> float:
        return stopwatch.seconds(lambda: bare.round(steps))

    def time_federated() -> float:
        prepare_torch()
        try:
            return stopwatch.seconds(lambda: federated.round(steps))
        finally:
            torch.use_deterministic_algorithms(False)
            torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]

    for _ in range(2):  # until both of the vectors that take turns have been written to
        time_bare(), time_federated()
    for number in range(rounds):
        if number % 2:
            comparison.bare.append(time_bare())
            comparison.federated.append(time_federated())
        else:
            comparison.federated.append(time_federated())
            comparison.bare.append(time_bare())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--steps", nargs="+", type=int, default=[3, 20])
    parser.add_argument("--instances", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--wall", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    stopwatch = Stopwatch(device, arguments.wall or device.type == "cuda")
    print(f"torch {torch.__version__} on {device}, batches of {arguments.batch_size}, 1 thread")
    print(
        f"{'model':>6} {'parameters':>11} {'steps':>5} {'bare ms':>9} {'p2pfed ms':>9} "
        "ratio fastest  more a round"
    )
    for name in arguments.models:
        task = Classification(name)
        found = {steps: Comparison(steps, [], []) for steps in arguments.steps}
        parameters = 0
        for instance in range(arguments.instances):
            bare, federated = loops(task, arguments, device, bare_first=instance % 2 == 0)
            parameters = federated.parameters
            for comparison in found.values():
                compare(bare, federated, comparison, arguments.rounds, stopwatch)
        for steps, comparison in found.items():
            print(
                f"{name:>6} {parameters:11,} {steps:5} "
                f"{statistics.median(comparison.bare) / steps * 1e3:9.3f} "
                f"{statistics.median(comparison.federated) / steps * 1e3:9.3f} "
                f"{comparison.ratio:5.3f} {comparison.ratio_of_fastest:7.3f} "
                f"{comparison.round_overhead_seconds * 1e3:9.2f} ms",
                flush=True,
            )


def loops(
    task: Classification, arguments: argparse.Namespace, device: torch.device, *, bare_first: bool
) -> tuple[BareLoop, FederatedLoop]:
    """Both, fresh."""
    if bare_first:
        bare = BareLoop(task, arguments.batch_size, device, arguments.fused)
        return bare, FederatedLoop(task, arguments.batch_size, device)
    federated = FederatedLoop(task, arguments.batch_size, device)
    return BareLoop(task, arguments.batch_size, device, arguments.fused), federated


if __name__ == "__main__":
    main()
