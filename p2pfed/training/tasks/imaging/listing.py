"""Finding a site's images and what is known of each: in a folder, an NPZ file or a manifest.

================  ==========================================  ===================================
form              classification                              segmentation
================  ==========================================  ===================================
folder            a folder for each class                     ``images`` and ``masks``, like names
NPZ               arrays ``images`` and ``labels``            arrays ``images`` and ``masks``
CSV manifest      columns ``file`` and ``label``              columns ``file`` and ``mask``
================  ==========================================  ===================================
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfed.training.tasks.arrays import read_arrays
from p2pfed.training.tasks.findings import Findings, refusal
from p2pfed.training.tasks.imaging.options import ImageData, ImageOptions
from p2pfed.training.tasks.imaging.reading import IMAGE_SUFFIXES, stem
from p2pfed.training.tasks.imaging.records import ArrayImages, FileImages, Images, Masks
from p2pfed.training.tasks.labels import class_numbers, unknown_label
from p2pfed.training.tasks.manifest import (
    MAX_RECORDS,
    existing_files,
    read_manifest,
    read_rows,
)


@dataclass(frozen=True)
class Source:
    """One part of a site's records: where it is, and which of it."""

    path: Path
    split: str = ""
    rows_path: Path | None = None

    def array(self, name: str) -> str:
        """The array of an NPZ file: ``images``, or ``train_images`` of the split train."""
        return f"{self.split}_{name}" if self.split else name


def list_labelled(
    source: Source, options: ImageOptions, data: ImageData
) -> tuple[Images, NDArray[np.int64]]:
    """The images, and the class of each, shape (n,).

    :raises DataError: with everything wrong with the listing itself: files that are not there,
        classes that the federation does not know.
    """
    if source.path.is_dir():
        return _folder_of_classes(source, options)
    if source.path.suffix.lower() == ".npz":
        names = [source.array("images"), source.array("labels")]
        arrays = read_arrays(source.path, names)
        rows = _rows_of(source, arrays, names)
        images = ArrayImages(
            source.path, names[0], arrays[names[0]], rows, options, options.channels
        )
        labels = class_numbers(source.path, names[1], arrays[names[1]][rows], options.classes)
        return images, labels
    rows_text = read_manifest(
        source.path, [data.file_column, data.target_column or "label"], source.rows_path
    )
    findings = Findings()
    root = Path(data.root_path) if data.root_path else source.path.parent
    paths = existing_files(source.path, [file for _, (file, _) in rows_text], root, findings)
    labels = np.zeros(len(rows_text), np.int64)
    for index, (number, (_, label)) in enumerate(rows_text):
        if label in options.classes:
            labels[index] = options.classes.index(label)
        else:
            findings.add(source.path, f"data row {number}", *unknown_label())
    findings.check(source.path)
    return FileImages(paths, options.dimensions, options.channels), labels


def list_masked(
    source: Source, options: ImageOptions, data: ImageData, values: Sequence[int]
) -> tuple[Images, Masks]:
    """The images and their masks.

    :param values: the number in a mask that stands for each class.
    :raises DataError: files that are not there, or arrays that do not fit.
    """
    if source.path.suffix.lower() == ".npz" and not source.path.is_dir():
        names = [source.array("images"), source.array("masks")]
        arrays = read_arrays(source.path, names)
        rows = _rows_of(source, arrays, names)
        images = ArrayImages(
            source.path, names[0], arrays[names[0]], rows, options, options.channels
        )
        drawn = ArrayImages(source.path, names[1], arrays[names[1]], rows, options, 1)
        return images, Masks(drawn, values)
    findings = Findings()
    if source.path.is_dir():
        image_paths, mask_paths = _paired_folders(source.path, options.dimensions, findings)
    else:
        found = read_manifest(
            source.path, [data.file_column, data.target_column or "mask"], source.rows_path
        )
        root = Path(data.root_path) if data.root_path else source.path.parent
        image_paths = existing_files(
            source.path, [image for _, (image, _) in found], root, findings
        )
        mask_paths = existing_files(source.path, [mask for _, (_, mask) in found], root, findings)
    findings.check(source.path)
    images_found = FileImages(image_paths, options.dimensions, options.channels)
    return images_found, Masks(FileImages(mask_paths, options.dimensions, 1), values)


def _folder_of_classes(source: Source, options: ImageOptions) -> tuple[Images, NDArray[np.int64]]:
    findings = Findings()
    _no_rows_of_a_folder(source, findings)
    paths: list[Path] = []
    labels: list[int] = []
    for folder in sorted(_visible(source.path)):
        if not folder.is_dir():
            findings.add(folder, "", "stands beside the classes' folders", "move it into one")
        elif folder.name not in options.classes:
            findings.add(folder, "", "is no class that the federation knows", unknown_label()[1])
        else:
            found = _images_in(folder, options.dimensions, findings)
            paths += found
            labels += [options.classes.index(folder.name)] * len(found)
    findings.check(source.path)
    if not paths:
        raise refusal(source.path, "holds no image", "put a folder there for each class")
    return FileImages(paths, options.dimensions, options.channels), np.asarray(labels, np.int64)


def _paired_folders(
    folder: Path, dimensions: int, findings: Findings
) -> tuple[list[Path], list[Path]]:
    """Files of ``images`` and of ``masks`` whose names are alike but for the suffix."""
    absent = [name for name in ("images", "masks") if not (folder / name).is_dir()]
    if absent:
        text = f"has no folder {' and no folder '.join(absent)}"
        raise refusal(folder, text, "put images in images, and masks of the same names in masks")
    images = {stem(path): path for path in _images_in(folder / "images", dimensions, findings)}
    masks = {stem(path): path for path in _images_in(folder / "masks", dimensions, findings)}
    for name in sorted(images.keys() ^ masks.keys()):
        if name in images:
            findings.add(images[name], "", "has no mask", "draw it, or leave the image out")
        else:
            findings.add(masks[name], "", "has no image", "leave it out")
    both = sorted(images.keys() & masks.keys())
    return [images[name] for name in both], [masks[name] for name in both]


def _images_in(folder: Path, dimensions: int, findings: Findings) -> list[Path]:
    """The images of a folder; of volumes also folders, each a DICOM series."""
    found: list[Path] = []
    for path in sorted(_visible(folder)):
        if len(found) >= MAX_RECORDS:
            raise refusal(folder, f"holds over {MAX_RECORDS} files")
        if path.name.lower().endswith(IMAGE_SUFFIXES) or (path.is_dir() and dimensions == 3):
            found.append(path)
        else:
            findings.add(path, "", f"is no {', '.join(IMAGE_SUFFIXES)} file", "move it elsewhere")
    return found


def _visible(folder: Path) -> list[Path]:
    try:
        return [Path(entry) for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise refusal(folder, f"cannot be read: {error.strerror}", "check the path") from error


def _rows_of(
    source: Source, arrays: dict[str, NDArray[Any]], names: Sequence[str]
) -> NDArray[np.int64]:
    """Which rows of the arrays are used; the arrays have as many each."""
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        text = ", ".join(f"{name} has {lengths[name]}" for name in names)
        raise refusal(source.path, f"its arrays are not of the same records: {text}")
    count = lengths[names[0]]
    if not count:
        raise refusal(source.path, "has no records", key=names[0])
    if source.rows_path is None:
        return np.arange(count)
    return read_rows(source.rows_path, count)


def _no_rows_of_a_folder(source: Source, findings: Findings) -> None:
    if source.rows_path is not None:
        findings.add(source.rows_path, "", "rows_path is for an NPZ file or a manifest")
