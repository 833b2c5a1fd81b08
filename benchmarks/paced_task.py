"""A task of a few parameters whose local step takes a given time without a processor: rounds
come at a hospital's pace relative to what a long run measures, and several sites share a core."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from flat_task import Flat


class Paced(Flat):
    """``options["step_seconds"]``: how long a local step takes."""

    def __init__(self, options: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(options, data)
        self._step_seconds = float(options["step_seconds"])

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        time.sleep(self._step_seconds)
        return super().loss(model, batch)
