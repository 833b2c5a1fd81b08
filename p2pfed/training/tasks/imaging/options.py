"""What the two files say of images: ``[task.options]`` and ``[data]``."""

from math import prod
from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from p2pfed.settings import Settings
from p2pfed.training.settings import LoopSettings

MAX_PREPARED_VOXELS = 64 * 1024**2
MAX_CHANNELS = 64
MAX_SIDE = 8192

Norm = Literal["group", "batch", "instance"]


class Intensity(Settings):
    """``[task.options.intensity]``: how the numbers of a file become those that are learned from.

    Alike at every site: a site that scaled by its own records would shift what the others learn.
    """

    kind: Literal["range", "window", "record"] = Field(
        description="range: low to high becomes -1 to 1, beyond is cut off. window: the same, by "
        "centre and width as radiologists give them. record: each channel of each image has its "
        "own mean and standard deviation taken out, for MRI, whose numbers have no unit."
    )
    low: float | None = Field(None, description="range: becomes -1; 0 for an 8-bit picture.")
    high: float | None = Field(None, description="range: becomes 1; 255 for an 8-bit picture.")
    centre: float | None = Field(None, description="window: becomes 0; in Hounsfield units on CT.")
    width: float | None = Field(None, gt=0, description="window: from -1 to 1.")

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> Self:
        keys = {"range": {"low", "high"}, "window": {"centre", "width"}, "record": set()}
        given = self.model_fields_set - {"kind"}
        if given != keys[self.kind]:
            wanted = " and ".join(sorted(keys[self.kind])) or "no other key"
            raise ValueError(f"intensity of kind {self.kind} takes {wanted}")
        if self.kind == "range" and self.ends[0] >= self.ends[1]:
            raise ValueError("low must be below high")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """What becomes -1 and what becomes 1, where the kind is range or window."""
        if self.kind == "window":
            centre, width = self.centre or 0.0, self.width or 1.0
            return centre - width / 2, centre + width / 2
        return self.low or 0.0, self.high or 0.0


class Augmentation(Settings):
    """``[task.options.augmentation]``: random changes of each training image, none by default."""

    flip_axes: Annotated[tuple[int, ...], Strict(strict=False)] = Field(
        (),
        max_length=3,
        description="Spatial axes, from 0, along which half of the images are turned over.",
    )
    rotation_degrees: float = Field(
        0.0, ge=0, le=180, description="Turned by at most so much about each axis. Default 0."
    )
    scaling: float = Field(
        0.0, ge=0, lt=1, description="Enlarged or shrunk by at most this share. Default 0."
    )
    translation: float = Field(
        0.0, ge=0, lt=1, description="Shifted by at most this share of each side. Default 0."
    )

    @property
    def moves(self) -> bool:
        """Whether images are resampled, not only turned over."""
        return bool(self.rotation_degrees or self.scaling or self.translation)


class ImageOptions(LoopSettings):
    """What both imaging tasks have in ``[task.options]``; alike at every site."""

    classes: Annotated[tuple[str, ...], Strict(strict=False)] = Field(
        min_length=2,
        max_length=255,
        description="The names of the classes that the federation knows, in their order: in a "
        "file of numbers 0 is the first. Segmentation: the first is the background.",
    )
    spatial_size: Annotated[tuple[int, ...], Strict(strict=False)] = Field(
        min_length=2,
        max_length=3,
        description="Pixels along each axis that every image is brought to: [rows, columns], or "
        "[x, y, z] of a volume.",
    )
    channels: int = Field(
        1, ge=1, le=MAX_CHANNELS, description="1 (default): grey; 3: colour; or sequences of MRI."
    )
    intensity: Intensity = Field(description="How intensities are scaled.")
    fit: Literal["stretch", "pad_or_crop"] = Field(
        "stretch",
        description="stretch (default): resampled to spatial_size, anatomy out of proportion "
        "where shapes differ. pad_or_crop: centred, the pixel size as it is.",
    )
    augmentation: Augmentation = Field(
        default_factory=Augmentation, description="Random changes of training images."
    )
    norm: Norm = Field(
        "group",
        description="group (default) and instance norm work with privacy, and all of them is "
        "shared. batch: its statistics stay at the site; refused with privacy.",
    )
    norm_groups: int = Field(
        4, ge=1, description="group: how many groups the channels make; divides every layer's."
    )

    @model_validator(mode="after")
    def _images_consistent(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is listed twice")
        if not all(1 <= side <= MAX_SIDE for side in self.spatial_size):
            raise ValueError(f"a side of spatial_size has 1 to {MAX_SIDE} pixels")
        if prod(self.spatial_size) * self.channels > MAX_PREPARED_VOXELS:
            raise ValueError(f"an image has over {MAX_PREPARED_VOXELS} numbers")
        if not all(0 <= axis < self.dimensions for axis in self.augmentation.flip_axes):
            raise ValueError(f"flip_axes are 0 to {self.dimensions - 1}")
        return self

    @property
    def dimensions(self) -> int:
        return len(self.spatial_size)

    def check_depth(self, halvings: int) -> None:
        """:raises ValueError: nothing is left of an image after so many halvings of its sides."""
        deepest = [-(-side // 2**halvings) for side in self.spatial_size]
        if self.norm == "instance" and max(deepest) == 1:
            raise ValueError(
                "instance norm averages over an image, and the network shrinks it to one pixel; "
                "take fewer widths, a larger spatial_size or another norm"
            )


class ImageData(Settings):
    """``[data]`` of a site file, where the task is an imaging one."""

    path: str = Field(
        min_length=1,
        description="A folder, an NPZ file, or a CSV manifest that names files; see TASKS.md.",
    )
    root_path: str | None = Field(
        None, description="Manifest: what its file names are relative to. Default its own folder."
    )
    file_column: str = Field(
        "file",
        min_length=1,
        description="Manifest: the column with the image's file. Default file.",
    )
    target_column: str | None = Field(
        None,
        min_length=1,
        description="Manifest: the column with the class, default label; segmentation: with the "
        "mask's file, default mask.",
    )
    rows_path: str | None = Field(
        None,
        description="NPZ or manifest: a text file with the numbers, from 0, of the records of path "
        "to use, one a line. Default all.",
    )
    split: str = Field(
        "",
        pattern=r"^\w*$",
        description="NPZ: train stands for arrays called train_images and so on, as MedMNIST has "
        "them. Default empty: images.",
    )
    holdout_path: str | None = Field(
        None, description="Records of their own to evaluate on; then nothing is split off path."
    )
    holdout_split: str | None = Field(
        None, pattern=r"^\w*$", description="NPZ: likewise, by the name of its arrays; such as val."
    )
    holdout_fraction: float = Field(
        0.34, gt=0, lt=1, description="Else: share of each class kept from training. Default 0.34."
    )
    split_seed: int = Field(0, ge=0, description="Which records these are. Default 0.")
    check_files: bool = Field(
        True,
        description="Read every file at start and say what is wrong with any of them. false: each "
        "when it is first needed, for more files than a start can wait for. Default true.",
    )
    cache_megabytes: int = Field(
        2048, ge=0, description="Memory, in MB, for prepared images. Default 2048."
    )
