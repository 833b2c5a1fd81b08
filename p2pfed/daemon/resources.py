"""What the daemon itself uses of its machine, and that it does not grow."""

import gc
import os
from pathlib import Path

import trio

from p2pfed.daemon.status import ResourceStatus

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STATM = Path("/proc/self/statm")  # proc_pid_statm(5); its second number is the resident pages
DESCRIPTORS = Path("/dev/fd")  # Linux and macOS alike


def resources_used(database_bytes: int) -> ResourceStatus:
    """Measured now, without touching the disk; to be called within trio.

    :param database_bytes: measured by whoever may wait for the disk.
    """
    return ResourceStatus(
        tasks=trio.lowlevel.current_statistics().tasks_living,
        open_files=_open_files(),
        memory_bytes=_resident_bytes(),
        database_bytes=database_bytes,
    )


def set_aside_what_stays() -> None:
    """Let no later collection look at what is alive now: modules, compiled kernels, settings.

    A quarter of a million such objects make every full collection hold the event loop up for a
    tenth of a second, and let an amount of garbage in proportion gather before the next one
    (https://docs.python.org/3/library/gc.html#gc.freeze).
    """
    gc.collect()
    gc.freeze()


def _open_files() -> int | None:
    try:
        return len(list(DESCRIPTORS.iterdir())) - 1  # the one that reads the directory
    except OSError:
        return None  # too many are open already, or the system does not say


def _resident_bytes() -> int | None:
    try:
        return int(STATM.read_text(encoding="ascii").split()[1]) * PAGE_BYTES
    except OSError:
        return None
