"""Every write to the state directory goes through here.

A file appears under its final name whole and on stable storage, or not at all: write a
temporary file, fsync it, rename it, fsync the directory. Naming it in the database comes
after, so that a crash leaves at worst a file that nothing names.

What the disk refuses is a :class:`StoreError` that names the file; nothing temporary stays.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from p2pfed.errors import StoreError

PRIVATE_DIRECTORY_MODE = 0o700
PRIVATE_FILE_MODE = 0o600
TEMPORARY_SUFFIX = ".partial"
WORTH_KEEPING_BYTES = 1 << 20  # smaller files are made anew


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses within the block into an error about ``path``.

    :raises StoreError: instead of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}{_remedy(error, path)}") from error


def _remedy(error: OSError, path: Path) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"; make room for {path.parent}: nothing that was committed is lost"
        case errno.EIO:
            return "; look at this disk's health before the daemon is started again"
        case errno.EROFS:
            return "; its file system was made read-only, mostly because of a failing disk"
        case _:
            return ""


def make_private_directory(path: Path) -> None:
    """Create ``path`` for this user alone, durably, or check that it already is.

    :raises StoreError: it belongs to somebody else or others may enter it.
    """
    missing = [parent for parent in path.parents if not parent.exists()]
    with naming(path):
        path.mkdir(mode=PRIVATE_DIRECTORY_MODE, parents=True, exist_ok=True)
        status = path.stat()
    # Also where it exists: who made it may have been killed before this. A parent that may
    # not be read was made by somebody else.
    for made in (path, *missing):
        with naming(made.parent), suppress(PermissionError):
            _sync_directory(made.parent)
    if status.st_uid != os.geteuid():
        raise StoreError(f"{path}: belongs to user {status.st_uid}; run chown on it")
    if status.st_mode & 0o077:
        raise StoreError(
            f"{path}: mode {status.st_mode & 0o777:o} lets others in; run chmod 700 {path}"
        )


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    with naming(path):
        _sync_directory(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_file(temporary: Path, final: Path) -> None:
    """Give a synced temporary file its final name, durably."""
    with naming(final):
        temporary.rename(final)
        sync_directory(final.parent)


class SpareFiles:
    """Files that nothing names or reads any more, kept to be overwritten.

    Memory for their pages and room on the disk need not be found again: that is most of the
    time that a large new file takes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._spare: list[Path] = []
        self._given = 0

    def give(self, path: Path) -> None:
        """Take a file's name away; keep it, or remove it where that is of no use."""
        with naming(path):
            if len(self._spare) >= self._most or path.stat().st_size < WORTH_KEEPING_BYTES:
                path.unlink()
                return
            self._given += 1
            spare = path.with_name(f"spare-{self._given}{TEMPORARY_SUFFIX}")
            path.rename(spare)
        self._spare.append(spare)

    def take(self, temporary: Path, size_bytes: int) -> None:
        """Let a spare file be ``temporary``, where there is one and the size is worth it."""
        if size_bytes < WORTH_KEEPING_BYTES:
            return
        if not self._spare:
            return
        with suppress(FileNotFoundError):
            self._spare[-1].rename(temporary)
        self._spare.pop()  # only now: one that could not be renamed is still a spare


class PendingFile:
    """A file that is written from start to end; it has no name until ``commit`` gives it one."""

    def __init__(
        self, temporary: Path, spare: SpareFiles | None = None, size_bytes: int = 0
    ) -> None:
        self._temporary = temporary
        self._descriptor = -1
        with naming(temporary):
            # Never the file that has this name: somebody may still be reading its pages.
            temporary.unlink(missing_ok=True)
            try:
                if spare is not None:
                    spare.take(temporary, size_bytes)
                self._descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT, PRIVATE_FILE_MODE)
            except OSError:
                self.discard()
                raise

    def write(self, data: bytes | memoryview) -> None:
        # A full disk takes a part of it before it refuses.
        rest = memoryview(data)
        with naming(self._temporary):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def sync(self) -> None:
        """Bring what was written to stable storage; ``commit`` is then quick."""
        with naming(self._temporary):
            written = os.lseek(self._descriptor, 0, os.SEEK_CUR)
            if os.fstat(self._descriptor).st_size != written:
                os.truncate(self._descriptor, written)  # a spare file was longer
            os.fsync(self._descriptor)

    def commit(self, final: Path) -> None:
        """Make it durable under ``final``."""
        self.sync()
        self._close()
        publish_file(self._temporary, final)

    def commit_unsynced(self, final: Path) -> None:
        """Give it its name; a power cut may leave anything in it."""
        with naming(final):
            self._close()
            self._temporary.rename(final)

    def discard(self) -> None:
        """Forget it, unless it was committed."""
        with naming(self._temporary):
            self._close()
            self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def durable_file(final: Path, spare: SpareFiles, size_bytes: int) -> Iterator[PendingFile]:
    """A file to write from start to end; it takes its name when the block ends well.

    :param size_bytes: about how much will be written.
    """
    pending = PendingFile(final.with_name(final.name + TEMPORARY_SUFFIX), spare, size_bytes)
    try:
        yield pending
        pending.commit(final)
    finally:
        pending.discard()


class PendingVector:
    """A float32 vector that is being written, on disk from the start.

    Its pages belong to the file cache, so a vector as large as memory can be made; it has no
    name until ``commit`` gives it one.
    """

    def __init__(self, temporary: Path, dimension: int) -> None:
        self._temporary = temporary
        with naming(temporary):
            # A new file, never a truncated one: somebody may still be reading the old pages.
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE)
            try:
                _reserve(descriptor, 4 * dimension)
                self.array = np.memmap(temporary, dtype=np.float32, mode="r+", shape=(dimension,))
            except OSError:
                self.discard()
                raise
            finally:
                os.close(descriptor)

    def commit(self, final: Path) -> None:
        """Make it durable under ``final``; the array stays valid and is not to be written."""
        with naming(self._temporary):
            self.array.flush()
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
        publish_file(self._temporary, final)

    def discard(self) -> None:
        with naming(self._temporary):
            self._temporary.unlink(missing_ok=True)


def _reserve(descriptor: int, size_bytes: int) -> None:
    """Give a file its size and the room on the disk: a mapped write that finds none ends the
    process by SIGBUS, where this raises."""
    if size_bytes and hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(descriptor, 0, size_bytes)
    else:
        os.truncate(descriptor, size_bytes)


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
