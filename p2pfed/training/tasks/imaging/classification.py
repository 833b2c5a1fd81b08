"""The task ``image_classification``: one class of each image, in two or three dimensions."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, Strict, model_validator
from torch.utils.data import Dataset, Subset

from p2pfed.training.evaluation.binary import Predictions
from p2pfed.training.settings import validate_table
from p2pfed.training.task import Datasets
from p2pfed.training.tasks.classes import Classes
from p2pfed.training.tasks.findings import refusal
from p2pfed.training.tasks.imaging.augmentation import augment
from p2pfed.training.tasks.imaging.listing import Source, list_labelled
from p2pfed.training.tasks.imaging.networks import classifier
from p2pfed.training.tasks.imaging.options import ImageData, ImageOptions
from p2pfed.training.tasks.imaging.records import CachedRecords, Item, labelled
from p2pfed.training.tasks.splitting import held_out

RESNET_STAGES = 4
DENSENET_HALVINGS = 4


class ClassificationOptions(ImageOptions):
    """``[task.options]`` of a federation with ``kind = "image_classification"``."""

    network: Literal["cnn", "resnet", "densenet"] = Field(
        "cnn",
        description="cnn (default): a convolution with stride 2 a width, then a linear layer. "
        "resnet: four stages of one block. densenet: three blocks of two layers.",
    )
    widths: Annotated[tuple[int, ...], Strict(strict=False)] = Field(
        (16, 32, 64),
        min_length=1,
        max_length=8,
        description="Channels of each stage; resnet takes 4, densenet 1. Default [16, 32, 64].",
    )

    @model_validator(mode="after")
    def _network_consistent(self) -> Self:
        wanted = {"resnet": RESNET_STAGES, "densenet": 1}.get(self.network, len(self.widths))
        if len(self.widths) != wanted:
            raise ValueError(f"network {self.network!r} takes widths of {wanted}")
        step = self.norm_groups if self.norm == "group" else 1
        if self.network == "densenet":
            step *= 4  # growth is half the width, and a transition halves what there is
        if any(width < 1 or width % step for width in self.widths):
            raise ValueError(f"widths of {self.network!r} are here multiples of {step}")
        if self.network == "densenet" and min(self.spatial_size) < 2**DENSENET_HALVINGS:
            raise ValueError(f"densenet takes sides of at least {2**DENSENET_HALVINGS}")
        halvings = {"resnet": RESNET_STAGES - 1, "densenet": DENSENET_HALVINGS}
        self.check_depth(halvings.get(self.network, len(self.widths)))
        return self


class ImageClassification:
    """The task. Takes ``[task.options]`` of the topology file and ``[data]`` of the site file."""

    def __init__(
        self,
        options: Mapping[str, Any],
        data: Mapping[str, Any],
        *,
        topology_file: Path = Path("topology.toml"),
        site_file: Path = Path("site.toml"),
    ) -> None:
        """:raises ConfigurationError: either table has bad keys; all of them are named."""
        self.options = validate_table(ClassificationOptions, options, "task.options", topology_file)
        self.data = validate_table(ImageData, data, "data", site_file)
        self.classes = Classes(self.options.classes)

    def build_model(self) -> torch.nn.Module:
        """Images (B, C, *spatial_size) -> scores (B, ``Classes.outputs``)."""
        options = self.options
        return classifier(options.network, options.widths, options, self.classes.outputs)

    def datasets(self) -> Datasets:
        """List this site's images and, as [data] says, read them all once.

        :raises DataError: what is wrong with any of them, or all are of one class.
        """
        data = self.data
        rows_path = Path(data.rows_path) if data.rows_path else None
        source = Source(Path(data.path), data.split, rows_path)
        records, labels = self._records(source)
        if (labels == labels[0]).all():
            raise refusal(
                source.path,
                f"all {labels.size} images are of one class; there is nothing to tell apart",
                "check the labels, or that the images are complete",
            )
        if data.holdout_path is None and data.holdout_split is None:
            held = held_out(labels.tolist(), data.holdout_fraction, data.split_seed)
            return Datasets(
                training=Subset(records, np.flatnonzero(~held).tolist()),
                holdout=Subset(records, np.flatnonzero(held).tolist()),
            )
        holdout = Source(Path(data.holdout_path or data.path), data.holdout_split or "")
        return Datasets(training=records, holdout=self._records(holdout)[0])

    def file_dataset(self, path: Path) -> Dataset[Item]:
        """The images of another folder, NPZ file or manifest.

        :raises DataError: they do not fit.
        """
        split = self.data.split if self.data.holdout_split is None else self.data.holdout_split
        return self._records(Source(path, split))[0]

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Mean cross entropy."""
        images, labels = batch  # (B, C, *spatial_size), (B,)
        if model.training:
            images, _ = augment(self.options.augmentation, images)
        return self.classes.loss(model(images), labels)

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """Accuracy, log loss in nats, and the area under the ROC curve, macro of many classes."""
        return self.figures(self.predictions(model, batches))

    def predictions(self, model: torch.nn.Module, batches: Iterable[Any]) -> Predictions:
        """Labels (n,) and scores, (n,) of two classes and else (n, classes), in their order."""
        return self.classes.predictions(model, batches, self.options.batch_size)

    def figures(self, predictions: Predictions) -> Mapping[str, float]:
        """The metrics of what was predicted."""
        return self.classes.figures(predictions)

    def _records(self, source: Source) -> tuple[CachedRecords, NDArray[np.int64]]:
        images, labels = list_labelled(source, self.options, self.data)
        records = labelled(images, labels, self.options, self.data.cache_megabytes)
        if self.data.check_files:
            records.check(source.path)
        return records, labels
