"""Reading a site's signals, and bringing them to the federation's length and scale."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from p2pfed.training.tasks.arrays import read_arrays
from p2pfed.training.tasks.findings import Findings, file_bytes, refusal
from p2pfed.training.tasks.labels import class_numbers, unknown_label
from p2pfed.training.tasks.manifest import existing_files, read_manifest
from p2pfed.training.tasks.signal.options import MAX_SAMPLES, SignalOptions

MAX_RECORD_BYTES = 256 * 1024**2
MAX_TOTAL_BYTES = 8 * 1024**3
PARQUET_SUFFIXES = (".parquet", ".pq")
SEPARATOR = "+"

Records = NDArray[np.float32]
Labels = NDArray[np.int64]


def read_records(
    path: Path, split: str, root: Path | None, options: SignalOptions
) -> tuple[Records, Labels]:
    """Records (n, leads, samples), float32, prepared; and labels, (n,) or (n, classes).

    :param split: ``train`` for arrays ``train_records`` and ``train_labels`` of an NPZ file.
    :param root: what a manifest's file names are relative to.
    :raises DataError: with what is wrong with any of the records.
    """
    if path.suffix.lower() == ".npz":
        return _read_npz(path, split, options)
    rows = read_manifest(path, ["file", "label"])
    findings = Findings()
    names = [file for _, (file, _) in rows]
    files = existing_files(path, names, root or path.parent, findings)
    labels = [_label_of(path, number, cell, options, findings) for number, (_, cell) in rows]
    findings.check(path)
    _check_total(path, len(files), options)
    records = np.zeros((len(files), len(options.leads), options.samples), np.float32)
    for record, file in zip(records, files, strict=True):
        with findings.collecting():
            record[...] = prepare(file, "", _read_leads(file, options.leads), options)
    findings.check(path)
    return records, np.asarray(labels, np.int64)


def prepare(path: Path, key: str, record: NDArray[Any], options: SignalOptions) -> Records:
    """One record (leads, any) as (leads, samples), float32, scaled and normalised.

    :param path: with ``key``, what a message names.
    :raises DataError: another number of leads or samples, or samples that are not finite.
    """
    leads, found = record.shape
    if leads != len(options.leads):
        text = f"has {leads} leads; the federation's records have {len(options.leads)}"
        raise refusal(path, text, "give the leads in the order of leads", key=key)
    if found != options.samples:
        if options.length == "exact" or not found:
            text = f"has {found} samples a lead; the federation's records have {options.samples}"
            remedy = 'cut it, or agree on length = "crop_or_pad" in the topology file'
            raise refusal(path, text, remedy, key=key)
        record = _centred(record, options.samples)
    with np.errstate(over="ignore", invalid="ignore"):
        signal: Records = (record / options.scale).astype(np.float32)
    if not np.isfinite(signal).all():
        raise refusal(path, "has samples that are not finite", "correct it", key=key)
    if options.normalise == "none":
        return signal
    signal = signal - signal.mean(axis=1, keepdims=True)
    deviation = signal.std() if options.normalise == "record" else signal.std(1, keepdims=True)
    # A lead that is flat, as one that fell off is, stays flat.
    return np.asarray(signal / np.where(deviation > 0, deviation, 1.0), np.float32)


def _centred(record: NDArray[Any], samples: int) -> NDArray[Any]:
    """The middle ``samples`` of each lead, or the lead in the middle of so many."""
    found = record.shape[1]
    if found >= samples:
        start = (found - samples) // 2
        return record[:, start : start + samples]
    before = (samples - found) // 2
    return np.pad(record, ((0, 0), (before, samples - found - before)))


def _read_npz(path: Path, split: str, options: SignalOptions) -> tuple[Records, Labels]:
    names = [f"{split}_{name}" if split else name for name in ("records", "labels")]
    arrays = read_arrays(path, names)
    stored, raw_labels = arrays[names[0]], arrays[names[1]]
    if stored.ndim != 3 or stored.dtype.kind not in "iuf":
        text = f"has shape {stored.shape}; expected numbers, (records, leads, samples)"
        raise refusal(path, text, "reshape it", key=names[0])
    if not len(stored) or raw_labels.ndim == 0 or len(stored) != len(raw_labels):
        raise refusal(path, "its arrays are empty, or of different records")
    _check_total(path, len(stored), options)
    if options.several:
        labels = _several(path, names[1], raw_labels, len(options.classes))
    else:
        labels = class_numbers(path, names[1], raw_labels, options.classes)
    findings = Findings()
    records = np.zeros((len(stored), len(options.leads), options.samples), np.float32)
    for index, record in enumerate(stored):
        with findings.collecting():
            records[index] = prepare(path, f"{names[0]}[{index}]", record, options)
    findings.check(path)
    return records, labels


def _several(path: Path, name: str, labels: NDArray[Any], classes: int) -> Labels:
    if labels.ndim != 2 or labels.shape[1] != classes or labels.dtype.kind not in "buif":
        text = f"has shape {labels.shape}; expected 0 or 1 for each of {classes} findings"
        raise refusal(path, text, key=name)
    if not np.isin(labels, (0, 1)).all():
        raise refusal(path, "has labels that are neither 0 nor 1", "correct them", key=name)
    return labels.astype(np.int64)


def _label_of(
    path: Path, number: int, cell: str, options: SignalOptions, findings: Findings
) -> int | list[int]:
    """A manifest's label: a class, or the findings with + between them, none where empty."""
    names = [name.strip() for name in cell.split(SEPARATOR)] if options.several else [cell]
    if options.several and not cell:
        names = []
    if any(name not in options.classes for name in names):
        findings.add(path, f"data row {number}", *unknown_label())
        return 0
    if options.several:
        return [int(name in names) for name in options.classes]
    return options.classes.index(cell)


def _read_leads(path: Path, leads: Sequence[str]) -> NDArray[np.float64]:
    """The columns ``leads`` of a CSV or Parquet file as (leads, samples)."""
    file_bytes(path, MAX_RECORD_BYTES)
    try:
        if path.suffix.lower() in PARQUET_SUFFIXES:
            with pyarrow.parquet.ParquetFile(path) as file:
                if file.metadata.num_rows > MAX_SAMPLES:
                    raise refusal(path, f"has over {MAX_SAMPLES} samples", "cut it")
                present = list(file.schema_arrow.names)
                wanted = [name for name in leads if name in present]
                frame = file.read(columns=wanted).to_pandas()
        else:
            frame = pd.read_csv(path, nrows=MAX_SAMPLES + 1, skipinitialspace=True)
            if len(frame) > MAX_SAMPLES:
                raise refusal(path, f"has over {MAX_SAMPLES} samples", "cut it")
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        pyarrow.ArrowInvalid,
        UnicodeDecodeError,
        OSError,
    ) as error:
        raise refusal(path, "is damaged, or neither CSV nor Parquet", "export it again") from error
    absent = [name for name in leads if name not in frame.columns]
    if absent:
        raise refusal(path, f"has no lead {', '.join(absent)}", "name its columns as the leads")
    columns = [pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64) for name in leads]
    return np.stack(columns)


def _check_total(path: Path, count: int, options: SignalOptions) -> None:
    if count * len(options.leads) * options.samples * 4 > MAX_TOTAL_BYTES:
        raise refusal(path, f"its records take over {MAX_TOTAL_BYTES} bytes", "use fewer")
