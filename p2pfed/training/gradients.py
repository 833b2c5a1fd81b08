"""Where a local step's gradients come from."""

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch

from p2pfed.errors import TrainingError
from p2pfed.training.settings import LoopSettings
from p2pfed.training.task import Task, TaskError, task_code


class Gradients(Protocol):
    """A source of gradients."""

    def fill(
        self,
        model: torch.nn.Module,
        parts: Iterable[tuple[Any, int]],
        records: int,
        place: str,
    ) -> float:
        """Leave a step's gradient in ``grad`` of each trained parameter.

        :param parts: the step's records in one or more parts, each collated and on the model's
            device, with how many records it has.
        :param records: in all parts together.
        :param place: where this is, as a message shows it.
        :returns: the loss, mean over the records.
        :raises TaskError: the task's loss failed.
        :raises TrainingError: the loss is not finite.
        """


class PlainGradients:
    """The gradient of the mean loss, its parts added up."""

    def __init__(self, task: Task, settings: LoopSettings, device: torch.device) -> None:
        self._task = task
        self._settings = settings
        self._device = device

    def fill(
        self,
        model: torch.nn.Module,
        parts: Iterable[tuple[Any, int]],
        records: int,
        place: str,
    ) -> float:
        model.zero_grad(set_to_none=True)
        total = 0.0
        for batch, count in parts:
            with task_code("loss"), self._mixed_precision():
                loss = self._task.loss(model, batch)  # ()
            value = finite_loss(loss, place)
            share = count / records
            with task_code("the gradient of loss"):
                (loss * share if share != 1.0 else loss).backward()  # type: ignore[no-untyped-call]
            total += value * share
        return total

    def _mixed_precision(self) -> torch.autocast:
        return torch.autocast(
            self._device.type,
            torch.bfloat16,
            enabled=self._settings.precision == "bfloat16",
        )


def finite_loss(loss: object, place: str) -> float:
    """What a task's loss came to.

    :raises TaskError: it is not a tensor with one element.
    :raises TrainingError: it is not finite.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise TaskError(f"{place}: loss must return a tensor with one element")
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"{place}: the loss is {value}; nothing is published; look for extreme values "
            "in the data, lower learning_rate or set gradient_clip_norm"
        )
    return value
