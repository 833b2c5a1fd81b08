"""Disks that are full or broken: the daemon stays, says so, and goes on once it can."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conditions import (
    goes_on,
    nobody_was_held_up,
    nothing_broke,
    until_said,
)
from federation import Federation
from small_disks import MEGABYTE, FailingDisk, SmallDisk, on_small_disk, skip_without_mounts

pytestmark = pytest.mark.daemons

DISK_BYTES = 12 * MEGABYTE  # the journal's write-ahead log alone takes up to 4 MB
FAILING_DISK_BYTES = 64 * MEGABYTE
NO_ROOM = ("No space left on device", "disk is full")  # as files say it, and as SQLite does


@pytest.mark.slow
def test_a_full_disk_costs_its_site_rounds_until_there_is_room_again(three: Federation) -> None:
    alpha, beta, gamma = three.hospitals
    disk = SmallDisk(alpha, DISK_BYTES)
    for hospital in (beta, gamma):
        hospital.start()
    pid = alpha.until_round(2).site.pid
    goes_on(three.hospitals)
    disk.fill()
    line = until_said(alpha, *NO_ROOM)
    assert str(alpha.directory / "state") in line.problem
    stuck_at = alpha.until_round(0).round.number
    # The others lose a neighbour that is slow, no more.
    far = beta.until_round(0).round.number + 5
    for other in (beta, gamma):
        other.until_round(far)
    assert alpha.until_round(0).round.number <= stuck_at + 1
    disk.free()
    assert alpha.until_round(far).site.pid == pid
    goes_on(three.hospitals)
    assert not any("No space" in line.problem for line in alpha.until_round(0).health)
    nothing_broke(three)
    nobody_was_held_up((beta, gamma))


@pytest.mark.slow
def test_a_daemon_whose_disk_is_full_can_be_stopped(three: Federation) -> None:
    alpha, beta, gamma = three.hospitals
    disk = SmallDisk(alpha, DISK_BYTES)
    for hospital in (beta, gamma):
        hospital.start()
    goes_on(three.hospitals)
    disk.fill()
    until_said(alpha, *NO_ROOM)
    alpha.send(signal.SIGTERM)
    assert alpha.wait() == 0
    assert '"event": "stopped"' in alpha.log.read_text()


@pytest.mark.slow
def test_a_state_directory_whose_volume_goes_away_is_waited_for(three: Federation) -> None:
    """Stands for an unmounted or failing volume: from one moment to the next, every write under
    ``vectors`` fails with an error that is not about room."""
    alpha, beta, gamma = three.hospitals
    three.start()
    goes_on(three.hospitals)
    pid = alpha.until_round(0).site.pid
    vectors = alpha.directory / "state" / "vectors"
    aside = vectors.with_name("vectors.aside")
    vectors.rename(aside)
    vectors.write_bytes(b"")
    line = until_said(alpha, "Not a directory")
    assert str(vectors.parent) in line.problem
    far = beta.until_round(0).round.number + 5
    for other in (beta, gamma):
        other.until_round(far)
    vectors.unlink()
    aside.rename(vectors)
    assert alpha.until_round(far).site.pid == pid
    goes_on(three.hospitals)
    nothing_broke(three)
    nobody_was_held_up((beta, gamma))


@pytest.mark.slow
def test_a_disk_that_fails_is_said_and_nothing_committed_is_lost(three: Federation) -> None:
    alpha, beta, gamma = three.hospitals
    disk = FailingDisk(alpha, FAILING_DISK_BYTES)
    disk.start()
    for hospital in (beta, gamma):
        hospital.start()
    goes_on(three.hospitals)
    disk.fail()
    line = until_said(alpha, "state cannot be written")
    assert str(alpha.directory / "state") in line.problem
    far = beta.until_round(0).round.number + 5
    for other in (beta, gamma):
        other.until_round(far)
    # No daemon can mend this: the operator stops it, mounts the disk again, and starts it.
    alpha.send(signal.SIGTERM)
    alpha.wait()
    committed = alpha.events("round done")[-1]["round"]
    disk.start()
    goes_on(three.hospitals)
    [restored] = alpha.events("state restored")
    assert restored["round"] >= committed + 1
    nothing_broke(three)
    nobody_was_held_up((beta, gamma))


@pytest.mark.slow
def test_a_log_that_cannot_be_written_ends_nothing(three: Federation) -> None:
    """``p2pfed run 2>&1 | tee log`` whose tee is gone."""
    alpha, beta, gamma = three.hospitals
    for hospital in (beta, gamma):
        hospital.start()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
        alpha.process = subprocess.Popen(
            [sys.executable, "-m", "p2pfed", "run", "--config", str(alpha.config)],
            stdin=subprocess.DEVNULL,
            stdout=reader.stdin,
            stderr=reader.stdin,
            text=True,
        )
        alpha.log.write_text("")
        goes_on(three.hospitals)
        reader.kill()
    goes_on(three.hospitals)
    nothing_broke(three)


def test_a_vector_that_finds_no_room_is_an_error_and_not_a_signal(short_tmp: Path) -> None:
    """A mapped file is given its room when it is made: a page that finds none when it is written
    would end the process by SIGBUS."""
    skip_without_mounts(short_tmp / "disk")
    program = (
        "import sys; from pathlib import Path; "
        "from p2pfed.daemon.durable_files import PendingVector; "
        "from p2pfed.errors import StoreError\n"
        "try: PendingVector(Path(sys.argv[1]) / 'mixed', 1 << 20).array[:] = 1.0\n"
        "except StoreError as error: print(error)\n"
    )
    done = subprocess.run(
        [
            *on_small_disk(short_tmp / "disk", MEGABYTE),
            *(sys.executable, "-c", program, str(short_tmp / "disk")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout
