"""Finding a site's images and what is known of each: in a folder, an NPZ file or a manifest.

================  ==========================================  ===================================
form              classification                              segmentation
================  ==========================================  ===================================
folder            a folder for each class                     ``images`` and ``masks``, like names
NPZ               arrays ``images`` and ``labels``            arrays ``images`` and ``masks``
CSV manifest      columns ``file`` and ``label``              columns ``file`` and ``mask``
================  ==========================================  ===================================
"""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfed.training.tasks.arrays import read_arrays
from p2pfed.training.tasks.findings import Findings, file_bytes, refusal
from p2pfed.training.tasks.imaging.options import ImageData, ImageOptions
from p2pfed.training.tasks.imaging.reading import IMAGE_SUFFIXES, stem
from p2pfed.training.tasks.imaging.records import ArrayImages, FileImages, Images, Masks

MAX_RECORDS = 2_000_000
MAX_TEXT_BYTES = 256 * 1024**2


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
    rows_text = _manifest(source, [data.file_column, data.target_column or "label"])
    findings = Findings()
    root = Path(data.root_path) if data.root_path else source.path.parent
    paths = _existing(source.path, [file for _, (file, _) in rows_text], root, findings)
    labels = np.zeros(len(rows_text), np.int64)
    for index, (number, (_, label)) in enumerate(rows_text):
        if label in options.classes:
            labels[index] = options.classes.index(label)
        else:
            findings.add(source.path, f"data row {number}", *_unknown())
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
        found = _manifest(source, [data.file_column, data.target_column or "mask"])
        root = Path(data.root_path) if data.root_path else source.path.parent
        image_paths = _existing(source.path, [image for _, (image, _) in found], root, findings)
        mask_paths = _existing(source.path, [mask for _, (_, mask) in found], root, findings)
    findings.check(source.path)
    images_found = FileImages(image_paths, options.dimensions, options.channels)
    return images_found, Masks(FileImages(mask_paths, options.dimensions, 1), values)


def class_numbers(
    path: Path, name: str, labels: NDArray[Any], classes: Sequence[str]
) -> NDArray[np.int64]:
    """Labels of an array, numbers from 0 or names, shape (n,) or (n, 1), as numbers (n,).

    :raises DataError: another shape, or a label that the federation does not know.
    """
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1:
        raise refusal(path, f"has shape {labels.shape}; expected one label a record", key=name)
    if flat.dtype.kind in "US":
        known = np.asarray(classes, dtype="U")
        matches = np.char.strip(flat.astype("U"))[:, None] == known[None, :]
    elif flat.dtype.kind in "buif":
        matches = flat[:, None] == np.arange(len(classes))[None, :]
    else:
        raise refusal(path, "is neither of numbers nor of text", key=name)
    unknown = np.flatnonzero(~matches.any(axis=1))
    if unknown.size:
        more = f", and {unknown.size - 1} more" if unknown.size > 1 else ""
        reason, remedy = _unknown()
        raise refusal(path, reason, remedy, key=f"{name}[{unknown[0]}]{more}")
    numbers: NDArray[np.int64] = matches.argmax(axis=1).astype(np.int64)
    return numbers


def _unknown() -> tuple[str, str]:
    return (
        "has a label that the federation does not know",
        "correct it, or agree on it in classes of the topology file",
    )


def _folder_of_classes(source: Source, options: ImageOptions) -> tuple[Images, NDArray[np.int64]]:
    findings = Findings()
    _no_rows_of_a_folder(source, findings)
    paths: list[Path] = []
    labels: list[int] = []
    for folder in sorted(_visible(source.path)):
        if not folder.is_dir():
            findings.add(folder, "", "stands beside the classes' folders", "move it into one")
        elif folder.name not in options.classes:
            findings.add(folder, "", "is no class that the federation knows", _unknown()[1])
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


def read_rows(path: Path, count: int) -> NDArray[np.int64]:
    """Row numbers from 0, one a line, each of them below ``count`` and there once.

    :raises DataError: naming the first lines that are not so.
    """
    findings = Findings()
    rows: dict[int, None] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        word = line.strip()
        if not word or (number == 1 and word == "row"):
            continue
        row = int(word) if word.isascii() and word.isdigit() and len(word) < 19 else count
        if row >= count:
            findings.add(path, f"line {number}", f"is no row number from 0 to {count - 1}")
        elif row in rows:
            findings.add(path, f"line {number}", "names a row that is there already")
        rows[row] = None
    findings.check(path)
    if not rows:
        raise refusal(path, "names no row")
    return np.asarray(list(rows), np.int64)


def _manifest(source: Source, columns: Sequence[str]) -> list[tuple[int, tuple[str, str]]]:
    """The cells of two columns of a CSV file with a header, and each row's number from 1."""
    path = source.path
    try:
        reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        absent = [name for name in columns if name not in header]
        if absent:
            raise refusal(
                path,
                f"has no column {', '.join(absent)}",
                "add it, or set file_column and target_column in [data]",
            )
        places = [header.index(name) for name in columns]
        rows: list[tuple[int, tuple[str, str]]] = []
        for number, row in enumerate(filter(None, reader), start=1):
            if len(row) != len(header):
                text = f"has {len(row)} fields, the header {len(header)}"
                raise refusal(path, text, "quote text with commas", key=f"data row {number}")
            rows.append((number, (row[places[0]].strip(), row[places[1]].strip())))
            if len(rows) > MAX_RECORDS:
                raise refusal(path, f"has over {MAX_RECORDS} rows")
    except csv.Error as error:
        raise refusal(path, "is no valid CSV", "export it again") from error
    if not rows:
        raise refusal(path, "has a header and no rows", "export it again")
    if source.rows_path is not None:
        rows = [rows[index] for index in read_rows(source.rows_path, len(rows))]
    return rows


def _existing(manifest: Path, names: Sequence[str], root: Path, findings: Findings) -> list[Path]:
    paths = [root / name for name in names]
    for name, path in zip(names, paths, strict=True):
        if not name or not path.exists():
            findings.add(path if name else manifest, "", "no such file; the manifest names it")
    return paths


def _no_rows_of_a_folder(source: Source, findings: Findings) -> None:
    if source.rows_path is not None:
        findings.add(source.rows_path, "", "rows_path is for an NPZ file or a manifest")


def _text(path: Path) -> str:
    file_bytes(path, MAX_TEXT_BYTES)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise refusal(path, "is not UTF-8 text", "save it as UTF-8") from error
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror}") from error
