"""Importing the module of what the topology file names as ``package.module:name``."""

import importlib
from collections.abc import Callable
from types import ModuleType

from p2pfed.errors import ConfigurationError
from p2pfed.training.task import TaskError, task_code


def named_module(module_name: str, refused: Callable[[str, str], ConfigurationError]) -> ModuleType:
    """The module, imported.

    :param refused: makes the error about where it is named, of a reason and a remedy.
    :raises ConfigurationError: this site has no such module.
    :raises TaskError: the module raised when imported.
    """
    try:
        with task_code(f"importing {module_name}"):
            return importlib.import_module(module_name)
    except TaskError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise refused(
                f"cannot be imported at this site: {error.__cause__}",
                "install the package here, or name its directory as [task] path in the site file",
            ) from error
        raise
