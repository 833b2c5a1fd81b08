"""What the tests of hard conditions share: daemons started in unusual surroundings, and what must
hold whatever happened to them."""

import datetime
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from federation import GUARD_SECONDS, POLL_SECONDS, Federation, Hospital

from p2pfed.daemon.status import HealthLine, Status

DEADLINE_SECONDS = 3.0
SLACK_SECONDS = 10.0  # of a loaded machine, on top of a deadline; less than a link's timeout
ROUNDS_AFTERWARDS = 3


def start(
    hospital: Hospital,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "p2pfed"),
) -> None:
    """Start a daemon behind a command that ends by executing it, so that its pid stays.

    :param program: what the interpreter runs instead of p2pfed.
    """
    command = [*prefix, sys.executable, *program, "run", "--config", str(hospital.config)]
    with hospital.log.open("a") as log:
        hospital.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            env=os.environ | dict(environment or {}),
        )


def pid_of(hospital: Hospital) -> int:
    assert hospital.process is not None
    return hospital.process.pid


def until_said(hospital: Hospital, *texts: str) -> HealthLine:
    """Wait until health names a problem in one of these words, and the next command with it."""

    def lines(status: Status) -> list[HealthLine]:
        return [one for one in status.health if any(text in one.problem for text in texts)]

    [line, *_] = lines(hospital.until(f"health with {texts}", lambda status: bool(lines(status))))
    assert line.command.startswith("p2pfed ")
    return line


def until_logged(hospital: Hospital, holds: Callable[[str], bool]) -> None:
    """Wait for the daemon's log, where its control socket cannot be asked."""
    until = time.monotonic() + GUARD_SECONDS
    while time.monotonic() < until:
        if holds(hospital.log.read_text()):
            return
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"{hospital.name} logged nothing of the kind")


def until_connected(hospital: Hospital, *names: str) -> Status:
    return hospital.until(
        f"links to {', '.join(names)}",
        lambda status: all(
            one.state == "connected" for one in status.neighbours if one.name in names
        ),
    )


def all_well(status: Status) -> bool:
    return status.healthy and all(
        one.state == "connected" and one.staleness is not None and one.staleness <= 1
        for one in status.neighbours
    )


def goes_on(hospitals: Sequence[Hospital], rounds: int = ROUNDS_AFTERWARDS) -> None:
    """Wait until every site has done further rounds with every neighbour's fresh delta."""
    reached = max(hospital.until_round(0).round.number for hospital in hospitals)
    for hospital in hospitals:
        hospital.until(
            f"round {reached + rounds} with everybody",
            lambda status: status.round.number >= reached + rounds and all_well(status),
        )


def nothing_broke(federation: Federation) -> None:
    """No site lost its way, blamed an honest one, or threw work away."""
    for hospital in federation.hospitals:
        # What the trainer prints of its own end is quoted line by line, and is no harm.
        lines = hospital.log.read_text().splitlines()
        own = "\n".join(line for line in lines if '"event": "trainer"' not in line)
        assert "Traceback" not in own, own[own.index("Traceback") :][:4000]
        assert "equivocation" not in own, hospital.name
        status = hospital.until_round(0)
        assert not any(one.quarantined for one in status.neighbours), hospital.name
        assert status.totals.deltas_rejected == 0, hospital.name
        rounds = [event["round"] for event in hospital.events("round done")]
        assert rounds == sorted(set(rounds)), f"{hospital.name} went back or did a round twice"


def longest_pause_seconds(hospital: Hospital) -> float:
    """The longest time between the ends of two rounds, by the daemon's log."""
    moments = [
        datetime.datetime.fromisoformat(event["timestamp"])
        for event in hospital.events("round done")
    ]
    gaps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(moments)]
    return max(gaps, default=0.0)


def nobody_was_held_up(
    hospitals: Iterable[Hospital], deadline_seconds: float = DEADLINE_SECONDS
) -> None:
    for hospital in hospitals:
        pause = longest_pause_seconds(hospital)
        assert pause <= deadline_seconds + SLACK_SECONDS, f"{hospital.name} stood for {pause} s"


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
