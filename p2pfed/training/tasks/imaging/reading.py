"""Reading one image file: PNG, JPEG, DICOM or NIfTI.

Messages name the file and what is wrong with it, never what a header says of a patient.
"""

import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray
from PIL import Image, ImageOps

from p2pfed.training.tasks.findings import file_bytes, refusal
from p2pfed.training.tasks.imaging.dicom import read_dicom, read_series

MAX_FILE_BYTES = 2 * 1024**3
MAX_VOXELS = 512 * 1024**2

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, *NIFTI_SUFFIXES, *DICOM_SUFFIXES)

Pixels = NDArray[np.float32]

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)  # it repeats header values


def read_image(path: Path, dimensions: int, channels: int) -> Pixels:
    """An image as its device stored it, shape (channels, *spatial), float32.

    A picture's and a flat DICOM image's axes are (row, column). A volume's are x to the right,
    y to the front and z to the head of the patient, whatever its file's were: NIfTI says it by
    its affine, DICOM by position and orientation; a DICOM volume without them is taken as axial.

    :param path: a file, or of a volume a folder with the DICOM files of one series.
    :param dimensions: 2 or 3.
    :raises DataError: no such file, damaged, too large, of another kind or shape, or compressed
        in a way that cannot be read here.
    """
    with warnings.catch_warnings():
        # The libraries' warnings repeat what stands in a header.
        warnings.simplefilter("ignore")
        pixels = _read(path, dimensions, channels)
    if pixels.ndim != dimensions + 1 or pixels.shape[0] != channels:
        found = f"{pixels.ndim - 1} dimensions and {pixels.shape[0]} channels"
        raise refusal(
            path,
            f"has {found}; the federation's images have {dimensions} and {channels}",
            "leave it out, or export it so",
        )
    if 0 in pixels.shape:
        raise refusal(path, "has no pixels", "leave it out")
    if not np.isfinite(pixels).all():
        raise refusal(path, "has pixels that are not finite", "correct it, or leave it out")
    return pixels


def stem(path: Path) -> str:
    """A file's name without the suffix of an image: ``a.nii.gz`` -> ``a``."""
    for suffix in (".nii.gz", *IMAGE_SUFFIXES):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def _read(path: Path, dimensions: int, channels: int) -> Pixels:
    if path.is_dir() and dimensions == 3:
        return read_series(path, MAX_FILE_BYTES, MAX_VOXELS)
    file_bytes(path, MAX_FILE_BYTES)
    name = path.name.lower()
    if name.endswith(PICTURE_SUFFIXES):
        return _read_picture(path, channels)
    if name.endswith(NIFTI_SUFFIXES):
        return _read_nifti(path, dimensions, channels)
    # Archives name DICOM files as they like, so their content decides.
    return read_dicom(path, dimensions, MAX_VOXELS)


def _read_picture(path: Path, channels: int) -> Pixels:
    """A PNG or JPEG as (channels, rows, columns): grey of 8 or 16 bits, or colour of 8."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as file:
            if file.width * file.height > MAX_VOXELS:
                raise refusal(path, f"has over {MAX_VOXELS} pixels", "export it smaller")
            deep = file.mode.startswith("I")
            if deep and channels != 1:
                raise refusal(path, "is grey, of 16 bits", "export it in colour of 8 bits")
            if not deep:
                file.draft("L" if channels == 1 else "RGB", file.size)
            turned: Any = ImageOps.exif_transpose(file)
            if not deep:
                turned = turned.convert("L" if channels == 1 else "RGB")
            pixels = np.asarray(turned, np.float32)  # (rows, columns[, 3])
    except Image.DecompressionBombError as error:
        raise refusal(path, "has too many pixels", "export it smaller") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise refusal(path, "is damaged, or no PNG or JPEG", "export it again") from error
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0).copy()


def _read_nifti(path: Path, dimensions: int, channels: int) -> Pixels:
    """A NIfTI file as (channels, *spatial); axes past the spatial ones are its channels."""
    try:
        image: Any = nibabel.load(path)
        if int(np.prod(image.shape, dtype=np.float64)) > MAX_VOXELS:
            raise refusal(path, f"has over {MAX_VOXELS} voxels", "export it smaller")
        if image.ndim >= 3 and dimensions == 3:
            image = nibabel.as_closest_canonical(image)
        if np.issubdtype(image.get_data_dtype(), np.complexfloating):
            raise refusal(path, "has complex voxels", "export their magnitude")
        values = np.asarray(image.dataobj, np.float32)
    except (
        ImageFileError,
        HeaderDataError,
        WrapStructError,
        OSError,
        EOFError,
        OrientationError,
        ArithmeticError,
        ValueError,
        TypeError,
        IndexError,
        zlib.error,
        struct.error,
    ) as error:
        raise refusal(path, "is damaged, or no NIfTI file", "export it again") from error
    while values.ndim > dimensions and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim == dimensions + 1 and values.shape[-1] == channels:
        return np.ascontiguousarray(np.moveaxis(values, -1, 0))
    return values[None]
