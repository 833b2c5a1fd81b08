"""A daemon that stands still without ending: its kernel still takes what is sent to it."""

import os
import signal

import pytest
from conditions import (
    goes_on,
    nobody_was_held_up,
    nothing_broke,
    until_said,
)
from federation import Federation

pytestmark = pytest.mark.daemons


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
