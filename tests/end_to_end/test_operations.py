"""The operator's side against real daemons: backup, restore on a new machine, bug reports."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from federation import GUARD_SECONDS, Federation, Hospital

from p2pfed.cli.redaction import finds
from p2pfed.daemon.status import Status
from p2pfed.keys import load_identity

pytestmark = pytest.mark.daemons


@pytest.fixture
def trio_of_sites(short_tmp: Path) -> Iterator[Federation]:
    with Federation(short_tmp, ["alpha", "beta", "gamma"]) as federation:
        yield federation


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "p2pfed", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=GUARD_SECONDS,
    )


def column(hospital: Hospital, name: str) -> list[object]:
    """A column of the own deltas in a site's journal."""
    journal = hospital.directory / "state" / "journal.sqlite"
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:
        return [row[0] for row in database.execute(f"SELECT {name} FROM envelopes")]  # noqa: S608


@pytest.mark.slow
def test_a_site_restored_on_a_new_machine_signs_no_round_twice(
    trio_of_sites: Federation, short_tmp: Path
) -> None:
    """Its neighbours are stopped while it starts, so that nobody tells it where they are before
    it would have trained and signed."""
    trio_of_sites.start()
    alpha, beta, gamma = trio_of_sites.hospitals
    before = alpha.until_round(2)
    done = cli("backup", short_tmp / "a.tar", "--with-key", "--config", alpha.config)
    assert done.returncode == 0, done.stderr
    assert "pass for this site" in done.stdout
    lived = alpha.until_round(before.round.number + 8)
    alpha.send(signal.SIGKILL)
    alpha.wait()
    for other in (beta, gamma):
        other.send(signal.SIGSTOP)
    signed = max(map(int, map(str, column(alpha, "sequence"))))
    assert signed > before.round.number + 2

    # The machine is gone: only what the operator keeps elsewhere is left.
    for lost in ("state", "keys"):
        shutil.rmtree(alpha.directory / lost)
    done = cli("restore", short_tmp / "a.tar", "--config", alpha.config)
    assert done.returncode == 0, done.stderr
    assert "signs nothing before it knows" in done.stdout
    alpha.start()
    alpha.until("a start without neighbours", lambda s: s.round.phase != "starting")
    assert column(alpha, "sequence") == []
    for other in (beta, gamma):
        other.send(signal.SIGCONT)

    after = alpha.until_round(lived.round.number + 4)
    assert after.round.number > signed
    assert min(map(int, map(str, column(alpha, "sequence")))) > signed
    for other in (beta, gamma):
        other.until("alpha's deltas again", lambda s: is_heard(s, "alpha"))
    assert "equivocation" not in "".join(h.log.read_text() for h in trio_of_sites.hospitals)
    assert "Traceback" not in alpha.log.read_text()


def is_heard(status: Status, name: str) -> bool:
    [neighbour] = [n for n in status.neighbours if n.name == name]
    assert not neighbour.quarantined
    return neighbour.staleness == 0 and neighbour.weight > 0


@pytest.mark.slow
def test_backups_of_a_running_daemon_are_whole_each_time(
    trio_of_sites: Federation, short_tmp: Path
) -> None:
    trio_of_sites.start()
    alpha, *_ = trio_of_sites.hospitals
    alpha.until_round(1)
    rounds = []
    for number in range(4):
        archive = short_tmp / f"{number}.tar"
        done = cli("backup", archive, "--config", alpha.config)
        assert done.returncode == 0, done.stderr
        new = short_tmp / f"machine-{number}"
        new.mkdir()
        shutil.copy(alpha.config, new)
        shutil.copytree(alpha.directory / "keys", new / "keys")
        done = cli("restore", archive, "--config", new / "site.toml")
        assert done.returncode == 0, done.stderr
        with tarfile.open(archive) as tar:
            manifest = tar.extractfile("manifest.json")
            assert manifest is not None
            rounds.append(json.load(manifest)["round"])
    assert rounds == sorted(rounds)
    assert rounds[-1] > rounds[0]
    assert "Traceback" not in alpha.log.read_text()
    assert alpha.until_round(rounds[-1] + 1).totals.deltas_rejected == 0


@pytest.mark.slow
def test_a_bug_report_of_a_daemon_that_runs_that_hangs_and_that_stopped(
    short_tmp: Path,
) -> None:
    with Federation(short_tmp, ["alpha", "beta"]) as pair:
        alpha, _ = pair.hospitals
        data = alpha.directory / "data.csv"
        lines = data.read_text().splitlines()
        patients = [f"MRN-{number:06d}" for number in range(len(lines) - 1)]
        names = ["patient", *patients]
        alpha.write_site(data={"path": "data.csv", "extra_columns": "ignore"})
        data.write_text("\n".join(map(",".join, zip(lines, names, strict=True))) + "\n")
        pair.start()
        alpha.until_round(2)

        def report(name: str) -> tuple[dict[str, bytes], str]:
            done = cli("bugreport", "--config", alpha.config, "-o", short_tmp / name)
            assert done.returncode == 0, done.stderr
            with tarfile.open(short_tmp / name) as archive:
                files = {
                    Path(entry.name).name: content.read()
                    for entry in archive.getmembers()
                    if (content := archive.extractfile(entry)) is not None
                }
            identity = load_identity(alpha.directory / "keys")
            keys = [key for key in column(alpha, "payload_key") if isinstance(key, bytes)]
            secrets = [identity.seed, bytes(identity.encryption_key), *keys]
            secrets += [str(short_tmp).encode(), *(patient.encode() for patient in patients)]
            for file, content in files.items():
                assert not finds(content, secrets), f"{file} holds a secret"
            return files, done.stdout

        files, said = report("running.tar.gz")
        assert "missing" not in said
        assert json.loads(files["status.json"])["site"]["name"] == "alpha"
        assert b"p2pfed_rounds_total" in files["metrics.txt"]
        assert b"round done" in files["log.jsonl"]
        assert json.loads(files["journal.json"])["last_rounds"]
        pid = json.loads(files["process.json"])["pid"]

        alpha.send(signal.SIGSTOP)
        files, said = report("hung.tar.gz")
        assert "it is stuck" in said
        assert json.loads(files["process.json"])["pid"] == pid
        assert json.loads(files["process.json"])["State"].startswith("T")
        alpha.send(signal.SIGCONT)
        alpha.send(signal.SIGTERM)
        alpha.wait()
        files, said = report("stopped.tar.gz")
        assert "no daemon is running" in said
        assert {"journal.json", "state.json", "machine.json"} <= set(files)
