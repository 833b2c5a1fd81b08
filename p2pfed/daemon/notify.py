"""Telling systemd (sd_notify(3)) how the daemon is; nothing happens without systemd."""

import os
import socket
import time


def notify(*assignments: str) -> None:
    """Send assignments such as ``READY=1`` to the socket in NOTIFY_SOCKET.

    Failures are ignored: a daemon must not depend on who started it.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.connect(address)
            out.sendall("\n".join(assignments).encode())
        except OSError:
            return


def notify_reloading() -> None:
    """RELOADING=1 needs the monotonic time beside it (sd_notify(3), Type=notify-reload)."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
