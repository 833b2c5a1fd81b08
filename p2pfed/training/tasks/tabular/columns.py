"""What the topology file says of a table's columns, and how a column becomes features.

Centre and scale are constants of the federation: agreed once, from the literature or a rough
look, so that no site has to tell the others anything about its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, Strict, model_validator

from p2pfed.settings import Settings

MISSING_CELLS = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
"""What stands for a missing value, compared without case and surrounding blanks."""

MAX_CATEGORIES = 1_000

_NUMERIC_MISSING = ("centre_indicator", "centre", "refuse")
_CATEGORICAL_MISSING = ("own_category", "zeros", "refuse")


class Column(Settings):
    """One ``[[task.options.columns]]`` table."""

    name: str = Field(min_length=1, description="The column's name in every site's file.")
    kind: Literal["numeric", "categorical"] = Field(
        description="numeric: one feature; categorical: one 0/1 feature a category."
    )
    centre: float = Field(0.0, description="numeric: subtracted. Default 0.")
    scale: float = Field(1.0, gt=0, description="numeric: divided by, after centre. Default 1.")
    categories: Annotated[tuple[int | str, ...], Strict(strict=False)] = Field(
        (),
        max_length=MAX_CATEGORIES,
        description="categorical: every value that may occur, all whole numbers or all text.",
    )
    missing: Literal["centre_indicator", "centre", "own_category", "zeros", "refuse"] = Field(
        "refuse",
        description="What becomes of a missing cell. refuse (default): the data are refused. "
        "numeric: centre, the centre stands in; centre_indicator, and a 0/1 feature says so. "
        "categorical: zeros, in no category; own_category, in one of its own.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        numeric = self.kind == "numeric"
        ways = _NUMERIC_MISSING if numeric else _CATEGORICAL_MISSING
        if self.missing not in ways:
            raise ValueError(f"missing of a {self.kind} column is one of {', '.join(ways)}")
        if numeric and self.categories:
            raise ValueError("categories are for a categorical column")
        if not numeric:
            if self.model_fields_set & {"centre", "scale"}:
                raise ValueError("centre and scale are for a numeric column")
            if not self.categories:
                raise ValueError("a categorical column lists its categories")
            if len({type(value) for value in self.categories}) != 1:
                raise ValueError("categories are all whole numbers or all text")
            if len(set(self.categories)) != len(self.categories):
                raise ValueError("a category is listed twice")
        return self

    @property
    def features(self) -> int:
        """How many features the column becomes."""
        if self.kind == "numeric":
            return 2 if self.missing == "centre_indicator" else 1
        return len(self.categories) + (self.missing == "own_category")


@dataclass(frozen=True)
class Fault:
    """Cells of one column that do not fit: the reason, and which rows, shape (n,), bool.

    A cell's content is left out on purpose: it is a patient's.
    """

    reason: str
    remedy: str
    rows: NDArray[np.bool_]


@dataclass(frozen=True)
class Encoded:
    """A column's features, shape (n, ``Column.features``), float32, and what did not fit."""

    features: NDArray[np.float32]
    faults: tuple[Fault, ...]


def encode_column(column: Column, cells: "pd.Series[Any]", standing_in: float = 0.0) -> Encoded:
    """The features of one column of n cells.

    :param standing_in: the feature of a missing cell of a numeric column: 0, its centre, or NaN
        for a model that finds the centre itself.
    """
    missing = missing_cells(cells)
    if column.kind == "numeric":
        features, faults = _encode_numeric(column, cells, missing, standing_in)
    else:
        features, faults = _encode_categorical(column, cells, missing)
    if column.missing == "refuse":
        fault = Fault("is missing", f"complete it, or set missing of {column.name!r}", missing)
        faults = [*faults, fault]
    return Encoded(features, tuple(fault for fault in faults if fault.rows.any()))


def _encode_numeric(
    column: Column, cells: "pd.Series[Any]", missing: NDArray[np.bool_], standing_in: float
) -> tuple[NDArray[np.float32], list[Fault]]:
    values, unreadable = numbers(cells, missing)
    with np.errstate(over="ignore"):
        scaled = ((values - column.centre) / column.scale).astype(np.float32)
    infinite = ~np.isfinite(scaled) & ~missing & ~unreadable
    faults = [
        Fault("is not a number", "correct it, or declare the column categorical", unreadable),
        Fault("is infinite or too large", "correct it", infinite),
    ]
    scaled[missing | unreadable | infinite] = standing_in
    if column.missing == "centre_indicator":
        return np.stack([scaled, missing.astype(np.float32)], axis=1), faults
    return scaled[:, None], faults


def _encode_categorical(
    column: Column, cells: "pd.Series[Any]", missing: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], list[Fault]]:
    matches = matches_of(column.categories, cells, missing)
    unknown = ~matches.any(axis=1) & ~missing
    features = matches.astype(np.float32)
    if column.missing == "own_category":
        features = np.concatenate([features, missing[:, None].astype(np.float32)], axis=1)
    return features, [Fault("is in no declared category", "correct it, or declare it", unknown)]


def matches_of(
    categories: Sequence[int | str], cells: "pd.Series[Any]", missing: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which category each of n cells is in, shape (n, categories); none where it is missing.

    :param categories: all whole numbers, which 2 and 2.0 and "2" are alike, or all text.
    """
    if isinstance(categories[0], int):
        values, _ = numbers(cells, missing)
        known = np.asarray(categories, np.float64)
        matches: NDArray[np.bool_] = values[:, None] == known[None, :]
    else:
        text = cells.astype(str).str.strip().to_numpy(dtype=object)
        matches = np.stack([text == category for category in categories], axis=1)
    return matches & ~missing[:, None]


def missing_cells(cells: "pd.Series[Any]") -> NDArray[np.bool_]:
    """Which cells hold no value, shape (n,)."""
    missing: NDArray[np.bool_] = cells.isna().to_numpy(dtype=np.bool_)
    if not pd.api.types.is_numeric_dtype(cells):
        text = cells.astype(str).str.strip().str.lower()
        missing = missing | text.isin(MISSING_CELLS).to_numpy(dtype=np.bool_)
    return missing


def numbers(
    cells: "pd.Series[Any]", missing: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The cells as numbers, NaN where there is none, and which ones are neither number nor missing.

    Both of shape (n,).
    """
    if not pd.api.types.is_numeric_dtype(cells):
        cells = cells.astype(str).str.strip()  # a date would otherwise count as nanoseconds
    values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    values = np.where(missing, np.nan, values)
    return values, np.isnan(values) & ~missing


def feature_count(columns: Sequence[Column]) -> int:
    return sum(column.features for column in columns)


def numeric_places(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Name and feature of every numeric column, in the columns' order."""
    places = []
    start = 0
    for column in columns:
        if column.kind == "numeric":
            places.append((column.name, start))
        start += column.features
    return places
