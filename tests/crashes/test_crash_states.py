"""Every invariant holds in every crash state of a workload of several rounds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_states import Disk, power_losses, process_kills
from crashing_site import Charged, Committed, Published, Quarantined, Sent
from recording import JournalChanged, Operation, Promised, Recorder, Renamed, Wrote
from workload import ROUNDS, Setting, Walk, record, scratch, walk

from p2pfed.daemon.durable_files import WORTH_KEEPING_BYTES

SMALL = Setting()
LARGE_DIMENSION = WORTH_KEEPING_BYTES + 4096  # its ciphertext too is worth recycling
SEED = 20240607


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


@pytest.fixture(scope="module")
def log(root: Path) -> list[Operation]:
    return record(root, SMALL)


def demand(outcome: Walk, *, at_least: int) -> None:
    assert not outcome.broken, "\n".join([str(dict(outcome.broken)), *outcome.stories[:20]])
    assert outcome.states >= at_least
    assert outcome.continued > 0


def test_the_log_accounts_for_every_byte_on_disk(root: Path, log: list[Operation]) -> None:
    disk = Disk(root)
    for operation in log:
        disk.make(operation)
    modelled = {path: disk.content[file] for path, file in disk.names.items() if file is not None}
    found = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    journal = disk.journals[-1]
    modelled |= {journal.directory / name: data for name, data in journal.files.items()}
    assert modelled == found
    assert {path for path in root.rglob("*") if path.is_dir()} == {
        path for path, file in disk.names.items() if file is None
    }


def test_the_workload_does_everything_that_a_store_does(log: list[Operation]) -> None:
    promises = [type(operation.promise) for operation in log if isinstance(operation, Promised)]
    assert promises.count(Published) == promises.count(Committed) == ROUNDS
    assert promises.count(Charged) == ROUNDS
    assert promises.count(Quarantined) == 1
    assert promises.count(Sent) >= ROUNDS
    recycled = [
        operation
        for operation in log
        if isinstance(operation, Renamed) and operation.source.name.startswith("spare-")
    ]
    assert {operation.target.parent.name for operation in recycled} == {
        "vectors",
        "outbox",
        "replicas",
    }
    assert all(
        operation.synced and operation.committed
        for operation in log
        if isinstance(operation, JournalChanged)
    )


def test_no_process_kill_breaks_an_invariant(root: Path, log: list[Operation]) -> None:
    outcome = walk(process_kills(log, root), root, SMALL, continue_each=12)
    demand(outcome, at_least=180)


def test_no_power_loss_breaks_an_invariant(root: Path, log: list[Operation]) -> None:
    states = power_losses(log, root, each=2, seed=SEED)
    demand(walk(states, root, SMALL, continue_each=30), at_least=400)


@pytest.mark.slow
def test_no_power_loss_of_many_breaks_an_invariant(root: Path, log: list[Operation]) -> None:
    states = power_losses(log, root, each=60, seed=SEED + 1)
    demand(walk(states, root, SMALL, continue_each=5), at_least=6000)


@pytest.mark.slow
def test_every_kill_can_be_gone_on_from(root: Path, log: list[Operation]) -> None:
    outcome = walk(process_kills(log, root), root, SMALL, continue_each=1)
    demand(outcome, at_least=180)
    assert outcome.continued == outcome.states


def test_files_of_the_size_that_is_recycled_in_earnest_survive_as_well() -> None:
    """The daemon's own threshold, and models above it; only states after bytes were written."""
    setting = Setting(LARGE_DIMENSION, 3, WORTH_KEEPING_BYTES)
    with scratch() as root:
        log = record(root, setting)
        assert any(isinstance(o, Renamed) and o.source.name.startswith("spare-") for o in log)
        wrote = [number for number, o in enumerate(log, start=1) if isinstance(o, Wrote)]
        sampled = set(wrote[1::3])
        states = (
            state
            for state in power_losses(log, root, each=2, seed=SEED)
            if state.in_force in sampled
        )
        demand(walk(states, root, setting, continue_each=4), at_least=5)


def test_the_recorder_leaves_nothing_behind(tmp_path: Path) -> None:
    import os
    import sqlite3

    before = os.write, os.fsync, os.rename, sqlite3.connect
    with Recorder(tmp_path).in_force():
        assert os.write is not before[0]
    assert (os.write, os.fsync, os.rename, sqlite3.connect) == before
