"""The task ``segmentation``: the class of every pixel, or of every voxel of a volume."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from monai.losses.dice import DiceCELoss
from monai.metrics.meandice import compute_dice
from monai.networks.utils import one_hot
from numpy.typing import NDArray
from pydantic import Field, Strict, model_validator
from torch.utils.data import Dataset, Subset

from p2pfed.training.settings import validate_table
from p2pfed.training.task import Datasets
from p2pfed.training.tasks.findings import refusal
from p2pfed.training.tasks.imaging.augmentation import augment
from p2pfed.training.tasks.imaging.listing import Source, list_masked
from p2pfed.training.tasks.imaging.networks import segmenter
from p2pfed.training.tasks.imaging.options import ImageData, ImageOptions
from p2pfed.training.tasks.imaging.records import CachedRecords, Item, masked
from p2pfed.training.tasks.splitting import held_out

BASIC_UNET_LEVELS = 5
MAX_MASK_CLASSES = 60  # one figure a class, and a report keeps 64
MAX_MASK_VALUE = 65_535


class SegmentationOptions(ImageOptions):
    """``[task.options]`` of a federation with ``kind = "segmentation"``."""

    network: Literal["unet", "basic_unet"] = Field(
        "unet", description="unet (default): with residual units. basic_unet: the original."
    )
    widths: Annotated[tuple[int, ...], Strict(strict=False)] = Field(
        (16, 32, 64),
        min_length=2,
        max_length=6,
        description="Channels of each level, which but for the first halve the sides; basic_unet "
        "takes 5. Default [16, 32, 64].",
    )
    mask_values: Annotated[tuple[int, ...], Strict(strict=False)] = Field(
        (),
        description="The number that stands for each class in a mask, such as [0, 255]. Default "
        "0, 1, 2, in the order of classes.",
    )

    @model_validator(mode="after")
    def _network_consistent(self) -> Self:
        if len(self.classes) > MAX_MASK_CLASSES:
            raise ValueError(f"at most {MAX_MASK_CLASSES} classes are segmented")
        if self.mask_values and len(set(self.mask_values)) != len(self.classes):
            raise ValueError("mask_values has one number a class, and none twice")
        if not all(0 <= value <= MAX_MASK_VALUE for value in self.mask_values):
            raise ValueError(f"mask_values are 0 to {MAX_MASK_VALUE}")
        if self.network == "basic_unet" and len(self.widths) != BASIC_UNET_LEVELS:
            raise ValueError(f"network 'basic_unet' takes {BASIC_UNET_LEVELS} widths")
        groups = self.norm_groups if self.norm == "group" else 1
        if any(width < 1 or width % groups for width in self.widths):
            raise ValueError(f"widths are multiples of norm_groups, {groups}")
        self.check_depth(len(self.widths) - 1)
        step = 2 ** (len(self.widths) - 1)
        if any(side % step for side in self.spatial_size):
            raise ValueError(f"with these widths the sides of spatial_size are multiples of {step}")
        return self


class Overlaps(NamedTuple):
    """What was found in each of n records.

    :ivar losses: shape (n,), float64.
    :ivar dice: shape (n, classes without the background), float64; NaN where a record has no
        pixel of the class.
    """

    losses: NDArray[np.float64]
    dice: NDArray[np.float64]


class Segmentation:
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
        self.options = validate_table(SegmentationOptions, options, "task.options", topology_file)
        self.data = validate_table(ImageData, data, "data", site_file)
        # The mean of Dice loss (Milletari et al. 2016) and cross entropy. Each record has a Dice
        # of its own, so that the loss is a mean over records, as privacy needs it.
        self._loss = DiceCELoss(softmax=True, to_onehot_y=True, lambda_dice=0.5, lambda_ce=0.5)

    def build_model(self) -> torch.nn.Module:
        """Images (B, C, *spatial_size) -> logits (B, classes, *spatial_size)."""
        options = self.options
        return segmenter(options.network, options.widths, options, len(options.classes))

    def datasets(self) -> Datasets:
        """List this site's images and masks and, as [data] says, read them all once.

        :raises DataError: what is wrong with any of them, or too few to keep any back.
        """
        data = self.data
        rows_path = Path(data.rows_path) if data.rows_path else None
        source = Source(Path(data.path), data.split, rows_path)
        records = self._records(source)
        if data.holdout_path is None and data.holdout_split is None:
            held = held_out([0] * len(records), data.holdout_fraction, data.split_seed)
            if not held.any():
                raise refusal(source.path, "too few records to keep any for evaluation")
            return Datasets(
                training=Subset(records, np.flatnonzero(~held).tolist()),
                holdout=Subset(records, np.flatnonzero(held).tolist()),
            )
        holdout = Source(Path(data.holdout_path or data.path), data.holdout_split or "")
        return Datasets(training=records, holdout=self._records(holdout))

    def file_dataset(self, path: Path) -> Dataset[Item]:
        """The images and masks of another folder, NPZ file or manifest.

        :raises DataError: they do not fit.
        """
        split = self.data.split if self.data.holdout_split is None else self.data.holdout_split
        return self._records(Source(path, split))

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Half the Dice loss and half the cross entropy in nats, mean over the batch."""
        images, masks = batch  # (B, C, *spatial_size), (B, 1, *spatial_size) uint8
        if model.training:
            images, moved = augment(self.options.augmentation, images, masks)
            masks = masks if moved is None else moved
        loss: torch.Tensor = self._loss(model(images), masks.long())
        return loss

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """``dice``, the mean over classes of ``dice CLASS``, and the loss.

        The Dice of a class is the mean over the records that have it; the background has none.
        A class that no record has is left out of the mean.
        """
        return self.figures(self.predictions(model, batches))

    def predictions(self, model: torch.nn.Module, batches: Iterable[Any]) -> Overlaps:
        """The loss and the Dice of every record of ``batches``, in their order."""
        losses, scores = [], []
        for images, masks in batches:
            # A batch to evaluate may hold more than a network's activations leave room for.
            size = self.options.batch_size
            for part, classes in zip(images.split(size), masks.long().split(size), strict=True):
                logits = model(part)
                losses += [
                    float(self._loss(logits[index, None], classes[index, None]))
                    for index in range(len(part))
                ]
                scores.append(self._dice(logits, classes).double().numpy())
        return Overlaps(np.asarray(losses, np.float64), np.concatenate(scores))

    def figures(self, predictions: Overlaps) -> Mapping[str, float]:
        """The metrics of what was found in each record."""
        figures = {"loss": float(predictions.losses.mean())}
        for name, column in zip(self.options.classes[1:], predictions.dice.T, strict=True):
            if not np.isnan(column).all():
                figures[f"dice {name}"] = float(np.nanmean(column))
        known = [value for name, value in figures.items() if name.startswith("dice ")]
        if known:
            figures["dice"] = float(np.mean(known))
        return figures

    def _dice(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(B, classes without background), on the CPU."""
        count = len(self.options.classes)
        found = one_hot(logits.argmax(dim=1, keepdim=True), count)
        dice: torch.Tensor = compute_dice(found, one_hot(classes, count), include_background=False)
        return dice.cpu()

    def _records(self, source: Source) -> CachedRecords:
        values = self.options.mask_values or tuple(range(len(self.options.classes)))
        images, masks = list_masked(source, self.options, self.data, values)
        records = masked(images, masks, self.options, self.data.cache_megabytes)
        if self.data.check_files:
            records.check(source.path)
        return records
