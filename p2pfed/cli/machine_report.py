"""What a bug report says of the machine and of the daemon's process, read from the system."""

import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PROCESS_FIELDS = (
    "State",
    "VmPeak",
    "VmRSS",
    "VmSwap",
    "RssAnon",
    "RssFile",
    "RssShmem",
    "Threads",
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
)
LIMITS = ("Max open files", "Max processes", "Max address space", "Max file size")
MOST_THREADS = 128
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def machine(state_directory: Path) -> dict[str, Any]:
    """Operating system, processors, memory, disk of the state directory, clock, uptime."""
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    existing = next(p for p in (state_directory, *state_directory.parents) if p.exists())
    disk = os.statvfs(existing)
    return {
        "system": release.get("PRETTY_NAME", platform.system()),
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "memory": _table(Path("/proc/meminfo"), ("MemTotal", "MemAvailable", "SwapFree")),
        "load": os.getloadavg(),
        "disk": {
            "size_bytes": disk.f_frsize * disk.f_blocks,
            "available_bytes": disk.f_frsize * disk.f_bavail,
            "free_inodes": disk.f_favail,
            "kind": _filesystem(existing.resolve()),
        },
        "clock": {
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "uptime_seconds": round(time.clock_gettime(time.CLOCK_MONOTONIC)),
            "zone": time.strftime("%z"),
        },
    }


def _filesystem(path: Path) -> str:
    """The kind of file system that ``path`` lies on; its mount point is nobody's business."""
    found = ("", "unknown")
    for line in _lines(Path("/proc/mounts")):
        _, mount_point, kind, *_ = line.split(" ")
        if path.is_relative_to(mount_point) and len(mount_point) >= len(found[0]):
            found = (mount_point, kind)
    return found[1]


def process(pid: int) -> dict[str, Any]:
    """A process's memory, threads, open files by kind, limits and children, as far as this user
    may see them; never its environment or its command line."""
    entry = Path("/proc", str(pid))
    limits = (line for line in _lines(entry / "limits") if line.startswith(LIMITS))
    return {
        "pid": pid,
        **_table(entry / "status", PROCESS_FIELDS),
        **_table(entry / "smaps_rollup", ("Pss",)),
        "age_seconds": _age_seconds(entry),
        "open_files": dict(open_files(pid)),
        "limits": [" ".join(line.split()) for line in limits],
        "threads": list(_threads(entry)),
        "children": [
            {"pid": child, **_table(Path("/proc", str(child), "status"), ("State", "VmRSS"))}
            for child in _children(entry)
        ],
    }


def open_files(pid: int) -> Counter[str]:
    """Open descriptors by kind: socket, pipe, anon_inode, file, deleted file."""
    kinds: Counter[str] = Counter()
    try:
        descriptors = list(Path("/proc", str(pid), "fd").iterdir())
    except OSError:
        return kinds
    for descriptor in descriptors:
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue  # closed meanwhile
        if target.startswith("/"):
            kinds["deleted file" if target.endswith(" (deleted)") else "file"] += 1
        else:
            kinds[target.partition(":")[0]] += 1
    return kinds


def _age_seconds(entry: Path) -> float | None:
    for line in _lines(entry / "stat"):
        started_ticks = int(line.rpartition(")")[2].split()[19])  # field 22 of proc(5)
        return round(time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / TICKS_PER_SECOND, 1)
    return None


def _threads(entry: Path) -> Iterator[dict[str, str]]:
    """Name, state and what it waits for in the kernel, of each thread."""
    for thread in sorted((entry / "task").glob("*"))[:MOST_THREADS]:
        table = _table(thread / "status", ("Name", "State"))
        waits = "".join(_lines(thread / "wchan"))
        yield {**table, "waits_in": waits or "0"}


def _children(entry: Path) -> list[int]:
    found: list[int] = []
    for thread in (entry / "task").glob("*"):
        found += [int(word) for line in _lines(thread / "children") for word in line.split()]
    return sorted(found)


def _table(path: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The named rows of a file of ``name: value`` lines."""
    rows = (line.partition(":") for line in _lines(path))
    return {name: value.strip() for name, _, value in rows if name in names}


def _lines(path: Path) -> list[str]:
    """A file's lines; none where it is gone or not for this user, as processes come and go."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
