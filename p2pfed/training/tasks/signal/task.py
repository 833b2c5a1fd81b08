"""The task ``signal``: classes or findings of records in time."""

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from p2pfed.errors import ConfigurationError, Problem
from p2pfed.training.evaluation.binary import Predictions
from p2pfed.training.settings import validate_table
from p2pfed.training.task import Datasets
from p2pfed.training.tasks.classes import Classes
from p2pfed.training.tasks.findings import refusal
from p2pfed.training.tasks.signal.network import SignalResNet
from p2pfed.training.tasks.signal.options import SignalData, SignalOptions
from p2pfed.training.tasks.signal.records import Labels, Records, read_records
from p2pfed.training.tasks.splitting import held_out


class Signal:
    """The task. Takes ``[task.options]`` of the topology file and ``[data]`` of the site file."""

    def __init__(
        self,
        options: Mapping[str, Any],
        data: Mapping[str, Any],
        *,
        topology_file: Path = Path("topology.toml"),
        site_file: Path = Path("site.toml"),
    ) -> None:
        """:raises ConfigurationError: either table has bad keys, all of which are named; or this
        site's records have another sampling rate than the federation's.
        """
        self.options = validate_table(SignalOptions, options, "task.options", topology_file)
        self.data = validate_table(SignalData, data, "data", site_file)
        self.classes = Classes(self.options.classes, self.options.several)
        if self.data.sampling_hertz != self.options.sampling_hertz:
            raise ConfigurationError(
                [
                    Problem(
                        site_file,
                        "data.sampling_hertz",
                        str(self.data.sampling_hertz),
                        f"the federation's records have {self.options.sampling_hertz}",
                        "resample the records",
                    )
                ]
            )

    def build_model(self) -> torch.nn.Module:
        """Records (B, leads, samples) -> scores (B, ``Classes.outputs``)."""
        options = self.options
        return SignalResNet(
            len(options.leads),
            options.widths,
            self.classes.outputs,
            kernel=options.kernel_samples,
            groups=options.norm_groups,
        )

    def datasets(self) -> Datasets:
        """Read this site's records, and keep some to evaluate on.

        :raises DataError: what is wrong with any of them, or all are labelled alike.
        """
        data = self.data
        path = Path(data.path)
        records, labels = self._read(path, data.split)
        if (labels == labels[0]).all():
            raise refusal(
                path,
                f"all {len(labels)} records are labelled alike; there is nothing to tell apart",
                "check the labels, or that the records are complete",
            )
        if data.holdout_path is None and data.holdout_split is None:
            strata: list[Hashable] = [np.atleast_1d(label).tobytes() for label in labels]
            held = held_out(strata, data.holdout_fraction, data.split_seed)
            if not held.any():
                raise refusal(path, "too few records of each kind to keep any for evaluation")
            return Datasets(
                training=_dataset(records[~held], labels[~held]),
                holdout=_dataset(records[held], labels[held]),
            )
        other = self._read(Path(data.holdout_path or data.path), data.holdout_split or "")
        return Datasets(training=_dataset(records, labels), holdout=_dataset(*other))

    def file_dataset(self, path: Path) -> TensorDataset:
        """The records of another NPZ file or manifest.

        :raises DataError: they do not fit.
        """
        split = self.data.split if self.data.holdout_split is None else self.data.holdout_split
        return _dataset(*self._read(path, split))

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Mean cross entropy."""
        records, labels = batch  # (B, leads, samples), (B,) or (B, classes)
        return self.classes.loss(model(records), labels)

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """Accuracy, log loss in nats, and the area under the ROC curve; of several classes or
        findings their mean."""
        return self.figures(self.predictions(model, batches))

    def predictions(self, model: torch.nn.Module, batches: Iterable[Any]) -> Predictions:
        """Labels and scores of every record, in their order; see :class:`Classes`."""
        return self.classes.predictions(model, batches, self.options.batch_size)

    def figures(self, predictions: Predictions) -> Mapping[str, float]:
        """The metrics of what was predicted."""
        return self.classes.figures(predictions)

    def _read(self, path: Path, split: str) -> tuple[Records, Labels]:
        root = Path(self.data.root_path) if self.data.root_path else None
        return read_records(path, split, root, self.options)


def _dataset(records: Records, labels: Labels) -> TensorDataset:
    return TensorDataset(torch.from_numpy(records), torch.from_numpy(labels))
