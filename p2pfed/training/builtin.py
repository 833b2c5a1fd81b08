"""The tasks that come with p2pfed, by their kind."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from p2pfed.errors import ConfigurationError, Problem
from p2pfed.tasks_catalogue import BUILTIN_TASKS, TaskKind
from p2pfed.training.task import Task


def builtin_class(
    kind: TaskKind, topology_file: Path, key: str = "task.kind"
) -> Callable[..., Task]:
    """The class of a task that comes with p2pfed; only the one in use is imported.

    :param key: where the topology file names it.
    :raises ConfigurationError: it needs packages that this site has not installed.
    """
    builtin = BUILTIN_TASKS[kind]
    absent = [name for name in builtin.packages if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigurationError(
            [
                Problem(
                    topology_file,
                    key,
                    kind,
                    f"needs {', '.join(absent)}, which this site has not installed",
                    f"pip install 'p2pfed[{builtin.extra}]' here",
                )
            ]
        )
    module_name, _, class_name = builtin.location.partition(":")
    found: Callable[..., Task] = getattr(importlib.import_module(module_name), class_name)
    return found
