"""The kinds of task that a topology file may name, and how their metrics are called. Names only:
what they learn is in training."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

TaskKind = Literal["tabular", "image_classification", "segmentation", "signal", "adapter", "python"]

PERSONAL_PREFIX = "personal_"
"""Of a metric's name where it is of the model that a site keeps to itself."""


@dataclass(frozen=True)
class BuiltinTask:
    """A task that comes with p2pfed.

    :ivar location: its class, as ``package.module:Class``.
    :ivar extra: what to install it with, as in ``pip install 'p2pfed[extra]'``; None for nothing.
    :ivar packages: what the extra brings and the task imports.
    """

    location: str
    extra: str | None = None
    packages: tuple[str, ...] = ()


BUILTIN_TASKS: Mapping[TaskKind, BuiltinTask] = MappingProxyType(
    {
        "tabular": BuiltinTask("p2pfed.training.tasks.tabular.task:Tabular"),
        "image_classification": BuiltinTask(
            "p2pfed.training.tasks.imaging.classification:ImageClassification",
            "imaging",
            ("monai", "pydicom", "nibabel"),
        ),
        "segmentation": BuiltinTask(
            "p2pfed.training.tasks.imaging.segmentation:Segmentation",
            "imaging",
            ("monai", "pydicom", "nibabel"),
        ),
        "signal": BuiltinTask("p2pfed.training.tasks.signal.task:Signal"),
        "adapter": BuiltinTask("p2pfed.training.tasks.adapter.task:Adapter", "adapter", ("peft",)),
    }
)
