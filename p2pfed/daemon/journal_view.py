"""A site's journal as a report reads it: without a lock, while the daemon runs or stands still.

Nothing is written, and where no daemon has it open nothing is left beside it: a report that
another user makes must not leave files that the daemon then cannot open.
"""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from p2pfed.daemon.journal import BUSY_TIMEOUT_SECONDS, REMEDY, SCHEMA_VERSION, is_damage
from p2pfed.daemon.store import JOURNAL_NAME
from p2pfed.errors import DamagedStateError, RemoteProtocolError, StoreError
from p2pfed.protocol.header import parse_signed_header
from p2pfed.report.document import Equivocation, ExportedModel
from p2pfed.report.records import RoundRecord, parse_record

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JournalView:
    """What a report takes from a journal; ``federation_id`` is hex, empty before the first start.

    :ivar records: of the finished rounds, the oldest first.
    :ivar charged_rounds: entries of the privacy ledger.
    """

    federation_id: str
    records: tuple[RoundRecord, ...]
    equivocations: tuple[Equivocation, ...]
    exports: tuple[ExportedModel, ...]
    charged_rounds: int


def read_journal(state_directory: Path) -> JournalView:
    """:raises StoreError: there is none, or it cannot be read, or another version wrote it.
    :raises DamagedStateError: what it holds is not what was written.
    """
    path = state_directory / JOURNAL_NAME
    if not path.is_file():
        raise StoreError(f"{path}: no journal; this site has not run yet (p2pfed run)")
    # A stopped daemon has folded its write-ahead log into the file; to read one that is not there,
    # SQLite would make it. One that starts meanwhile makes a log, and all is read again.
    stands_still = not _log_of(path).exists()
    view = _read(path, "immutable=1" if stands_still else "mode=ro")
    if stands_still and _log_of(path).exists():
        return _read(path, "mode=ro")
    return view


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _read(path: Path, how: str) -> JournalView:
    try:
        with closing(
            sqlite3.connect(
                f"file:{quote(str(path))}?{how}",
                timeout=BUSY_TIMEOUT_SECONDS,
                isolation_level=None,
                uri=True,
            )
        ) as database:
            database.execute("BEGIN")  # everything as of one moment
            return _view(path, database)
    except sqlite3.Error as error:
        kind = DamagedStateError if is_damage(error) else StoreError
        remedy = f"; {REMEDY}" if is_damage(error) else ""
        raise kind(f"{path}: {error}{remedy}") from error


def _view(path: Path, database: sqlite3.Connection) -> JournalView:
    [found] = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise DamagedStateError(f"{path}: {' '.join(str(found).split())}; {REMEDY}")
    meta = dict(database.execute("SELECT key, value FROM meta"))
    if meta.get("version") != str(SCHEMA_VERSION).encode():
        raise StoreError(f"{path}: another version of p2pfed wrote it")
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema")}

    def rows(query: str, table: str) -> list[Any]:
        return database.execute(query).fetchall() if table in tables else []

    history = rows("SELECT record FROM history ORDER BY round_number", "history")
    exports = rows("SELECT record FROM exports ORDER BY id", "exports")
    [[charged]] = rows("SELECT COUNT(*) FROM privacy_ledger", "privacy_ledger") or [[0]]
    evidence = rows(
        "SELECT site, first_header, first_signature, second_header, second_signature, "
        "found_at_seconds FROM equivocations ORDER BY site",
        "equivocations",
    )
    return JournalView(
        federation_id=meta.get("federation", b"").hex(),
        records=tuple(_parsed(path, "round", text, parse_record) for (text,) in history),
        equivocations=tuple(_equivocation(path, *row) for row in evidence),
        exports=tuple(
            _parsed(path, "export", text, ExportedModel.model_validate) for (text,) in exports
        ),
        charged_rounds=charged,
    )


def _parsed(path: Path, what: str, text: str, parse: Callable[[Any], T]) -> T:
    try:
        return parse(json.loads(text))
    except ValueError as error:
        raise DamagedStateError(f"{path}: the record of a {what} is damaged: {error}") from error


def _equivocation(
    path: Path,
    site: str,
    first: bytes,
    first_signature: bytes,
    second: bytes,
    second_signature: bytes,
    found_at_seconds: int,
) -> Equivocation:
    """Both signatures are verified anew: a report accuses nobody of what is not proven."""
    try:
        one = parse_signed_header(first, first_signature)
        other = parse_signed_header(second, second_signature)
    except RemoteProtocolError as error:
        raise DamagedStateError(f"{path}: the evidence against {site}: {error}") from error
    return Equivocation(
        site=site,
        round=one.header.round_number,
        first=one.digest.hex(),
        second=other.digest.hex(),
        found_at_seconds=found_at_seconds,
    )
