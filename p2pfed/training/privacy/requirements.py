"""What a task must be like for its gradients to be private; refused with the layer's name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from opacus.validators import ModuleValidator
from torch.utils.data import Dataset, default_collate

from p2pfed.errors import ConfigurationError, Problem
from p2pfed.training.frames import Open
from p2pfed.training.loop import Learner
from p2pfed.training.privacy.preparing import PricedPreparation
from p2pfed.training.privacy.sampling import MIN_EXPECTED_BATCH, sampling_rate
from p2pfed.training.records import to_device
from p2pfed.training.settings import LoopSettings
from p2pfed.training.task import CollatingTask, PreparingTask, Task, task_code

TRIED_RECORDS = 8
LOSS_TOLERANCE = 1e-3  # relative; float32 sums in another order differ by less

_BATCH_NORMS = torch.nn.modules.batchnorm._BatchNorm
_INSTANCE_NORMS = torch.nn.modules.instancenorm._InstanceNorm


def check(learner: Learner, dataset: Dataset[Any], request: Open) -> None:
    """Refuse what cannot be trained privately, before the first round.

    :param dataset: the training records.
    :raises ConfigurationError: settings, model, loss or preparation do not fit.
    :raises TaskError: the task's code failed.
    """
    assert learner.privacy is not None  # noqa: S101 - asked before
    assert request.delta is not None  # noqa: S101 - given with the rest
    topology_file = Path(request.topology_file)
    records = learner.privacy.records
    check_settings(learner.settings, records, request.delta, topology_file, Path(request.site_file))
    check_preparation(learner.task, topology_file)
    check_model(learner.model, topology_file)
    check_loss(
        learner.task,
        learner.model,
        dataset,
        records,
        partial(to_device, device=learner.device),
        topology_file,
    )


def check_preparation(task: Task, topology_file: Path) -> None:
    """:raises ConfigurationError: the task shows others what no noise hides."""
    if not isinstance(task, PreparingTask):
        return
    priced = isinstance(task, PricedPreparation)
    spend = task.preparation_spend() if isinstance(task, PricedPreparation) else None
    if (priced and spend is None) or (spend is not None and spend[0] > 0.0):
        return
    raise ConfigurationError(
        [
            Problem(
                topology_file,
                "task.options",
                None,
                "before it trains the task gives other sites statistics of this one's records, and "
                "no noise hides them",
                "for a table set standardise_noise_multiplier, or declare centre and scale of each "
                "column; a class of your own says what it costs in preparation_spend()",
            )
        ]
    )


def check_settings(
    settings: LoopSettings, records: int, delta: float, topology_file: Path, site_file: Path
) -> None:
    """:raises ConfigurationError: with every setting that private training cannot go with."""
    problems = []
    if settings.gradient_clip_norm is not None:
        problems.append(
            Problem(
                topology_file,
                "task.options.gradient_clip_norm",
                f"{settings.gradient_clip_norm:g}",
                "clips the gradient of a whole step; under differential privacy each record's is "
                "clipped already, and what is clipped after the noise no longer has the size that "
                "learning_rate was chosen for",
                "leave it out; privacy.clip_norm takes its place",
            )
        )
    expected = sampling_rate(settings.batch_size, records) * records
    if expected < MIN_EXPECTED_BATCH:
        problems.append(
            Problem(
                topology_file,
                "task.options.batch_size",
                str(settings.batch_size),
                f"a private step would draw {expected:g} records on average: all noise, and at "
                "most one record's gradient under it",
                f"raise it to {MIN_EXPECTED_BATCH:g} at least; 64 and more cost less accuracy",
            )
        )
    if delta * records >= 1.0:
        problems.append(
            Problem(
                site_file,
                "privacy.delta",
                f"{delta:g}",
                f"not less than 1 / {records} training records: such a delta allows to give one "
                "record away whole",
                f"write a delta of {0.1 / records:.0e} or less",
            )
        )
    if problems:
        raise ConfigurationError(problems)


def check_model(model: torch.nn.Module, topology_file: Path) -> None:
    """Refuse a model in which one record's gradient depends on the others, or is not known.

    :raises ConfigurationError: names each such layer and what to use in its place.
    """
    problems = []
    was_training = model.training
    model.train()
    for name, layer in model.named_modules():
        remedy = _remedy(layer)
        if remedy is not None:
            problems.append(
                Problem(
                    topology_file,
                    "task",
                    f"layer {name or 'model'} ({type(layer).__name__})",
                    *remedy,
                )
            )
    model.train(was_training)
    if problems:
        raise ConfigurationError(problems)


def _remedy(layer: torch.nn.Module) -> tuple[str, str] | None:
    """Why a layer cannot be trained privately and what to use; None where it can."""
    if isinstance(layer, _BATCH_NORMS):
        if not layer.training:
            return None  # the task keeps it in eval mode: it normalises by constants
        groups = f"torch.nn.GroupNorm(min(32, {layer.num_features}), {layer.num_features})"
        return (
            "normalises each record by the others of its batch, so no gradient is one record's",
            f"use {groups}"
            if layer.num_features % min(32, layer.num_features) == 0
            else f"use torch.nn.GroupNorm(1, {layer.num_features})",
        )
    if isinstance(layer, _INSTANCE_NORMS) and layer.track_running_stats:
        return (
            "keeps running statistics of the records, which no noise protects",
            "use it with track_running_stats=False",
        )
    trained = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    if isinstance(layer, torch.nn.RNNBase):
        if not any(parameter.requires_grad for parameter in layer.parameters()):
            return None
        name = {"RNN_TANH": "DPRNN", "RNN_RELU": "DPRNN"}.get(layer.mode, f"DP{layer.mode}")
        return "Opacus has no gradients of single records for it", f"use opacus.layers.{name}"
    if isinstance(layer, torch.nn.MultiheadAttention):
        if not any(parameter.requires_grad for parameter in layer.parameters()):
            return None
        return (
            "Opacus has no gradients of single records for it",
            "use opacus.layers.DPMultiheadAttention",
        )
    if not trained:
        return None
    if type(layer) in ModuleValidator.VALIDATORS:
        errors = ModuleValidator.VALIDATORS[type(layer)](layer)
        if errors:
            return (
                f"Opacus refuses it: {str(errors[0])[:200]}",
                "use another layer, or freeze it (requires_grad_(False))",
            )
    if any(True for _ in layer.buffers()):
        return (
            "has trained parameters and buffers in one: what its buffers take up no noise protects",
            "move the buffers to a module of their own, or make it of torch's layers",
        )
    return None


def check_loss(
    task: Task,
    model: torch.nn.Module,
    dataset: Dataset[Any],
    records: int,
    to_device: Callable[[Any], Any],
    topology_file: Path,
) -> None:
    """Refuse a loss that is not the mean of its records' own losses, on a few records.

    Clipping bounds what one record adds to the gradient. Where its presence also changes what
    the others add (a Cox likelihood, a mean weighted by the batch's own class counts, contrastive
    pairs), the bound is void and the noise too small.

    :raises ConfigurationError: the loss of a batch is not that mean.
    :raises TaskError: the task's code failed.
    """
    picked = sorted({index * records // TRIED_RECORDS for index in range(TRIED_RECORDS)})
    with task_code("reading the training records"):
        items = [dataset[index] for index in picked]
        collate = task.collate if isinstance(task, CollatingTask) else default_collate
        batch, singles = collate(items), [collate([item]) for item in items]
    was_training = model.training
    model.eval()  # dropout draws in another order for another batch
    with torch.no_grad(), task_code("loss"):
        together = float(task.loss(model, to_device(batch)))
        alone = [float(task.loss(model, to_device(single))) for single in singles]
    model.train(was_training)
    mean = sum(alone) / len(alone)
    if not abs(together - mean) <= LOSS_TOLERANCE * max(1e-6, abs(mean), abs(together)):
        raise ConfigurationError(
            [
                Problem(
                    topology_file,
                    "task",
                    "loss",
                    f"the loss of {len(picked)} records together is not the mean of their own "
                    "losses, so clipping one record's gradient does not bound what it changes",
                    "make it a mean over records; a weight a record may have, if it does not "
                    "depend on the others of its batch",
                )
            ]
        )
