"""The built-in task: two classes from a table, by logistic regression or a small network."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, Strict, model_validator
from torch.utils.data import TensorDataset

from p2pfed.errors import DataError, Problem
from p2pfed.settings import Settings
from p2pfed.training.evaluation.binary import Predictions, binary_metrics
from p2pfed.training.settings import LoopSettings, validate_table
from p2pfed.training.task import Datasets
from p2pfed.training.tasks.tabular.columns import Column, feature_count
from p2pfed.training.tasks.tabular.table import ExtraColumns, Table, constant_columns, read_table

logger = logging.getLogger(__name__)

MAX_COLUMNS = 10_000
MAX_HIDDEN_LAYERS = 16


class TabularOptions(LoopSettings):
    """``[task.options]`` of a federation with ``kind = "tabular"``; alike at every site."""

    label: str = Field(min_length=1, description="The column to be told: 0 or 1.")
    columns: Annotated[tuple[Column, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=MAX_COLUMNS, description="The columns to tell it from."
    )
    model: Literal["mlp", "logistic_regression"] = Field(
        "mlp", description="A network with ReLU layers, or none. Default mlp."
    )
    hidden: Annotated[tuple[int, ...], Strict(strict=False)] = Field(
        (16,), max_length=MAX_HIDDEN_LAYERS, description="mlp: units of each layer. Default [16]."
    )
    batch_norm: bool = Field(False, description="mlp: batch norm after each layer. Default no.")
    class_weights: Literal["balanced", "none"] = Field(
        "none",
        description="balanced: both classes weigh the same in the loss at each site, however "
        "many records of each it has; this hides from the model that sites differ in how common "
        "the disease is. Default none.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is declared twice")
        if self.label in names:
            raise ValueError(f"the label {self.label!r} is among the columns to tell it from")
        if any(units < 1 for units in self.hidden):
            raise ValueError("every layer of hidden has at least 1 unit")
        if self.model == "logistic_regression" and {"hidden", "batch_norm"} & self.model_fields_set:
            raise ValueError("hidden and batch_norm are for model = 'mlp'")
        return self


class TabularData(Settings):
    """``[data]`` of a site file, where the task is tabular."""

    path: str = Field(min_length=1, description="The site's table: CSV, or Parquet by its suffix.")
    holdout_path: str | None = Field(
        None, description="A table of its own to evaluate on; then nothing is split off path."
    )
    holdout_fraction: float = Field(
        0.34, gt=0, lt=1, description="Share of each class kept from training. Default 0.34."
    )
    split_seed: int = Field(0, ge=0, description="Which records these are. Default 0.")
    extra_columns: ExtraColumns = Field(
        "refuse", description="What becomes of undeclared columns: refuse (default) or ignore."
    )


class TabularBatch(NamedTuple):
    """``features`` (B, m) and ``labels`` (B,), float32."""

    features: torch.Tensor
    labels: torch.Tensor


class Tabular:
    """Two classes from declared columns; see :class:`TabularOptions` and :class:`TabularData`."""

    def __init__(
        self,
        options: Mapping[str, Any],
        data: Mapping[str, Any],
        *,
        topology_file: Path = Path("topology.toml"),
        site_file: Path = Path("site.toml"),
    ) -> None:
        """:raises ConfigurationError: either table has bad keys; all of them are named."""
        self.options = validate_table(TabularOptions, options, "task.options", topology_file)
        self.data = validate_table(TabularData, data, "data", site_file)
        self._class_weights: torch.Tensor | None = None

    def build_model(self) -> torch.nn.Module:
        """Features (B, m) -> log-odds of class 1, (B, 1)."""
        layers: list[torch.nn.Module] = []
        width = feature_count(self.options.columns)
        if self.options.model == "mlp":
            for units in self.options.hidden:
                layers.append(torch.nn.Linear(width, units))
                if self.options.batch_norm:
                    layers.append(torch.nn.BatchNorm1d(units))
                layers.append(torch.nn.ReLU())
                width = units
        return torch.nn.Sequential(*layers, torch.nn.Linear(width, 1))

    def datasets(self) -> Datasets:
        """Read the site's table, split it, and learn the class weights from what is trained on.

        :raises DataError: the table does not fit, or its records are all of one class.
        """
        path = Path(self.data.path)
        training = self._read(path)
        _check_classes(path, training)
        if self.data.holdout_path is None:
            training, holdout = split(training, self.data.holdout_fraction, self.data.split_seed)
            if not holdout.labels.size:
                raise DataError(
                    [Problem(path, "", None, "too few records to keep any for evaluation")]
                )
        else:
            holdout = self._read(Path(self.data.holdout_path))
        for name in constant_columns(training, self.options.columns):
            logger.warning("%s: column %r has the same value in every training record", path, name)
        kept = _dataset(training)
        self.weigh_classes([kept])
        return Datasets(training=kept, holdout=_dataset(holdout))

    def file_dataset(self, path: Path) -> TensorDataset:
        """The records of another table with the same columns.

        :raises DataError: the table does not fit.
        """
        return _dataset(self._read(path))

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Binary cross entropy, each record weighted by its class."""
        features, labels = TabularBatch(*batch)
        scores = model(features)[:, 0]  # (B,)
        weights = None
        if self._class_weights is not None:
            weights = self._class_weights.to(labels.device)[labels.long()]  # (B,)
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels, weights)

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """Accuracy, log loss in nats, and AUC where the records are of both classes."""
        return binary_metrics(*self.predict(model, batches))

    def predict(self, model: torch.nn.Module, batches: Iterable[Any]) -> Predictions:
        """Labels and scores of every record of ``batches``, in their order."""
        labels, scores = [], []
        for batch in batches:
            features, part = TabularBatch(*batch)
            scores.append(model(features)[:, 0].double().cpu().numpy())
            labels.append(part.double().cpu().numpy())
        return Predictions(np.concatenate(labels), np.concatenate(scores))

    def predictions(self, model: torch.nn.Module, batches: Iterable[Any]) -> Predictions:
        """What the metrics' intervals and the calibration are computed from."""
        return self.predict(model, batches)

    def weigh_classes(self, training: Sequence[TensorDataset]) -> None:
        """Take the weight of each class, where they are balanced, from these records together.

        Balanced as in King and Zeng, Logistic Regression in Rare Events Data (2001): a record
        weighs n / (2 * records of its class), so that the mean weight is 1.
        """
        if self.options.class_weights == "none":
            return
        labels = torch.cat([dataset.tensors[1] for dataset in training])
        positives = labels.sum()
        self._class_weights = len(labels) / (2 * torch.stack([len(labels) - positives, positives]))

    def _read(self, path: Path) -> Table:
        return read_table(path, self.options.columns, self.options.label, self.data.extra_columns)


def split(table: Table, holdout_fraction: float, seed: int) -> tuple[Table, Table]:
    """Split a table into training and hold-out, each class in the same proportion.

    At least one record of each class stays in training. Depends on the order of the rows and
    on ``seed`` alone; each part keeps that order.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    held = np.zeros(table.labels.size, np.bool_)
    for label in (0.0, 1.0):
        (rows,) = np.nonzero(table.labels == label)
        count = min(round(rows.size * holdout_fraction), max(rows.size - 1, 0))
        held[generator.permutation(rows)[:count]] = True
    return table.rows(np.flatnonzero(~held)), table.rows(np.flatnonzero(held))


def _dataset(table: Table) -> TensorDataset:
    return TensorDataset(torch.from_numpy(table.features), torch.from_numpy(table.labels))


def _check_classes(path: Path, table: Table) -> None:
    if (table.labels == table.labels[0]).all():
        raise DataError(
            [
                Problem(
                    path,
                    "",
                    None,
                    f"all {table.labels.size} labels are alike; there is nothing to tell apart",
                    "check the label column, or that the table is complete",
                )
            ]
        )
