"""A model as a safetensors file with its lineage, and such a file's evaluation."""

import hashlib
import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch

from p2pfed.errors import TrainingError
from p2pfed.training.frames import Evaluated, Exported
from p2pfed.training.loop import Learner
from p2pfed.training.regions import Vector
from p2pfed.training.sampling import Position
from p2pfed.training.schema import copy_out
from p2pfed.training.site_state import SiteModel
from p2pfed.training.task import FileTask, task_code

FILE_MODE = 0o600


def export_model(
    learner: Learner, parameters: Vector, state: Vector, path: Path, metadata: Mapping[str, str]
) -> Exported:
    """Write the model ``parameters``, shape (d,), under its own tensor names.

    Local tensors are written as ``state``, shape (s,), has them, and what never changes as the
    genesis model has it, so that ``load_state_dict`` finds its keys. Whole or not at all: written
    beside ``path``, made durable, then renamed.

    :param metadata: the lineage, as ``safetensors.safe_open(path).metadata()`` gives it back.
    :raises TrainingError: the file cannot be written.
    """
    learner.load(parameters, state)
    named = dict(chain(learner.model.named_parameters(), learner.model.named_buffers()))
    # state_dict() may also name what an extension module adds, and tied parameters twice.
    contents = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in learner.model.state_dict().items()
        if name in named
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        safetensors.torch.save_file(contents, part, metadata=dict(metadata))
        part.chmod(FILE_MODE)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            size_bytes = os.fstat(file.fileno()).st_size
            os.fsync(file.fileno())
        part.replace(path)
        _sync_directory(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise TrainingError(f"{path}: the model cannot be written: {error}") from error
    return Exported(path=str(path), size_bytes=size_bytes, sha256=digest)


def read_model(path: Path, learner: Learner) -> SiteModel:
    """The model in a file that :func:`export_model` wrote, local tensors included.

    :raises TrainingError: it cannot be read, or holds a model of another schema.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise TrainingError(f"{path}: no readable safetensors file: {error}") from error
    parts = learner.parts
    wanted = zip(
        (*parts.travelling, *parts.local),
        (*parts.travelling_tensors(learner.model), *parts.local_tensors(learner.model)),
        strict=True,
    )
    for name, tensor in wanted:
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != tuple(tensor.shape):
            raise TrainingError(
                f"{path}: tensor {name!r} is {found or 'missing'}; this task's model has "
                f"{tuple(tensor.shape)}"
            )
    state = np.zeros(learner.layout.floats, np.float32)
    model = SiteModel(np.empty(learner.schema.dimension, np.float32), state)
    copy_out([tensors[name].float() for name in parts.travelling], model.parameters)
    site = learner.layout.over(state)
    copy_out([tensors[name].float() for name in parts.local], site.local)
    site.write_head(Position(), prepared=True)
    return model


def evaluate_on_file(
    learner: Learner, parameters: Vector, state: Vector, data_path: Path
) -> Evaluated:
    """The task's metrics of ``parameters``, shape (d,), with the local tensors of ``state``,
    shape (s,), on another data file.

    :raises DataError: the file does not fit the task.
    :raises TrainingError: the task cannot read other files, or its code failed.
    """
    task = learner.task
    if not isinstance(task, FileTask):
        raise TrainingError(
            f"{type(task).__name__} cannot read another data file; "
            "give it a method file_dataset(path) that returns a Dataset"
        )
    with task_code("file_dataset"):
        dataset = task.file_dataset(data_path)
    return learner.assess(dataset, parameters, state)


def evaluate_model_file(learner: Learner, model_path: Path, data_path: Path) -> Evaluated:
    """The task's metrics of an exported model on a data file; neither needs a running daemon.

    :raises DataError: the data file does not fit the task.
    :raises TrainingError: the model file does not fit the task, or the task's code failed.
    """
    model = read_model(model_path, learner)
    return evaluate_on_file(learner, model.parameters, model.state, data_path)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
