"""``p2pfed bugreport``: one archive with what a maintainer needs, and nothing of patients.

It works with the daemon running, hung or stopped, and with a site file that does not load: each
part says why it is missing. No key, payload key, vector, ciphertext, record or path of the machine
gets into it; :mod:`p2pfed.cli.redaction` says how. What a task's own code printed is left out too,
for it may quote a record; of its errors, the class and the place are kept.
"""

import http.client
import io
import json
import os
import platform
import re
import socket
import sqlite3
import stat
import struct
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import tomli_w

from p2pfed import __version__
from p2pfed.cli.machine_report import machine, process
from p2pfed.cli.redaction import SECRET_KEY, WITHHELD, Redaction, finds, withhold_settings
from p2pfed.cli.site_commands import check_site, versions
from p2pfed.config import Site, SiteFile, load_site
from p2pfed.daemon.store import JOURNAL_NAME
from p2pfed.errors import ConfigurationError, StoreError
from p2pfed.keys import ENCRYPTION_FILE_NAME, IDENTITY_FILE_NAME

ANSWER_SECONDS = 5.0  # for one answer of the daemon; after the first that fails, none is asked
MAX_ANSWER_BYTES = 32 * 1024 * 1024
MOST_LOG_LINES = 1000
PLAIN_WORDS = ("p2pfed", "root", "localhost")  # users and machines that tell nothing
MOST_ROUNDS = 50
MOST_FILES = 2000
PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED

ROUND_FIELDS = ("round", "rule", "weights", "dropped", "degraded", "model", "training_loss")
METRIC_FIELDS = ("before", "after")

# Log fields that carry the words of a task's own code.
TASK_WORDS = {"trainer": "line", "evaluation failed": "reason", "training failed": "detail"}
_KEPT_OF_TASK_WORDS = (
    re.compile(r"^Traceback \(most recent call last\):$"),
    re.compile(r'^\s*File "[^"]*", line \d+, in [\w<>.]+$'),
    re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit)\b"),
    re.compile(r"^the trainer process was ended by SIG[A-Z0-9]+(?:; out of memory\? see dmesg)?"),
    re.compile(r"^the trainer process ended by itself with exit status \d+"),
)
_STATE_FILE = re.compile(
    r"^(?:lock|control\.sock|journal\.sqlite(?:-wal|-shm)?|vectors|outbox|replicas|spool|"
    r"vectors/[0-9a-z-]+\.(?:f32|partial)|outbox/[0-9a-z-]+\.(?:sealed|partial)|"
    r"replicas/[0-9a-z-]+\.\d\.f32(?:\.partial)?|spool/[0-9A-Za-z.-]+)$"
)


@dataclass(slots=True)
class Report:
    """The files of the archive so far, and what to tell the reader of each."""

    redaction: Redaction = field(default_factory=Redaction)
    files: dict[str, bytes] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)

    def add_text(self, name: str, text: str) -> None:
        self.files[name] = self.redaction.text(text).encode()

    def add_json(self, name: str, document: Any) -> None:
        shown = self.redaction.value(document)
        self.files[name] = json.dumps(shown, indent=2, ensure_ascii=False, default=str).encode()

    def add_toml(self, name: str, document: dict[str, Any]) -> None:
        self.files[name] = tomli_w.dumps(self.redaction.value(document)).encode()

    def lacks(self, name: str, reason: str) -> None:
        self.remarks[name] = self.redaction.text(f"missing: {reason}")

    def withhold_files_with(self, secrets: list[bytes]) -> None:
        """Drop a file that holds any of ``secrets`` after all."""
        for name, content in list(self.files.items()):
            if finds(content, secrets):
                del self.files[name]
                self.lacks(name, "it held a secret, which is a bug of p2pfed; please tell us so")


def write_report(config: Path, output: Path | None) -> list[str]:
    """Collect a report into ``output``, mode 0600; what is in it, a line each.

    :raises StoreError: ``output`` exists or cannot be written.
    """
    if output is None:
        output = Path(f"p2pfed-bugreport-{datetime.now(UTC):%Y%m%dT%H%M%S}Z.tar.gz")
    report = collect(config)
    try:
        _write_archive(report, output)
    except OSError as error:
        raise StoreError(f"{output}: {error.strerror}") from error
    size_bytes = output.stat().st_size
    return [
        f"{output}, {size_bytes} bytes:",
        *(f"  {line}" for line in _contents(report)),
        "Nothing was sent anywhere. Read it before you send it: it holds the names, addresses and "
        "public keys of the sites, the log, and how good the model is here.",
    ]


def collect(config: Path) -> Report:
    """Everything that goes into the archive, redacted."""
    report = Report()
    document = _read_site_file(config, report)
    _hide_the_user(report.redaction, document and document.get("name"))
    site = _load(config, report)
    if site is not None:
        _hide_paths(site, report.redaction)
    _hide_environment(os.environ.items(), report.redaction)
    pid = _ask_daemon(site, report) if site is not None else None
    if document is not None:
        report.add_toml("site.toml", document)
    _add_topology(site, report)
    _add_check(config, report)
    report.add_json("versions.json", _versions())
    if site is not None:
        report.add_json("machine.json", machine(site.state_directory))
        report.add_json("state.json", list(_listing(site.state_directory)))
        _add_journal(site.state_directory / JOURNAL_NAME, report)
        report.withhold_files_with(_secrets_of(site))
    if pid is not None:
        report.add_json("process.json", process(pid))
    else:
        report.lacks("process.json", "no process answers on the control socket")
    return report


def _hide_the_user(redaction: Redaction, site_name: object) -> None:
    """Hide who runs the daemon and where, unless by a word that the report needs."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() fails for a user without one
    for word, label in ((home.name, "(user)"), (socket.gethostname(), "(host)")):
        if word not in (*PLAIN_WORDS, site_name):
            redaction.add_word(word, label)
    redaction.add_path(home, "~")


def _read_site_file(config: Path, report: Report) -> dict[str, Any] | None:
    """The site file without what must not leave, and without its comments."""
    redaction = report.redaction
    redaction.add_path(config.absolute().parent, "(site)")
    try:
        document = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        report.lacks("site.toml", str(error.strerror))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        report.lacks("site.toml", f"{type(error).__name__}; see p2pfed config check")
    else:
        return withhold_settings(document, SiteFile, redaction)
    return None


def _load(config: Path, report: Report) -> Site | None:
    try:
        return load_site(config)
    except ConfigurationError:
        for name in ("status.json", "metrics.txt", "log.jsonl", "state.json", "journal.json"):
            report.lacks(name, "the site file does not load; see config-check.txt")
        return None


def _hide_paths(site: Site, redaction: Redaction) -> None:
    redaction.add_path(site.state_directory, "(state)")
    redaction.add_path(site.keys_directory, "(keys)")
    redaction.add_path(site.topology_path.parent, "(topology)")
    redaction.add_path(site.control_socket.parent, "(control)")
    if site.task_directory is not None:
        redaction.add_path(site.task_directory, "(task)")
    for value in site.data.values():
        if isinstance(value, str) and value.startswith("/"):
            redaction.add_path(Path(value), "(data)")
            redaction.add_path(Path(value).parent, "(data directory)")


def _hide_environment(pairs: Any, redaction: Redaction) -> None:
    for name, value in pairs:
        if SECRET_KEY.search(name):
            redaction.add_secret(value)


def _ask_daemon(site: Site, report: Report) -> int | None:
    """Put the daemon's own words into the report; its process id, even if it says nothing."""
    pid: int | None = None
    parts: tuple[tuple[str, str, Callable[[bytes], None]], ...] = (
        ("status.json", "/v1/status", lambda body: _add_status(body, report)),
        ("log.jsonl", "/v1/log", lambda body: _add_log(body, report)),
        ("metrics.txt", "/metrics", lambda body: report.add_text("metrics.txt", body.decode())),
    )
    failed: str | None = None
    for name, target, add in parts:
        if failed is None:
            try:
                pid, body = ask(site.control_socket, target)
            except _NoAnswerError as error:
                pid, failed = error.pid or pid, str(error)
            else:
                if pid is not None:
                    _hide_environment(_environment_of(pid), report.redaction)
                add(body)
        if failed is not None:
            report.lacks(name, failed)
    if failed is not None:
        report.remarks["log.jsonl"] += "; add the daemon's last lines from journalctl by hand"
    return pid


class _NoAnswerError(Exception):
    """The daemon did not answer; ``pid`` is its process, where there is one."""

    def __init__(self, reason: str, pid: int | None) -> None:
        super().__init__(reason)
        self.pid = pid


def ask(
    path: Path, target: str, within_seconds: float = ANSWER_SECONDS
) -> tuple[int | None, bytes]:
    """GET from a control socket, bounded in time and size however the daemon behaves.

    Unlike a call of :class:`~p2pfed.daemon.control_link.DaemonLink` it learns who listens from the
    kernel, also where nobody answers.

    :returns: the listening process's id and the body.
    :raises _NoAnswerError: nothing listens, it is stuck, or it answers with an error.
    """
    pid: int | None = None
    until = time.monotonic() + within_seconds
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(within_seconds)
            connection.connect(str(path))
            pid = _listener(connection)
            request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            connection.sendall(request.encode())
            with http.client.HTTPResponse(connection) as response:
                response.begin()
                body = _body(response, connection, until)
                if response.status != http.client.OK:
                    raise _NoAnswerError(f"the daemon answered {response.status}", pid)
    except TimeoutError:
        reason = f"a daemon listens but did not answer within {within_seconds:g} s; it is stuck"
        raise _NoAnswerError(reason, pid) from None
    except (OSError, http.client.HTTPException) as error:
        reason = "no daemon is running" if pid is None else f"it hung up: {type(error).__name__}"
        raise _NoAnswerError(reason, pid) from error
    return pid, body


def _body(response: http.client.HTTPResponse, connection: socket.socket, until: float) -> bytes:
    """:raises TimeoutError: it is not there by ``until``, or does not end."""
    body = bytearray()
    while part := response.read1(65536):
        body += part
        remaining_seconds = until - time.monotonic()
        if remaining_seconds <= 0 or len(body) > MAX_ANSWER_BYTES:
            raise TimeoutError
        connection.settimeout(remaining_seconds)
    return bytes(body)


def _listener(connection: socket.socket) -> int | None:
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size
    )
    pid: int = PEER_CREDENTIALS.unpack(credentials)[0]
    return pid


def _environment_of(pid: int) -> Iterator[tuple[str, str]]:
    """To know what to hide; nothing of it is shown."""
    with suppress(OSError):
        for entry in Path("/proc", str(pid), "environ").read_bytes().split(b"\0"):
            name, _, value = entry.decode("utf-8", "replace").partition("=")
            yield name, value


def _add_status(body: bytes, report: Report) -> None:
    status = json.loads(body)
    trainer = status.get("trainer", {})
    said = trainer.get("last_error")
    if said:
        # It may quote a record, and the health lines quote it.
        report.redaction.add_secret(said)
        trainer["last_error"] = without_task_words(said)
    report.add_json("status.json", status)


def _add_log(body: bytes, report: Report) -> None:
    lines = body.decode("utf-8", "replace").splitlines()[-MOST_LOG_LINES:]
    shown = (report.redaction.value(_log_line(line)) for line in lines)
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in shown)
    report.files["log.jsonl"] = text.encode()


def _log_line(line: str) -> Any:
    """A log line without a task's own words; one that is not ours is left out."""
    try:
        event = json.loads(line)
    except ValueError:
        return WITHHELD  # cut off, or no line of ours
    if not isinstance(event, dict):
        return WITHHELD
    words = TASK_WORDS.get(str(event.get("event")))
    if words in event:
        event[words] = without_task_words(str(event[words]))
    return event


def without_task_words(text: str) -> str:
    """Of what a task's code printed or raised, what cannot quote a record: the class of an error,
    the place in the code, the signal that ended it."""
    kept = []
    for line in text.splitlines():
        found = next((m for p in _KEPT_OF_TASK_WORDS if (m := p.match(line))), None)
        if found is None:
            kept.append(WITHHELD)
        else:
            kept.append(line if found.end() == len(line) else f"{found.group()} {WITHHELD}")
    return "\n".join(kept)


def _add_topology(site: Site | None, report: Report) -> None:
    if site is None:
        report.lacks("topology.toml", "the site file does not say which one it is")
        return
    try:
        document = tomllib.loads(site.topology_path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        report.lacks("topology.toml", f"{type(error).__name__}; see config-check.txt")
    else:
        report.add_toml("topology.toml", document)


def _add_check(config: Path, report: Report) -> None:
    """What ``p2pfed config check`` finds, without the values that it quotes."""
    try:
        lines = check_site(config)
    except ConfigurationError as error:
        lines = [f"{p.file}: {p.key}: {p.reason}" for p in error.problems]
    report.add_text("config-check.txt", "\n".join(lines) + "\n")


def _versions() -> dict[str, str]:
    return {
        "p2pfed": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **versions(),
    }


def _listing(directory: Path) -> Iterator[dict[str, Any]]:
    """Name, size, mode and age of each file of a state directory; of none its content."""
    now = time.time()
    for count, path in enumerate(sorted(directory.rglob("*"))):
        if count == MOST_FILES:
            yield {"name": "and more"}
            return
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # the daemon removed it meanwhile
        name = str(path.relative_to(directory))
        yield {
            "name": name if _STATE_FILE.match(name) else WITHHELD,
            "bytes": status.st_size,
            "allocated_bytes": 512 * status.st_blocks,
            "mode": stat.filemode(status.st_mode),
            "own": status.st_uid == os.geteuid(),
            "changed_seconds_ago": round(now - status.st_mtime),
        }


def _add_journal(path: Path, report: Report) -> None:
    """The journal's shape and its last rounds; no row of any other table."""
    if not path.exists():
        report.lacks("journal.json", "this site has none yet")
        return
    try:
        with closing(_read_only(path)) as database:
            report.add_json("journal.json", _journal(database))
    except (sqlite3.Error, ValueError) as error:
        report.lacks("journal.json", f"it cannot be read: {error}")


def _journal(database: sqlite3.Connection) -> dict[str, Any]:
    tables = [
        name
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if name.isidentifier() and not name.startswith("sqlite_")
    ]
    rounds = database.execute(
        "SELECT record FROM history ORDER BY round_number DESC LIMIT ?", (MOST_ROUNDS,)
    ).fetchall()
    return {
        "rows": {
            name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0]  # noqa: S608
            for name in tables
        },
        "schema": [row[0] for row in database.execute("SELECT sql FROM sqlite_master") if row[0]],
        "quick_check": [row[0] for row in database.execute("PRAGMA quick_check(5)")],
        "generations": [
            {"round": number, "published": bool(published)}
            for number, published in database.execute(
                "SELECT round_number, published FROM generations ORDER BY id"
            )
        ],
        "quarantined": [site for (site,) in database.execute("SELECT site FROM equivocations")],
        "last_rounds": [_round(json.loads(record)) for (record,) in reversed(rounds)],
    }


def _round(record: dict[str, Any]) -> dict[str, Any]:
    """The fields of a round's record that are known to hold no more than figures."""
    shown = {name: record[name] for name in ROUND_FIELDS if name in record}
    for name in METRIC_FIELDS:
        metrics = record.get(name, {})
        shown[name] = {key: v for key, v in metrics.items() if isinstance(v, int | float)}
    return shown


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=ANSWER_SECONDS)


def _secrets_of(site: Site) -> list[bytes]:
    """What must stand in no file of the report: the site's keys and its deltas' keys."""
    found: list[bytes] = []
    for name in (IDENTITY_FILE_NAME, ENCRYPTION_FILE_NAME):
        with suppress(OSError):
            found.append((site.keys_directory / name).read_bytes())
    path = site.state_directory / JOURNAL_NAME
    if path.exists():
        with suppress(sqlite3.Error), closing(_read_only(path)) as database:
            found += [key for (key,) in database.execute("SELECT payload_key FROM envelopes")]
    return [secret for secret in found if secret]


def _contents(report: Report) -> list[str]:
    lines = [f"{name:17} {len(content)} bytes" for name, content in report.files.items()]
    lines += [f"{name:17} {remark}" for name, remark in report.remarks.items()]
    return sorted(lines)


def _write_archive(report: Report, output: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(output, flags, 0o600)
    contents = {"CONTENTS.txt": ("\n".join(_contents(report)) + "\n").encode(), **report.files}
    with (
        os.fdopen(descriptor, "wb") as file,
        tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"p2pfed-bugreport/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(content))
