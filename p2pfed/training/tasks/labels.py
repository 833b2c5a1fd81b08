"""Labels of records, by the names that the federation has agreed on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfed.training.tasks.findings import refusal


def class_numbers(
    path: Path, name: str, labels: NDArray[Any], classes: Sequence[str]
) -> NDArray[np.int64]:
    """Labels of an array, numbers from 0 or names, shape (n,) or (n, 1), as numbers (n,).

    :raises DataError: another shape, or a label that the federation does not know.
    """
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1:
        raise refusal(path, f"has shape {labels.shape}; expected one label a record", key=name)
    if flat.dtype.kind in "US":
        known = np.asarray(classes, dtype="U")
        matches = np.char.strip(flat.astype("U"))[:, None] == known[None, :]
    elif flat.dtype.kind in "buif":
        matches = flat[:, None] == np.arange(len(classes))[None, :]
    else:
        raise refusal(path, "is neither of numbers nor of text", key=name)
    unknown = np.flatnonzero(~matches.any(axis=1))
    if unknown.size:
        more = f", and {unknown.size - 1} more" if unknown.size > 1 else ""
        reason, remedy = unknown_label()
        raise refusal(path, reason, remedy, key=f"{name}[{unknown[0]}]{more}")
    numbers: NDArray[np.int64] = matches.argmax(axis=1).astype(np.int64)
    return numbers


def unknown_label() -> tuple[str, str]:
    """What is said of a label outside ``classes``: reason and remedy; never the label itself."""
    return (
        "has a label that the federation does not know",
        "correct it, or agree on it in classes of the topology file",
    )
