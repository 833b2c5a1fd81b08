"""A daemon that stands still without ending: its kernel still takes what is sent to it."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conditions import (
    goes_on,
    nobody_was_held_up,
    nothing_broke,
    until_connected,
    until_logged,
    until_said,
)
from federation import GUARD_SECONDS, Federation, Hospital

pytestmark = pytest.mark.daemons

TOO_BUSY = '"event": "this machine is too busy"'


@pytest.fixture
def patient(short_tmp: Path) -> Iterator[Federation]:
    """Three sites whose rounds no deadline closes while a test lasts."""
    with Federation(
        short_tmp, ["alpha", "beta", "gamma"], round={"deadline_seconds": 2 * GUARD_SECONDS}
    ) as federation:
        yield federation


class LogSince:
    """What daemons logged after a moment. At their start, each finds the others unreachable."""

    def __init__(self, hospitals: Sequence[Hospital]) -> None:
        self._seen = {one.name: len(one.log.read_text().splitlines()) for one in hospitals}

    def lines(self, hospital: Hospital) -> list[str]:
        return hospital.log.read_text().splitlines()[self._seen[hospital.name] :]

    def about(self, hospital: Hospital, site: str) -> list[str]:
        """The events that name a site, in order."""
        events = [json.loads(line) for line in self.lines(hospital) if line.startswith("{")]
        return [event["event"] for event in events if event.get("site") == site]


@pytest.mark.slow
def test_a_stopped_daemon_is_noticed_gone_on_without_and_catches_up(three: Federation) -> None:
    three.start()
    alpha, beta, gamma = three.hospitals
    before = alpha.until_round(2)
    for other in (beta, gamma):
        other.until_round(2)
    alpha.send(signal.SIGSTOP)
    try:
        for other in (beta, gamma):
            other.until("a round without alpha", lambda status: status.round.degraded)
            line = until_said(other, "alpha is not connected")
            # A half-open link: no reset ever came, only silence.
            assert "nothing was heard" in line.problem or "no answer" in line.problem
            assert line.command == "p2pfed ping alpha"
        far = beta.until_round(0).round.number + 5
        for other in (beta, gamma):
            other.until_round(far)
    finally:
        alpha.send(signal.SIGCONT)
    caught_up = alpha.until_round(far)
    assert caught_up.site.pid == before.site.pid
    goes_on(three.hospitals)
    nothing_broke(three)
    nobody_was_held_up((beta, gamma))


@pytest.mark.slow
def test_a_stopped_trainer_holds_up_its_own_site_alone(three: Federation) -> None:
    three.start()
    alpha, beta, gamma = three.hospitals
    trainer = alpha.until_round(1).trainer.pid
    assert trainer is not None
    os.kill(trainer, signal.SIGSTOP)
    try:
        reached = beta.until("a round without alpha", lambda status: status.round.degraded)
        for other in (beta, gamma):
            other.until_round(reached.round.number + 2)
        # Its daemon is well: links stay, and it says what it is doing.
        status = alpha.until("training that stands", lambda status: status.round.phase_seconds > 3)
        assert status.round.phase in ("training", "committing")
        assert [one.state for one in status.neighbours] == ["connected", "connected"]
        until_said(beta, "alpha is")
        line = until_said(alpha, "the trainer stands still")
        assert f"kill -9 {trainer}" in line.problem
    finally:
        os.kill(trainer, signal.SIGCONT)
    alpha.until(
        "a trainer that is heard of",
        lambda status: not any("stands still" in line.problem for line in status.health),
    )
    goes_on(three.hospitals)
    nothing_broke(three)
    nobody_was_held_up((beta, gamma))


@pytest.mark.slow
def test_a_stopped_daemon_is_gone_on_without_before_its_link_or_the_deadline_ends(
    patient: Federation,
) -> None:
    patient.start()
    alpha, beta, gamma = patient.hospitals
    for hospital in patient.hospitals:
        until_connected(hospital, *({"alpha", "beta", "gamma"} - {hospital.name}))
        hospital.until_round(2)
    log = LogSince(patient.hospitals)
    alpha.send(signal.SIGSTOP)
    try:
        for other in (beta, gamma):
            other.until("a round without alpha", lambda status: status.round.degraded)
            # Of what can close a round without it, this came first.
            assert log.about(other, "alpha")[0] == "neighbour unreachable"
    finally:
        alpha.send(signal.SIGCONT)
    goes_on(patient.hospitals)
    nothing_broke(patient)
    for hospital in patient.hospitals:
        status = hospital.until_round(0)
        assert {one.liveness for one in status.neighbours} == {"alive"}


@pytest.mark.slow
def test_a_daemon_that_was_stopped_itself_declares_nobody_dead(patient: Federation) -> None:
    patient.start()
    alpha, beta, gamma = patient.hospitals
    for hospital in patient.hospitals:
        until_connected(hospital, *({"alpha", "beta", "gamma"} - {hospital.name}))
        hospital.until_round(2)

    def silent(state: str) -> None:
        for other in (beta, gamma):
            other.until(
                f"alpha as {state}",
                lambda status: any(
                    one.name == "alpha" and state in (one.liveness, one.state)
                    for one in status.neighbours
                ),
            )

    # For a while that its links outlive, and for one that they do not.
    for state in ("unreachable", "dialling"):
        # It is said once for as long as it lasts.
        alpha.until("a machine that is well", lambda status: status.local_health.score == 0)
        log = LogSince(patient.hospitals)
        alpha.send(signal.SIGSTOP)
        try:
            silent(state)
        finally:
            alpha.send(signal.SIGCONT)
        until_logged(alpha, lambda _, log=log: TOO_BUSY in "".join(log.lines(alpha)))  # type: ignore[misc]
        goes_on(patient.hospitals)
        for other in (beta, gamma):
            events = log.about(alpha, other.name)
            assert "neighbour unreachable" not in events
            assert ("link down" in events) is (state == "dialling")
    nothing_broke(patient)
