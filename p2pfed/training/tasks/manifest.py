"""CSV files that name a site's records, a line each."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2pfed.training.tasks.findings import Findings, file_bytes, refusal

MAX_RECORDS = 2_000_000
MAX_TEXT_BYTES = 256 * 1024**2


def read_manifest(
    path: Path, columns: Sequence[str], rows_path: Path | None = None
) -> list[tuple[int, tuple[str, str]]]:
    """The cells of two columns of a CSV file with a header, and each row's number from 1.

    :param rows_path: a file that names the rows to take; see :func:`read_rows`.
    :raises DataError: no valid CSV, a column missing, or a row with other fields than the header.
    """
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
    if rows_path is not None:
        rows = [rows[index] for index in read_rows(rows_path, len(rows))]
    return rows


def existing_files(
    manifest: Path, names: Sequence[str], root: Path, findings: Findings
) -> list[Path]:
    """The files that a manifest names, under ``root``; those that are not there go to findings."""
    paths = [root / name for name in names]
    for name, path in zip(names, paths, strict=True):
        if not name or not path.exists():
            findings.add(path if name else manifest, "", "no such file; the manifest names it")
    return paths


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


def _text(path: Path) -> str:
    file_bytes(path, MAX_TEXT_BYTES)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise refusal(path, "is not UTF-8 text", "save it as UTF-8") from error
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror}") from error
