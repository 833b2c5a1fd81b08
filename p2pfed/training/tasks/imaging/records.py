"""A site's images as datasets: listed at once, read when they are needed, kept as memory allows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from p2pfed.training.tasks.findings import Findings, refusal
from p2pfed.training.tasks.imaging.options import ImageOptions
from p2pfed.training.tasks.imaging.preparing import Preparation
from p2pfed.training.tasks.imaging.reading import Pixels, read_image

Item = tuple[torch.Tensor, torch.Tensor]


class Images(Protocol):
    """Images of a site, in the order of their records."""

    def __len__(self) -> int: ...

    def file(self, index: int) -> tuple[Path, str]:
        """The image's file and its place there, for messages."""

    def read(self, index: int) -> Pixels:
        """(C, *spatial), float32. Raises ``DataError``."""


class FileImages:
    """One file an image."""

    def __init__(self, paths: Sequence[Path], dimensions: int, channels: int) -> None:
        self.paths = paths
        self._dimensions, self._channels = dimensions, channels

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, index: int) -> tuple[Path, str]:
        return self.paths[index], ""

    def read(self, index: int) -> Pixels:
        return read_image(self.paths[index], self._dimensions, self._channels)


class ArrayImages:
    """Rows of one array of an NPZ file: (n, *spatial), or with the channels last.

    :raises DataError: the array has another shape, or is not of numbers.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        array: NDArray[Any],
        rows: NDArray[np.int64],
        options: ImageOptions,
        channels: int,
    ) -> None:
        flat = array.ndim == 1 + options.dimensions and channels == 1
        stacked = array.ndim == 2 + options.dimensions and array.shape[-1] == channels
        if not (flat or stacked):
            raise refusal(
                path,
                f"has shape {array.shape}; expected records, {options.dimensions} spatial axes"
                f"{'' if channels == 1 else f' and {channels} channels'}",
                "reshape it, or correct spatial_size and channels of the topology file",
                key=name,
            )
        if array.dtype.kind not in "buif":
            raise refusal(path, "is not of numbers", "save intensities", key=name)
        self._path, self._name, self._rows = path, name, rows
        self._array = array[..., None] if flat else array

    def __len__(self) -> int:
        return len(self._rows)

    def file(self, index: int) -> tuple[Path, str]:
        return self._path, f"{self._name}[{self._rows[index]}]"

    def read(self, index: int) -> Pixels:
        record = np.moveaxis(self._array[self._rows[index]], -1, 0)
        pixels = np.ascontiguousarray(record, np.float32)
        if not np.isfinite(pixels).all():
            path, key = self.file(index)
            raise refusal(path, "has pixels that are not finite", "leave it out", key=key)
        return pixels


class Masks:
    """Images of class numbers.

    :param values: the number that stands for each class, in the classes' order.
    """

    def __init__(self, images: Images, values: Sequence[int]) -> None:
        self._images = images
        self._values = np.asarray(values, np.float32)

    def read(self, index: int) -> NDArray[np.uint8]:
        """(1, *spatial), the number of each pixel's class.

        :raises DataError: also where a pixel is of no class that the federation knows.
        """
        pixels = self._images.read(index)
        order = np.argsort(self._values)
        places = np.searchsorted(self._values[order], pixels).clip(max=len(order) - 1)
        classes: NDArray[np.uint8] = order[places].astype(np.uint8)
        if not (self._values[classes] == pixels).all():
            path, key = self._images.file(index)
            raise refusal(
                path,
                "has pixels of a class that the federation does not know",
                "correct it, or agree on it in classes and mask_values of the topology file",
                key=key,
            )
        return classes


class CachedRecords(Dataset[Item]):
    """Prepared records, kept in memory up to a bound.

    What came first stays: training draws shuffled passes over the records, and a cache of the
    newest would forget each of them just before its turn.

    :param count: how many there are.
    :param read: the prepared record of an index, tensors. Raises ``DataError``.
    """

    def __init__(self, count: int, read: Callable[[int], Item], cache_megabytes: int) -> None:
        self._count, self._read = count, read
        self._left_bytes = cache_megabytes * 1_000_000
        self._kept: dict[int, Item] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Item:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        item = self._read(index)
        size_bytes = sum(tensor.nbytes for tensor in item)
        if size_bytes <= self._left_bytes:
            self._left_bytes -= size_bytes
            self._kept[index] = item
        return item

    def check(self, source: Path) -> None:
        """Read every record.

        :raises DataError: with what is wrong with any of them; the first twenty are named.
        """
        findings = Findings()
        for index in range(self._count):
            with findings.collecting():
                self[index]
        findings.check(source)


def labelled(
    images: Images, labels: NDArray[np.int64], options: ImageOptions, cache_megabytes: int
) -> CachedRecords:
    """Items (image (C, *spatial_size) float32, class () int64)."""
    preparation = Preparation(options)
    numbers = torch.from_numpy(labels)

    def read(index: int) -> Item:
        return preparation.image(images.read(index)), numbers[index]

    return CachedRecords(len(images), read, cache_megabytes)


def masked(
    images: Images, masks: Masks, options: ImageOptions, cache_megabytes: int
) -> CachedRecords:
    """Items (image (C, *spatial_size) float32, classes (1, *spatial_size) uint8)."""
    preparation = Preparation(options)

    def read(index: int) -> Item:
        pixels, classes = images.read(index), masks.read(index)
        if pixels.shape[1:] != classes.shape[1:]:
            path, key = images.file(index)
            text = f"has shape {pixels.shape[1:]}, and its mask {classes.shape[1:]}"
            raise refusal(path, text, "draw the mask on this image", key=key)
        return preparation.image(pixels), preparation.mask(classes)

    return CachedRecords(len(images), read, cache_megabytes)
