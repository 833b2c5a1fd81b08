"""Reading named arrays from an NPZ file, whose every size is checked before it is believed."""

import zipfile
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from p2pfed.training.tasks.findings import file_bytes, refusal

MAX_ARCHIVE_BYTES = 16 * 1024**3
MAX_ARRAY_BYTES = 16 * 1024**3
MAX_MEMBERS = 1_000


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays ``names`` of an NPZ file (numpy.savez), in memory, of numbers or fixed text.

    :raises DataError: no such file or array, damaged, too large, or an array of Python objects.
    """
    file_bytes(path, MAX_ARCHIVE_BYTES)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise refusal(path, f"holds over {MAX_MEMBERS} arrays")
            by_name = {member.filename.removesuffix(".npy"): member for member in members}
            missing = [name for name in names if name not in by_name]
            if missing:
                raise refusal(
                    path,
                    f"has no array {', '.join(missing)}",
                    "name its arrays so, or set split and holdout_split in [data]",
                )
            return {name: _read_member(path, archive, by_name[name], name) for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise refusal(path, "is damaged, or no NPZ file", "export it again") from error
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror or 'damaged'}") from error


def _read_member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str
) -> NDArray[Any]:
    # numpy allocates what an array's header promises before it reads: a header of a few bytes
    # could ask for any amount.
    try:
        with archive.open(member) as file:
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = header(file)
        size_bytes = prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise refusal(path, "holds Python objects", "save plain arrays", key=name)
        if size_bytes > min(MAX_ARRAY_BYTES, member.file_size):
            raise refusal(path, f"promises {size_bytes} bytes and has fewer, or too many", key=name)
        with archive.open(member) as file:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    except (ValueError, SyntaxError) as error:
        raise refusal(path, "is no numpy array", "export it again", key=name) from error
    return array
