"""A task: what is learned, from which records, and how well. The one class a user writes.

A task of one's own is one Python file. The topology file names it, every site installs it (or
puts it in a directory named in its site file)::

    class Retina:
        def __init__(self, options, data):
            # options: [task.options] of the topology file, alike at every site
            # data:    [data] of this site's file, private
            self.folder, self.width = Path(data["folder"]), options["width"]

        def build_model(self):
            return torchvision.models.resnet18(num_classes=1, width_per_group=self.width)

        def datasets(self):
            return Datasets(training=Scans(self.folder / "a"), holdout=Scans(self.folder / "b"))

        def loss(self, model, batch):
            images, labels = batch                # (B, 3, H, W), (B,): what the Dataset yields,
            return bce(model(images)[:, 0], labels)     # collated, on the model's device

        def metrics(self, model, batches):
            hits = [((model(x)[:, 0] > 0) == y).float() for x, y in batches]
            return {"accuracy": torch.cat(hits).mean()}

Two further methods give its metrics confidence intervals, and a model of two classes a calibration:
``predictions`` and ``figures`` (:mod:`p2pfed.training.evaluation.assessment`).

Batch size, optimiser and learning rate are not the task's: they are read from ``[task.options]``
(:class:`p2pfed.training.settings.LoopSettings`).

What the trainer sees to, so that a task need not:

- ``build_model`` is called under the federation's seed for torch, numpy and random. It must give
  the same bytes at every site: draw from these generators, on the CPU, in a fixed order. torch's
  uniform initialisers (the default of ``Linear`` and ``Conv``) do on every processor.
- Every parameter and floating-point buffer travels, as float32, but for what stays at its site
  or never changes (:mod:`p2pfed.training.partition`). Integer buffers never do.
- Generators are seeded again for each round from the federation's seed, the site's name and the
  round, and what does not travel is reset: a round that is trained again after a crash gives the
  same bytes. State that a task keeps in Python between rounds would break that.
- ``model.train()`` and gradients are on in ``loss``; ``model.eval()`` and no gradients in
  ``metrics``. An exception in a task costs that round, never the daemon.
"""

import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import Dataset

from p2pfed.errors import P2pfedError, TrainingError
from p2pfed.training.frames import MAX_MESSAGE_CHARACTERS


@dataclass(frozen=True)
class Datasets:
    """This site's records; map-style datasets, whose items torch's default collation accepts."""

    training: Dataset[Any]
    holdout: Dataset[Any]


class Task(Protocol):
    """What a task class provides; see the module's text. Called as ``Class(options, data)``."""

    def build_model(self) -> torch.nn.Module:
        """The model, fresh."""

    def datasets(self) -> Datasets:
        """Read this site's records. Raises ``DataError`` where they do not fit."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The loss of a batch: a scalar, mean over the batch."""

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, Any]:
        """Figures over all ``batches`` of a hold-out, by name; each converts to float."""


@runtime_checkable
class FileTask(Task, Protocol):
    """A task that can also read another data file, for ``p2pfed evaluate``."""

    def file_dataset(self, path: Path) -> Dataset[Any]:
        """The records of ``path``. Raises ``DataError`` where they do not fit."""


@runtime_checkable
class CollatingTask(Task, Protocol):
    """A task whose records torch's default collation cannot join."""

    def collate(self, records: list[Any]) -> Any:
        """The batch of some of a dataset's items."""


@runtime_checkable
class PreparingTask(Task, Protocol):
    """A task that settles something with the other sites before the first local step.

    What is settled stands in travelling buffers of the model, which the federation's rule folds
    like the rest.
    """

    def prepare(
        self,
        model: torch.nn.Module,
        dataset: Dataset[Any],
        round_number: int,
        seed: int,
        prepared: bool,
    ) -> bool:
        """Lay this site's part into the model, which is on its device.

        :param dataset: the training records.
        :param seed: of this round at this site.
        :param prepared: this site has given its part in an earlier round.
        :returns: whether this is a round of preparation, in which no local step is taken.
        """


class DeviceMemoryError(TrainingError):
    """The device's memory did not suffice."""


class TaskError(TrainingError):
    """The task's own code raised, or returned what it must not."""


@contextmanager
def task_code(place: str) -> Iterator[None]:
    """Run code that is the user's: whatever it raises costs the request, not the process.

    :param place: what was asked of the task, as a message shows it.
    :raises DeviceMemoryError: the device is out of memory.
    :raises TaskError: anything else; the traceback goes to the log.
    """
    try:
        yield
    except P2pfedError:
        raise
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"out of memory in {place}; lower batch_size, or train on another device: {error}"
        ) from error
    except Exception as error:
        traceback.print_exc()
        text = f"{place} raised {type(error).__name__}: {error}"
        raise TaskError(text[:MAX_MESSAGE_CHARACTERS]) from error
