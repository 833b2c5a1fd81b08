"""Image files for tests, written by the libraries that hospitals' own tools are made with."""

import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PATIENT = "DOE^JANE"


def dicom_dataset(path: Path, stored: NDArray[np.uint16], **elements: Any) -> FileDataset:
    """A CT-like file of (rows, columns), (frames, rows, columns) or (rows, columns, 3)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName = PATIENT
    dataset.Modality = "CT"
    colour = stored.ndim == 3 and stored.shape[-1] == 3
    if stored.ndim == 3 and not colour:
        dataset.NumberOfFrames = stored.shape[0]
    dataset.Rows, dataset.Columns = stored.shape[:2] if colour else stored.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    bits = 8 * stored.dtype.itemsize
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = stored.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def write_dicom(path: Path, stored: NDArray[Any], **elements: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dicom_dataset(path, stored, **elements).save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, volume: NDArray[np.uint16], spacing: float = 2.0) -> Path:
    """``volume`` (slices, rows, columns), axial, from the feet up, under shuffled names."""
    folder.mkdir()
    series = generate_uid()
    names = np.random.default_rng(3).permutation(len(volume))
    for index, (stored, name) in enumerate(zip(volume, names, strict=True)):
        write_dicom(
            folder / f"{name}.dcm",
            stored,
            SeriesInstanceUID=series,
            ImagePositionPatient=[-10.0, -20.0, 5.0 + spacing * index],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1.0, 1.0],
        )
    return folder


def write_nifti(
    path: Path, values: NDArray[Any], affine: NDArray[np.float64] | None = None
) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def transcoded(path: Path, stored: NDArray[Any], syntax: Any) -> Path:
    """A file that says it is compressed as ``syntax``, with bytes that are not."""
    dataset = dicom_dataset(path, stored)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = pydicom.encaps.encapsulate([stored.tobytes()])
    dataset["PixelData"].is_undefined_length = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)
    return path
