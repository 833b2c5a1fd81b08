"""Every write to the state directory goes through here.

A file appears under its final name whole and on stable storage, or not at all: write a
temporary file, fsync it, rename it, fsync the directory. Naming it in the database comes
after, so that a crash leaves at worst a file that nothing names.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from p2pfed.errors import StoreError

PRIVATE_DIRECTORY_MODE = 0o700
PRIVATE_FILE_MODE = 0o600
TEMPORARY_SUFFIX = ".partial"


def make_private_directory(path: Path) -> None:
    """Create ``path`` for this user alone, or check that it already is.

    :raises StoreError: it belongs to somebody else or others may enter it.
    """
    path.mkdir(mode=PRIVATE_DIRECTORY_MODE, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise StoreError(f"{path}: belongs to user {status.st_uid}; run chown on it")
    if status.st_mode & 0o077:
        raise StoreError(
            f"{path}: mode {status.st_mode & 0o777:o} lets others in; run chmod 700 {path}"
        )


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_file(temporary: Path, final: Path) -> None:
    """Give a synced temporary file its final name, durably."""
    temporary.rename(final)
    sync_directory(final.parent)


@contextmanager
def durable_file(final: Path) -> Iterator[BinaryIO]:
    """A file to write from start to end; it takes its name when the block ends well."""
    temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish_file(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


class PendingVector:
    """A float32 vector that is being written, on disk from the start.

    Its pages belong to the file cache, so a vector as large as memory can be made; it has no
    name until ``commit`` gives it one.
    """

    def __init__(self, temporary: Path, dimension: int) -> None:
        self._temporary = temporary
        # A new file, never a truncated one: somebody may still be reading the old pages.
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE)
        try:
            os.truncate(descriptor, 4 * dimension)
        finally:
            os.close(descriptor)
        self.array = np.memmap(temporary, dtype=np.float32, mode="r+", shape=(dimension,))

    def commit(self, final: Path) -> None:
        """Make it durable under ``final``; the array stays valid and is not to be written."""
        self.array.flush()
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        publish_file(self._temporary, final)

    def discard(self) -> None:
        self._temporary.unlink(missing_ok=True)


def map_vector(path: Path, dimension: int) -> npt.NDArray[np.float32]:
    """A stored vector as a read-only array of shape ``(dimension,)``, float32.

    :raises StoreError: the file is missing or has another length.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes != 4 * dimension:
            raise StoreError(f"{path}: {size_bytes} bytes, expected {4 * dimension}")
        if dimension == 0:
            return np.empty(0, dtype=np.float32)  # an empty file cannot be mapped
        return np.memmap(path, dtype=np.float32, mode="r", shape=(dimension,))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
