"""Where a local step's gradients come from."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from p2pfed.training.losses import Loss, check_finite_loss
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
    ) -> Loss:
        """Leave a step's gradient in ``grad`` of each trained parameter.

        :param parts: the step's records in one or more parts, each collated and on the model's
            device, with how many records it has.
        :param records: in all parts together.
        :param place: where this is, as a message shows it.
        :returns: the loss, mean over the records: a number that is finite, or a tensor () on a
            GPU, which whoever reads it checks (:class:`~.losses.RoundLosses`).
        :raises TaskError: the task's loss failed.
        :raises TrainingError: the loss is not finite.
        """


class PlainGradients:
    """The gradient of the mean loss, its parts added up."""

    def __init__(self, task: Task, settings: LoopSettings, device: torch.device) -> None:
        self._task = task
        self._device = device
        self._mixed = settings.precision == "bfloat16"

    def fill(
        self,
        model: torch.nn.Module,
        parts: Iterable[tuple[Any, int]],
        records: int,
        place: str,
    ) -> Loss:
        model.zero_grad(set_to_none=True)
        total: Loss = 0.0
        for batch, count in parts:
            with task_code("loss"), self._mixed_precision():
                loss = self._task.loss(model, batch)  # ()
            value = seen_loss(loss, place)
            share = count / records
            with task_code("the gradient of loss"):
                (loss * share if share != 1.0 else loss).backward()  # type: ignore[no-untyped-call]
            total = total + value * share
        return total

    def _mixed_precision(self) -> AbstractContextManager[Any]:
        if not self._mixed:
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)


def seen_loss(loss: object, place: str) -> Loss:
    """What a task's loss came to: a number, or, where asking for it would make a GPU wait, a
    tensor () for later.

    :raises TaskError: it is not a tensor with one element.
    :raises TrainingError: it is on the CPU and not finite.
    """
    tensor = _scalar(loss, place)
    return finite_loss(tensor, place) if tensor.device.type == "cpu" else tensor.detach()


def finite_loss(loss: object, place: str) -> float:
    """What a task's loss came to, as a number.

    :raises TaskError: it is not a tensor with one element.
    :raises TrainingError: it is not finite.
    """
    value = _scalar(loss, place).item()
    check_finite_loss(value, place)
    return value


def _scalar(loss: object, place: str) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise TaskError(f"{place}: loss must return a tensor with one element")
    return loss
