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
from torch.func import functional_call
from torch.utils.data import Dataset, Subset

from p2pfed.training.audit.likeness import (
    MIN_DEVIATION,
    Likeness,
    Prior,
    inputs_of,
    likeness,
    with_inputs,
)
from p2pfed.training.audit.rounds import Observed, Setting, collated, held_at_once, train_rounds
from p2pfed.training.loop import Learner
from p2pfed.training.records import record_count, to_device
from p2pfed.training.settings import LoopSettings
from p2pfed.training.task import Datasets, Task, task_code

FloatArray = NDArray[np.float64]

ATTACK_LEARNING_RATE = 0.1  # in standard deviations of the records
SMOOTHNESS = 0.01  # weight of an image's total variation, in standard deviations a pixel
PRIOR_RECORDS = 512  # of the hold-out, that the attacker may know
GUESSES = 20


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
        return torch.zeros_like(weights[row], dtype=torch.float32)
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
        torch.randn(inputs.flatten(1).shape, generator=generator)
        .to(learner.device)
        .requires_grad_()
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
        with task_code("the second derivative of loss"):
            (distance + SMOOTHNESS * roughness / len(free)).backward()  # type: ignore[no-untyped-call]
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
        with task_code("the gradient of loss"):
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
        return collated(self._task, records)

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
        return collated(self._task, records)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        scores: torch.Tensor = model(inputs_of(batch).flatten(1))  # (B, 1)
        return (scores - 1.0).square().mean()

    def metrics(self, model: torch.nn.Module, batches: Any) -> Mapping[str, Any]:
        losses = [self.loss(model, batch) for batch in batches]
        return {"loss": sum(losses) / len(losses)}


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
        count = held_at_once(setting.task, others, min(PRIOR_RECORDS, record_count(others)))
        with task_code("reading the records"):
            known = collated(setting.task, [others[index] for index in range(count)])
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
        loop = setting.loop.model_copy(update={"batch_size": batch_size, "micro_batch_size": None})
        local = replace(setting, task=witness, loop=loop, records=len(indices))
        learner = local.learner(len(indices))
        seed = int(generator.integers(2**62))
        (seen,) = train_rounds(learner, Subset(self._dataset, list(indices)), 1, steps, seed)
        batches = list(witness.batches)
        if not batches:
            return None
        truth = torch.cat([inputs_of(batch) for batch in batches])
        layer = linear_layer(learner, self.values)
        if by_quotient and layer is not None and loop.optimiser == "sgd":
            one = quotient(learner, seen, layer).view(1, *truth.shape[1:])
            found = one.expand(truth.shape)
        else:
            draws = torch.Generator().manual_seed(seed >> 1)
            parts = seek(learner, seen, batches, self.prior, iterations=iterations, generator=draws)
            found = torch.cat(parts)
        guesses = [
            likeness(self._known[picked], truth, self.prior).correlations
            for picked in generator.integers(len(self._known), size=(GUESSES, len(truth)))
        ]
        return Attempt(likeness(found, truth, self.prior), np.mean(guesses, axis=0))
