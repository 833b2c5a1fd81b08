"""Real daemons under a small privacy budget: killed, restarted, used up, and still there."""

import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from federation import Federation, Hospital

from p2pfed.daemon.status import PrivacyStatus, Status

pytestmark = pytest.mark.daemons

PRIVACY: dict[str, Any] = {
    "differential_privacy": True,
    "maximum_epsilon": 6.0,
    "maximum_delta": 1e-3,
    "minimum_noise_multiplier": 1.5,
}
ROUND = {"deadline_seconds": 5.0, "local_steps": 2}


def privacy_of(status: Status) -> PrivacyStatus:
    assert status.privacy is not None
    return status.privacy


def charged(hospital: Hospital) -> list[tuple[int, bytes, str]]:
    """Round, start and state of each entry of the ledger."""
    path = hospital.directory / "state" / "journal.sqlite"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        return journal.execute(
            "SELECT round_number, start, state FROM privacy_ledger ORDER BY entry"
        ).fetchall()


def test_a_budget_is_spent_once_and_never_again(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "beta"], privacy=PRIVACY, round=ROUND) as federation:
        alpha, beta = federation.hospitals
        # alpha gives itself a third of what the federation allows.
        alpha.write_site(privacy={"epsilon": 2.0})
        federation.start()
        before = alpha.until("a charge", lambda s: privacy_of(s).charged_rounds >= 2)
        alpha.send(signal.SIGKILL)
        alpha.wait()
        ledger = charged(alpha)
        assert len(ledger) >= privacy_of(before).charged_rounds

        alpha.start()
        resumed = alpha.until("its status", lambda s: privacy_of(s).charged_rounds > 0)
        assert privacy_of(resumed).charged_rounds >= len(ledger)
        assert privacy_of(resumed).epsilon_spent >= privacy_of(before).epsilon_spent > 0.0

        stopped = alpha.until("its limit", lambda s: privacy_of(s).stopped is not None)
        spent = privacy_of(stopped)
        assert 0.0 < spent.epsilon_spent <= 2.0
        assert spent.epsilon_left == pytest.approx(2.0 - spent.epsilon_spent)
        assert any("budget is used up" in line.problem for line in stopped.health)
        assert stopped.healthy

        # It goes on aggregating, and beta, whose budget is larger, goes on training.
        later = alpha.until_round(stopped.round.number + 3)
        assert privacy_of(later).charged_rounds == spent.charged_rounds
        assert privacy_of(later).epsilon_spent == spent.epsilon_spent
        assert later.model.digest != stopped.model.digest
        assert later.training_loss is None
        assert later.metrics_after["auc"] > 0.5
        other = beta.until_round(later.round.number)
        assert privacy_of(other).charged_rounds > spent.charged_rounds

        alpha.send(signal.SIGTERM)
        assert alpha.wait() == 0
        alpha.start()
        again = alpha.until_round(later.round.number + 1)
        assert privacy_of(again).epsilon_spent == pytest.approx(spent.epsilon_spent)
        assert privacy_of(again).charged_rounds == spent.charged_rounds

        ledger = charged(alpha)
        # Killed between charge and publication a round may be charged and done again, not twice.
        assert len({entry[:2] for entry in ledger}) == len(ledger) == spent.charged_rounds
        assert [state for *_, state in ledger].count("published") >= len(ledger) - 1
        logs = "".join(hospital.log.read_text() for hospital in federation.hospitals)
        assert "Traceback" not in logs


def test_a_site_cannot_be_laxer_than_its_federation(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "beta"], privacy=PRIVACY) as federation:
        alpha, _ = federation.hospitals
        alpha.write_site(privacy={"epsilon": 9.0, "noise_multiplier": 1.0})
        alpha.start()
        assert alpha.wait() == 78
        log = alpha.log.read_text()
        assert "privacy.epsilon = 9: weaker than privacy.maximum_epsilon = 6" in log
        assert "privacy.noise_multiplier = 1: weaker than" in log
