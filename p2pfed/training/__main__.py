"""``python -m p2pfed.training``: the trainer process. The daemon starts it; nobody else need.

Kept free of torch, so that an order to end is obeyed while torch is still being imported.
"""

import argparse
import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path

OUT_OF_MEMORY_SCORE = 500  # of 1000; see proc_pid_oom_score_adj(5)


def main() -> None:
    """Serve the daemon at the other end of ``--control-fd`` until it closes that end."""
    parser = argparse.ArgumentParser(prog="python -m p2pfed.training", description=__doc__)
    parser.add_argument("--control-fd", type=int, required=True, help="a connected stream socket")
    parser.add_argument("--memory-fd", type=int, required=True, help="the shared memory")
    arguments = parser.parse_args()

    # A terminal's Ctrl-C reaches every process of its group; the daemon decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    _offer_to_be_killed_first()
    connection = socket.socket(fileno=arguments.control_fd)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()

    from p2pfed.training.child import serve  # noqa: PLC0415

    serve(connection, arguments.memory_fd)


def _offer_to_be_killed_first() -> None:
    """Where memory runs out, the kernel is to end this process, which is started again, and not
    the daemon, whose mapped vectors may make it look larger."""
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):  # not Linux, or not allowed
        path.write_text(str(max(int(path.read_text()), OUT_OF_MEMORY_SCORE)))


def _end_with(connection: socket.socket) -> None:
    """End this process as soon as the daemon's end of the socket is closed.

    A daemon that was killed closes it too, and cannot say anything; and this process may be deep
    in a step or in a task's own code, where it does not read.
    """
    poller = select.poll()
    poller.register(connection, 0)  # a hang-up is always reported, and nothing else is wanted
    poller.poll()
    os._exit(0)


if __name__ == "__main__":
    main()
