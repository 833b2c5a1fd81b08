"""Several processes that share a site's local steps, started by torchrun. Imports no torch.

The process that the daemon started runs torchrun (``torch.distributed.run``), hands each of its
processes what it talks through, and waits. Process 0 gets the daemon's end of the conversation
and a socket to each of the others, which follow what it passes on; whoever is left without the
process at its other end ends itself. So a killed daemon leaves none behind, and one process that
dies ends all, which the daemon starts again.

Nothing listens on a network: torchrun and the processes meet in a file of a private directory,
sockets are handed over through another there, and gloo is told the loopback interface.
"""

import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

RANK_BYTES = 4
DOOR = "door"
RENDEZVOUS = "torchrun"
GROUP = "group"
POLL_SECONDS = 0.2

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": LOOPBACK,
    "NCCL_SOCKET_IFNAME": LOOPBACK,
    # torchrun would else open a TCP port on all interfaces, which nothing here connects to.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "PYTHONSAFEPATH": "1",
}


def run_under_torchrun(connection: socket.socket, memory_descriptor: int, processes: int) -> int:
    """Run ``processes`` of :mod:`p2pfed.training.rank` until they end.

    :param connection: the daemon's conversation, which process 0 is given.
    :returns: torchrun's exit status.
    """
    with tempfile.TemporaryDirectory(prefix="p2pfed-ranks-") as name, ExitStack() as sockets:
        directory = Path(name)
        door = sockets.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        door.bind(str(directory / DOOR))
        door.listen(processes)
        door.settimeout(POLL_SECONDS)
        torchrun = subprocess.Popen(
            _command(directory, processes),
            # Set again for each task; unset, torchrun would say that it sets it.
            env={"OMP_NUM_THREADS": "1"} | os.environ | ENVIRONMENT,
        )
        pairs = [socket.socketpair() for _ in range(processes - 1)]
        for end in (end for pair in pairs for end in pair):
            sockets.enter_context(end)
        given = [[connection.fileno(), memory_descriptor, *(ours.fileno() for ours, _ in pairs)]]
        given += [[theirs.fileno(), memory_descriptor] for _, theirs in pairs]
        _hand_out(door, torchrun, given)
        sockets.close()
        # ``connection`` stays open until this process ends, so that the daemon hears the end
        # together with the last line that says why.
        return torchrun.wait()


def _command(directory: Path, processes: int) -> list[str]:
    return [
        sys.executable,
        "-P",
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "--nnodes=1",
        "--max-restarts=0",  # the daemon's to do
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file",
        f"--rdzv-endpoint={directory / RENDEZVOUS}",
        "--rdzv-id=p2pfed",
        "-m",
        "p2pfed.training.rank",
        str(directory),
    ]


def _hand_out(
    door: socket.socket, torchrun: "subprocess.Popen[bytes]", given: list[list[int]]
) -> None:
    """Give each process its descriptors, unless torchrun ends first."""
    waiting = set(range(len(given)))
    while waiting and torchrun.poll() is None:
        try:
            visitor, _ = door.accept()
        except TimeoutError:
            continue
        with visitor:
            visitor.setblocking(True)
            said = visitor.recv(RANK_BYTES, socket.MSG_WAITALL)
            rank = int.from_bytes(said, "big")
            if len(said) == RANK_BYTES and rank in waiting:
                socket.send_fds(visitor, [bytes(1)], given[rank])
                waiting.discard(rank)


def receive(
    directory: Path, rank: int, processes: int
) -> tuple[socket.socket, int, list[socket.socket]]:
    """What process ``rank`` is given: its conversation, the memory, and, for process 0, a socket
    to each of the others.

    :raises OSError: the process that was to hand it over has ended.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
        visitor.connect(str(directory / DOOR))
        visitor.sendall(rank.to_bytes(RANK_BYTES, "big"))
        _, descriptors, _, _ = socket.recv_fds(visitor, 1, 1 + processes)
    if not descriptors:
        raise ConnectionError("nothing was handed over")
    conversation, memory, *others = descriptors
    return socket.socket(fileno=conversation), memory, [socket.socket(fileno=n) for n in others]
