"""Real daemons, real sockets, real signals."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from federation import Federation, Hospital, children_of

pytestmark = pytest.mark.daemons


@pytest.fixture
def pair(short_tmp: Path) -> Iterator[Federation]:
    with Federation(short_tmp, ["alpha", "beta"]) as federation:
        yield federation


def test_two_daemons_go_through_rounds_and_stop_cleanly(pair: Federation) -> None:
    pair.start()
    alpha, beta = pair.hospitals
    status = alpha.until_round(3)
    assert [n.state for n in status.neighbours] == ["connected"]
    assert status.metrics_after["auc"] > 0.5
    assert status.totals.bytes_sent > 0
    assert status.healthy
    beta.until_round(3)
    alpha.send(signal.SIGTERM)
    assert alpha.wait() == 0
    beta.until("the goodbye", lambda s: s.neighbours[0].state != "connected")
    beta.send(signal.SIGINT)
    assert beta.wait() == 0
    assert not (beta.directory / "state" / "control.sock").exists()
    assert "Traceback" not in alpha.log.read_text() + beta.log.read_text()


def test_a_killed_daemon_resumes_and_its_neighbours_go_on(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "beta", "gamma", "delta"]) as federation:
        federation.start()
        alpha, *others = federation.hospitals
        before = alpha.until_round(2)
        pid = before.site.pid
        alpha.send(signal.SIGKILL)
        alpha.wait()
        reached = others[0].until_round(before.round.number + 2)
        for other in others:
            other.until_round(reached.round.number)
        alpha.start()
        after = alpha.until_round(reached.round.number + 2)
        assert after.site.pid != pid
        [restored] = alpha.events("state restored")
        assert restored["round"] >= before.round.number - 1
        others[0].until(
            "alpha's deltas again",
            lambda s: next(n for n in s.neighbours if n.name == "alpha").staleness == 0,
        )
        assert not others[0].status().neighbours[0].quarantined  # type: ignore[union-attr]
        assert "equivocation" not in "".join(h.log.read_text() for h in federation.hospitals)


def test_a_killed_trainer_is_replaced_and_the_rounds_go_on(pair: Federation) -> None:
    pair.start()
    alpha, _ = pair.hospitals
    status = alpha.until_round(1)
    assert status.trainer.pid in children_of(status.site.pid)
    os.kill(status.trainer.pid or 0, signal.SIGKILL)
    later = alpha.until("a new trainer", lambda s: s.trainer.restarts >= 1)
    alpha.until_round(later.round.number + 2)
    assert alpha.until_round(0).site.pid == status.site.pid


def test_different_topology_files_are_named_at_both_ends_and_nobody_hangs(
    pair: Federation,
) -> None:
    alpha, beta = pair.hospitals
    other = pair.directory / "other.toml"
    pair.write_topology(other, round={"deadline_seconds": 6.0})
    beta.write_site(topology="../other.toml")
    pair.start()
    for hospital in (alpha, beta):
        status = hospital.until("the refusal", lambda s: s.neighbours[0].refusal is not None)
        refusal = status.neighbours[0].refusal or ""
        assert "topology file differs" in refusal
        assert status.topology.digest[:12] in refusal
        assert not status.healthy
        assert any("config check" in line.command for line in status.health)
    pair.write_topology(other)
    assert beta.link.post("/v1/reload")["changes"] == ["~ round.deadline_seconds: 6.0 -> 5.0"]
    alpha.until_round(2)


def test_a_reload_that_is_not_sound_changes_nothing(pair: Federation) -> None:
    pair.start()
    alpha, _ = pair.hospitals
    before = alpha.until_round(1)
    good = pair.topology.read_text()
    pair.topology.write_text(good.replace("deadline_seconds", "deadline_secnds"))
    done = cli("reload", "--config", str(alpha.config))
    assert done.returncode == 78
    assert "deadline_secnds" in done.stderr
    assert "deadline_seconds" in done.stderr
    pair.topology.write_text(good.replace('kind = "tabular"', 'kind = "python"\nclass = "a:B"'))
    done = cli("reload", "--config", str(alpha.config))
    assert done.returncode == 78
    assert "cannot change while the federation runs" in done.stderr
    assert alpha.until_round(1).topology.digest == before.topology.digest
    alpha.send(signal.SIGHUP)
    alpha.until_round(before.round.number + 2)


def test_strangers_and_garbage_cost_nothing(pair: Federation, short_tmp: Path) -> None:
    pair.start()
    alpha, _ = pair.hospitals
    alpha.until_round(1)
    for garbage in (b"\x00" * 4096, b"GET / HTTP/1.1\r\n\r\n", os.urandom(65536)):
        with socket.create_connection(("127.0.0.1", alpha.port)) as connection:
            connection.sendall(garbage)
    with Federation(short_tmp / "strangers", ["alpha", "mallory"]) as strangers:
        impostor, mallory = strangers.hospitals
        # Mallory believes that the real alpha is a member of its federation, under alpha's key.
        impostor.address, impostor.identity = alpha.address, alpha.identity
        strangers.write_topology()
        mallory.start()
        status = alpha.until("the refusal", lambda s: s.totals.strangers_refused > 0)
    assert [n.state for n in status.neighbours] == ["connected"]
    alpha.until_round(status.round.number + 2)
    assert "Traceback" not in alpha.log.read_text()


def test_the_whole_command_line_against_a_running_daemon(pair: Federation) -> None:
    pair.start()
    alpha, _ = pair.hospitals
    alpha.until_round(2)
    config = ["--config", str(alpha.config)]
    done = cli("status", *config)
    assert done.returncode == 0, done.stderr
    assert "beta" in done.stdout
    assert "healthy" in done.stdout
    document = json.loads(cli("status", "--json", *config).stdout)
    assert document["schema_version"] == 1
    assert min(document["resources"].values()) > 0
    assert document["relay"] is None
    assert "connected" in cli("peers", *config).stdout
    assert " ms via /ip4/127.0.0.1" in cli("ping", "beta", "--count", "1", *config).stdout
    assert "round done" in cli("log", *config).stdout
    wrong = cli("ping", "nobody", *config)
    assert wrong.returncode == 1
    assert "beta" in wrong.stderr
    model = pair.directory / "model.safetensors"
    assert cli("export", str(model), *config).returncode == 0
    from safetensors import safe_open

    with safe_open(model, "np") as file:
        assert file.metadata()["federation"] == "test"
        assert int(file.metadata()["round"]) >= 2
    evaluated = cli("evaluate", str(alpha.directory / "data.csv"), "--json", *config)
    assert json.loads(evaluated.stdout)["metrics"]["auc"] > 0.5
    assert json.loads(evaluated.stdout)["records"] == 120
    assert set(json.loads(evaluated.stdout)["intervals"]) > {"auc", "accuracy", "loss"}
    running = json.loads(cli("report", "--json", "-", *config).stdout)
    assert cli("stop", "--wait", *config).returncode == 0
    assert alpha.wait() == 0
    assert cli("status", *config).returncode == 3
    check_reports(alpha, running, model)


def check_reports(alpha: Hospital, running: dict[str, Any], model: Path) -> None:
    """The report that was made while the daemon ran, the one that it left, one made after it."""
    assert running["rounds"]["done"] >= 2
    metrics = {one["name"]: one for one in running["metrics"]}
    for name in ("auc", "accuracy", "loss"):
        low, high = metrics[name]["interval"]
        assert low <= metrics[name]["value"] <= high
    assert {one["name"] for one in running["calibration"]} >= {"brier", "calibration_intercept"}
    assert running["data"] == {"training_records": [50, 100], "holdout_records": [20, 50]}
    assert [one["role"] for one in running["participants"]] == ["site", "neighbour"]
    assert running["participants"][1]["rounds_mixed"] > 0
    assert 0 < running["history"][-1]["consensus_distance"] < 1
    assert running["model_details"]["software"].startswith("p2pfed ")
    [exported] = running["lineage"]["exports"]
    assert exported["path"] == str(model)
    assert exported["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    left = json.loads((alpha.directory / "state" / "report.json").read_text())
    assert left["rounds"]["done"] >= running["rounds"]["done"]
    assert (alpha.directory / "state" / "report.html").stat().st_mode & 0o777 == 0o600
    config = ["--config", str(alpha.config)]
    done = cli("report", "--json", "-", "--with-local", *config)
    after = json.loads(done.stdout)
    [alone] = [one for one in after["models"] if one["model"] == "local_only"]
    assert alone["metrics"]["auc"] > 0.5
    assert set(alone["intervals"]) == {"auc", "accuracy", "loss"}
    for changing in ("written_at_seconds", "models", "limitations"):
        del after[changing], left[changing]
    assert after == left


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "p2pfed", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
