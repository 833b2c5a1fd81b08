"""What the two files say of signals: ``[task.options]`` and ``[data]``."""

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from p2pfed.settings import Settings
from p2pfed.training.settings import LoopSettings
from p2pfed.training.tasks.classes import MAX_CLASSES

MAX_LEADS = 256
MAX_SAMPLES = 1_000_000
MAX_BLOCKS = 8


class SignalOptions(LoopSettings):
    """``[task.options]`` of a federation with ``kind = "signal"``; alike at every site."""

    classes: Annotated[tuple[str, ...], Strict(strict=False)] = Field(
        min_length=1,
        max_length=MAX_CLASSES,
        description="The names of the classes, or findings, that the federation knows, in order.",
    )
    several: bool = Field(
        False,
        description="A record may have any of the findings, or none. Default: it is of exactly "
        "one class.",
    )
    leads: Annotated[tuple[str, ...], Strict(strict=False)] = Field(
        min_length=1,
        max_length=MAX_LEADS,
        description="The names of the leads in their order; of a CSV or Parquet record, columns.",
    )
    sampling_hertz: float = Field(
        gt=0, description="Samples a second. A site whose records have other ones is refused."
    )
    samples: int = Field(ge=16, le=MAX_SAMPLES, description="Samples a lead that are looked at.")
    length: Literal["exact", "crop_or_pad"] = Field(
        "exact",
        description="Of a record with another number of samples: exact (default), it is refused; "
        "crop_or_pad, its middle is taken, or it is put in the middle of zeros.",
    )
    normalise: Literal["record", "lead", "none"] = Field(
        "lead",
        description="lead (default): each lead of each record has its own mean and standard "
        "deviation taken out. record: its mean, and the deviation of all leads together, so that "
        "their heights stay comparable. none: scale alone.",
    )
    scale: float = Field(
        1.0, gt=0, description="What a sample is divided by; in the records' unit. Default 1."
    )
    widths: Annotated[tuple[int, ...], Strict(strict=False)] = Field(
        (16, 32, 64),
        min_length=1,
        max_length=MAX_BLOCKS,
        description="Channels of each residual block, of which each but the first halves the "
        "samples. Default [16, 32, 64].",
    )
    kernel_samples: int = Field(
        7, ge=3, le=63, description="Samples that a convolution spans; odd. Default 7."
    )
    norm_groups: int = Field(
        4, ge=1, description="Groups of channels that are normalised together; divides each width."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, values in (("classes", self.classes), ("leads", self.leads)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} lists a name twice")
        if len(self.classes) < 2 and not self.several:
            raise ValueError("there are two classes at least, or several = true")
        if any(width < 1 or width % self.norm_groups for width in self.widths):
            raise ValueError("widths are multiples of norm_groups")
        if self.kernel_samples % 2 == 0:
            raise ValueError("kernel_samples is odd")
        return self


class SignalData(Settings):
    """``[data]`` of a site file, where the task is signal."""

    path: str = Field(
        min_length=1,
        description="An NPZ file with arrays records and labels, or a CSV manifest whose columns "
        "file and label name a CSV or Parquet file a record, and its class.",
    )
    root_path: str | None = Field(
        None, description="Manifest: what its file names are relative to. Default its own folder."
    )
    sampling_hertz: float = Field(
        gt=0, description="Samples a second of this site's records; as the federation has them."
    )
    split: str = Field(
        "", pattern=r"^\w*$", description="NPZ: train stands for train_records and train_labels."
    )
    holdout_path: str | None = Field(
        None, description="Records of their own to evaluate on; then nothing is split off path."
    )
    holdout_split: str | None = Field(
        None, pattern=r"^\w*$", description="NPZ: likewise, by the name of its arrays."
    )
    holdout_fraction: float = Field(
        0.34, gt=0, lt=1, description="Else: share of each class kept from training. Default 0.34."
    )
    split_seed: int = Field(0, ge=0, description="Which records these are. Default 0.")
