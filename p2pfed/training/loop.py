"""The training loop: a round's local steps, and the hold-out's evaluation."""

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from p2pfed.errors import TrainingError
from p2pfed.training.frames import MAX_METRICS, Progress
from p2pfed.training.optimiser import build_optimiser, install_state, read_state
from p2pfed.training.regions import Vector
from p2pfed.training.schema import (
    local_state,
    read_vector,
    restore_local_state,
    write_vector,
)
from p2pfed.training.settings import LoopSettings
from p2pfed.training.task import Task, TaskError, task_code

EVALUATION_BATCH_SIZE = 1024
ROUND_CONTEXT = b"p2pfed/1 round seed"


@dataclass(frozen=True)
class RoundInput:
    """Everything that a round's result depends on, the records apart.

    :ivar parameters: shape (d,), float32.
    :ivar optimiser: shape (s,), float32.
    :ivar seed: of this round at this site, from :func:`round_seed`.
    """

    parameters: Vector
    optimiser: Vector
    round_number: int
    local_steps: int
    seed: int


@dataclass(frozen=True)
class RoundSummary:
    """What training a round came to; loss is the mean over its steps."""

    loss: float
    seconds: float
    samples: int


class Learner:
    """One model on one device, with the task and the settings that train it."""

    def __init__(
        self, task: Task, model: torch.nn.Module, settings: LoopSettings, device: torch.device
    ) -> None:
        self.task = task
        self.model = model.to(device)
        self.settings = settings
        self.device = device
        self._local_state = local_state(self.model)

    def load(self, parameters: Vector) -> None:
        """Make the model be ``parameters``, shape (d,), and what does not travel as at genesis."""
        write_vector(self.model, parameters)
        restore_local_state(self.model, self._local_state)

    def train(
        self,
        dataset: Dataset[Any],
        given: RoundInput,
        parameters_out: Vector,
        optimiser_out: Vector,
        on_progress: Callable[[Progress], None],
    ) -> RoundSummary:
        """Take a round's local steps; the result is a function of ``given`` and the records.

        :param parameters_out: shape (d,), float32; filled when every step has succeeded.
        :param optimiser_out: shape (s,), float32; likewise.
        :param on_progress: called after every step.
        :raises TaskError: the task's code failed.
        :raises TrainingError: a loss or the resulting model is not finite.
        """
        started = time.perf_counter()
        seed_everything(given.seed)
        self.load(given.parameters)
        optimiser = build_optimiser(self.model, self.settings)
        install_state(optimiser, self.settings, given.optimiser)
        self.model.train()

        losses: list[float] = []
        samples = 0
        batches = draw_batches(
            record_count(dataset), self.settings.batch_size, given.local_steps, given.seed
        )
        with task_code("reading the training records"):
            loader = iter(DataLoader(dataset, batch_sampler=batches))
        for step, indices in enumerate(batches, start=1):
            with task_code("reading the training records"):
                batch = to_device(next(loader), self.device)  # each tensor (B, ...)
            place = f"round {given.round_number}, local step {step} of {given.local_steps}"
            losses.append(self._step(optimiser, batch, f"{place}, {len(indices)} records"))
            samples += len(indices)
            seconds = time.perf_counter() - started
            on_progress(
                Progress(
                    step=step,
                    steps=given.local_steps,
                    loss=losses[-1],
                    samples_per_second=samples / max(seconds, 1e-9),
                    gpu_memory_bytes=gpu_memory_bytes(self.device),
                )
            )

        result = np.empty_like(given.parameters)
        read_vector(self.model, result)
        if not np.isfinite(result).all():
            raise TrainingError(
                f"the model is not finite after round {given.round_number}; nothing is "
                "published; lower learning_rate or set gradient_clip_norm"
            )
        parameters_out[:] = result
        read_state(optimiser, optimiser_out)
        return RoundSummary(math.fsum(losses) / len(losses), time.perf_counter() - started, samples)

    def _step(self, optimiser: torch.optim.Optimizer, batch: Any, place: str) -> float:
        optimiser.zero_grad(set_to_none=True)
        with task_code("loss"):
            loss = self.task.loss(self.model, batch)  # ()
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise TaskError(f"{place}: loss must return a tensor with one element")
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"{place}: the loss is {value}; nothing is published; look for extreme values "
                "in the data, lower learning_rate or set gradient_clip_norm"
            )
        with task_code("the gradient of loss"):
            loss.backward()  # type: ignore[no-untyped-call]
            if self.settings.gradient_clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(
                    self.model.parameters(), self.settings.gradient_clip_norm
                )
            optimiser.step()
        return value

    @torch.no_grad()
    def evaluate(self, dataset: Dataset[Any], parameters: Vector) -> dict[str, float]:
        """The task's metrics of the model ``parameters``, shape (d,), over ``dataset``.

        :raises TaskError: the task's code failed, or its metrics are no numbers.
        """
        self.load(parameters)
        self.model.eval()
        with task_code("metrics"):
            metrics = self.task.metrics(self.model, self.batches(dataset))
            return _checked_metrics(metrics)

    def batches(self, dataset: Dataset[Any]) -> Iterator[Any]:
        """All records of ``dataset`` in order, in batches on this learner's device."""
        for batch in DataLoader(dataset, batch_size=EVALUATION_BATCH_SIZE):
            yield to_device(batch, self.device)


def _checked_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    if len(metrics) > MAX_METRICS:
        raise TaskError(f"metrics returned {len(metrics)} figures; at most {MAX_METRICS} are kept")
    return {str(name): float(value) for name, value in metrics.items()}


def round_seed(seed: int, site: str, round_number: int) -> int:
    """The 63-bit seed of one round at one site: BLAKE2b over the canonical msgpack of all three.

    Derived, not drawn in sequence, so that a round trained again after a crash draws the same.
    """
    encoded: bytes = msgpack.packb([seed, site, round_number])
    digest = hashlib.blake2b(ROUND_CONTEXT + encoded, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed every generator that a model or a dataset may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def genesis_model(task: Task, seed: int) -> torch.nn.Module:
    """The model that every site starts from, on the CPU.

    :raises TaskError: ``build_model`` raised, or returned no module.
    """
    seed_everything(seed)
    with task_code("build_model"):
        model = task.build_model()
    if not isinstance(model, torch.nn.Module):
        raise TaskError(f"build_model returned {type(model).__name__}, no torch.nn.Module")
    return model


def draw_batches(records: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Record indices of each local step: shuffled passes over the records, joined end to end.

    Every batch is full (batch norm cannot take a batch of one), and no record is drawn twice
    before all have been drawn once.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, records)
    passes = -(-size * steps // records)
    order = torch.cat([torch.randperm(records, generator=generator) for _ in range(passes)])
    return [order[step * size : (step + 1) * size].tolist() for step in range(steps)]


def record_count(dataset: Dataset[Any]) -> int:
    """:raises TaskError: the dataset has no length."""
    with task_code("the length of the dataset"):
        return len(dataset)  # type: ignore[arg-type]


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


def gpu_memory_bytes(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
