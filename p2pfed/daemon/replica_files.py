"""Neighbours' replicas on the disk: two slots each, one in force and one that is written next.

They are not synced: a neighbour can always send its replica again. Which slot is in force, and
what it must hold, the journal says.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from p2pfed.daemon.durable_files import (
    TEMPORARY_SUFFIX,
    PendingFile,
    SpareFiles,
    map_vector,
    naming,
)

REPLICA_SLOTS = (0, 1)


class ReplicaFiles:
    """The directory of replicas."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _path(self, site: str, slot: int) -> Path:
        return self.directory / f"{site}.{slot}.f32"

    @contextmanager
    def writing(self, site: str, slot: int, size_bytes: int) -> Iterator[PendingFile]:
        """A slot to write a neighbour's next replica into; it takes its name when the block
        ends well. The slot in use stays intact.

        :param size_bytes: about how much will be written.
        """
        path = self._path(site, slot)
        before_last = SpareFiles(1)
        if path.exists():
            before_last.give(path)
        pending = PendingFile(path.with_name(path.name + TEMPORARY_SUFFIX), before_last, size_bytes)
        try:
            yield pending
            pending.commit_unsynced(path)
        finally:
            pending.discard()

    def map(self, site: str, slot: int, dimension: int) -> npt.NDArray[np.float32]:
        """A replica, mapped read-only, shape ``(dimension,)``.

        :raises StoreError: it is not there, or has another length.
        """
        return map_vector(self._path(site, slot), dimension)

    def delete(self, site: str) -> None:
        for slot in REPLICA_SLOTS:
            with naming(path := self._path(site, slot)):
                path.unlink(missing_ok=True)

    def keep_only(self, named: Iterable[tuple[str, int]]) -> None:
        """Delete every replica but those of these sites and slots."""
        kept = {self._path(site, slot) for site, slot in named}
        for path in self.directory.glob("*.f32"):
            if path not in kept:
                with naming(path):
                    path.unlink()
