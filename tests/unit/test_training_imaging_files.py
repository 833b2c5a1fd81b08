"""Image files read alike whatever their format, and refused by name where they cannot be."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import PATIENT, transcoded, write_dicom, write_nifti, write_series
from PIL import Image
from pydicom.uid import JPEG2000, JPEGLSLossless

from p2pfed.errors import DataError
from p2pfed.training.tasks.imaging import dicom, reading
from p2pfed.training.tasks.imaging.reading import read_image, stem

GREY = np.arange(12, dtype=np.uint16).reshape(3, 4) * 100
COLOUR = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
VOLUME = np.random.default_rng(0).integers(0, 4000, (4, 3, 5)).astype(np.uint16)  # z, rows, columns


def refused(path: Path, dimensions: int = 2, channels: int = 1) -> str:
    """The one problem that is found, without anything of the patient."""
    with pytest.raises(DataError) as caught:
        read_image(path, dimensions, channels)
    assert path in {problem.file for problem in caught.value.problems} | {
        problem.file.parent for problem in caught.value.problems
    }
    assert PATIENT not in str(caught.value)
    return str(caught.value)


def test_pictures_give_their_pixels(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "grey.png", 2, 1), GREY[None].astype(np.uint8)
    )
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "colour.png", 2, 3), np.moveaxis(COLOUR, -1, 0)
    )
    Image.fromarray(GREY).save(tmp_path / "deep.png")  # 16 bits
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png", 2, 1), GREY[None])
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(tmp_path / "flat.jpg")
    assert read_image(tmp_path / "flat.jpg", 2, 1) == pytest.approx(77, abs=1)


def test_a_dicom_image_is_in_the_units_of_its_modality(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "ct.dcm", GREY, RescaleSlope=2, RescaleIntercept=-1024)
    np.testing.assert_array_equal(read_image(path, 2, 1), GREY[None] * 2.0 - 1024)
    unnamed = write_dicom(tmp_path / "IM000001", GREY)
    np.testing.assert_array_equal(read_image(unnamed, 2, 1), GREY[None])
    colour = write_dicom(tmp_path / "skin.dcm", COLOUR)
    np.testing.assert_array_equal(read_image(colour, 2, 3), np.moveaxis(COLOUR, -1, 0))


def test_a_dicom_image_where_low_is_bright_is_turned(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "x.dcm",
        GREY,
        PhotometricInterpretation="MONOCHROME1",
        BitsStored=12,
        HighBit=11,
        RescaleSlope=2,
        RescaleIntercept=5,
    )
    np.testing.assert_array_equal(read_image(path, 2, 1), (4095 - GREY[None]) * 2.0 + 5)


def test_a_series_and_a_nifti_file_of_one_scan_agree(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", VOLUME)
    # As dcm2niix writes it: x to the right, so a column further goes to the left.
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    nifti = write_nifti(
        tmp_path / "scan.nii.gz", np.transpose(VOLUME, (2, 1, 0)).astype(np.int16), affine
    )
    from_series = read_image(series, 3, 1)
    assert from_series.shape == (1, 5, 3, 4)
    np.testing.assert_array_equal(from_series, read_image(nifti, 3, 1))
    # To the right of the patient is the first column's side, to the front the first row's.
    assert from_series[0, -1, -1, 0] == VOLUME[0, 0, 0]
    frames = write_dicom(tmp_path / "frames.dcm", VOLUME)
    np.testing.assert_array_equal(read_image(frames, 3, 1), from_series)


def test_nifti_scaling_and_channels_are_applied(tmp_path: Path) -> None:
    two = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)
    found = read_image(write_nifti(tmp_path / "two.nii", two), 3, 2)
    np.testing.assert_array_equal(found, np.moveaxis(two, -1, 0))
    flat = read_image(write_nifti(tmp_path / "flat.nii", two[:, :, 0, 0]), 2, 1)
    np.testing.assert_array_equal(flat, two[None, :, :, 0, 0])


def cut(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def test_damaged_files_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    assert "is damaged, or no PNG or JPEG" in refused(cut(tmp_path / "cut.png"))
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    assert "is damaged, or no PNG or JPEG" in refused(cut(tmp_path / "cut.jpg"))
    nifti = write_nifti(tmp_path / "cut.nii", VOLUME.astype(np.int16))
    assert "is damaged, or no NIfTI" in refused(cut(nifti), 3)
    packed = write_nifti(tmp_path / "cut.nii.gz", VOLUME.astype(np.int16))
    assert "is damaged, or no NIfTI" in refused(cut(packed), 3)
    short = cut(write_dicom(tmp_path / "cut.dcm", np.tile(GREY, (50, 50))), 0.9)
    assert "damaged or cut short" in refused(short)
    (tmp_path / "text.dcm").write_text("no scan at all")
    assert "is damaged, or no DICOM file" in refused(tmp_path / "text.dcm")
    (tmp_path / "none.png").touch()
    assert "is empty" in refused(tmp_path / "none.png")
    assert "No such file" in refused(tmp_path / "absent.png")


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3, 0.45, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("suffix", ["png", "jpg", "dcm", "nii", "nii.gz"])
def test_a_file_cut_anywhere_or_overwritten_is_refused_or_read_but_nothing_else(
    tmp_path: Path, suffix: str, share: float
) -> None:
    path = tmp_path / f"a.{suffix}"
    write: dict[str, Callable[[], object]] = {
        "png": lambda: Image.fromarray(COLOUR[..., 0]).save(path),
        "jpg": lambda: Image.fromarray(COLOUR[..., 0]).save(path),
        "dcm": lambda: write_dicom(path, GREY),
        "nii": lambda: write_nifti(path, GREY),
        "nii.gz": lambda: write_nifti(path, GREY),
    }
    write[suffix]()
    whole = path.read_bytes()
    place = int(len(whole) * share)
    overwritten = whole[:place] + b"\xff" * 24 + whole[place + 24 :]
    for content in (whole[:place], overwritten):
        path.write_bytes(content)
        try:
            found = read_image(path, 2, 1)
        except DataError as error:
            assert error.problems[0].file == path
        else:
            assert found.dtype == np.float32


def test_nothing_that_stands_in_a_header_is_logged_or_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_dicom(tmp_path / "a.dcm", VOLUME)
    whole = path.read_bytes()
    broken = whole.replace(b"IS\x02\x004 ", b"IS\x02\x004X")  # pydicom repeats it, and warns
    assert broken != whole
    path.write_bytes(broken)
    refused(path, 3)
    scan = write_nifti(tmp_path / "a.nii", VOLUME)
    whole = scan.read_bytes()
    scan.write_bytes(whole[:4] + PATIENT.encode() + whole[12:70] + b"\xff\xff" + whole[72:])
    refused(scan, 3)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_compression_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    text = refused(transcoded(tmp_path / "ls.dcm", GREY, JPEGLSLossless))
    assert "cannot be read here (JPEG-LS Lossless Image Compression)" in text
    assert "export it uncompressed" in text
    assert "damaged" in refused(transcoded(tmp_path / "j2k.dcm", GREY, JPEG2000))


def test_other_kinds_of_dicom_are_refused(tmp_path: Path) -> None:
    palette = write_dicom(tmp_path / "p.dcm", GREY, PhotometricInterpretation="PALETTE COLOR")
    assert "neither grey nor RGB" in refused(palette)
    assert "has 4 frames" in refused(write_dicom(tmp_path / "frames.dcm", VOLUME))


def test_the_shape_must_be_the_federations(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "grey.dcm", GREY)
    assert "has 2 dimensions and 1 channels; the federation's" in refused(path, 2, 3)
    assert "dimensions" in refused(write_nifti(tmp_path / "v.nii", VOLUME), 2)
    infinite = np.full((3, 4), np.inf, np.float32)
    assert "not finite" in refused(write_nifti(tmp_path / "inf.nii", infinite))


def test_sizes_are_bounded_before_pixels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_nifti(tmp_path / "a.nii", VOLUME)
    picture = tmp_path / "a.png"
    Image.fromarray(COLOUR[..., 0]).save(picture)
    scan = write_dicom(tmp_path / "a.dcm", GREY)
    monkeypatch.setattr(reading, "MAX_VOXELS", 11)
    assert "over 11 voxels" in refused(path, 3)
    assert "over 11 pixels" in refused(picture)
    assert "over 11" in refused(scan)
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 60)
    assert "larger than 60 bytes" in refused(path, 3)


def test_a_series_that_is_not_one_volume_is_refused(tmp_path: Path) -> None:
    gap = write_series(tmp_path / "gap", VOLUME)
    heights = {path: dicom._open(path).ImagePositionPatient[2] for path in gap.iterdir()}
    sorted(heights, key=lambda path: heights[path])[1].unlink()
    assert "not evenly spaced" in refused(gap, 3)

    mixed = write_series(tmp_path / "mixed", VOLUME)
    other = write_series(tmp_path / "other", VOLUME)
    next(other.iterdir()).rename(mixed / "stray.dcm")
    assert "differ in series, size or orientation" in refused(mixed, 3)

    damaged = write_series(tmp_path / "damaged", VOLUME)
    broken = sorted(damaged.iterdir())[:2]
    for path in broken:
        path.write_text("not a slice")
    with pytest.raises(DataError) as caught:
        read_image(damaged, 3, 1)
    assert [problem.file for problem in caught.value.problems] == broken

    placeless = tmp_path / "placeless"
    placeless.mkdir()
    for index in range(3):
        write_dicom(placeless / f"{index}.dcm", GREY)
    with pytest.raises(DataError, match="does not say where its slice is"):
        read_image(placeless, 3, 1)


def test_a_name_without_its_suffix() -> None:
    assert stem(Path("a/b.c.nii.gz")) == "b.c"
    assert stem(Path("scan.DCM")) == "scan"
    assert stem(Path("series")) == "series"
