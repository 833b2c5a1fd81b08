"""A model as a safetensors file with its lineage, and such a file's evaluation."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch

from p2pfed.errors import TrainingError
from p2pfed.training.frames import Evaluated, Exported
from p2pfed.training.loop import Learner, record_count
from p2pfed.training.regions import Vector
from p2pfed.training.schema import Schema, copy_out, local_state, schema_of, travelling
from p2pfed.training.task import FileTask, task_code

FILE_MODE = 0o600


def export_model(
    learner: Learner, parameters: Vector, path: Path, metadata: Mapping[str, str]
) -> Exported:
    """Write the model ``parameters``, shape (d,), under its own tensor names.

    Buffers that never travel are written as the genesis model has them, so that
    ``load_state_dict`` finds its keys. Whole or not at all: written beside ``path``, made
    durable, then renamed.

    :param metadata: the lineage, as ``safetensors.safe_open(path).metadata()`` gives it back.
    :raises TrainingError: the file cannot be written.
    """
    learner.load(parameters)
    state = learner.model.state_dict()
    names = {name for name, _ in travelling(learner.model)} | local_state(learner.model).keys()
    contents = {name: state[name].cpu().contiguous() for name in state if name in names}
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


def read_model(path: Path, schema: Schema) -> Vector:
    """The flat vector, shape (d,), of a file that :func:`export_model` wrote.

    :raises TrainingError: it cannot be read, or holds a model of another schema.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise TrainingError(f"{path}: no readable safetensors file: {error}") from error
    for name, shape in schema.tensors:
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise TrainingError(
                f"{path}: tensor {name!r} is {found or 'missing'}; this task's model has {shape}"
            )
    vector = np.empty(schema.dimension, np.float32)
    copy_out([tensors[name].float() for name, _ in schema.tensors], vector)
    return vector


def evaluate_on_file(learner: Learner, parameters: Vector, data_path: Path) -> Evaluated:
    """The task's metrics of ``parameters``, shape (d,), on another data file.

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
    return Evaluated(metrics=learner.evaluate(dataset, parameters), records=record_count(dataset))


def evaluate_model_file(learner: Learner, model_path: Path, data_path: Path) -> Evaluated:
    """The task's metrics of an exported model on a data file; neither needs a running daemon.

    :raises DataError: the data file does not fit the task.
    :raises TrainingError: the model file does not fit the task, or the task's code failed.
    """
    parameters = read_model(model_path, schema_of(learner.model))
    return evaluate_on_file(learner, parameters, data_path)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
