"""What a bug report holds and, above all, what it does not."""

import base64
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from status_samples import status
from test_store import signed, vector

from p2pfed.cli import bugreport
from p2pfed.cli.bugreport import ask, collect, without_task_words, write_report
from p2pfed.cli.machine_report import open_files, process
from p2pfed.cli.redaction import WITHHELD, Redaction, finds, forms_of, withhold_settings
from p2pfed.cli.site_commands import init_site
from p2pfed.config import Site, SiteFile, load_site
from p2pfed.daemon.metrics import render
from p2pfed.daemon.status import TrainerReport
from p2pfed.daemon.store import Generation, Store
from p2pfed.errors import StoreError
from p2pfed.keys import load_identity

PATIENT = "MRN-4711-DOE"
PASSWORD_IN_PATH = "hunter2-in-the-path"
PASSWORD_IN_FILE = "sesame-in-the-file"
PASSWORD_IN_ENVIRONMENT = "swordfish-in-the-environment"
PAYLOAD_KEY = bytes(range(64, 96))


@pytest.fixture
def site(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site with secrets wherever one can be."""
    home = short_tmp / "home" / "drwho42"
    directory = home / f"password={PASSWORD_IN_PATH}"
    init_site(directory, "alpha")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DATABASE_PASSWORD", PASSWORD_IN_ENVIRONMENT)
    blocks = [init_site(short_tmp / name, name) for name in ("beta", "gamma")]
    document = (
        'schema_version = 1\n[federation]\nname = "test"\n[graph]\nkind = "ring"\n'
        '[task]\nkind = "tabular"\n'
    )
    own = load_identity(directory / "keys").public_key
    blocks.append(
        '[[peer]]\nname = "alpha"\nkey = "ed25519:'
        + base64.urlsafe_b64encode(own).decode().rstrip("=")
        + '"\naddresses = []'
    )
    # No words of the path: the file is shared with the other members as it is.
    (directory / "topology.toml").write_text(
        "# of " + PATIENT + "\n" + document + "\n".join(blocks)
    )
    (directory / "data.csv").write_text(f"patient,age\n{PATIENT},77\n")
    (directory / "site.toml").write_text(
        f"# the old password was {PASSWORD_IN_FILE}\n"
        'schema_version = 1\nname = "alpha"\n[listen]\nmdns = false\n[data]\n'
        f'path = "data.csv"\npassword = "{PASSWORD_IN_FILE}"\n'
    )
    site = load_site(directory / "site.toml")
    fill(site)
    return site


def fill(site: Site) -> None:
    store = Store(site.state_directory)
    with store.outbox_file(1, 10) as file:
        file.write(b"sealed-ciphertext")
    generation = Generation(
        0,
        True,
        store.put_vector(vector(1)),
        store.put_vector(vector(2)),
        store.put_vector(np.empty(0, np.float32)),
    )
    store.commit_published(generation, signed(1), b"d" * 32, PAYLOAD_KEY)
    following = Generation(1, False, generation.model, generation.replica, generation.site_state)
    record = {
        "round": 0,
        "rule": "mean",
        "weights": {"beta": 0.25},
        "after": {"auc": 0.9, "worst": PATIENT},
        "examples": [PATIENT],
    }
    store.commit_round(following, {}, {}, record)
    (site.state_directory / f"{PATIENT}.txt").write_text("copied here by mistake")
    store.close()


LOG = [
    {"event": "daemon started", "site": "alpha", "level": "info"},
    {"event": "trainer", "line": f"row 3: {PATIENT}"},
    {"event": "trainer", "line": f"KeyError: '{PATIENT}'"},
    {"event": "trainer", "line": '  File "/opt/task.py", line 7, in loss'},
    {"event": "evaluation failed", "reason": f"could not convert {PATIENT}"},
    {"event": "training failed", "detail": f"ValueError: {PATIENT}", "round": 4},
    {"event": "link down", "reason": f"password: {PASSWORD_IN_FILE}"},
]


class Listener:
    """A control socket that answers like a daemon, or as a test wants."""

    def __init__(self, path: Path, answers: Callable[[str], bytes | None]) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(path))
        self.socket.listen(8)
        self.answers = answers
        self.asked: list[str] = []
        self.kept: list[socket.socket] = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            head = connection.recv(65536)
            if not head:
                connection.close()
                return
            target = head.split(b" ")[1].decode()
            self.asked.append(target)
            answer = self.answers(target)
            if answer is None:
                self.kept.append(connection)
                continue
            connection.sendall(answer)
            connection.close()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(self.socket.getsockname())
        self.thread.join()
        for connection in (*self.kept, self.socket):
            connection.close()


def answer(body: bytes, code: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {code}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def healthy_daemon(site: Site) -> Callable[[str], bytes]:
    failed = f"KeyError: '{PATIENT}'"
    shown = status(
        trainer=TrainerReport("failed", 2, "cpu", 3, failed, None, None, None, 100, 50)
    ).to_json()
    shown["site"]["config"] = str(site.path)
    shown["topology"]["path"] = str(site.topology_path)
    shown["health"] = [
        {
            "severity": "error",
            "problem": f"the trainer is failed: {failed}",
            "command": "p2pfed log",
        }
    ]
    log = (
        "\n".join(json.dumps(line) for line in LOG) + f'\n{{"event": "trainer", "line": "{PATIENT}'
    )
    bodies = {
        "/v1/status": json.dumps(shown).encode(),
        "/v1/log": log.encode(),
        "/metrics": render(status),
    }
    return lambda target: answer(bodies[target])


@pytest.fixture
def listen(site: Site) -> Iterator[Callable[[Callable[[str], bytes | None]], Listener]]:
    opened: list[Listener] = []

    def start(answers: Callable[[str], bytes | None]) -> Listener:
        opened.append(Listener(site.control_socket, answers))
        return opened[-1]

    yield start
    for listener in opened:
        listener.close()


def secrets_of(site: Site) -> dict[str, bytes]:
    keys = site.keys_directory
    return {
        "the seed": (keys / "identity.key").read_bytes(),
        "the encryption secret": (keys / "encryption.key").read_bytes(),
        "a payload key": PAYLOAD_KEY,
        "a patient": PATIENT.encode(),
        "a password in a path": PASSWORD_IN_PATH.encode(),
        "a password in the site file": PASSWORD_IN_FILE.encode(),
        "a password in the environment": PASSWORD_IN_ENVIRONMENT.encode(),
        "the user": b"drwho42",
        "a vector": vector(1).tobytes()[:64],
        "a ciphertext": b"sealed-ciphertext",
    }


def test_none_of_the_planted_secrets_is_in_the_archive(
    site: Site, short_tmp: Path, listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listen(healthy_daemon(site))
    said = "\n".join(write_report(site.path, short_tmp / "r.tar.gz"))
    assert listener.asked == ["/v1/status", "/v1/log", "/metrics"]
    content = gzip.decompress((short_tmp / "r.tar.gz").read_bytes())
    for what, secret in secrets_of(site).items():
        for form in forms_of(secret):
            assert form not in content, f"{what} is in the archive as {form!r}"
        assert secret.decode("latin-1") not in said
    assert b"missing" not in content
    assert (short_tmp / "r.tar.gz").stat().st_mode & 0o777 == 0o600


def test_the_search_of_that_test_finds_each_secret_where_it_lies(site: Site) -> None:
    content = (
        b"".join(path.read_bytes() for path in site.path.parent.rglob("*") if path.is_file())
        + str(site.path).encode()
    )
    found = {what for what, secret in secrets_of(site).items() if finds(content, [secret])}
    assert found == set(secrets_of(site)) - {"a password in the environment"}


def test_a_running_daemon_s_report_is_of_use(site: Site, listen: Callable[..., Listener]) -> None:
    listen(healthy_daemon(site))
    report = collect(site.path)
    assert report.remarks == {}
    shown = {name: content.decode() for name, content in report.files.items()}
    assert json.loads(shown["status.json"])["trainer"]["last_error"] == f"KeyError {WITHHELD}"
    assert json.loads(shown["status.json"])["site"]["config"] == "(site)/site.toml"
    assert "p2pfed_round 7.0" in shown["metrics.txt"]
    log = shown["log.jsonl"].splitlines()
    assert len(log) == len(LOG) + 1
    assert '"line": "  File \\"/opt/task.py\\", line 7, in loss"' in log[3]
    assert json.loads(log[5]) == {
        "event": "training failed", "detail": f"ValueError {WITHHELD}", "round": 4
    }  # fmt: skip
    assert json.loads(log[-1]) == WITHHELD
    assert 'name = "alpha"' in shown["site.toml"]
    assert f'password = "{WITHHELD}"' in shown["site.toml"]
    assert len(tomllib.loads(shown["topology.toml"])["peer"]) == 3
    assert shown["config-check.txt"].count("ok ") == 4
    assert json.loads(shown["process.json"])["pid"] == os.getpid()
    assert int(json.loads(shown["process.json"])["Threads"]) >= 2
    journal = json.loads(shown["journal.json"])
    assert journal["rows"]["envelopes"] == 1
    assert journal["quick_check"] == ["ok"]
    [last] = journal["last_rounds"]
    assert last["weights"] == {"beta": 0.25}
    assert last["after"] == {"auc": 0.9}
    names = [entry["name"] for entry in json.loads(shown["state.json"])]
    assert "journal.sqlite" in names
    assert names.count(WITHHELD) == 1
    assert json.loads(shown["machine.json"])["disk"]["available_bytes"] > 0
    assert json.loads(shown["versions.json"])["p2pfed"]


def test_a_stopped_daemon_leaves_the_rest_of_the_report(site: Site, short_tmp: Path) -> None:
    lines = "\n".join(write_report(site.path, short_tmp / "r.tar.gz"))
    assert "status.json       missing: no daemon is running" in lines
    assert "journalctl" in lines
    assert "journal.json" in lines
    with tarfile.open(short_tmp / "r.tar.gz") as archive:
        names = {Path(name).name for name in archive.getnames()}
        listed = archive.extractfile("p2pfed-bugreport/CONTENTS.txt")
        assert listed is not None
        assert "no daemon is running" in listed.read().decode()
    assert {"journal.json", "state.json", "site.toml", "topology.toml"} <= names
    assert not names & {"status.json", "log.jsonl", "metrics.txt", "process.json"}
    with pytest.raises(StoreError, match="File exists"):
        write_report(site.path, short_tmp / "r.tar.gz")


def test_a_hung_daemon_costs_one_bounded_wait_and_is_described_from_outside(
    site: Site, listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listen(lambda _: None)
    monkeypatch.setattr(bugreport, "ask", lambda path, target: ask(path, target, 0.2))
    report = collect(site.path)
    assert listener.asked == ["/v1/status"]
    assert "it is stuck" in report.remarks["status.json"]
    assert json.loads(report.files["process.json"])["pid"] == os.getpid()


def test_an_answer_that_trickles_without_end_is_cut_off(short_tmp: Path) -> None:
    """Each byte comes in time; all of them never do."""
    script = (
        "import socket, sys, time\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "print(flush=True)\n"
        "c, _ = s.accept(); c.recv(9999)\n"
        "c.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n')\n"
        "while True: c.sendall(b'x' * 100); time.sleep(0.01)\n"
    )
    path = short_tmp / "s"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        with pytest.raises(Exception, match="did not answer within") as caught:
            ask(path, "/", 0.3)
        assert caught.value.pid == daemon.pid  # type: ignore[attr-defined]
        daemon.kill()


def test_a_stopped_process_is_found_by_its_socket_and_shown_as_stopped(short_tmp: Path) -> None:
    script = (
        "import os, signal, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "print(flush=True)\nsignal.pause()\n"
    )
    path = short_tmp / "s"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE
    ) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        daemon.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(Exception, match="did not answer within") as caught:
            ask(path, "/", 0.1)
        assert caught.value.pid == daemon.pid  # type: ignore[attr-defined]
        shown = process(daemon.pid)
        assert shown["State"].startswith("T")
        assert shown["open_files"]["socket"] == 1
        daemon.kill()
    assert open_files(2**22 + 1) == {}
    assert process(2**22 + 1)["age_seconds"] is None


def test_a_site_file_that_does_not_load_still_gives_a_report(site: Site) -> None:
    site.path.write_text(f'name = "alpha"\npasswort = "{PASSWORD_IN_FILE}"\n')
    report = collect(site.path)
    assert b"unknown key" in report.files["config-check.txt"]
    assert PASSWORD_IN_FILE.encode() not in b"".join(report.files.values())
    assert "does not load" in report.remarks["status.json"]
    site.path.write_text(f'name = "{PASSWORD_IN_FILE}')
    report = collect(site.path)
    assert "TOMLDecodeError" in report.remarks["site.toml"]
    assert PASSWORD_IN_FILE.encode() not in b"".join(report.files.values())
    site.path.unlink()
    assert collect(site.path).remarks["site.toml"] == "missing: No such file or directory"


def test_a_journal_that_cannot_be_read_is_named(site: Site) -> None:
    (site.state_directory / "journal.sqlite").write_bytes(b"garbage" * 1000)
    for rest in site.state_directory.glob("journal.sqlite-*"):
        rest.unlink()
    assert "not a database" in collect(site.path).remarks["journal.json"]


def test_the_last_net_drops_a_file_that_holds_a_key(site: Site) -> None:
    seed = (site.keys_directory / "identity.key").read_bytes()
    report = bugreport.Report()
    for number, form in enumerate(forms_of(seed)):
        report.files[f"{number}"] = b"before " + form + b" after"
    report.files["clean"] = b"nothing"
    report.withhold_files_with([seed])
    assert list(report.files) == ["clean"]


@settings(deadline=None)
@given(st.binary(max_size=20), st.binary(min_size=16, max_size=40), st.binary(max_size=20))
def test_a_secret_is_found_in_base64_wherever_it_begins(
    before: bytes, secret: bytes, after: bytes
) -> None:
    whole = before + secret + after
    for encoded in (base64.b64encode(whole), base64.urlsafe_b64encode(whole), whole.hex().encode()):
        assert finds(encoded, [secret])


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=40), st.binary(max_size=200))
def test_what_holds_no_secret_is_not_accused(secret: bytes, content: bytes) -> None:
    if secret not in content:
        assert not finds(b"\n".join([b"p2pfed report", content.hex()[:31].encode()]), [secret])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mount password=abc ok", f"mount password={WITHHELD} ok"),
        ("{'token': 'abc def'}", "{'token': " + WITHHELD + "}"),
        ("https://me:word@example.org/x", f"https://{WITHHELD}@example.org/x"),
        ("/srv/secret=abc/site.toml", f"/srv/secret={WITHHELD}/site.toml"),
        ("/home/jane/x and /Users/joe/y", "~/x and ~/y"),
        ("round 4 of 50", "round 4 of 50"),
        ("/ip4/192.0.2.1/tcp/7400", "/ip4/192.0.2.1/tcp/7400"),
    ],
)
def test_what_names_itself_a_secret_is_withheld_wherever_it_stands(text: str, shown: str) -> None:
    assert Redaction().text(text) == shown


def test_longer_paths_go_first_and_words_only_by_themselves() -> None:
    redaction = Redaction()
    redaction.add_path(Path("/srv/p2pfed"), "(site)")
    redaction.add_path(Path("/srv/p2pfed/state"), "(state)")
    redaction.add_path(Path("/"), "(root)")
    redaction.add_word("alice", "(user)")
    redaction.add_word("a", "(user)")
    assert redaction.text("/srv/p2pfed/state/x /srv/p2pfed/y") == "(state)/x (site)/y"
    assert redaction.text("/run/alice/x malice alice-2") == "/run/(user)/x malice alice-2"
    assert redaction.value({"api_key": "xyz", "n": [1, "alice"]}) == {
        "api_key": WITHHELD,
        "n": [1, "(user)"],
    }


@pytest.mark.parametrize("home", ["/srv/p2pfed", "/", "~"])
def test_a_user_named_like_the_program_takes_no_words_out_of_the_report(
    site: Site, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(socket, "gethostname", lambda: "alpha")
    report = collect(site.path)
    assert json.loads(report.files["versions.json"])["p2pfed"]
    assert b'name = "alpha"' in report.files["site.toml"]


def test_a_path_that_json_writes_with_escapes_is_found_as_well() -> None:
    redaction = Redaction()
    redaction.add_path(Path("/srv/Klinik Süd"), "(site)")
    assert "Klinik" not in redaction.text(json.dumps({"path": "/srv/Klinik Süd/site.toml"}))


def test_settings_that_sound_secret_are_withheld_here_and_everywhere() -> None:
    redaction = Redaction()
    document: dict[str, Any] = {
        "name": "alpha",
        "unknown": {"setting": 1},
        "data": {"path": "/data/x.csv", "columns": ["patient-a", 3]},
        "log": {"level": "info", "upload_token": "long-enough"},
    }
    assert withhold_settings(document, SiteFile, redaction) == {
        "name": "alpha",
        "unknown": {"setting": WITHHELD},
        "data": {"path": WITHHELD, "columns": [WITHHELD, WITHHELD]},
        "log": {"level": "info", "upload_token": WITHHELD},
    }
    assert redaction.text("read /data/x.csv: patient-a, long-enough") == (
        f"read {WITHHELD}: {WITHHELD}, {WITHHELD}"
    )


def test_a_task_s_error_keeps_its_class_and_place_alone() -> None:
    trace = (
        "Traceback (most recent call last):\n"
        '  File "/opt/task.py", line 7, in loss\n'
        "    raise ValueError(patient)\n"
        f"torch.cuda.OutOfMemoryError: {PATIENT}"
    )
    assert without_task_words(trace) == (
        "Traceback (most recent call last):\n"
        '  File "/opt/task.py", line 7, in loss\n'
        f"{WITHHELD}\n"
        f"torch.cuda.OutOfMemoryError {WITHHELD}"
    )
    killed = "the trainer process was ended by SIGKILL; out of memory? see dmesg"
    assert without_task_words(killed) == killed
    ended = "the trainer process ended by itself with exit status 3"
    assert without_task_words(f"{ended}, saying '{PATIENT}'") == f"{ended} {WITHHELD}"


def test_only_the_kinds_of_open_files_are_counted(tmp_path: Path) -> None:
    before = open_files(os.getpid())
    with (tmp_path / "x").open("w"), closing(socket.socket()):
        after = open_files(os.getpid())
    assert after["file"] == before["file"] + 1
    assert after["socket"] == before["socket"] + 1
