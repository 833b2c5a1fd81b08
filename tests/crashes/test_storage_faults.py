"""A full disk, or one that fails, at every operation: an error that names the file, nothing left
behind, and the next attempt succeeds."""

import errno
import fcntl
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from crash_states import disks
from crashing_site import CrashingSite, Sent, in_one_thread
from invariants import examine
from recording import Call, Fault, Recorder
from workload import Setting, neighbour_for, scratch

from p2pfed.daemon.durable_files import TEMPORARY_SUFFIX, PendingFile, PendingVector
from p2pfed.daemon.journal import Journal
from p2pfed.daemon.store import Store
from p2pfed.errors import StoreError
from p2pfed.protocol.evidence import conflict
from p2pfed.protocol.phases import Phase

SETTING = Setting(rounds=3)
FAST_STRIDE = 13  # every so many operations; the slow test takes each of them
NEEDS_ROOM = ("open", "write", "posix_fallocate", "mkdir", "INSERT", "UPDATE", "CREATE", "COMMIT")
SQL = ("PRAGMA", "SELECT", "BEGIN", "INSERT", "UPDATE", "CREATE", "DELETE", "COMMIT")


def refuse(call: Call, number: int) -> None:
    if call.name in SQL:
        raise sqlite3.OperationalError(
            "database or disk is full" if number == errno.ENOSPC else "disk I/O error"
        )
    raise OSError(number, os.strerror(number), str(call.path))


def fails_once(at: int) -> tuple[Fault, Callable[[], None]]:
    """The operation with this number fails with EIO; what undoes it afterwards."""

    def fault(call: Call, number: int) -> None:
        if number == at:
            refuse(call, errno.EIO)

    return fault, lambda: None


def fails_at(name: str, suffix: str, count: int) -> tuple[Fault, Callable[[], None]]:
    """Of such calls on a file whose name ends so, this one fails with EIO; counted from 1."""
    seen = 0

    def fault(call: Call, _number: int) -> None:
        nonlocal seen
        if call.name == name and call.path.name.endswith(suffix):
            seen += 1
            if seen == count:
                refuse(call, errno.EIO)

    return fault, lambda: None


def is_full_from(at: int) -> tuple[Fault, Callable[[], None]]:
    """From this operation on there is no room, until somebody makes some."""
    full = True

    def fault(call: Call, number: int) -> None:
        if full and number >= at and call.name in NEEDS_ROOM:
            refuse(call, errno.ENOSPC)

    def make_room() -> None:
        nonlocal full
        full = False

    return fault, make_room


def open_files(directory: Path) -> set[str]:
    """The files that are open, but for mapped vectors: a mapping keeps a descriptor of its own,
    open for reading as well, as long as somebody uses the model."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            target = Path(os.readlink(link))  # noqa: PTH115 - the target need not exist
            if not target.is_relative_to(directory):
                continue
            only_written = fcntl.fcntl(int(link.name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
            if only_written or target.parent == directory:
                found.add(target.name)
    return found


def temporary_files(directory: Path) -> set[str]:
    return {
        path.name
        for path in directory.rglob(f"*{TEMPORARY_SUFFIX}")
        if not path.name.startswith("spare-")
    }


class Attempts:
    """A site that is tried again whenever its store reports an error."""

    def __init__(self, recorder: Recorder, after_error: Callable[[], None], *, restarts: bool):
        self.recorder = recorder
        self.errors: list[StoreError] = []
        self._after_error = after_error
        self._restarts = restarts
        self._directory = recorder.root / "state"
        self._site: CrashingSite | None = None

    def run(self) -> None:
        while self._site is None or self._site.engine.phase is not Phase.FINISHED:
            try:
                self._go_on()
            except StoreError as error:
                self._check(error)
                self._after_error()
        self._stop()

    def _go_on(self) -> None:
        if self._site is None:
            site = CrashingSite(
                self._directory, neighbour_for(SETTING), SETTING.dimension, self.recorder.promise
            )
            try:
                site.start()
            except StoreError:
                site.stop()
                raise
            self._site = site
        self._site.settle()
        self._site.run()

    def _check(self, error: StoreError) -> None:
        self.errors.append(error)
        assert len(self.errors) < 5, f"the same fault again and again: {error}"
        named = str(error).split(":")[0]
        assert Path(named).is_relative_to(self.recorder.root), f"names no file: {error}"
        left = temporary_files(self._directory)
        assert not left, f"left behind: {left}"
        if self._site is None or self._restarts:
            self._stop()
            assert not open_files(self._directory), "left open"
        else:
            assert open_files(self._directory) <= {
                "lock",
                "journal.sqlite",
                "journal.sqlite-wal",
                "journal.sqlite-shm",
            }

    def _stop(self) -> None:
        if self._site is not None:
            with suppress(StoreError):
                self._site.stop()
            self._site = None


def try_fault(fault: tuple[Fault, Callable[[], None]], *, restarts: bool) -> bool:
    """Run the workload with a fault; whether the fault came up."""
    with scratch() as root:
        recorder = Recorder(root)
        recorder.fault, make_room = fault
        attempts = Attempts(recorder, make_room, restarts=restarts)
        with in_one_thread(SETTING.worth_keeping_bytes):
            with recorder.in_force():
                attempts.run()
            promises = tuple(recorder.promises())
            examine(root / "state", promises, SETTING.dimension)
    sent = [promise.signed for promise in promises if isinstance(promise, Sent)]
    assert not any(conflict(one, other) for one in sent for other in sent)
    return bool(attempts.errors)


def calls_of_a_run() -> list[Call]:
    calls: list[Call] = []
    with scratch() as root:
        recorder = Recorder(root)
        recorder.fault = lambda call, _number: calls.append(call)
        with in_one_thread(SETTING.worth_keeping_bytes), recorder.in_force():
            Attempts(recorder, lambda: None, restarts=False).run()
    return calls


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    neighbour_for(SETTING)
    return calls_of_a_run()


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("kind", [fails_once, is_full_from])
def test_a_fault_at_some_operations_costs_no_state(
    calls: list[Call], kind: Callable[[int], tuple[Fault, Callable[[], None]]], restarts: bool
) -> None:
    first = 1 + 3 * restarts + 7 * (kind is is_full_from)
    numbers = range(first, len(calls) + 1, FAST_STRIDE)
    came_up = [try_fault(kind(number), restarts=restarts) for number in numbers]
    assert sum(came_up) >= len(came_up) - 2


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("kind", [fails_once, is_full_from])
def test_a_fault_at_any_operation_costs_no_state(
    calls: list[Call], kind: Callable[[int], tuple[Fault, Callable[[], None]]], restarts: bool
) -> None:
    for number in range(1, len(calls) + 1):
        try_fault(kind(number), restarts=restarts)


@contextmanager
def _without_rollback(journal: Journal) -> Iterator[sqlite3.Connection]:
    with journal.naming():
        journal._database.execute("BEGIN IMMEDIATE")
        yield journal._database
        journal._database.execute("COMMIT")


@pytest.mark.parametrize(
    ("owner", "name", "bug", "at", "what_is_found"),
    [
        (
            Journal,
            "transaction",
            _without_rollback,
            ("DELETE", "journal.sqlite", 15),
            "the same fault again and again",
        ),
        (PendingFile, "discard", PendingFile._close, ("write", ".sealed.partial", 2), "partial"),
        (
            PendingVector,
            "discard",
            lambda _self: None,
            ("fsync", "mixed.partial", 1),
            "mixed.partial",
        ),
        (PendingFile, "_close", lambda _self: None, ("write", ".sealed.partial", 2), "left open"),
    ],
)
def test_a_bug_in_what_follows_a_fault_is_found(
    owner: type, name: str, bug: object, at: tuple[str, str, int], what_is_found: str
) -> None:
    neighbour_for(SETTING)
    with patch.object(owner, name, bug), pytest.raises(AssertionError, match=what_is_found):
        try_fault(fails_at(*at), restarts=what_is_found == "left open")


def test_a_vector_whose_name_was_not_synced_is_not_taken_for_durable() -> None:
    """The first attempt ends between the rename and the fsync of the directory."""
    vector = np.ones(100, np.float32)
    with scratch() as root:
        recorder = Recorder(root)

        def fault(call: Call, number: int) -> None:
            if call.name == "fsync" and call.path.name == "vectors":
                recorder.fault = lambda _call, _number: None
                refuse(call, errno.EIO)

        with recorder.in_force():
            store = Store(root / "state")
            recorder.fault = fault
            with pytest.raises(StoreError, match="health"):
                store.put_vector(vector)
            digest = store.put_vector(vector)
            store.close()
        *_, (_, _, disk) = disks(recorder.operations, root)
    assert root / "state" / "vectors" / f"{digest.hex()}.f32" in disk.durable_names


SMALL_DISK = """
import pathlib, sys
import numpy as np
from p2pfed.daemon.store import Store
from p2pfed.errors import StoreError

store = Store(pathlib.Path(sys.argv[1]) / "state")
large = np.ones(1 << 20, np.float32)
for attempt in (
    lambda: store.new_vector("mixed", large.size).array.fill(1.0),
    lambda: store.put_vector(large),
):
    try:
        attempt()
    except StoreError as error:
        print(error)
print(list((store.directory / "vectors").iterdir()))
print(store.put_vector(large[:100]).hex()[:4])
"""


def test_a_real_disk_that_is_too_small_ends_no_process(tmp_path: Path) -> None:
    """A mapped write without room would be a SIGBUS, which nothing can catch."""
    enter = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = 'mount -t tmpfs -o size=2m none "$1"'
    try:
        subprocess.run([*enter, mount, "sh", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system of our own can be mounted here: {error}")
    done = subprocess.run(
        [*enter, mount + ' && exec "$2" -c "$3" "$1"', "sh", tmp_path, sys.executable, SMALL_DISK],
        check=False,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert [("No space left" in line, "make room" in line) for line in lines[:2]] == 2 * [
        (True, True)
    ]
    assert lines[2] == "[]"
