"""``python -m p2pfed.training.rank``: one of the processes that torchrun starts for a site."""

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

from p2pfed.training.__main__ import end_with, offer_to_be_killed_first, set_up_log
from p2pfed.training.torchrun import GROUP, receive

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Serve the process at the other end until it closes that end."""
    directory = Path(sys.argv[1])
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_log()
    _end_with_torchrun()
    offer_to_be_killed_first()
    connection, memory_descriptor, others = receive(directory, rank, processes)
    threading.Thread(target=end_with, args=(connection, 0), daemon=True).start()
    for other in others:
        threading.Thread(target=end_with, args=(other, 1), daemon=True).start()

    from p2pfed.training.child import serve  # noqa: PLC0415
    from p2pfed.training.processes import Processes  # noqa: PLC0415

    serve(connection, memory_descriptor, Processes(rank, processes, directory / GROUP, others))


def _end_with_torchrun() -> None:
    """Be killed with torchrun, which started this process in a session of its own, out of reach of
    what the daemon kills."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
