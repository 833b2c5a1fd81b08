"""Gradient inversion: what were the records from which this delta came?

- Through a linear layer with a bias, one record is a quotient: the gradient of a row of weights is
  e x and that of its bias e, for the record x and the error e (Phong et al., *Privacy-Preserving
  Deep Learning via Additively Homomorphic Encryption*, IEEE TIFS 2018, section III).
- Otherwise records are sought whose own local steps would have given the delta: Zhu, Liu, Han,
  *Deep Leakage from Gradients* (NeurIPS 2019), with the cosine distance of Geiping, Bauermeister,
  Droege, Moeller, *Inverting Gradients* (NeurIPS 2020), and the local steps unrolled.

The attacker is given more than a neighbour has: the labels, which records share a step, and what
records of this kind look like (mean and standard deviation of the hold-out). What it finds is held
against what the same number of other records, drawn from the hold-out, have in common with the
true ones: who has seen other patients knows that much without any delta.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch.func import functional_call
from torch.utils.data import Dataset, Subset, default_collate

from p2pfed.errors import TrainingError
from p2pfed.training.audit.rounds import Observed, Setting, train_rounds
from p2pfed.training.loop import Learner
from p2pfed.training.records import to_device
from p2pfed.training.settings import LoopSettings
from p2pfed.training.task import CollatingTask, Datasets, Task, task_code

FloatArray = NDArray[np.float64]

ATTACK_LEARNING_RATE = 0.1  # in standard deviations of the records
SMOOTHNESS = 0.01  # weight of an image's total variation, in standard deviations a pixel
MIN_DEVIATION = 1e-6  # a value that varies less is known without an attack


MAX_SOUGHT_RECORDS = 256  # at once; bounds memory and time
PRIOR_RECORDS = 512
GUESSES = 20


@dataclass(frozen=True)
class Prior:
    """What records of this kind look like; each of shape (values,), one for each input value."""

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, inputs: torch.Tensor) -> "Prior":
        """:param inputs: shape (n, ...)."""
        flat = inputs.flatten(1)
        return cls(flat.mean(0), flat.std(0, unbiased=False))

    def standardised(self, inputs: torch.Tensor) -> FloatArray:
        """Shape (n, values that vary)."""
        varies = self.deviation > MIN_DEVIATION
        flat = (inputs.detach().flatten(1) - self.mean)[:, varies] / self.deviation[varies]
        result: FloatArray = flat.double().cpu().numpy()
        return result


@dataclass(frozen=True)
class Likeness:
    """How like the true records others are, matched so that the sum of errors is least.

    :ivar errors: for each true record the root mean square of its difference, in standard
        deviations of each value; shape (n,).
    :ivar correlations: of its standardised values with those of its match, shape (n,).
    """

    errors: FloatArray
    correlations: FloatArray


def inputs_of(batch: Any) -> torch.Tensor:
    """What a batch's model looks at: its largest tensor of floats, shape (B, ...).

    :raises TrainingError: none has more than one number a record.
    """
    found = [leaf for leaf in _leaves(batch) if leaf.is_floating_point() and leaf.dim() > 1]
    if not found:
        raise TrainingError("the records hold no tensor of numbers that could be sought")
    return max(found, key=torch.numel)


def with_inputs(batch: Any, old: torch.Tensor, new: torch.Tensor) -> Any:
    """The batch with ``new`` in the place of ``old``, which is one of its tensors."""
    if batch is old:
        return new
    if isinstance(batch, Mapping):
        return {key: with_inputs(value, old, new) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(with_inputs(value, old, new) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(with_inputs(value, old, new) for value in batch)
    return batch


def _leaves(batch: Any) -> list[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        return [leaf for part in batch for leaf in _leaves(part)]
    return []


def likeness(found: torch.Tensor, true: torch.Tensor, prior: Prior) -> Likeness:
    """:param found: shape (n, ...) like ``true``; in any order."""
    guesses, truth = prior.standardised(found), prior.standardised(true)
    errors = np.sqrt(((truth[:, None, :] - guesses[None, :, :]) ** 2).mean(2))  # (n, n)
    rows, columns = linear_sum_assignment(errors)
    pairs = zip(truth[rows], guesses[columns], strict=True)
    correlations = np.array([_correlation(one, other) for one, other in pairs])
    return Likeness(errors[rows, columns], correlations)


def _correlation(one: FloatArray, other: FloatArray) -> float:
    norms = float(np.linalg.norm(one - one.mean()) * np.linalg.norm(other - other.mean()))
    if norms < MIN_DEVIATION:
        return 0.0
    return float((one - one.mean()) @ (other - other.mean()) / norms)


def linear_layer(learner: Learner, values: int) -> str | None:
    """The name of the layer that sees the records first, where the quotient can be taken: a
    ``Linear`` with bias, as wide as a record, whose weights travel. None where there is none."""
    for name, module in learner.model.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        fits = (
            isinstance(module, torch.nn.Linear)
            and module.bias is not None
            and module.in_features == values
            and {_of(name, "weight"), _of(name, "bias")} <= set(learner.parts.travelling)
        )
        return name if fits else None
    return None


def _of(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter


def quotient(learner: Learner, seen: Observed, layer: str) -> torch.Tensor:
    """The record behind a delta of one record, or a weighted mean of more, shape (values,).

    Exact for one step of sgd from a fresh start; the penalty of weight decay, which is known, is
    taken out first.
    """
    before = _named(learner, seen.before.parameters)
    after = _named(learner, seen.after.parameters)

    def gradient(name: str) -> torch.Tensor:
        change = (before[name].double() - after[name].double()) / learner.settings.learning_rate
        return change - learner.settings.weight_decay * before[name].double()

    weights, biases = gradient(_of(layer, "weight")), gradient(_of(layer, "bias"))
    row = int(biases.abs().argmax())
    if biases[row] == 0.0:
        return torch.zeros(weights.shape[1])
    return (weights[row] / biases[row]).float()


def seek(
    learner: Learner,
    seen: Observed,
    steps: Sequence[Any],
    prior: Prior,
    *,
    iterations: int,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """Seek records whose local steps give the delta.

    :param steps: for each local step its batch, of which only what is no input is looked at.
    :returns: inputs found, one tensor for each of ``steps``, shaped like its own.
    :raises TaskError: the task's loss raised.
    """
    learner.load(seen.before.parameters, seen.before.state)
    learner.model.train()
    before, after = (_named(learner, side.parameters) for side in (seen.before, seen.after))
    names = list(learner.parts.trained)
    target = torch.cat([(after[name] - before[name]).flatten() for name in names])
    deviation = prior.deviation.clamp(min=MIN_DEVIATION)
    real = [inputs_of(batch) for batch in steps]
    free = [
        torch.randn(inputs.flatten(1).shape, generator=generator).requires_grad_()
        for inputs in real
    ]
    optimiser = torch.optim.Adam(free, lr=ATTACK_LEARNING_RATE)

    def candidates() -> list[torch.Tensor]:
        return [
            (prior.mean + deviation * part).view(inputs.shape)
            for part, inputs in zip(free, real, strict=True)
        ]

    for _ in range(iterations):
        optimiser.zero_grad()
        batches = [
            with_inputs(batch, inputs, guess)
            for batch, inputs, guess in zip(steps, real, candidates(), strict=True)
        ]
        change = _unrolled(learner, before, batches, names)
        distance = 1.0 - torch.nn.functional.cosine_similarity(change, target, dim=0, eps=1e-12)
        roughness = sum(_total_variation(part, one) for part, one in zip(free, real, strict=True))
        (distance + SMOOTHNESS * roughness / len(free)).backward()
        optimiser.step()
    learner.model.zero_grad(set_to_none=True)
    return [guess.detach() for guess in candidates()]


def _total_variation(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor | float:
    """Of neighbouring pixels, mean, where ``like``, shape (B, C, H, W), is of images; what is
    sought are patients, not noise (Geiping et al., section 3)."""
    if like.dim() != 4:
        return 0.0
    images = values.view(like.shape)
    down, across = images.diff(dim=2), images.diff(dim=3)
    return down.abs().mean() + across.abs().mean()


def _unrolled(
    learner: Learner, before: Mapping[str, torch.Tensor], batches: Sequence[Any], names: list[str]
) -> torch.Tensor:
    """What the local steps change, shape (trained parameters,), differentiable by the inputs.

    As sgd takes them from a fresh start; where the site uses another optimiser it is a guess at
    its direction.
    """
    settings = learner.settings
    weights = {name: before[name].clone().requires_grad_() for name in names}
    start = weights
    speed = {name: torch.zeros_like(value) for name, value in weights.items()}
    for batch in batches:
        with task_code("loss"):
            loss = learner.task.loss(_Functional(learner.model, weights), batch)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        stepped = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            speed[name] = settings.momentum * speed[name] + gradient
            speed[name] = speed[name] + settings.weight_decay * weight
            stepped[name] = weight - settings.learning_rate * speed[name]
        weights = stepped
    return torch.cat([(weights[name] - start[name]).flatten() for name in names])


class _Functional(torch.nn.Module):
    """The model with other weights, called as the task calls the model."""

    def __init__(self, model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._called = [model]  # in a list, so that it is no part of this module
        self._weights = dict(weights)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return functional_call(self._called[0], self._weights, arguments, named)


def _named(learner: Learner, parameters: NDArray[np.float32]) -> dict[str, torch.Tensor]:
    """The flat vector as tensors by name."""
    found, start = {}, 0
    for name, shape in learner.schema.tensors:
        size = int(np.prod(shape))
        part = torch.from_numpy(np.array(parameters[start : start + size]))
        found[name] = part.view(shape).to(learner.device)
        start += size
    return found


class _Witnessed:
    """A task that keeps the batch of each step, so that what is found can be held against it."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.batches: list[Any] = []

    def build_model(self) -> torch.nn.Module:
        return self._task.build_model()

    def datasets(self) -> Datasets:
        return self._task.datasets()

    def collate(self, records: list[Any]) -> Any:
        return _collate(self._task, records)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        self.batches.append(batch)
        return self._task.loss(model, batch)

    def metrics(self, model: torch.nn.Module, batches: Any) -> Mapping[str, Any]:
        return self._task.metrics(model, batches)


class LinearControl:
    """The records of a task through one linear layer, where the quotient must find them."""

    def __init__(self, task: Task, values: int) -> None:
        self._task = task
        self._values = values

    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(self._values, 1)

    def datasets(self) -> Datasets:
        return self._task.datasets()

    def collate(self, records: list[Any]) -> Any:
        return _collate(self._task, records)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        scores: torch.Tensor = model(inputs_of(batch).flatten(1))  # (B, 1)
        return (scores - 1.0).square().mean()

    def metrics(self, model: torch.nn.Module, batches: Any) -> Mapping[str, Any]:
        return {}


def control_setting(setting: Setting, values: int) -> Setting:
    """The same site with one linear layer as its model and plain gradient steps."""
    loop = LoopSettings(batch_size=1, learning_rate=0.01, momentum=0.0)
    return replace(setting, task=LinearControl(setting.task, values), loop=loop, noise=None)


@dataclass(frozen=True)
class Attempt:
    """What was made of a delta.

    :ivar guess: for each true record the correlation with its match among as many other records,
        the mean over ``GUESSES`` draws of them, shape (n,).
    """

    attack: Likeness
    guess: FloatArray


class Inverter:
    """Attacks deltas of a site.

    :param others: records that the attacker may know: the hold-out.
    :raises TrainingError: the records hold nothing that could be sought.
    """

    def __init__(self, setting: Setting, dataset: Dataset[Any], others: Dataset[Any]) -> None:
        self._setting = setting
        self._dataset = dataset
        count = min(PRIOR_RECORDS, len(others))  # type: ignore[arg-type]
        with task_code("reading the records"):
            known = _collate(setting.task, [others[index] for index in range(count)])
        self._known = inputs_of(to_device(known, setting.device))
        self.prior = Prior.of(self._known)

    @property
    def values(self) -> int:
        """Numbers in a record's input."""
        return self._known[0].numel()

    def attempt(
        self,
        setting: Setting,
        indices: Sequence[int],
        *,
        batch_size: int,
        steps: int,
        iterations: int,
        generator: np.random.Generator,
        by_quotient: bool,
    ) -> Attempt | None:
        """Train one round on the records at ``indices`` from the genesis model; invert its delta.

        :param setting: the site's own, with or without noise, or :func:`control_setting`'s.
        :param batch_size: records a step; under privacy, on average.
        :param by_quotient: take the quotient where there is a linear layer for it.
        :returns: None where no step drew a record.
        """
        witness = _Witnessed(setting.task)
        loop = setting.loop.model_copy(
            update={"batch_size": batch_size, "micro_batch_size": None}
        )
        local = replace(setting, task=witness, loop=loop, records=len(indices))
        learner = local.learner(len(indices))
        seed = int(generator.integers(2**62))
        (seen,) = train_rounds(learner, Subset(self._dataset, list(indices)), 1, steps, seed)
        batches = list(witness.batches)
        if not batches:
            return None
        truth = torch.cat([inputs_of(batch) for batch in batches])
        layer = linear_layer(learner, self.values)
        if by_quotient and layer is not None:
            one = quotient(learner, seen, layer).view(1, *truth.shape[1:])
            found = one.expand(truth.shape)
        else:
            draws = torch.Generator().manual_seed(seed >> 1)
            parts = seek(
                learner, seen, batches, self.prior, iterations=iterations, generator=draws
            )
            found = torch.cat(parts)
        guesses = [
            likeness(self._known[picked], truth, self.prior).correlations
            for picked in generator.integers(len(self._known), size=(GUESSES, len(truth)))
        ]
        return Attempt(likeness(found, truth, self.prior), np.mean(guesses, axis=0))


def _collate(task: Task, records: list[Any]) -> Any:
    return task.collate(records) if isinstance(task, CollatingTask) else default_collate(records)
