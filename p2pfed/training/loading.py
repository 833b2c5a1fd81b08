"""From an :class:`Open` request to a learner: finding the task's class, its device, its data."""

import importlib
import inspect
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
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.privacy.settings import PrivateSettings
from p2pfed.training.records import record_count
from p2pfed.training.schema import prepare
from p2pfed.training.settings import LoopSettings, loop_settings
from p2pfed.training.task import Datasets, Task, TaskError, task_code

TASK_METHODS = ("build_model", "datasets", "loss", "metrics")


@dataclass(frozen=True)
class LoadedTask:
    """A site's task, its data and the genesis model, on the device."""

    request: Open
    learner: Learner
    datasets: Datasets
    training_records: int
    holdout_records: int


def load(request: Open) -> LoadedTask:
    """Load the task and the data that ``request`` names.

    :raises ConfigurationError: the class, its options or the device cannot be used.
    :raises DataError: the site's data do not fit the task, or are too few.
    :raises TrainingError: the task's own code failed, or its model cannot travel.
    """
    device = pick_device(request.device, Path(request.site_file))
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
    topology_file = Path(request.topology_file)
    learner = Learner(task, model, settings, device, topology_file, privacy)
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
    try:
        with task_code(f"importing {module_name}"):
            module = importlib.import_module(module_name)
    except TaskError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise refusal(
                f"cannot be imported at this site: {error.__cause__}",
                "install the package here, or name its directory as [task] path in the site file",
            ) from error
        raise
    found: Any = getattr(module, class_name, None)
    if not inspect.isclass(found):
        raise refusal(f"module {module_name} has no class {class_name}", "correct the name")
    lacking = [name for name in TASK_METHODS if not callable(getattr(found, name, None))]
    if lacking:
        raise refusal(f"the class lacks {', '.join(lacking)}", "see p2pfed.training.task")
    return cast(Callable[..., Task], found)


def pick_device(name: str, site_file: Path) -> torch.device:
    """The device to train on: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    :raises ConfigurationError: no such device here.
    """

    def refusal(reason: str) -> ConfigurationError:
        remedy = 'use "auto", "cpu", "cuda" or "cuda:N"'
        return ConfigurationError([Problem(site_file, "training.device", name, reason, remedy)])

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
