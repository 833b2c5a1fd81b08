"""Shared by the tests of whole nodes in memory."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY_FILES = Path("/dev/shm")  # noqa: S108 - a private directory is made in it


@pytest.fixture
def state_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where the machine has such: most of the time would go into fsync."""
    if not os.access(MEMORY_FILES, os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="p2pfed-nodes-", dir=MEMORY_FILES))
    yield path
    shutil.rmtree(path)
