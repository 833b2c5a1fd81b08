"""What a daemon uses of its machine, as it measures it itself."""

import gc
import weakref
from pathlib import Path

import numpy as np
import trio

from p2pfed.daemon import resources
from p2pfed.daemon.resources import resources_used, set_aside_what_stays
from p2pfed.daemon.store import JOURNAL_NAME, Store

MEBIBYTE = 1 << 20


async def test_every_task_that_is_started_is_counted_until_it_ends() -> None:
    before = resources_used(0).tasks
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(trio.sleep_forever)
        assert resources_used(0).tasks == before + 5
        nursery.cancel_scope.cancel()
    assert resources_used(0).tasks == before


async def test_open_files_are_counted(tmp_path: Path) -> None:
    before = resources_used(0).open_files
    assert before is not None
    with (tmp_path / "one").open("w"), (tmp_path / "two").open("w"):
        assert resources_used(0).open_files == before + 2
    assert resources_used(0).open_files == before


async def test_memory_that_is_written_to_is_resident() -> None:
    before = resources_used(0).memory_bytes
    block = np.ones(64 * MEBIBYTE, np.uint8)
    after = resources_used(0).memory_bytes
    assert before is not None
    assert after is not None
    assert after - before > 60 * MEBIBYTE
    assert block.all()


async def test_what_cannot_be_read_is_unknown(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(resources, "STATM", tmp_path / "none")
    monkeypatch.setattr(resources, "DESCRIPTORS", tmp_path / "none")
    used = resources_used(7)
    assert (used.open_files, used.memory_bytes, used.database_bytes) == (None, None, 7)


class Ring:
    def __init__(self) -> None:
        self.self = self


def test_what_is_set_aside_is_looked_at_no_more_and_what_is_garbage_goes_first() -> None:
    stays, garbage = Ring(), weakref.ref(Ring())
    before = gc.get_freeze_count()
    try:
        set_aside_what_stays()
        assert gc.get_freeze_count() > before + 10_000
        assert garbage() is None
        assert not any(each is stays for each in gc.get_objects())
        later = weakref.ref(Ring())
        gc.collect()
        assert later() is None
    finally:
        gc.unfreeze()


def test_the_size_of_the_database_is_that_of_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    try:
        files = [store.directory / f"{JOURNAL_NAME}{end}" for end in ("", "-wal")]
        assert store.database_bytes == sum(file.stat().st_size for file in files) > 0
    finally:
        store.close()
