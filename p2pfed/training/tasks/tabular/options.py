"""What the two files say of a table task: ``[task.options]`` and ``[data]``."""

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, ValidationInfo, field_validator, model_validator

from p2pfed.settings import Settings
from p2pfed.training.settings import LoopSettings
from p2pfed.training.tasks.tabular.columns import MAX_CATEGORIES, Column
from p2pfed.training.tasks.tabular.table import ExtraColumns

MAX_COLUMNS = 10_000
MAX_HIDDEN_LAYERS = 16
MAX_STANDARDISE_ROUNDS = 1_000
MAX_RISK_SET = 4_096  # records; a survival batch takes memory as its square, 64 MiB a matrix here

TargetKind = Literal["binary", "multiclass", "regression", "survival"]

# Which options belong to which targets; the others take them as a mistake.
_LABELLED: tuple[TargetKind, ...] = ("binary", "multiclass", "regression")
_FEDERATED_KEYS = {"standardise_rounds", "standardise_noise_multiplier", "standardise_clip"}


class TabularOptions(LoopSettings):
    """``[task.options]`` of a federation with ``kind = "tabular"``; alike at every site."""

    target: TargetKind = Field(
        "binary",
        description="What is told: binary, a label of 0 or 1; multiclass, one of classes; "
        "regression, a number; survival, the risk of an event over time. Default binary.",
    )
    label: str = Field(
        "",
        validate_default=True,
        description="The column to be told. Required, except with survival.",
    )
    classes: Annotated[tuple[int | str, ...], Strict(strict=False)] = Field(
        (),
        max_length=MAX_CATEGORIES,
        validate_default=True,
        description="multiclass: every value the label may have, all whole numbers or all text. "
        "A site whose table holds another is refused.",
    )
    label_centre: float = Field(
        0.0,
        description="regression: subtracted from the label to train on, in the label's unit. "
        "Default 0.",
    )
    label_scale: float = Field(
        1.0,
        gt=0,
        description="regression: divides the label after that, in the label's unit; about its "
        "standard deviation, so that the loss is about 1. Default 1.",
    )
    time: str = Field(
        "",
        validate_default=True,
        description="survival: the column with how long a record was followed, in any unit that "
        "is the same at every site.",
    )
    event: str = Field(
        "",
        validate_default=True,
        description="survival: the column that says how that ended: 1 with the event, 0 without "
        "(censored).",
    )
    columns: Annotated[tuple[Column, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=MAX_COLUMNS, description="The columns to tell it from."
    )
    standardise: Literal["declared", "federated"] = Field(
        "declared",
        description="declared (default): centre and scale of each numeric column are those of "
        "the topology file. federated: the sites agree on them in the first rounds, by gossip "
        "of each site's mean and variance; no row leaves a site.",
    )
    standardise_rounds: int = Field(
        10,
        ge=1,
        le=MAX_STANDARDISE_ROUNDS,
        description="federated: rounds at the start in which the sites agree and nobody trains. "
        "Default 10.",
    )
    standardise_noise_multiplier: float | None = Field(
        None,
        gt=0,
        description="federated: standard deviation of the Gaussian noise on a site's statistics, "
        "over what one record can change in them. None by default: exact statistics, which a "
        "federation that demands privacy refuses.",
    )
    standardise_clip: float = Field(
        3.0,
        gt=0,
        description="federated with noise: cells count as no further than this from the declared "
        "centre, in units of the declared scale. Default 3.",
    )
    model: Literal["mlp", "logistic_regression"] = Field(
        "mlp",
        description="mlp: a network with ReLU layers; logistic_regression: none, linear whatever "
        "the target. Default mlp.",
    )
    hidden: Annotated[tuple[int, ...], Strict(strict=False)] = Field(
        (16,), max_length=MAX_HIDDEN_LAYERS, description="mlp: units of each layer. Default [16]."
    )
    batch_norm: bool = Field(False, description="mlp: batch norm after each layer. Default no.")
    class_weights: Literal["balanced", "none"] = Field(
        "none",
        description="balanced: all classes weigh the same in the loss at each site, however "
        "many records of each it has; this hides from the model that sites differ in how common "
        "the disease is. Default none.",
    )

    @field_validator("label")
    @classmethod
    def _label_of_the_target(cls, label: str, info: ValidationInfo) -> str:
        return _column_of_the_target(label, "label", _LABELLED, info)

    @field_validator("time", "event")
    @classmethod
    def _survival_columns(cls, name: str, info: ValidationInfo) -> str:
        return _column_of_the_target(name, str(info.field_name), ("survival",), info)

    @field_validator("classes")
    @classmethod
    def _classes_of_the_target(
        cls, classes: tuple[int | str, ...], info: ValidationInfo
    ) -> tuple[int | str, ...]:
        target = info.data.get("target")
        if target == "multiclass":
            if len(classes) < 2:
                raise ValueError("multiclass needs at least two classes; list every label")
            if len({type(value) for value in classes}) != 1:
                raise ValueError("classes are all whole numbers or all text")
            if len(set(classes)) != len(classes):
                raise ValueError("a class is listed twice")
        elif target is not None and classes:
            raise ValueError("classes are for target = 'multiclass'")
        return classes

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is declared twice")
        for name in self.label_columns:
            if name in names:
                raise ValueError(f"the label {name!r} is among the columns to tell it from")
        if len(set(self.label_columns)) != len(self.label_columns):
            raise ValueError("time and event are the same column")
        if any(units < 1 for units in self.hidden):
            raise ValueError("every layer of hidden has at least 1 unit")
        if self.model == "logistic_regression" and {"hidden", "batch_norm"} & self.model_fields_set:
            raise ValueError("hidden and batch_norm are for model = 'mlp'")
        return self

    @model_validator(mode="after")
    def _keys_of_the_target(self) -> Self:
        given = self.model_fields_set
        if self.target != "regression" and {"label_centre", "label_scale"} & given:
            raise ValueError("label_centre and label_scale are for target = 'regression'")
        if self.class_weights == "balanced" and self.target not in ("binary", "multiclass"):
            raise ValueError(f"class_weights = 'balanced' is for classes, not for {self.target}")
        if self.target == "survival" and self.batch_size > MAX_RISK_SET:
            raise ValueError(f"batch_size of a survival target is at most {MAX_RISK_SET}")
        if self.target == "survival" and self.micro_batch_size is not None:
            raise ValueError("micro_batch_size would compare the records of each part alone")
        return self

    @model_validator(mode="after")
    def _keys_of_standardise(self) -> Self:
        given = self.model_fields_set
        if self.standardise == "declared" and _FEDERATED_KEYS & given:
            key = min(_FEDERATED_KEYS & given)
            raise ValueError(f"{key} is for standardise = 'federated'")
        if self.standardise == "federated":
            if not any(column.kind == "numeric" for column in self.columns):
                raise ValueError("there is no numeric column to standardise")
            if "standardise_clip" in given and self.standardise_noise_multiplier is None:
                raise ValueError("standardise_clip goes with standardise_noise_multiplier")
        return self

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns that hold what is told."""
        return (self.time, self.event) if self.target == "survival" else (self.label,)


def _column_of_the_target(
    name: str, key: str, targets: tuple[TargetKind, ...], info: ValidationInfo
) -> str:
    target = info.data.get("target")
    if target in targets and not name:
        raise ValueError(f"required with target = {target!r}: the name of a column")
    if target is not None and target not in targets and name:
        raise ValueError(f"{key} is not for target = {target!r}")
    return name


class TabularData(Settings):
    """``[data]`` of a site file, where the task is tabular."""

    path: str = Field(min_length=1, description="The site's table: CSV, or Parquet by its suffix.")
    holdout_path: str | None = Field(
        None, description="A table of its own to evaluate on; then nothing is split off path."
    )
    holdout_fraction: float = Field(
        0.34,
        gt=0,
        lt=1,
        description="Share kept from training: of each class, of records with and without the "
        "event, or of all where the label is a number. Default 0.34.",
    )
    split_seed: int = Field(0, ge=0, description="Which records these are. Default 0.")
    extra_columns: ExtraColumns = Field(
        "refuse", description="What becomes of undeclared columns: refuse (default) or ignore."
    )
