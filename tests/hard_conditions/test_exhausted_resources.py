"""Limits of the machine: open files and memory."""

import contextlib
import os
import resource
import signal
import socket
from pathlib import Path

import pytest
from conditions import (
    goes_on,
    nobody_was_held_up,
    nothing_broke,
    open_descriptors,
    pid_of,
    until_said,
)
from federation import Federation, Hospital, children_of

pytestmark = pytest.mark.daemons

SPARE_DESCRIPTORS = 6  # what the daemon may open beyond what it has open
INTRUDERS = 24  # fewer than the door admits from one address, so that they stay
MEBIBYTE = 1 << 20


@pytest.mark.slow
def test_a_daemon_that_may_open_no_more_files_keeps_its_links_and_recovers(
    three: Federation,
) -> None:
    three.start()
    alpha, beta, gamma = three.hospitals
    goes_on(three.hospitals)
    pid = pid_of(alpha)
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_descriptors(pid) + SPARE_DESCRIPTORS, hard))
    with contextlib.ExitStack() as intruders:
        for _ in range(INTRUDERS):
            intruders.enter_context(socket.create_connection(("127.0.0.1", alpha.port)))
        # Its neighbours see it linked and go on; whether it delivers meanwhile is its luck.
        far = beta.until_round(0).round.number + 5
        for other in (beta, gamma):
            status = other.until_round(far)
            [towards_alpha] = [one for one in status.neighbours if one.name == "alpha"]
            assert towards_alpha.state == "connected"
    assert "Too many open files" in alpha.log.read_text()
    # The strangers are gone, and so is what they held; the limit is as it was.
    assert alpha.until_round(far).site.pid == pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    goes_on(three.hospitals)
    nothing_broke(three)
    nobody_was_held_up((beta, gamma))


def virtual_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")


def kill_trainer(hospital: Hospital) -> None:
    trainer = hospital.until("a trainer", lambda status: status.trainer.pid is not None)
    assert trainer.trainer.pid is not None
    os.kill(trainer.trainer.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_trainer_without_memory_is_said_and_tried_again_until_there_is_some(
    three: Federation,
) -> None:
    three.start()
    alpha, beta, gamma = three.hospitals
    goes_on(three.hospitals)
    pid = pid_of(alpha)
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    # The trainer inherits what the daemon, which needs no more, can live with.
    enough = virtual_bytes(pid) + 64 * MEBIBYTE
    resource.prlimit(pid, resource.RLIMIT_AS, (enough, hard))
    kill_trainer(alpha)
    line = until_said(alpha, "the trainer is ")
    assert line.severity == "error"
    assert line.command == "p2pfed log"
    tries = alpha.until("three tries", lambda status: status.trainer.restarts >= 3)
    assert tries.trainer.last_error
    assert [one.state for one in tries.neighbours] == ["connected", "connected"]
    far = beta.until_round(0).round.number + 5
    for other in (beta, gamma):
        other.until_round(far)
    resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))
    assert alpha.until_round(far).site.pid == pid
    goes_on(three.hospitals)
    nothing_broke(three)
    nobody_was_held_up((beta, gamma))


def test_the_kernel_out_of_memory_prefers_the_trainer_to_the_daemon(three: Federation) -> None:
    alpha = three.hospitals[0]
    alpha.start()
    status = alpha.until("a trainer", lambda status: status.trainer.pid is not None)
    assert status.trainer.pid in children_of(pid_of(alpha))

    def badness(pid: int | None) -> int:
        return int(Path(f"/proc/{pid}/oom_score").read_text())

    assert badness(status.trainer.pid) > badness(pid_of(alpha)) + 100
