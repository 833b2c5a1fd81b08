"""A task with as many parameters as one likes and next to no computation: what is left of a
round is p2pfed's own."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils.data import TensorDataset

from p2pfed.training.task import Datasets

RECORDS = 64


class Flat:
    """``options["parameters"]`` weights of which a step touches all once."""

    def __init__(self, options: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        del data
        self.parameters = int(options["parameters"])

    def build_model(self) -> torch.nn.Module:
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(torch.rand(self.parameters) - 0.5)
        return module

    def datasets(self) -> Datasets:
        records = TensorDataset(torch.ones(RECORDS, 1))
        return Datasets(training=records, holdout=records)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        weight: torch.Tensor = model.weight  # type: ignore[assignment]
        loss: torch.Tensor = weight.square().mean() * batch[0].mean()
        return loss

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, Any]:
        del batches
        weight: torch.Tensor = model.weight  # type: ignore[assignment]
        return {"square": weight.square().mean()}
