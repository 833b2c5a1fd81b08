"""The built-in task for tables: classes, a number or survival from declared columns."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, TensorDataset

from p2pfed.errors import DataError, Problem
from p2pfed.training.evaluation.binary import Predictions
from p2pfed.training.settings import validate_table
from p2pfed.training.task import Datasets
from p2pfed.training.tasks.tabular.columns import feature_count, numeric_places
from p2pfed.training.tasks.tabular.options import TabularData, TabularOptions
from p2pfed.training.tasks.tabular.standardise import (
    MIN_KNOWN_CELLS,
    Standardise,
    Statistics,
    exact_statistics,
    private_statistics,
)
from p2pfed.training.tasks.tabular.table import Table, constant_columns, read_table
from p2pfed.training.tasks.tabular.targets.binary import Binary
from p2pfed.training.tasks.tabular.targets.multiclass import Multiclass
from p2pfed.training.tasks.tabular.targets.regression import Regression
from p2pfed.training.tasks.tabular.targets.survival import Survival
from p2pfed.training.tasks.tabular.targets.target import Target, balanced_weights

logger = logging.getLogger(__name__)


class TabularBatch(NamedTuple):
    """``features`` (B, m) and ``labels``, (B,) or (B, 2), float32."""

    features: torch.Tensor
    labels: torch.Tensor


class Tabular:
    """A table task; see :class:`TabularOptions` and :class:`TabularData`."""

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
        self.target = target_of(self.options)
        self._class_weights: torch.Tensor | None = None

    def build_model(self) -> torch.nn.Module:
        """Features (B, m) -> the target's scores, (B, outputs)."""
        layers: list[torch.nn.Module] = []
        width = feature_count(self.options.columns)
        if self.options.standardise == "federated":
            layers.append(Standardise([place for _, place in self._numeric()]))
        if self.options.model == "mlp":
            for units in self.options.hidden:
                layers.append(torch.nn.Linear(width, units))
                if self.options.batch_norm:
                    layers.append(torch.nn.BatchNorm1d(units))
                layers.append(torch.nn.ReLU())
                width = units
        last = torch.nn.Linear(width, self.target.outputs, bias=self.target.bias)
        return torch.nn.Sequential(*layers, last)

    def datasets(self) -> Datasets:
        """Read the site's table, split it, and learn the class weights from what is trained on.

        :raises DataError: the table does not fit, or there is nothing to learn from it: all
            labels are alike, or no record has the event.
        """
        path = Path(self.data.path)
        training = self._read(path)
        self._check_labels(path, training)
        if self.data.holdout_path is None:
            strata = self.target.strata(training.labels)
            training, holdout = split(
                training, self.data.holdout_fraction, self.data.split_seed, strata
            )
            if not len(holdout.labels):
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

    def prepare(
        self,
        model: torch.nn.Module,
        dataset: Dataset[Any],
        round_number: int,
        seed: int,  # noqa: ARG002 - noise that a neighbour could draw again would hide nothing
        prepared: bool,
    ) -> bool:
        """Agree on centre and scale where the federation standardises; see ``standardise``.

        At its first such round a site puts its own statistics into the model. Noise on them
        comes from the operating system: a round that is prepared again after a crash gives other
        bytes, of which none had left the site.

        :param dataset: the training records.
        :param prepared: whether this site has contributed.
        :returns: whether this is a round without local steps.
        """
        if round_number >= self.preparation_rounds:
            return False
        if not prepared:
            (layer,) = (part for part in model.modules() if isinstance(part, Standardise))
            layer.contribute(self._statistics(dataset))
        return True

    @property
    def preparation_rounds(self) -> int:
        """Rounds at the start of the federation in which no local step is taken."""
        options = self.options
        return options.standardise_rounds if options.standardise == "federated" else 0

    def preparation_spend(self) -> tuple[float, float] | None:
        """What this site's contribution costs in privacy: noise multiplier and sampling rate of
        one Gaussian mechanism over all its training records.

        :returns: None where no record is looked at; a noise multiplier of 0 where nothing hides
            them, which no privacy budget pays for.
        """
        if self.options.standardise == "declared":
            return None
        return self.options.standardise_noise_multiplier or 0.0, 1.0

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The target's mean loss, each record weighted by its class where they are balanced."""
        features, labels = TabularBatch(*batch)
        weights = self._class_weights
        if weights is not None:
            weights = weights.to(labels.device)
        # In mixed precision the scores may be bfloat16: too coarse for sums of exponentials.
        return self.target.loss(model(features).float(), labels, weights)

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """The target's figures over all records of ``batches``."""
        return self.figures(self.predictions(model, batches))

    def predictions(self, model: torch.nn.Module, batches: Iterable[Any]) -> Predictions:
        """Labels and scores of every record of ``batches``, in their order, float64.

        Labels have shape (n,), or (n, 2), time and event, of a survival target. Scores have shape
        (n,): log-odds of class 1, the number, or the log hazard; (n, classes), logits, where
        there are several classes.
        """
        labels, scores = [], []
        for batch in batches:
            features, part = TabularBatch(*batch)
            scores.append(model(features).double().cpu().numpy())
            labels.append(part.double().cpu().numpy())
        together = np.concatenate(scores)  # (n, outputs)
        single = self.target.outputs == 1
        return Predictions(np.concatenate(labels), together[:, 0] if single else together)

    def figures(self, predictions: Predictions) -> Mapping[str, float]:
        """The metrics of these predictions."""
        return self.target.metrics(*predictions)

    def weigh_classes(self, training: Sequence[TensorDataset]) -> None:
        """Take the weight of each class, where they are balanced, from these records together."""
        if self.options.class_weights == "none":
            return
        labels = torch.cat([dataset.tensors[1] for dataset in training])
        self._class_weights = balanced_weights(labels, self.target.class_count)

    def _statistics(self, dataset: Dataset[Any]) -> Statistics:
        numeric = self._numeric()
        places = [place for _, place in numeric]
        multiplier = self.options.standardise_noise_multiplier
        if multiplier is None:
            statistics = exact_statistics(dataset, places)
        else:
            clip = self.options.standardise_clip
            unknown = np.random.default_rng()  # of the operating system's entropy
            statistics = private_statistics(dataset, places, clip, multiplier, unknown)
        for place, (name, _) in enumerate(numeric):
            if statistics.known[place]:
                continue
            few = statistics.counts[place] < MIN_KNOWN_CELLS
            logger.warning(
                "%s: column %r %s; this site says nothing of its centre and scale",
                self.data.path,
                name,
                f"has under {MIN_KNOWN_CELLS} values" if few else "does not vary enough",
            )
        return statistics

    def _numeric(self) -> list[tuple[str, int]]:
        return numeric_places(self.options.columns)

    def _read(self, path: Path) -> Table:
        # A federation's centre is known to the model alone, which finds missing cells as NaN.
        standing_in = math.nan if self.options.standardise == "federated" else 0.0
        columns, extra = self.options.columns, self.data.extra_columns
        return read_table(path, columns, self.target, extra, standing_in)

    def _check_labels(self, path: Path, table: Table) -> None:
        lacking = self.target.lacks(table.labels)
        if lacking is not None:
            reason, remedy = lacking
            raise DataError([Problem(path, "", None, reason, remedy)])


def target_of(options: TabularOptions) -> Target:
    """The target that the options describe."""
    match options.target:
        case "binary":
            return Binary(options.label)
        case "multiclass":
            return Multiclass(options.label, options.classes)
        case "regression":
            return Regression(options.label, options.label_centre, options.label_scale)
        case "survival":
            return Survival(options.time, options.event)


def split(
    table: Table, holdout_fraction: float, seed: int, strata: NDArray[np.float64] | None = None
) -> tuple[Table, Table]:
    """Split a table into training and hold-out, each stratum in the same proportion.

    At least one record of each stratum stays in training. Depends on the order of the rows and
    on ``seed`` alone; each part keeps that order.

    :param strata: shape (n,); the labels where none are given.
    """
    if strata is None:
        strata = table.labels.astype(np.float64)
    generator = np.random.Generator(np.random.PCG64(seed))
    held = np.zeros(strata.size, np.bool_)
    for stratum in np.unique(strata):
        (rows,) = np.nonzero(strata == stratum)
        count = min(round(rows.size * holdout_fraction), max(rows.size - 1, 0))
        held[generator.permutation(rows)[:count]] = True
    return table.rows(np.flatnonzero(~held)), table.rows(np.flatnonzero(held))


def _dataset(table: Table) -> TensorDataset:
    return TensorDataset(torch.from_numpy(table.features), torch.from_numpy(table.labels))
