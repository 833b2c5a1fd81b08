"""Reading DICOM images (the standard's parts 3 and 5) as the numbers that they measure.

The modality's rescaling is applied, so that a CT is in Hounsfield units at every site, and
MONOCHROME1 is turned so that a higher number is brighter.
"""

import logging
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_modality_lut, get_decoder

from p2pfed.training.tasks.findings import Findings, file_bytes, refusal

MAX_SERIES_FILES = 10_000
POSITION_TOLERANCE_MILLIMETRES = 0.01
SPACING_TOLERANCE = 0.05  # share of the median distance of two slices
ORIENTATION_TOLERANCE = 1e-3

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
GREY = ("MONOCHROME1", "MONOCHROME2")

Pixels = NDArray[np.float32]

# What pydicom raises on damaged files; its messages may repeat a header and are left out.
_DAMAGE = (
    InvalidDicomError,
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)

# Its log repeats header values, and so do its warnings, which read_image holds back.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


def read_dicom(path: Path, dimensions: int, max_voxels: int) -> Pixels:
    """One DICOM file: (channels, rows, columns), or of several frames (1, x, y, z).

    :raises DataError: damaged, too large, or of a kind that is not read.
    """
    dataset = _open(path)
    frames = _decode(path, dataset, max_voxels)  # (frames, rows, columns[, 3])
    if dimensions == 3 and frames.ndim == 3:
        return _to_patient_axes(frames, np.asarray(AXIAL), (1.0, 1.0, 1.0))[None]
    if frames.shape[0] != 1:
        raise refusal(path, f"has {frames.shape[0]} frames", "export one of them")
    flat = frames[0]
    return flat[None] if flat.ndim == 2 else np.ascontiguousarray(np.moveaxis(flat, -1, 0))


def read_series(folder: Path, max_bytes: int, max_voxels: int) -> Pixels:
    """The slices of one DICOM series, a file each, as one volume (1, x, y, z).

    :param max_bytes: of all files together.
    :raises DataError: a file is damaged; the slices are of several series, sizes or orientations,
        do not say where they are, or are not evenly spaced (one is missing, or stands twice).
    """
    names = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    if not 2 <= len(names) <= MAX_SERIES_FILES:
        text = f"holds {len(names)} files; a series has 2 to {MAX_SERIES_FILES}"
        raise refusal(folder, text, "put the files of one series there, and nothing else")
    findings = Findings()
    left_bytes, left_voxels = max_bytes, max_voxels
    slices: list[tuple[Any, Pixels]] = []
    for name in names:
        with findings.collecting():
            left_bytes -= file_bytes(name, max(left_bytes, 1))
            dataset = _open(name)
            frames = _decode(name, dataset, left_voxels)
            if frames.ndim != 3 or frames.shape[0] != 1:
                raise refusal(name, "is no single grey slice", "leave it out of the series")
            left_voxels -= frames.size
            slices.append((_geometry(name, dataset), frames[0]))
    findings.check(folder)
    geometries = [geometry for geometry, _ in slices]
    first = geometries[0]
    alike = all(
        geometry.series == first.series
        and geometry.shape == first.shape
        and np.allclose(geometry.orientation, first.orientation, atol=ORIENTATION_TOLERANCE)
        for geometry in geometries
    )
    if not alike:
        raise refusal(
            folder,
            "its files differ in series, size or orientation",
            "put each series in a folder of its own",
        )
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    heights = np.asarray([geometry.position @ normal for geometry in geometries])
    order = np.argsort(heights)
    gaps = np.asarray([above - below for below, above in pairwise(heights[order])])
    spacing = float(np.median(gaps))
    uneven = np.abs(gaps - spacing) > SPACING_TOLERANCE * spacing + POSITION_TOLERANCE_MILLIMETRES
    if spacing <= POSITION_TOLERANCE_MILLIMETRES or uneven.any():
        raise refusal(
            folder, "its slices are not evenly spaced", "a file is missing, or stands twice"
        )
    frames = np.stack([slices[index][1] for index in order])  # (slices, rows, columns)
    return _to_patient_axes(frames, first.orientation, (*first.spacing, spacing))[None]


class _Geometry:
    """Where a slice is: DICOM part 3, C.7.6.2 (image plane)."""

    def __init__(self, dataset: Any) -> None:
        self.series = str(dataset.get("SeriesInstanceUID", ""))
        self.shape = (int(dataset.Rows), int(dataset.Columns))
        self.position = np.asarray([float(value) for value in dataset.ImagePositionPatient])
        self.orientation = np.asarray([float(value) for value in dataset.ImageOrientationPatient])
        rows, columns = (float(value) for value in dataset.get("PixelSpacing", (1.0, 1.0)))
        self.spacing = (rows, columns)  # millimetres between rows, between columns
        found = [*self.position, *self.orientation, *self.spacing]
        if len(found) != 11 or not np.isfinite(found).all() or min(self.spacing) <= 0:
            raise ValueError("position, orientation or spacing")


def _geometry(path: Path, dataset: Any) -> _Geometry:
    try:
        return _Geometry(dataset)
    except _DAMAGE as error:
        raise refusal(
            path, "does not say where its slice is", "export it with position and orientation"
        ) from error


def _to_patient_axes(
    frames: NDArray[Any], orientation: NDArray[np.float64], spacing: tuple[float, float, float]
) -> Pixels:
    """(slices, rows, columns) -> (x, y, z) to the right, front and head, as NIfTI's canonical form.

    :param orientation: shape (6,): the direction of a row, then of a column, in DICOM's axes, to
        the left, back and head.
    :param spacing: millimetres between rows, columns and slices.
    """
    along_row, along_column = orientation[:3], orientation[3:]
    affine = np.eye(4)
    affine[:3, 0] = along_column * spacing[0]  # one row further
    affine[:3, 1] = along_row * spacing[1]  # one column further
    affine[:3, 2] = np.cross(along_row, along_column) * spacing[2]
    affine[:2] *= -1.0  # left, back -> right, front
    found = nibabel.orientations.io_orientation(affine)
    turned = nibabel.orientations.apply_orientation(np.moveaxis(frames, 0, -1), found)
    return np.ascontiguousarray(turned, np.float32)


def _open(path: Path) -> Any:
    try:
        dataset = pydicom.dcmread(path)
        syntax = dataset.file_meta.TransferSyntaxUID
        readable = syntax.is_transfer_syntax and not syntax.is_private
        readable = readable and get_decoder(syntax).is_available
    except _DAMAGE as error:
        raise refusal(path, "is damaged, or no DICOM file", "export it again") from error
    if not readable:
        # The name comes from pydicom's dictionary of the standard, not from the file.
        name = syntax.name if syntax.is_transfer_syntax and not syntax.is_private else "unknown"
        raise refusal(
            path,
            f"is compressed in a way that cannot be read here ({name})",
            "export it uncompressed (explicit VR little endian)",
        )
    return dataset


def _decode(path: Path, dataset: Any, max_voxels: int) -> NDArray[Any]:
    """(frames, rows, columns), or with a last axis of 3 for colour; float32 in all."""
    try:
        samples = int(dataset.get("SamplesPerPixel", 1))
        count = int(dataset.get("NumberOfFrames", 1) or 1)
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        interpretation = str(dataset.get("PhotometricInterpretation", ""))
    except _DAMAGE as error:
        raise refusal(path, "says nothing of its size, or has no image") from error
    voxels = samples * count * rows * columns
    if voxels <= 0 or voxels > max_voxels:
        raise refusal(path, f"has no pixels, or over {max_voxels}", "export it smaller")
    if interpretation != "RGB" and interpretation not in GREY:
        raise refusal(path, "is neither grey nor RGB", "export it as one of them")
    if "PerFrameFunctionalGroupsSequence" in dataset:
        raise refusal(
            path,
            "is an enhanced multi-frame image, whose frames have scales of their own",
            "export it as a series, one file a slice",
        )
    try:
        stored = dataset.pixel_array
        values = np.asarray(apply_modality_lut(stored, dataset), np.float32)
        if interpretation == "MONOCHROME1":
            ends = _stored_ends(dataset)
            low, high = np.asarray(apply_modality_lut(ends, dataset), np.float32)
            values = low + high - values
    except _DAMAGE as error:
        raise refusal(path, "its pixels are damaged or cut short", "export it again") from error
    shape = (count, rows, columns) if samples == 1 else (count, rows, columns, samples)
    if values.size != voxels:
        raise refusal(path, "its pixels do not fit its header", "export it again")
    return values.reshape(shape)


def _stored_ends(dataset: Any) -> NDArray[Any]:
    """The least and the greatest number that a pixel of so many bits can hold."""
    bits = int(dataset.BitsStored)
    if int(dataset.PixelRepresentation):
        return np.asarray([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1], np.int32)
    return np.asarray([0, 2**bits - 1], np.int64 if bits > 31 else np.int32)
