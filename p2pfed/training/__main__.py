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

from p2pfed.training.torchrun import run_under_torchrun

OUT_OF_MEMORY_SCORE = 500  # of 1000; see proc_pid_oom_score_adj(5)


def main() -> None:
    """Serve the daemon at the other end of ``--control-fd`` until it closes that end."""
    parser = argparse.ArgumentParser(prog="python -m p2pfed.training", description=__doc__)
    parser.add_argument("--control-fd", type=int, required=True, help="a connected stream socket")
    parser.add_argument("--memory-fd", type=int, required=True, help="the shared memory")
    parser.add_argument("--processes", type=int, default=1, help="that share each local step")
    arguments = parser.parse_args()

    # A terminal's Ctrl-C reaches every process of its group; the daemon decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_log()
    offer_to_be_killed_first()
    connection = socket.socket(fileno=arguments.control_fd)
    if arguments.processes > 1:
        status = run_under_torchrun(connection, arguments.memory_fd, arguments.processes)
        if status:
            logging.getLogger(__name__).error(
                "a process that shares the local steps ended; torchrun's exit status is %d", status
            )
        sys.exit(status)
    threading.Thread(target=end_with, args=(connection, 0), daemon=True).start()

    from p2pfed.training.child import serve  # noqa: PLC0415

    serve(connection, arguments.memory_fd)


def set_up_log() -> None:
    """What this process logs goes to the daemon, a line at a time."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")


def offer_to_be_killed_first() -> None:
    """Where memory runs out, the kernel is to end this process, which is started again, and not
    the daemon, whose mapped vectors may make it look larger."""
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):  # not Linux, or not allowed
        path.write_text(str(max(int(path.read_text()), OUT_OF_MEMORY_SCORE)))


def end_with(connection: socket.socket, status: int) -> None:
    """End this process, with exit status ``status``, as soon as the other end of the socket is
    closed.

    A daemon that was killed closes it too, and cannot say anything; and this process may be deep
    in a step or in a task's own code, where it does not read.
    """
    poller = select.poll()
    poller.register(connection, 0)  # a hang-up is always reported, and nothing else is wanted
    poller.poll()
    os._exit(status)


if __name__ == "__main__":
    main()
