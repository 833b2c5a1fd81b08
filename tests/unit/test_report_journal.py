"""Reports of a state directory: while a daemon has it open, after it, and of a damaged one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import topology_documents
from typer.testing import CliRunner

from p2pfed.cli.main import app, main
from p2pfed.config import load_site
from p2pfed.daemon.journal_view import read_journal
from p2pfed.daemon.privacy_ledger import Charge, PrivacyLedger
from p2pfed.daemon.reporting import LOCAL_NAME, ReportKeeper, gather, write_report
from p2pfed.daemon.store import JOURNAL_NAME, Generation, Store
from p2pfed.errors import DamagedStateError, StoreError
from p2pfed.keys import Identity
from p2pfed.protocol.header import Header, Kind, SignedHeader, sign_header
from p2pfed.report.build import build_report

MALLORY = Identity(b"\x07" * 32, b"\x08" * 32)


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    topology_documents.load(tmp_path, topology_documents.document())
    path = tmp_path / "site.toml"
    path.write_text(tomli_w.dumps({"schema_version": 1, "name": "a"}))
    return path


def record(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "round": number,
        "rule": "mean",
        "weights": {"b": 0.3, "d": 0.3},
        "model": f"{number:064x}",
        "after": {"auc": 0.8},
        "at_seconds": 1_700_000_000 + number,
        **changes,
    }


def commit(store: Store, number: int, **changes: Any) -> None:
    generation = Generation(number + 1, False, b"m" * 32, b"r" * 32, b"o" * 32)
    store.commit_round(generation, {}, {}, record(number, **changes))


def state(site_file: Path, rounds: int = 3) -> Store:
    """An open state directory in which some rounds were done."""
    store = Store(load_site(site_file).state_directory)
    store.bind(b"f" * 32)
    for number in range(rounds):
        commit(store, number)
    return store


def signed(nonce: int) -> SignedHeader:
    return sign_header(
        MALLORY,
        Header(
            1, b"f" * 32, Kind.DELTA, MALLORY.public_key, b"t" * 32, b"s" * 32, 4, 5,
            0, bytes(32), b"b" * 32, bytes([nonce]) * 32, "int8", b"k" * 32, b"r" * 32, 1, 10,
            0.0, 0,
        ),
    )  # fmt: skip


def report_of(site_file: Path) -> Any:
    site = load_site(site_file)
    topology = topology_documents.load(site_file.parent, topology_documents.document())
    return build_report(gather(site, topology), 1)


def test_the_journal_is_read_while_it_is_open_and_after(site_file: Path) -> None:
    store = state(site_file)
    running = report_of(site_file)
    assert running.rounds.done == 3
    commit(store, 3)  # and the reader is no hindrance
    assert report_of(site_file).rounds.done == 4
    store.close()
    directory = load_site(site_file).state_directory
    before = sorted(directory.iterdir())
    stopped = report_of(site_file)
    assert stopped.rounds.done == 4
    assert sorted(directory.iterdir()) == before  # nothing is left beside it
    assert report_of(site_file) == stopped


def test_a_killed_daemons_journal_is_read_with_its_log(site_file: Path, tmp_path: Path) -> None:
    store = state(site_file)
    directory = load_site(site_file).state_directory
    # What a kill leaves: the log was not folded into the database.
    left = tmp_path / "left"
    left.mkdir()
    for name in (JOURNAL_NAME, f"{JOURNAL_NAME}-wal"):
        shutil.copy(directory / name, left / name)
    store.close()
    assert len(read_journal(left).records) == 3


def test_evidence_and_exports_are_in_it(site_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pfed.daemon.store.KEPT_EXPORTS", 3)
    store = state(site_file)
    store.add_equivocation("c", signed(1), signed(2))
    for number in range(5):
        store.add_export(
            {
                "round": number,
                "path": f"/models/{number}",
                "model": "aa",
                "sha256": "bb",
                "exported_at_seconds": 5,
            }
        )
    view = read_journal(store.directory)
    store.close()
    [evidence] = view.equivocations
    assert (evidence.site, evidence.round) == ("c", 4)
    assert {evidence.first, evidence.second} == {one.digest.hex() for one in (signed(1), signed(2))}
    assert [one.path for one in view.exports] == ["/models/2", "/models/3", "/models/4"]
    report = report_of(site_file)
    assert [one.quarantined for one in report.participants if one.name == "c"] == [True]
    assert report.lineage.exports[-1].path == "/models/4"


def test_forged_evidence_accuses_nobody(site_file: Path) -> None:
    store = state(site_file)
    forged = SignedHeader(signed(1).header, signed(1).encoded, bytes(64), signed(1).digest)
    store.add_equivocation("c", signed(2), forged)
    store.close()
    with pytest.raises(DamagedStateError, match="the evidence against c"):
        read_journal(load_site(site_file).state_directory)


def test_a_site_that_never_ran_says_so(site_file: Path) -> None:
    with pytest.raises(StoreError, match="has not run yet"):
        report_of(site_file)


def test_a_damaged_journal_is_named(site_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state(site_file, rounds=40).close()
    path = load_site(site_file).state_directory / JOURNAL_NAME
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[4096:middle] = b"\xa5" * (middle - 4096)
    path.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["report", "--config", str(site_file)])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert JOURNAL_NAME in said
    assert "p2pfed restore" in said
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(DamagedStateError, match="not a database"):
        read_journal(path.parent)


@pytest.mark.parametrize("damage", ['{"round": -1}', "[]", "{", '{"round": 1, "weights": 7}'])
def test_a_damaged_record_is_named(site_file: Path, damage: str) -> None:
    store = state(site_file)
    with store._journal.transaction() as database:
        database.execute("UPDATE history SET record = ? WHERE round_number = 1", (damage,))
    with pytest.raises(DamagedStateError, match="the record of a round is damaged"):
        read_journal(store.directory)
    store.close()


def test_the_command_writes_both_files_private(site_file: Path, tmp_path: Path) -> None:
    state(site_file).close()
    html, document = tmp_path / "r.html", tmp_path / "r.json"
    arguments = ["report", "--config", str(site_file), "--html", str(html), "--json", str(document)]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.output) == (0, "")
    assert json.loads(document.read_text())["rounds"]["done"] == 3
    assert "<h1>Model card: test at a</h1>" in html.read_text()
    assert {path.stat().st_mode & 0o777 for path in (html, document)} == {0o600}
    other = tmp_path / "b.json"
    content = json.loads(document.read_text())
    content["model_details"]["site"] = "b"
    other.write_text(json.dumps(content))
    done = CliRunner().invoke(app, [*arguments[:3], "--json", "-", "--site", str(other)])
    assert json.loads(done.stdout)["overall"][0]["sites"] == 2


def test_the_command_alone_prints_the_main_figures(site_file: Path) -> None:
    store = state(site_file)
    commit(store, 3, intervals={"auc": [0.7, 0.9]}, holdout_records=[50, 100])
    done = CliRunner().invoke(app, ["report", "--config", str(site_file)])
    store.close()
    assert done.exit_code == 0
    assert "4 rounds, 0 degraded" in done.output
    assert "auc                      0.800  (0.700 to 0.900)" in done.output
    assert "50 to 99 records" in done.output
    assert "No differential privacy is configured" in done.output


def test_the_report_says_what_the_last_round_found_in_the_privacy_ledger(site_file: Path) -> None:
    store = state(site_file)
    spending = {
        "epsilon_spent": 1.25,
        "epsilon_budget": 4.0,
        "delta": 1e-5,
        "noise_multiplier": 1.1,
        "clip_norm": 1.0,
        "charged_rounds": 12,
    }
    commit(store, 3, privacy=spending)
    store.close()
    done = CliRunner().invoke(app, ["report", "--config", str(site_file)])
    assert "epsilon 1.250 of 4 is spent at delta 1e-05" in done.output
    accounted = report_of(site_file).privacy.accounted
    assert accounted is not None
    assert (accounted.rounds_charged, accounted.clipping_norm) == (12, 1.0)


def test_reports_of_other_federations_and_of_a_site_twice_are_refused(
    site_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state(site_file).close()
    document = report_of(site_file).model_dump(mode="json")
    other = tmp_path / "other.json"

    def refusal(*files: Path) -> str:
        options = [option for file in files for option in ("--site", str(file))]
        with pytest.raises(SystemExit):
            main(["report", "--config", str(site_file), *options])
        return capsys.readouterr().err

    other.write_text(json.dumps(document))
    assert "two reports of a" in refusal(other)
    document["model_details"] |= {"site": "b", "federation_id": "00" * 32}
    other.write_text(json.dumps(document))
    assert "is of federation 000000000000" in refusal(other)


def test_a_local_baseline_of_another_model_is_not_compared(site_file: Path) -> None:
    store = state(site_file, rounds=0)
    commit(store, 0, run={"model_schema": "ab"})
    store.close()
    path = load_site(site_file).state_directory / LOCAL_NAME
    kept = {"model_schema": "ab", "steps": 3, "metrics": {"auc": 0.7}, "intervals": {}}
    path.write_text(json.dumps(kept))
    assert report_of(site_file).models[0].metrics == {"auc": 0.7}
    path.write_text(json.dumps(kept | {"model_schema": "cd"}))
    assert [one.model for one in report_of(site_file).models] == ["federated"]
    path.write_text("{")
    with pytest.raises(StoreError, match=LOCAL_NAME):
        report_of(site_file)


def test_the_daemon_writes_when_there_is_something_new(site_file: Path) -> None:
    keeper = ReportKeeper(load_site(site_file))
    assert not keeper.is_due(99, finished=False)
    assert keeper.is_due(100, finished=False)
    assert keeper.is_due(0, finished=True)


async def test_a_report_that_cannot_be_written_stops_nothing(site_file: Path) -> None:
    state(site_file).close()
    site = load_site(site_file)
    topology = topology_documents.load(site_file.parent, topology_documents.document())
    keeper = ReportKeeper(site)
    await keeper.write(topology, 3)
    written = json.loads((site.state_directory / "report.json").read_text())
    assert written["rounds"]["done"] == 3
    assert not keeper.is_due(3, finished=True)
    (site.state_directory / JOURNAL_NAME).write_bytes(b"")
    await keeper.write(topology, 4)  # logged, not raised
    with pytest.raises(StoreError):
        write_report(site, topology, 1)


PRIVACY = {
    "differential_privacy": True,
    "maximum_epsilon": 4.0,
    "maximum_delta": 1e-5,
    "minimum_noise_multiplier": 1.0,
    "maximum_clip_norm": 1.0,
}
SPENT = {
    "epsilon_spent": 1.5,
    "epsilon_budget": 4.0,
    "delta": 1e-5,
    "noise_multiplier": 1.0,
    "clip_norm": 1.0,
    "charged_rounds": 2,
}


def private_report(site_file: Path, **tables: Any) -> Any:
    topology = topology_documents.load(site_file.parent, topology_documents.document(**tables))
    return build_report(gather(load_site(site_file), topology), 1).privacy


def test_the_budget_is_reported_with_what_a_crash_left_charged(site_file: Path) -> None:
    store = state(site_file, rounds=0)
    commit(store, 0)
    nothing_yet = private_report(site_file, privacy=PRIVACY).accounted
    assert (nothing_yet.epsilon_spent, nothing_yet.epsilon_limit) == (0.0, 4.0)
    commit(store, 1, privacy=SPENT)
    ledger = PrivacyLedger(store._journal, MALLORY)
    for number in range(3):
        ledger.reserve(Charge(number, bytes(32), 0.1, 1.0, 5, 1e-5))
    found = private_report(site_file, privacy=PRIVACY)
    store.close()
    assert found.accounted.epsilon_left == 2.5
    assert (found.accounted.rounds_charged, found.accounted.rounds_charged_since) == (2, 1)
    assert "epsilon 1.500 of 4 is spent at delta 1e-05, 2.500 is left" in found.statement
    assert "1 further rounds are charged since" in found.statement
    switched_off = private_report(site_file)
    assert "The present settings train without it" in switched_off.statement
    assert switched_off.accounted.epsilon_spent == 1.5
