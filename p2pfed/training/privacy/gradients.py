"""The gradient of a private step: each record's clipped, their sum noised (DP-SGD).

g = (sum_i g_i min(1, C / |g_i|) + sigma C z) / (q n), z standard normal: Abadi et al., *Deep
Learning with Differential Privacy* (CCS 2016), algorithm 1, with the expected batch q n in the
denominator, for the number that was drawn is itself private.
"""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule

from p2pfed.errors import TrainingError
from p2pfed.training.gradients import finite_loss
from p2pfed.training.privacy.randomness import SecretDraws
from p2pfed.training.privacy.settings import PrivateSettings
from p2pfed.training.task import Task, TaskError, task_code

# Of the records' gradients that are held at once; a larger batch is taken in parts.
MAX_GRADIENT_BYTES = 256 * 1024 * 1024
GRADIENT_TOLERANCE = 1e-2  # of the sum of records' gradients against the batch's own, relative
# What Opacus keeps on modules and parameters between a forward and a backward pass.
LEFT_BEHIND = ("activations", "max_batch_len", "grad_sample", "_current_grad_sample")


def largest_part(model: torch.nn.Module) -> int:
    """How many records' gradients fit into ``MAX_GRADIENT_BYTES``, one at least."""
    floats = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return max(1, MAX_GRADIENT_BYTES // (4 * max(1, floats)))


class PrivateGradients:
    """Fills the gradients of a round's steps; one object a round, for no draw is used twice."""

    def __init__(
        self, task: Task, model: torch.nn.Module, settings: PrivateSettings, draws: SecretDraws
    ) -> None:
        self._task = task
        self._model = model
        self._settings = settings
        self._draws = draws
        self._hooks = hooks_for(model)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._fills = 0
        self._checked = False

    def close(self) -> None:
        """Take the hooks off the model again; the gradient filled last stays.

        A pass that failed half-way leaves its activations behind, and Opacus would take them for
        those of the next one.
        """
        self._hooks.remove_hooks()
        for owner in (*self._model.modules(), *self._model.parameters()):
            for name in LEFT_BEHIND:
                if hasattr(owner, name):
                    delattr(owner, name)

    def fill(
        self,
        model: torch.nn.Module,
        parts: Iterable[tuple[Any, int]],
        records: int,
        place: str,
    ) -> float:
        """Put a step's private gradient into ``grad`` of every trained parameter.

        :param parts: none where the step drew no record.
        :returns: the mean loss of the records, which no noise protects; 0.0 of none.
        :raises TaskError: the task's code failed, or its model is not what was checked.
        :raises TrainingError: a record's loss or gradient is not finite.
        """
        sums = [torch.zeros_like(parameter) for parameter in self._trained]
        loss = 0.0
        for batch, count in parts:
            loss += self._add(model, batch, count, sums, place) * count / records
        self._check_buffers(model)
        self._noise(sums)
        self._fills += 1
        return loss

    def _add(
        self,
        model: torch.nn.Module,
        batch: Any,
        records: int,
        sums: list[torch.Tensor],
        place: str,
    ) -> float:
        """Add the clipped gradients of ``records`` records to ``sums``; their mean loss."""
        self._forget()
        with task_code("loss"):
            loss = self._task.loss(model, batch)  # ()
        value = finite_loss(loss, place)
        with task_code("the gradient of loss"), warnings.catch_warnings():
            # Of the first layer's input no gradient is asked, nor needed by Opacus.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            loss.backward()  # type: ignore[no-untyped-call]
        samples = [self._samples(parameter, records) for parameter in self._trained]
        squares = torch.zeros(records, device=sums[0].device)
        for sample in samples:
            if sample is not None:
                squares += sample.reshape(records, -1).square().sum(1)
        norms = squares.sqrt()  # (records,)
        if not bool(torch.isfinite(norms).all()):
            raise TrainingError(
                f"{place}: a record's gradient is not finite; nothing is published; look for "
                "extreme values in the data, or lower learning_rate"
            )
        factors = (self._settings.clip_norm / norms).clamp(max=1.0)  # (records,), inf clamped
        if not self._checked:
            self._check_samples(samples, records)
            self._checked = True
        for total, sample in zip(sums, samples, strict=True):
            if sample is not None:
                total.add_(torch.einsum("i,i...->...", factors, sample))
        self._forget()
        return value

    def _samples(self, parameter: torch.nn.Parameter, records: int) -> torch.Tensor | None:
        """Each record's gradient, shape (records, ...); None of a parameter that took no part."""
        found = getattr(parameter, "grad_sample", None)
        if found is None:
            if parameter.grad is not None:
                raise TaskError(
                    "a parameter is used outside its module's forward, so no record's own "
                    "gradient is known; call the module, or freeze the parameter"
                )
            return None
        # A list where the parameter took part in several passes, as tied ones do.
        sample: torch.Tensor = torch.stack(found).sum(0) if isinstance(found, list) else found
        if sample.shape[0] != records:
            raise TaskError(
                f"a layer sees {sample.shape[0]} rows for {records} records; under differential "
                "privacy the first axis of every layer's input must be the record's"
            )
        return sample.detach()

    def _check_samples(self, samples: list[torch.Tensor | None], records: int) -> None:
        """Compare the mean of the records' gradients with the gradient of the mean loss."""
        error = whole = 0.0
        for parameter, sample in zip(self._trained, samples, strict=True):
            if sample is not None and parameter.grad is not None:
                mean = sample.sum(0) / records
                error += float((mean - parameter.grad).square().sum())
                whole += float(torch.maximum(mean.square(), parameter.grad.square()).sum())
        if math.sqrt(error) > GRADIENT_TOLERANCE * math.sqrt(whole) + 1e-7:
            raise TaskError(
                "the records' own gradients do not add up to the batch's: a parameter is also "
                "used outside its module's forward; for a penalty on it use weight_decay"
            )

    def _check_buffers(self, model: torch.nn.Module) -> None:
        for name, buffer in model.named_buffers():
            if name in self._buffers and not torch.equal(buffer, self._buffers[name]):
                raise TaskError(
                    f"the buffer {name!r} changed while training: what it took up of the records "
                    "no noise protects, so nothing is published"
                )

    def _noise(self, sums: list[torch.Tensor]) -> None:
        """Turn sums of clipped gradients into the private gradient.

        In float64, rounded once: noise that is rounded before it is added tells more.
        """
        deviation = self._settings.noise_multiplier * self._settings.clip_norm
        for index, (parameter, total) in enumerate(zip(self._trained, sums, strict=True)):
            normals = self._draws.normals(f"step {self._fills}", index, total.numel())
            noised = total.double().cpu() + deviation * torch.from_numpy(normals).view(total.shape)
            parameter.grad = (noised / self._settings.expected_batch).to(total)

    def _forget(self) -> None:
        for parameter in self._trained:
            parameter.grad = None
            if hasattr(parameter, "grad_sample"):
                parameter.grad_sample = None


def hooks_for(model: torch.nn.Module) -> GradSampleModule:
    """Have Opacus leave each record's gradient in ``grad_sample`` of every trained parameter
    whenever ``model`` is run forward and back in training mode."""
    try:
        return GradSampleModule(model, batch_first=True, loss_reduction="mean", strict=True)
    except (NotImplementedError, ValueError) as error:
        raise TaskError(f"Opacus cannot train this model privately: {error}") from error
