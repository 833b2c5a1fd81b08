"""The status: its JSON, its health, its table, its metrics, its page."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from status_samples import neighbour, privacy, status

import p2pfed.cli
from p2pfed.cli.status_view import duration, render, size, wide_console
from p2pfed.daemon import metrics
from p2pfed.daemon.health import BUSY_SCORE, health_of
from p2pfed.daemon.status import DriftStatus, HealthLine, LocalHealthStatus, Status


def test_the_json_is_the_whole_status_and_comes_back() -> None:
    drift = DriftStatus("auc", 12, 5, 0.9, 0.7, None)
    sample = status(health=[HealthLine("warning", "a", "b")], drift=[drift])
    document = json.loads(json.dumps(sample.to_json()))
    assert document["schema_version"] == 1
    assert Status.from_json(document) == sample


def test_keys_of_a_newer_daemon_are_ignored() -> None:
    document = status().to_json()
    document["invented"] = document["site"]["invented"] = 1
    document["neighbours"][0]["invented"] = 1
    assert Status.from_json(document) == status()


def fields_of(kind: Any, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(kind):
        value = getattr(kind, field.name)
        inner = value[0] if isinstance(value, list) and value else value
        if dataclasses.is_dataclass(inner):
            found += fields_of(inner, f"{prefix}{field.name}.")
        else:
            found.append(f"{prefix}{field.name}")
    return found


def test_every_field_is_documented() -> None:
    page = (Path(p2pfed.cli.__file__).parent / "STATUS.md").read_text()
    drift = DriftStatus("auc", 12, 5, 0.9, 0.7, None)
    sample = status(health=[HealthLine("warning", "a", "b")], drift=[drift])
    for name in fields_of(sample):
        assert f"`{name}`" in page, name


def test_a_metric_that_fell_beyond_its_interval_is_a_warning_and_one_within_is_none() -> None:
    fell = DriftStatus("auc", 12, 5, 0.9, 0.7, True)
    [line] = health(drift=[fell, dataclasses.replace(fell, beyond_interval=False)])
    assert (line.severity, line.command) == ("warning", "p2pfed report")
    assert "auc fell beyond noise: 0.900 at round 5, 0.700 since round 12" in line.problem
    [unknown] = health(drift=[dataclasses.replace(fell, beyond_interval=None)])
    assert unknown == line


def test_an_export_that_fails_is_a_warning() -> None:
    [line] = health(export_errors={"mlflow": "connection refused"})
    assert line.severity == "warning"
    assert "mlflow: connection refused" in line.problem


def health(**changes: Any) -> list[HealthLine]:
    return health_of(status(**changes))


def test_a_site_where_all_is_well_has_no_health_line() -> None:
    assert health() == []


@pytest.mark.parametrize(
    ("changes", "severity", "says", "command"),
    [
        ({"refusal": "the topology file differs"}, "error", "differs", "p2pfed config check"),
        ({"quarantined": True}, "error", "two different deltas", "p2pfed log"),
        ({"state": "dialling", "last_error": "timed out"}, "warning", "timed out", "ping beta"),
        ({"round_trip_seconds": 3.0}, "warning", "answers slowly", "ping beta"),
        ({"round": 2}, "warning", "5 rounds behind", "ping beta"),
        ({"liveness": "unreachable"}, "warning", "silent on a link that is up", "ping beta"),
        (
            {"state": "waiting", "last_error": "reset", "vouched_by": ["gamma", "delta"]},
            "warning",
            "not connected: reset; heard by gamma, delta",
            "ping beta",
        ),
    ],
)
def test_each_trouble_of_a_neighbour_names_the_command_to_run(
    changes: dict[str, Any], severity: str, says: str, command: str
) -> None:
    line = health(neighbours=[neighbour(**changes), neighbour("gamma")])[0]
    assert line.severity == severity
    assert line.problem.startswith("beta")
    assert says in line.problem
    assert command in line.command


def test_a_machine_that_is_too_busy_is_told_so_and_a_lost_network_is_not_taken_for_it() -> None:
    [line] = health(local_health=LocalHealthStatus(BUSY_SCORE, 20.5))
    assert "too busy: the daemon stood still for 20.5 s" in line.problem
    assert "training.threads" in line.problem
    assert health(local_health=LocalHealthStatus(BUSY_SCORE - 1, 1.0)) == []
    # The score is as high where helpers did not answer: that is no lag.
    assert health(local_health=LocalHealthStatus(BUSY_SCORE, 0.0)) == []


def test_the_status_of_a_daemon_that_knows_no_local_health_is_read() -> None:
    document = status().to_json()
    del document["local_health"]
    assert Status.from_json(document) == status()


def test_a_site_that_is_alone_is_in_error() -> None:
    lines = health(neighbours=[neighbour(state="waiting")])
    assert lines[0] == HealthLine(
        "error", "no neighbour is connected; this site is alone", "p2pfed peers"
    )


def test_a_missing_quorum_and_a_failing_trainer_are_errors() -> None:
    sample = status()
    waiting = dataclasses.replace(sample.round, deadline_in_seconds=-3.0)
    assert "lacks its quorum: 2 of 3" in health(round=waiting)[0].problem
    failed = dataclasses.replace(sample.trainer, state="failed", last_error="CUDA fault")
    [line] = health(trainer=failed)
    assert line.severity == "error"
    assert "CUDA fault" in line.problem
    assert not status(health=[line]).healthy


def test_a_trainer_is_said_to_stand_still_once_its_silence_is_longer_than_usual() -> None:
    asked = dataclasses.replace(
        status().trainer, state="training", pid=77, silent_seconds=30.0, patience_seconds=30.0
    )
    assert health(trainer=asked) == []
    [line] = health(trainer=dataclasses.replace(asked, silent_seconds=75.2, last_error="before"))
    assert line.severity == "error"
    assert "stands still: process 77 has said nothing for 75 s" in line.problem
    assert "kill -9 77" in line.problem
    dead = dataclasses.replace(asked, state="restarting", silent_seconds=75.2, last_error="SIGKILL")
    assert [line.problem for line in health(trainer=dead)] == ["the trainer is restarting: SIGKILL"]


def text_of(sample: Status) -> str:
    console = Console(width=160, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(render(sample))
    return capture.get()


def test_the_table_shows_what_an_operator_looks_for() -> None:
    text = text_of(status(health=[HealthLine("error", "beta is gone", "p2pfed ping beta")]))
    for expected in (
        "7 of 50", "collecting", "2 of 3 neighbours", "efefefefefef", "auc 0.850", "beta",
        "12 ms", "0.250", "1.5 MB", "999 B", "beta is gone", "run: p2pfed ping beta",
        "2 circuits of others, 7.0 MB carried",
        "90.0 MB memory, 31 tasks, 65.5 kB database, 17 open files",
    ):  # fmt: skip
        assert expected in text, expected
    assert "healthy" in text_of(status())


def test_the_table_shows_a_silent_neighbour_in_place_of_its_link() -> None:
    silent = neighbour(liveness="unreachable")
    assert "unreachable" in text_of(status(neighbours=[silent]))
    assert "connected" not in text_of(status(neighbours=[silent]))


def test_a_reason_that_looks_like_markup_is_shown_as_it_stands() -> None:
    reason = "[/red] [link=http://example.org]:skull:"
    sample = status(health=[HealthLine("warning", f"beta is not connected: {reason}", "x")])
    console = wide_console()
    with console.capture() as capture:
        console.print(render(sample))
    assert reason in capture.get()


def test_sizes_and_durations_are_short() -> None:
    assert [size(n) for n in (0, 999, 1000, 1_500_000, 2 * 10**12)] == [
        "0 B", "999 B", "1.0 kB", "1.5 MB", "2000.0 GB",
    ]  # fmt: skip
    assert [duration(s) for s in (0.25, 41, 180, 7300, 200_000)] == [
        "0.2 s", "41 s", "3 min", "2 h", "2 d",
    ]  # fmt: skip


def test_the_metrics_carry_the_status() -> None:
    text = metrics.render(status).decode()
    for expected in (
        "p2pfed_round 7.0",
        "p2pfed_healthy 1.0",
        'p2pfed_metric{name="auc",when="after"} 0.85',
        "p2pfed_local_health_score 0.0",
        'p2pfed_neighbour_unreachable{site="beta"} 0.0',
        'p2pfed_neighbour_sent_bytes_total{site="beta"} 1.5e+06',
        'p2pfed_round_seconds{phase="training"} 0.5',
        "p2pfed_tasks 31.0",
        "p2pfed_open_files 17.0",
        "p2pfed_memory_bytes 9e+07",
        "p2pfed_database_bytes 65536.0",
        "p2pfed_relay_circuits 2.0",
        "p2pfed_relay_circuits_opened_total 5.0",
        "p2pfed_relay_carried_bytes_total 7e+06",
    ):
        assert expected in text, expected


def test_a_site_that_does_not_relay_says_nothing_of_it() -> None:
    sample = status(relay=None)
    assert Status.from_json(json.loads(json.dumps(sample.to_json()))) == sample
    assert "p2pfed_relay" not in metrics.render(lambda: sample).decode()
    assert "circuits" not in text_of(sample)


def test_what_the_system_does_not_say_is_no_metric() -> None:
    used = dataclasses.replace(status().resources, open_files=None, memory_bytes=None)
    text = metrics.render(lambda: status(resources=used)).decode()
    assert "p2pfed_tasks 31.0" in text
    assert "open_files" not in text
    assert "memory_bytes" not in text


def test_a_private_site_shows_what_is_spent_and_left_and_at_which_delta() -> None:
    text = text_of(status())
    assert "epsilon 1.25 of 4 spent, 2.75 left, at delta 1e-05" in text
    assert "privacy" not in text_of(status(privacy=None))
    assert "trains no more" in text_of(status(privacy=privacy(stopped="epsilon 3.9 of 4 is spent")))


def test_a_budget_that_nears_its_end_is_said_before_and_after() -> None:
    assert health_of(status()) == []
    [low] = health_of(status(privacy=privacy(epsilon_spent=3.7, epsilon_left=0.3)))
    assert low.severity == "warning"
    assert "epsilon 0.3 of 4 is left" in low.problem
    stopped = privacy(
        epsilon_spent=3.9, epsilon_left=0.1, stopped="another round would make it 4.1"
    )
    [over] = health_of(status(privacy=stopped))
    assert over.severity == "warning"
    assert "goes on aggregating: another round would make it 4.1" in over.problem
    broken = privacy(ledger_damaged=True, stopped="entry 3 of the privacy ledger is missing")
    [damaged] = health_of(status(privacy=broken))
    assert damaged.severity == "error"
    assert "entry 3 of the privacy ledger is missing" in damaged.problem


def test_the_metrics_carry_the_budget() -> None:
    text = metrics.render(lambda: status(privacy=privacy(stopped="used up"))).decode()
    assert "p2pfed_privacy_epsilon_spent 1.25" in text
    assert "p2pfed_privacy_epsilon_left 2.75" in text
    assert "p2pfed_privacy_delta 1e-05" in text
    assert "p2pfed_privacy_training_stopped 1.0" in text
    assert "privacy" not in metrics.render(lambda: status(privacy=None)).decode()
