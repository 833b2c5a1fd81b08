"""A daemon whose state directory is a disk of its own, seen by nobody else: a small tmpfs in a
private mount namespace, which needs no root where user namespaces are allowed, or a file system
that can be made to fail."""

import errno
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from conditions import pid_of, start
from federation import Hospital

from p2pfed.daemon.control_link import DaemonLink

MEGABYTE = 1 << 20
SHUT_DOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN of linux/fs/ext4/ext4.h, as xfs has it
WITHOUT_FLUSHING_THE_JOURNAL = 2
NAMESPACES = ("unshare", "--mount") + (() if os.geteuid() == 0 else ("--user", "--map-root-user"))
MOUNT = 'mount -t tmpfs -o "size=$1,mode=0700" none "$2" && shift 2 && exec "$@"'


def on_small_disk(directory: Path, size_bytes: int) -> tuple[str, ...]:
    """What a command is put behind, so that it finds a disk of its own at ``directory``."""
    return (*NAMESPACES, "sh", "-c", MOUNT, "sh", str(size_bytes), str(directory))


def skip_without_mounts(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    done = subprocess.run(
        [*on_small_disk(directory, MEGABYTE), "true"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs of one's own here: {done.stderr.strip()}")


class SmallDisk:
    """The disk of one site's state, and its running daemon."""

    def __init__(self, hospital: Hospital, size_bytes: int) -> None:
        self._state = hospital.directory / "state"
        skip_without_mounts(self._state)
        # The test is outside the namespace and reaches the daemon through a socket elsewhere.
        socket = hospital.directory / "control.sock"
        hospital.write_site(control={"socket": str(socket)})
        hospital.link = DaemonLink(socket)
        start(hospital, prefix=on_small_disk(self._state, size_bytes))
        self._hospital = hospital

    @property
    def _inside(self) -> Path:
        """The state directory as the daemon sees it."""
        return Path(f"/proc/{pid_of(self._hospital)}/root") / self._state.relative_to("/")

    def fill(self) -> None:
        """Leave not a byte."""
        with (self._inside / "ballast").open("wb", buffering=0) as ballast:
            block = bytes(4096)
            while True:
                try:
                    ballast.write(block)
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    return

    def free(self) -> None:
        (self._inside / "ballast").unlink()


class FailingDisk:
    """A site's state on an ext4 file system in a file, which can be made to fail like a disk
    that is pulled out: from then on every operation on it is EIO, and what its journal had not
    written is gone. Needs root.

    The mount belongs to the daemon's namespace and ends with it; the next start mounts it anew.
    """

    def __init__(self, hospital: Hospital, size_bytes: int) -> None:
        if os.geteuid() != 0:
            pytest.skip("a file system of one's own that can fail needs root")
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is not installed")
        self._hospital = hospital
        self._image = hospital.directory / "disk.img"
        self._state = hospital.directory / "state"
        self._state.mkdir(mode=0o700)
        with self._image.open("wb") as image:
            image.truncate(size_bytes)
        subprocess.run(["mkfs.ext4", "-q", self._image], check=True)
        mounted = self._run("true")
        if mounted.returncode != 0:
            pytest.skip(f"no file system in a file here: {mounted.stderr.strip()}")
        socket = hospital.directory / "control.sock"
        hospital.write_site(control={"socket": str(socket)})
        hospital.link = DaemonLink(socket)

    @property
    def _prefix(self) -> tuple[str, ...]:
        # lost+found is of no use to a state directory, whose mode is the mounted root's.
        script = 'mount -o loop "$1" "$2" && chmod 700 "$2" && shift 2 && exec "$@"'
        return (*NAMESPACES, "sh", "-c", script, "sh", str(self._image), str(self._state))

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._prefix, *command], capture_output=True, text=True, check=False
        )

    def start(self) -> None:
        start(self._hospital, prefix=self._prefix)

    def fail(self) -> None:
        inside = Path(f"/proc/{pid_of(self._hospital)}/root") / self._state.relative_to("/")
        descriptor = os.open(inside, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUT_DOWN, struct.pack("I", WITHOUT_FLUSHING_THE_JOURNAL))
        finally:
            os.close(descriptor)
