"""Reading a site's CSV or Parquet file into features and labels, or saying what is wrong with it.

Messages name file, column and row number, never the content of a cell.
"""

import csv
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from p2pfed.errors import DataError, Problem
from p2pfed.training.tasks.tabular.columns import Column, Fault, encode_column, feature_count
from p2pfed.training.tasks.tabular.targets.target import Target

MAX_FILE_BYTES = 4 * 1024**3
MAX_FEATURE_BYTES = 16 * 1024**3
ROWS_A_CHUNK = 65_536
MAX_NAMED_COLUMNS = 20

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})

ExtraColumns = Literal["refuse", "ignore"]


@dataclass(frozen=True)
class Table:
    """A site's records.

    :ivar features: shape (n, features), float32.
    :ivar labels: shape (n,) or (n, 2), float32, as the target encodes them.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.float32]

    def rows(self, indices: NDArray[np.int64]) -> "Table":
        return Table(self.features[indices], self.labels[indices])


def read_table(
    path: Path,
    columns: Sequence[Column],
    target: Target,
    extra_columns: ExtraColumns,
    standing_in: float = 0.0,
) -> Table:
    """Read a table: CSV with a header line, or Parquet by its suffix.

    Only the declared columns are parsed, a chunk of rows at a time.

    :param standing_in: see :func:`encode_column`.
    :raises DataError: with every problem found: no such file, too large, empty, columns that
        are missing or undeclared, cells that do not fit, a label that is missing or that the
        target does not know.
    """
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}", "check [data] path") from error
    if path.is_dir():
        raise _refusal(path, "is a directory", "name the file itself in [data] path")
    if size_bytes == 0:
        raise _refusal(path, "is empty", "export the table again")
    if size_bytes > MAX_FILE_BYTES:
        raise _refusal(path, f"is larger than {MAX_FILE_BYTES} bytes", "write a smaller table")

    wanted = [*(column.name for column in columns), *target.columns]
    parquet = path.suffix.lower() in PARQUET_SUFFIXES
    try:
        chunks = (_parquet_chunks if parquet else _csv_chunks)(path, wanted, extra_columns)
        return _read_chunks(path, chunks, columns, target, standing_in)
    except UnicodeDecodeError as error:
        raise _refusal(path, "is not UTF-8 text", "save it as UTF-8") from error
    except (csv.Error, pyarrow.ArrowInvalid) as error:
        kind = "Parquet" if parquet else "CSV"
        raise _refusal(path, f"is not valid {kind}: {_first_line(error)}", None) from error
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror or error}", None) from error


def _csv_chunks(
    path: Path, wanted: list[str], extra_columns: ExtraColumns
) -> Iterator[pd.DataFrame]:
    # The csv module and not pandas, which drops what a row has more than the header: a decimal
    # comma would shift the rest of the row unnoticed.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if len(header) == 1 and ";" in header[0]:
            raise _refusal(path, "is separated by semicolons", "save it separated by commas")
        _check_columns(path, header, wanted, extra_columns)
        places = [header.index(name) for name in wanted]
        filled = filter(None, reader)  # a blank line is read as an empty row
        rows_read = 0
        while rows := list(islice(filled, ROWS_A_CHUNK)):
            for row_number, row in enumerate(rows, start=rows_read + 1):
                if len(row) != len(header):
                    raise _refusal(
                        path,
                        f"data row {row_number} has {len(row)} fields, the header {len(header)}",
                        "quote text that has commas in it; write numbers with a decimal point",
                    )
            rows_read += len(rows)
            cells = ([row[place] for row in rows] for place in places)
            yield pd.DataFrame(dict(zip(wanted, cells, strict=True)))


def _parquet_chunks(
    path: Path, wanted: list[str], extra_columns: ExtraColumns
) -> Iterator[pd.DataFrame]:
    with pyarrow.parquet.ParquetFile(path) as file:
        _check_columns(path, list(file.schema_arrow.names), wanted, extra_columns)
        for batch in file.iter_batches(batch_size=ROWS_A_CHUNK, columns=wanted):
            yield batch.to_pandas()


def _check_columns(
    path: Path, present: list[str], wanted: list[str], extra_columns: ExtraColumns
) -> None:
    problems = []
    extra = [name for name in present if name not in wanted]
    for name in wanted:
        if name not in present:
            near = difflib.get_close_matches(name, extra, n=1)
            remedy = f"is it the file's {near[0]!r}?" if near else "add it to the table"
            problems.append(Problem(path, name, None, "no such column in this file", remedy))
        elif present.count(name) > 1:
            problems.append(Problem(path, name, None, "the column stands twice in this file"))
    if extra_columns == "refuse":
        problems += [
            Problem(
                path,
                name,
                None,
                "the topology file declares no such column",
                'remove it, or set extra_columns = "ignore" in [data]',
            )
            for name in extra[:MAX_NAMED_COLUMNS]
        ]
    if problems:
        raise DataError(problems)


@dataclass
class _Found:
    """The rows with one fault of one column: how many, and the first, counted from 1."""

    remedy: str
    first_row: int
    rows: int


@dataclass
class _Faults:
    found: dict[tuple[str, str], _Found] = field(default_factory=dict)

    def add(self, column: str, fault: Fault, offset: int) -> None:
        if not fault.rows.any():
            return
        first = offset + int(np.argmax(fault.rows)) + 1
        entry = self.found.setdefault((column, fault.reason), _Found(fault.remedy, first, 0))
        entry.rows += int(fault.rows.sum())

    def problems(self, path: Path) -> list[Problem]:
        problems = []
        for (column, reason), entry in self.found.items():
            more = f" (and in {entry.rows - 1} more)" if entry.rows > 1 else ""
            text = f"in data row {entry.first_row}{more} the value {reason}"
            problems.append(Problem(path, column, None, text, entry.remedy))
        return problems


def _read_chunks(
    path: Path,
    chunks: Iterator[pd.DataFrame],
    columns: Sequence[Column],
    target: Target,
    standing_in: float,
) -> Table:
    faults = _Faults()
    features: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.float32]] = []
    rows = 0
    for chunk in chunks:
        encoded = [encode_column(column, chunk[column.name], standing_in) for column in columns]
        for column, part in zip(columns, encoded, strict=True):
            for fault in part.faults:
                faults.add(column.name, fault, rows)
        features.append(np.concatenate([part.features for part in encoded], axis=1))
        told = target.encode(chunk[list(target.columns)])
        for name, fault in told.faults:
            faults.add(name, fault, rows)
        labels.append(told.labels)
        rows += len(chunk)
        if rows * feature_count(columns) * 4 > MAX_FEATURE_BYTES:
            raise _refusal(path, f"has over {MAX_FEATURE_BYTES} bytes of features", None)
    if not rows:
        raise _refusal(path, "has a header and no rows", "export the table again")
    problems = faults.problems(path)
    if problems:
        raise DataError(problems)
    return Table(np.concatenate(features), np.concatenate(labels))


def constant_columns(table: Table, columns: Sequence[Column]) -> list[str]:
    """Names of the columns that say nothing here: every record has the same features in them."""
    first = table.features[0]
    constant = ((table.features == first) | (np.isnan(table.features) & np.isnan(first))).all(
        axis=0
    )
    names = []
    start = 0
    for column in columns:
        if constant[start : start + column.features].all():
            names.append(column.name)
        start += column.features
    return names


def _refusal(path: Path, reason: str, remedy: str | None) -> DataError:
    return DataError([Problem(path, "", None, reason, remedy)])


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
