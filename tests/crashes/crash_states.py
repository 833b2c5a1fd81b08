"""What a disk may hold after a crash, enumerated from a log of operations.

**The model.** A file is an inode with bytes; a directory maps names to inodes. Each inode has
the bytes that the running kernel sees and those of its last fsync; each directory the names of
its last fsync and the changes since.

- *Process kill* (SIGKILL, a panic of the interpreter): the kernel lives on, so what it sees
  stays. One state after each operation, and one in the middle of each write.
- *Power loss*: of the names that changed since their directory's fsync, any subset is there, so
  a later change may have survived an earlier one. A file whose bytes were not synced holds one
  of :data:`FATES`: what it held before (for a recycled file: an old vector), the new bytes, a
  prefix of them, as many zeros, or a mixture of blocks. Where these are too many, corner cases
  are taken and the rest is drawn by a seed.
- *The journal*. SQLite's transactions are taken as atomic, and as durable where the COMMIT ran
  under ``synchronous=FULL`` or stricter: SQLite is tested for this far beyond what could be done
  here (sqlite.org/testing.html, section 3; sqlite.org/atomiccommit.html). Where it ran under a
  laxer setting, power loss may take back every commit since the last strict one. A kill leaves
  the write-ahead log as it is, not checkpointed; a loss in the middle of a COMMIT leaves a
  prefix of what that COMMIT appended to it.

**Its limits.** A rename is atomic and stays within its directory, as POSIX asks. An fsync that
returned is believed: a disk that lies about its cache is out of reach. Blocks are torn at
:data:`BLOCK_BYTES`. Damage to bytes that were durable (a flipped bit) is no crash; other tests
do that. Operations that several threads make at once are recorded in the one order in which
they were made.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recording import (
    Created,
    JournalChanged,
    MadeDirectory,
    Operation,
    Promised,
    Renamed,
    Resized,
    SyncedDirectory,
    SyncedFile,
    Unlinked,
    Wrote,
)

BLOCK_BYTES = 4096
SUBSETS_AT_MOST = 32

Fate = Callable[[bytes, bytes, random.Random], bytes]


def _torn(old: bytes, new: bytes, draw: random.Random) -> bytes:
    """A prefix of the new bytes, and behind it what was there before."""
    cut = draw.randrange(len(new)) if new else 0
    return new[:cut] + old[cut:]


def _blocks(old: bytes, new: bytes, draw: random.Random) -> bytes:
    """Each block is new, as before, or zero."""
    parts = []
    for start in range(0, len(new), BLOCK_BYTES):
        block = slice(start, min(start + BLOCK_BYTES, len(new)))
        size = block.stop - block.start
        parts.append(draw.choice([new[block], old[block].ljust(size, b"\0")[:size], bytes(size)]))
    return b"".join(parts)


FATES: dict[str, Fate] = {
    "as before": lambda old, _new, _draw: old,
    "new": lambda _old, new, _draw: new,
    "torn": _torn,
    "zeros": lambda _old, new, _draw: bytes(len(new)),
    "blocks": _blocks,
}


@dataclass(frozen=True)
class CrashState:
    """What is on disk after a crash.

    :ivar story: when and how, for the message of a failing test.
    :ivar files: the bytes of each file, without the journal's.
    :ivar promises: what had been promised when the crash came, in order.
    :ivar in_force: how many of the log's operations had been made.
    """

    story: str
    directories: frozenset[Path]
    files: Mapping[Path, bytes]
    journal: Mapping[Path, bytes]
    promises: tuple[object, ...]
    in_force: int

    def identity(self) -> tuple[object, ...]:
        return (
            self.directories,
            frozenset(self.files.items()),
            frozenset(self.journal.items()),
            len(self.promises),
        )

    def write(self, old_root: Path, new_root: Path) -> None:
        """Make it real below ``new_root``, which is empty."""
        for directory in sorted(self.directories):
            (new_root / directory.relative_to(old_root)).mkdir(mode=0o700)
        for path, content in {**self.files, **self.journal}.items():
            (new_root / path.relative_to(old_root)).write_bytes(content)


@dataclass(frozen=True, slots=True)
class NameChange:
    """A change to one directory: ``removed`` goes, ``added`` appears. None: neither."""

    directory: Path
    removed: Path | None
    added: Path | None
    file: int | None  # None: a directory

    def apply(self, names: dict[Path, int | None]) -> None:
        if self.removed is not None and names.get(self.removed, -1) == self.file:
            del names[self.removed]
        if self.added is not None:
            names[self.added] = self.file


@dataclass
class Disk:
    """A disk as the log leaves it below ``root``, with what of it is durable."""

    root: Path
    names: dict[Path, int | None] = field(default_factory=dict)
    durable_names: dict[Path, int | None] = field(default_factory=dict)
    changes: list[NameChange] = field(default_factory=list)
    content: dict[int, bytes] = field(default_factory=dict)
    durable_content: dict[int, bytes] = field(default_factory=dict)
    journals: list[JournalChanged] = field(default_factory=list)  # the last durable one first
    promises: tuple[object, ...] = ()

    def make(self, operation: Operation) -> None:  # noqa: PLR0912 - one case an operation
        match operation:
            case MadeDirectory(path):
                self._change(NameChange(path.parent, None, path, None))
            case Created(path, file):
                self.content[file] = self.durable_content[file] = b""
                self._change(NameChange(path.parent, None, path, file))
            case Wrote(file, offset, data):
                self.content[file] = overwrite(self.content[file], offset, data)
            case Resized(file, size_bytes):
                self.content[file] = self.content[file][:size_bytes].ljust(size_bytes, b"\0")
            case SyncedFile(file):
                self.durable_content[file] = self.content[file]
            case SyncedDirectory(path):
                for change in self.changes:
                    if change.directory == path:
                        change.apply(self.durable_names)
                self.changes = [c for c in self.changes if c.directory != path]
            case Renamed(source, target, file):
                assert source.parent == target.parent
                self._change(NameChange(source.parent, source, target, file))
            case Unlinked(path, file):
                self._change(NameChange(path.parent, path, None, file))
            case JournalChanged(_, _, committed, synced):
                if committed and synced:
                    self.journals.clear()
                self.journals.append(operation)
            case Promised(promise):
                self.promises = (*self.promises, promise)

    def _change(self, change: NameChange) -> None:
        change.apply(self.names)
        self.changes.append(change)

    def state(
        self,
        story: str,
        in_force: int,
        names: Mapping[Path, int | None],
        content: Mapping[int, bytes],
        journal: JournalChanged | None,
    ) -> CrashState:
        reachable = [path for path in names if self._is_reachable(path, names)]
        directories = frozenset(path for path in reachable if names[path] is None)
        kept = journal if journal is not None and journal.directory in directories else None
        return CrashState(
            story,
            directories,
            {path: content[file] for path in reachable if (file := names[path]) is not None},
            {kept.directory / name: data for name, data in kept.files.items()} if kept else {},
            self.promises,
            in_force,
        )

    def _is_reachable(self, path: Path, names: Mapping[Path, int | None]) -> bool:
        """Whether the directories that lead to it are there too."""
        while path.parent != self.root:
            path = path.parent
            if path not in names:
                return False
        return True


def overwrite(content: bytes, offset: int, data: bytes) -> bytes:
    before = content[:offset].ljust(offset, b"\0")
    return before + data + content[offset + len(data) :]


def disks(log: Sequence[Operation], root: Path) -> Iterator[tuple[int, Operation, Disk]]:
    """The disk after each operation, with how many were made; one object, changed in place."""
    disk = Disk(root)
    for number, operation in enumerate(log, start=1):
        disk.make(operation)
        yield number, operation, disk


def process_kills(log: Sequence[Operation], root: Path) -> Iterator[CrashState]:
    """The states that a SIGKILL may leave: after every operation, and within each write."""
    before: dict[int, bytes] = {}
    for number, operation, disk in disks(log, root):
        journal = disk.journals[-1] if disk.journals else None
        if isinstance(operation, Wrote) and len(operation.data) > 1:
            half = operation.data[: len(operation.data) // 2]
            written = overwrite(before[operation.file], operation.offset, half)
            partly = {**disk.content, operation.file: written}
            story = f"killed within operation {number}: {describe(operation)}"
            yield disk.state(story, number - 1, disk.names, partly, journal)
        story = f"killed after operation {number}: {describe(operation)}"
        yield disk.state(story, number, disk.names, disk.content, journal)
        before = dict(disk.content)


def power_losses(
    log: Sequence[Operation], root: Path, *, each: int, seed: int
) -> Iterator[CrashState]:
    """States that a power loss may leave, at most ``each`` (and the torn COMMITs) after every
    operation."""
    draw = random.Random(seed)
    last: JournalChanged | None = None
    promises_before: tuple[object, ...] = ()
    for number, operation, disk in disks(log, root):
        if isinstance(operation, JournalChanged):
            yield from _torn_commits(number, operation, last, disk, promises_before)
            last = operation
        promises_before = disk.promises
        for lost, fate, journal in _choices(disk, draw, each):
            names = dict(disk.durable_names)
            for index, change in enumerate(disk.changes):
                if index not in lost:
                    change.apply(names)
            content = {
                file: new
                if new == (old := disk.durable_content[file])
                else FATES[fate if fate in FATES else draw.choice(list(FATES))](old, new, draw)
                for file, new in disk.content.items()
            }
            story = (
                f"power lost after operation {number}: {describe(operation)}; of "
                f"{len(disk.changes)} unsynced names lost {sorted(lost)}, unsynced bytes {fate}"
            )
            yield disk.state(story, number, names, content, journal)


def _choices(
    disk: Disk, draw: random.Random, each: int
) -> list[tuple[frozenset[int], str, JournalChanged | None]]:
    """Which name changes are lost, what becomes of unsynced bytes, which journal is left."""
    everything = frozenset(range(len(disk.changes)))
    losses = [frozenset[int](), everything]
    if 2 ** len(everything) <= SUBSETS_AT_MOST:
        losses += [
            frozenset(some)
            for size in range(1, len(everything))
            for some in itertools.combinations(everything, size)
        ]
    else:
        losses += [frozenset({one}) for one in everything]
        losses += [everything - {one} for one in everything]
        losses += [
            frozenset(i for i in everything if draw.random() < 0.5) for _ in range(SUBSETS_AT_MOST)
        ]
    dirty = any(disk.durable_content[file] != new for file, new in disk.content.items())
    fates = [*FATES, "mixed"] if dirty else ["new"]
    journals: list[JournalChanged | None] = [*disk.journals] or [None]
    product = list(itertools.product(dict.fromkeys(losses), fates, journals))
    if len(product) <= each:
        return product
    nothing, newest = frozenset[int](), journals[-1]
    corners = [
        (nothing, "as before" if dirty else "new", newest),
        (nothing, "torn" if dirty else "new", newest),
        (everything, "new", newest),
        (nothing, "new", journals[0]),
    ]
    return list(dict.fromkeys([*corners, *draw.sample(product, each)]))[:each]


def _torn_commits(
    number: int,
    commit: JournalChanged,
    last: JournalChanged | None,
    disk: Disk,
    promises: tuple[object, ...],
) -> Iterator[CrashState]:
    """Prefixes of what a COMMIT appended to the write-ahead log."""
    wal = "journal.sqlite-wal"
    new = commit.files.get(wal, b"")
    old = last.files.get(wal, b"") if last is not None else b""
    if last is None or not new.startswith(old) or len(new) - len(old) < 2:
        return
    step = (len(new) - len(old)) // 3
    for cut in (len(old) + 1, len(old) + step, len(new) - step, len(new) - 1):
        torn = JournalChanged(commit.directory, {**last.files, wal: new[:cut]}, False, True)
        story = f"power lost within COMMIT {number}, log cut at {cut - len(old)} new bytes"
        state = disk.state(story, number - 1, disk.durable_names, disk.durable_content, torn)
        assert state.promises == promises
        yield state


def describe(operation: Operation) -> str:
    match operation:
        case Wrote(file, offset, data):
            return f"Wrote({len(data)} bytes at {offset} of file {file})"
        case JournalChanged():
            return "COMMIT" if operation.committed else "JournalChanged"
        case Promised(promise):
            return f"Promised({type(promise).__name__})"
        case _:
            return str(operation)
