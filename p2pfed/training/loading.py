"""From an :class:`Open` request to a learner: finding the task's class, its device, its data."""

import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from p2pfed.errors import ConfigurationError, DataError, Problem
from p2pfed.tasks_catalogue import BUILTIN_TASKS
from p2pfed.training.builtin import builtin_class
from p2pfed.training.frames import Open
from p2pfed.training.loader_workers import why_not_passed_on
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.named_module import named_module
from p2pfed.training.partition import BATCH_NORMS
from p2pfed.training.privacy.settings import PrivateSettings
from p2pfed.training.records import Reader, Share, record_count, tensors_of
from p2pfed.training.schema import prepare
from p2pfed.training.settings import LoopSettings, loop_settings
from p2pfed.training.task import Datasets, Task, TaskError, task_code

logger = logging.getLogger(__name__)

TASK_METHODS = ("build_model", "datasets", "loss", "metrics")


@dataclass(frozen=True)
class LoadedTask:
    """A site's task, its data and the genesis model, on the device."""

    request: Open
    learner: Learner
    datasets: Datasets
    training_records: int
    holdout_records: int


def load(request: Open, share: Share | None = None) -> LoadedTask:
    """Load the task and the data that ``request`` names.

    :param share: this process's of each local step, where several share them.
    :raises ConfigurationError: the class, its options or the device cannot be used.
    :raises DataError: the site's data do not fit the task, or are too few.
    :raises TrainingError: the task's own code failed, or its model cannot travel.
    """
    device = pick_device(request.device, Path(request.site_file), share)
    task = load_task(request)
    settings = loop_settings(request.options, Path(request.topology_file))
    with task_code("datasets"):
        datasets = task.datasets()
    if not isinstance(datasets, Datasets):
        raise TaskError(f"datasets returned {type(datasets).__name__}, no Datasets")
    training_records = record_count(datasets.training)
    check_record_floor(request, training_records)
    privacy = _privacy(request, settings, training_records)
    model = genesis_model(task, request.seed)
    prepare(model)
    if share is not None:
        _check_share(request, model, share, private=privacy is not None)
    _check_loader_workers(request, task, datasets)
    topology_file = Path(request.topology_file)
    reader = Reader(task, device, request.loader_workers, share)
    learner = Learner(task, model, settings, device, topology_file, privacy, reader)
    if privacy is not None:
        from p2pfed.training.privacy import requirements  # noqa: PLC0415 - Opacus is slow to import

        requirements.check(learner, datasets.training, request)
    return LoadedTask(
        request=request,
        learner=learner,
        datasets=datasets,
        training_records=training_records,
        holdout_records=record_count(datasets.holdout),
    )


def _privacy(request: Open, settings: LoopSettings, records: int) -> PrivateSettings | None:
    if request.noise_multiplier is None or request.clip_norm is None:
        return None
    return PrivateSettings(
        request.noise_multiplier, request.clip_norm, settings.batch_size, records
    )


def load_task(request: Open) -> Task:
    """The task itself, not yet asked for anything.

    :raises ConfigurationError: no such class, not a task, or bad options.
    :raises TaskError: the class's own code raised.
    """
    # Last, so that nothing in the site's own directory stands in for an installed package.
    if request.task_path is not None and request.task_path not in sys.path:
        sys.path.append(request.task_path)
    if request.task_kind in BUILTIN_TASKS:
        return builtin_class(request.task_kind, Path(request.topology_file))(
            request.options,
            request.data,
            topology_file=Path(request.topology_file),
            site_file=Path(request.site_file),
        )
    task_class = _find_class(request)
    with task_code(request.task_class or ""):
        return task_class(request.options, request.data)


def _find_class(request: Open) -> Callable[..., Task]:
    """The class at ``module:Class``."""

    def refusal(reason: str, remedy: str) -> ConfigurationError:
        file = Path(request.topology_file)
        return ConfigurationError([Problem(file, "task.class", request.task_class, reason, remedy)])

    module_name, _, class_name = (request.task_class or "").partition(":")
    if not module_name or not class_name.isidentifier():
        raise refusal("not of the form module:Class", 'write class = "package.module:Class"')
    found: Any = getattr(named_module(module_name, refusal), class_name, None)
    if not inspect.isclass(found):
        raise refusal(f"module {module_name} has no class {class_name}", "correct the name")
    lacking = [name for name in TASK_METHODS if not callable(getattr(found, name, None))]
    if lacking:
        raise refusal(f"the class lacks {', '.join(lacking)}", "see p2pfed.training.task")
    return cast(Callable[..., Task], found)


def _check_share(request: Open, model: torch.nn.Module, share: Share, *, private: bool) -> None:
    """:raises ConfigurationError: training is private, which one process alone can do."""
    if private:
        raise ConfigurationError(
            [
                Problem(
                    Path(request.site_file),
                    "training.processes",
                    str(share.processes),
                    "differential privacy is trained by one process: the noise is drawn once for "
                    "the whole batch",
                    "set it to 1; a batch that does not fit a GPU is taken in parts",
                )
            ]
        )
    norms = [name for name, module in model.named_modules() if isinstance(module, BATCH_NORMS)]
    if norms and share.rank == 0:
        logger.warning(
            "batch norm (%s) sees each process's share of a batch, a record in %d; raise "
            "batch_size, or use group norm",
            norms[0],
            share.processes,
        )


def _check_loader_workers(request: Open, task: Task, datasets: Datasets) -> None:
    """:raises ConfigurationError: other processes cannot be given the records to read."""
    if not request.loader_workers or tensors_of(datasets.training) is not None:
        return
    reason = why_not_passed_on(datasets.training, getattr(task, "collate", None))
    if reason is not None:
        raise ConfigurationError(
            [
                Problem(
                    Path(request.site_file),
                    "training.loader_workers",
                    str(request.loader_workers),
                    f"this task's records cannot be passed to another process: {reason}",
                    "set it to 0, or keep open files and functions within functions out of the "
                    "Dataset",
                )
            ]
        )


def pick_device(name: str, site_file: Path, share: Share | None = None) -> torch.device:
    """The device to train on: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    :param share: of several processes each takes the GPU of its own number.
    :raises ConfigurationError: no such device here.
    """

    def refusal(reason: str) -> ConfigurationError:
        remedy = 'use "auto", "cpu", "cuda" or "cuda:N"'
        return ConfigurationError([Problem(site_file, "training.device", name, reason, remedy)])

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if share is not None and name.startswith("cuda"):
        if name != "cuda":
            raise refusal("each of several processes takes a GPU of its own")
        name = f"cuda:{share.rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise refusal("no device that torch knows") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise refusal(
                f"this machine has {count} CUDA devices that torch {torch.__version__} can use"
            )
    elif device.type != "cpu":
        raise refusal("only CPUs and CUDA devices are trained on")
    return device


def device_words(device: torch.device) -> str:
    """The device as ``status`` shows it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def check_record_floor(request: Open, training_records: int) -> None:
    """:raises DataError: fewer records than a round may be trained on."""
    floor = max(request.minimum_records, 1)
    if training_records < floor:
        raise DataError(
            [
                Problem(
                    Path(request.site_file),
                    "data",
                    None,
                    f"{training_records} training records; {floor} are required, because a model "
                    "trained on few records gives them away",
                    "add records; privacy.minimum_records of the topology file sets the floor",
                )
            ]
        )
