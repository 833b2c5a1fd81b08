"""The memory that the daemon shares with its trainer process. Imports no torch.

Four float32 vectors in one file without a name: ``parameters_in`` (d), ``state_in`` (s),
``parameters_out`` (d), ``state_out`` (s). The trainer maps the first two for reading only:
however it ends, what the daemon gave it is intact and the round can be trained again.
"""

import mmap
import os
import tempfile
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from p2pfed.errors import TrainingError

FLOAT_BYTES = 4

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class RegionLayout:
    """Where the vectors lie: the two inputs, padded to whole pages, then the two outputs."""

    dimension: int
    state_floats: int

    @property
    def half_bytes(self) -> int:
        used = (self.dimension + self.state_floats) * FLOAT_BYTES
        pages = -(-used // mmap.ALLOCATIONGRANULARITY)
        return pages * mmap.ALLOCATIONGRANULARITY

    @property
    def size_bytes(self) -> int:
        return 2 * self.half_bytes


@dataclass(frozen=True)
class Regions:
    """The four vectors as mapped into this process; shapes (d,), (s,), (d,), (s,), float32."""

    parameters_in: Vector
    state_in: Vector
    parameters_out: Vector
    state_out: Vector

    @classmethod
    def map(cls, descriptor: int, layout: RegionLayout, *, inputs_writable: bool) -> Self:
        """Map the shared memory, which must have its size already.

        :raises TrainingError: the memory is of another size, or cannot be mapped.
        """
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes != layout.size_bytes:
            raise TrainingError(
                f"the shared memory has {size_bytes} bytes; this model needs {layout.size_bytes}"
            )
        access = mmap.ACCESS_WRITE if inputs_writable else mmap.ACCESS_READ
        half = layout.half_bytes
        try:
            inputs = mmap.mmap(descriptor, half, access=access)
            outputs = mmap.mmap(descriptor, half, access=mmap.ACCESS_WRITE, offset=half)
        except OSError as error:
            raise TrainingError(
                f"{layout.size_bytes} bytes of shared memory cannot be mapped: {error.strerror}"
            ) from error
        return cls(*_views(inputs, layout), *_views(outputs, layout))


def _views(memory: mmap.mmap, layout: RegionLayout) -> tuple[Vector, Vector]:
    parameters = np.frombuffer(memory, np.float32, layout.dimension)
    after = layout.dimension * FLOAT_BYTES
    return parameters, np.frombuffer(memory, np.float32, layout.state_floats, after)


def create_memory() -> int:
    """A descriptor of new, empty, nameless memory; it is the caller's to size and to close."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("p2pfed-trainer")
    with tempfile.TemporaryFile(prefix="p2pfed-trainer-") as file:
        return os.dup(file.fileno())
