"""The backbone: a model that every site has already, and that no round changes."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from p2pfed.errors import ConfigurationError, Problem
from p2pfed.training.named_module import named_module
from p2pfed.training.task import TaskError, task_code
from p2pfed.training.tasks.findings import file_bytes, refusal

MAX_BACKBONE_BYTES = 256 * 1024**3
CHUNK_BYTES = 1024 * 1024
NAMED_TENSORS = 5


def find_function(location: str, topology_file: Path) -> Callable[..., Any]:
    """The function at ``package.module:function``.

    :raises ConfigurationError: it is not there.
    :raises TaskError: its module raised when imported.
    """

    def refused(reason: str, remedy: str) -> ConfigurationError:
        problem = Problem(topology_file, "task.options.base", location, reason, remedy)
        return ConfigurationError([problem])

    module_name, _, name = location.partition(":")
    found = getattr(named_module(module_name, refused), name, None)
    if not callable(found):
        raise refused(f"module {module_name} has no function {name}", "correct the name")
    function: Callable[..., Any] = found
    return function


def build(location: str, arguments: Mapping[str, Any], topology_file: Path) -> torch.nn.Module:
    """The backbone as its function makes it, with a head.

    :raises ConfigurationError: there is no such function, or it does not take ``arguments``.
    :raises TaskError: it raised, or returned no module.
    """
    function = find_function(location, topology_file)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        problem = Problem(topology_file, "task.options.base_options", None, f"{location}: {error}")
        raise ConfigurationError([problem]) from error
    with task_code(location):
        model = function(**arguments)
    if not isinstance(model, torch.nn.Module):
        raise TaskError(f"{location} returned {type(model).__name__}, no torch.nn.Module")
    return model


def check_digest(path: Path, sha256: str) -> None:
    """:raises DataError: the file's SHA-256 is another than the federation's."""
    file_bytes(path, MAX_BACKBONE_BYTES)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror}") from error
    if digest.hexdigest() != sha256:
        raise refusal(
            path,
            f"has SHA-256 {digest.hexdigest()}; the federation's backbone has {sha256}",
            "get the file that the federation has agreed on",
            key="backbone_path",
        )


def load_weights(model: torch.nn.Module, path: Path, head: Sequence[str]) -> None:
    """Fill ``model`` from a safetensors file, whose digest was checked.

    The file need not have the head, which is trained; what it has must all be the model's.

    :raises DataError: tensors are missing, too many or of other shapes.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise refusal(path, "is damaged, or no safetensors file", key="backbone_path") from error
    own = model.state_dict()
    missing = [name for name in own if name not in tensors and not in_modules(name, head)]
    unknown = [name for name in tensors if name not in own]
    unlike = [name for name in tensors if name in own and tensors[name].shape != own[name].shape]
    said = [("lacks", missing), ("has, and the model has not,", unknown), ("shapes", unlike)]
    words = [
        f"{what} {', '.join(names[:NAMED_TENSORS])}"
        f"{f' and {len(names) - NAMED_TENSORS} more' if len(names) > NAMED_TENSORS else ''}"
        for what, names in said
        if names
    ]
    if words:
        raise refusal(
            path,
            f"does not fit the backbone: {'; '.join(words)}",
            "base and base_options of the topology file say what it is for",
            key="backbone_path",
        )
    model.load_state_dict(tensors, strict=False)


def in_modules(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor's dotted name lies in one of ``modules``."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
