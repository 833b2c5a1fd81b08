"""Records what a process really does to its state directory, operation by operation.

While a :class:`Recorder` is in force, the calls of ``os`` that change files, and every SQLite
connection, are wrapped. The wrappers do the real thing and note it with its data; ``pathlib``
ends in the same calls. Nothing of the code under test is replaced, so an operation that it
makes in another order, or leaves out, is recorded in that order, or is not there.

Written through a mapping, bytes reach the file without a call. They are noted where their file
is next synced or renamed, as a write of the whole file. A test compares what the log says is on
disk with what is there, so that a way to write that is not wrapped would be noticed.

Faults are raised from the same place: before the n-th operation, as if the kernel had refused.
"""

import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

JOURNAL_FILES = ("journal.sqlite", "journal.sqlite-wal")
UNRECORDED_FILES = (*JOURNAL_FILES, "journal.sqlite-shm")
RECORDED_CALLS = (
    "open",
    "write",
    "truncate",
    "ftruncate",
    "posix_fallocate",
    "fsync",
    "rename",
    "replace",
    "unlink",
    "mkdir",
)
SYNCHRONOUS_FULL = 2  # PRAGMA synchronous: from here on COMMIT syncs the write-ahead log


@dataclass(frozen=True, slots=True)
class MadeDirectory:
    path: Path


@dataclass(frozen=True, slots=True)
class Created:
    path: Path
    file: int


@dataclass(frozen=True, slots=True)
class Wrote:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resized:
    file: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SyncedFile:
    file: int


@dataclass(frozen=True, slots=True)
class SyncedDirectory:
    path: Path


@dataclass(frozen=True, slots=True)
class Renamed:
    source: Path
    target: Path
    file: int


@dataclass(frozen=True, slots=True)
class Unlinked:
    path: Path
    file: int


@dataclass(frozen=True, slots=True, eq=False)
class JournalChanged:
    """A SQL statement changed the files of the journal.

    ``committed``: no transaction is open after it. ``synced``: COMMIT waits for the disk.
    """

    directory: Path
    files: dict[str, bytes]
    committed: bool
    synced: bool


@dataclass(frozen=True, slots=True)
class Promised:
    """From here on the site has told somebody, or itself, that something is so."""

    promise: object


Operation = (
    MadeDirectory
    | Created
    | Wrote
    | Resized
    | SyncedFile
    | SyncedDirectory
    | Renamed
    | Unlinked
    | JournalChanged
    | Promised
)


@dataclass(frozen=True, slots=True)
class Call:
    """An operation that is about to be made: what a fault may be raised for."""

    name: str
    path: Path


Fault = Callable[[Call, int], None]


def _no_fault(_call: Call, _number: int) -> None:
    return


class Recorder:
    """Records below ``root``, which is not itself part of the state.

    :ivar operations: the log.
    :ivar calls: how many operations were begun, SQL statements included.
    :ivar fault: called before each operation with it and its number from 1; may raise.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations: list[Operation] = []
        self.calls = 0
        self.fault: Fault = _no_fault
        self._files: dict[tuple[int, int], int] = {}  # by device and inode, while it exists
        self._content: dict[int, bytearray] = {}
        self._names: dict[int, Path] = {}
        self._directories: dict[tuple[int, int], Path] = {}
        self._journals: dict[Path, dict[str, bytes]] = {}
        self._lock = threading.RLock()
        self._real = {name: getattr(os, name) for name in RECORDED_CALLS}

    def promise(self, promise: object) -> None:
        self.operations.append(Promised(promise))

    def promises(self) -> list[object]:
        return [made.promise for made in self.operations if isinstance(made, Promised)]

    @contextmanager
    def in_force(self) -> Iterator["Recorder"]:
        """Record what the block does."""
        with ExitStack() as stack:
            for name in self._real:
                wrapper = getattr(self, f"_{name}")
                stack.enter_context(patch.object(os, name, wrapper))
            stack.enter_context(patch.object(sqlite3, "connect", self._connect))
            yield self

    def _begin(self, name: str, path: Path) -> None:
        self.calls += 1
        self.fault(Call(name, path), self.calls)

    def _within(self, path: Any) -> Path | None:
        if isinstance(path, int):
            return None
        found = Path(os.fsdecode(path))
        inside = found.is_relative_to(self.root) and found != self.root
        return found if inside and found.name not in UNRECORDED_FILES else None

    def _key(self, path_or_descriptor: Any) -> tuple[int, int]:
        status = os.stat(path_or_descriptor)  # noqa: PTH116 - of a descriptor as well
        return status.st_dev, status.st_ino

    def _file_of(self, path_or_descriptor: Any) -> int | None:
        try:
            return self._files.get(self._key(path_or_descriptor))
        except FileNotFoundError:
            return None

    def _open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        with self._lock:
            inside = self._within(path)
            if inside is None or not flags & os.O_CREAT:
                return int(self._real["open"](path, flags, mode, **more))
            self._begin("open", inside)
            is_new = not inside.exists()
            descriptor = int(self._real["open"](path, flags, mode, **more))
            if is_new:
                file = len(self._content)
                self._content[file] = bytearray()
                self._files[self._key(descriptor)] = file
                self._names[file] = inside
                self.operations.append(Created(inside, file))
            if flags & os.O_TRUNC and not is_new:
                self._note_size(self._file_of(descriptor), 0)
            return descriptor

    def _write(self, descriptor: int, data: Any) -> int:
        with self._lock:
            file = self._file_of(descriptor)
            if file is None:
                return int(self._real["write"](descriptor, data))
            self._begin("write", self._names[file])
            offset = os.lseek(descriptor, 0, os.SEEK_CUR)
            written = int(self._real["write"](descriptor, data))
            self._note_bytes(file, offset, bytes(memoryview(data)[:written]))
            return written

    def _truncate(self, path: Any, size_bytes: int) -> None:
        with self._lock:
            file = self._file_of(path)
            if file is not None:
                self._begin("truncate", self._names[file])
            self._real["truncate"](path, size_bytes)
            self._note_size(file, size_bytes)

    _ftruncate = _truncate

    def _posix_fallocate(self, descriptor: int, offset: int, size_bytes: int) -> None:
        with self._lock:
            file = self._file_of(descriptor)
            if file is not None:
                self._begin("posix_fallocate", self._names[file])
            self._real["posix_fallocate"](descriptor, offset, size_bytes)
            if file is not None:
                self._note_size(file, max(len(self._content[file]), offset + size_bytes))

    def _fsync(self, descriptor: int) -> None:
        with self._lock:
            status = os.fstat(descriptor)
            key = status.st_dev, status.st_ino
            if stat.S_ISDIR(status.st_mode):
                path = self._directory_of(key)
                if path is not None:
                    self._begin("fsync", path)
                self._real["fsync"](descriptor)
                if path is not None:
                    self.operations.append(SyncedDirectory(path))
                return
            file = self._files.get(key)
            if file is not None:
                self._begin("fsync", self._names[file])
                self._note_mapped(file, self._names[file])
            self._real["fsync"](descriptor)
            if file is not None:
                self.operations.append(SyncedFile(file))

    def _rename(self, source: Any, target: Any, **more: Any) -> None:
        with self._lock:
            inside, final = self._within(source), self._within(target)
            if inside is None or final is None:
                self._real["rename"](source, target, **more)
                return
            self._begin("rename", final)
            file = self._file_of(inside)
            if file is not None:
                self._note_mapped(file, inside)
            self._real["rename"](source, target, **more)
            assert file is not None, f"{inside}: renamed, but never seen to be made"
            self._names[file] = final
            self.operations.append(Renamed(inside, final, file))

    _replace = _rename

    def _unlink(self, path: Any, **more: Any) -> None:
        with self._lock:
            inside = self._within(path)
            if inside is None:
                self._real["unlink"](path, **more)
                return
            self._begin("unlink", inside)
            file = self._file_of(inside)
            self._real["unlink"](path, **more)
            assert file is not None, f"{inside}: removed, but never seen to be made"
            self.operations.append(Unlinked(inside, file))

    def _mkdir(self, path: Any, mode: int = 0o777, **more: Any) -> None:
        with self._lock:
            inside = self._within(path)
            if inside is None or inside.exists():
                self._real["mkdir"](path, mode, **more)
                return
            self._begin("mkdir", inside)
            self._real["mkdir"](path, mode, **more)
            self._directories[self._key(inside)] = inside
            self.operations.append(MadeDirectory(inside))

    def _connect(self, database: Any, **settings: Any) -> sqlite3.Connection:
        if not Path(database).is_relative_to(self.root):
            return sqlite3.Connection(database, **settings)
        connection = _Connection(database, **settings)
        connection.recorder = self
        connection.path = Path(database)
        return connection

    def _directory_of(self, key: tuple[int, int]) -> Path | None:
        if key == self._key(self.root):
            return self.root
        return self._directories.get(key)

    def _note_bytes(self, file: int, offset: int, data: bytes) -> None:
        content = self._content[file]
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data
        self.operations.append(Wrote(file, offset, data))

    def _note_size(self, file: int | None, size_bytes: int) -> None:
        if file is None:
            return
        content = self._content[file]
        del content[size_bytes:]
        content.extend(bytes(size_bytes - len(content)))
        self.operations.append(Resized(file, size_bytes))

    def _note_mapped(self, file: int, path: Path) -> None:
        """Note what reached the file without a call."""
        found = path.read_bytes()
        if found != self._content[file]:
            self._note_bytes(file, 0, found)

    def note_journal(self, path: Path, *, committed: bool, synced: bool) -> None:
        files = {
            name: (path.parent / name).read_bytes()
            for name in JOURNAL_FILES
            if (path.parent / name).exists()
        }
        if files != self._journals.get(path):
            self._journals[path] = files
            self.operations.append(JournalChanged(path.parent, files, committed, synced))


class _Connection(sqlite3.Connection):
    """A connection that records which statement changed the journal's files."""

    recorder: Recorder
    path: Path

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return self._recorded(sql, super().execute, *parameters)

    def executemany(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return self._recorded(sql, super().executemany, *parameters)

    def executescript(self, sql: str) -> sqlite3.Cursor:
        cursor = self.cursor()
        for statement in filter(str.strip, sql.split(";")):
            cursor = self.execute(statement)
        return cursor

    def close(self) -> None:
        super().close()  # checkpoints
        self.recorder.note_journal(self.path, committed=True, synced=True)

    def _recorded(self, sql: str, run: Callable[..., sqlite3.Cursor], *more: Any) -> sqlite3.Cursor:
        with self.recorder._lock:
            self.recorder._begin(sql.split(None, 1)[0], self.path)
            cursor = run(sql, *more)
            level = super().execute("PRAGMA synchronous").fetchone()[0]
            self.recorder.note_journal(
                self.path, committed=not self.in_transaction, synced=level >= SYNCHRONOUS_FULL
            )
            return cursor
