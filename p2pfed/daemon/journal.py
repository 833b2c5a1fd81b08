"""The journal: one SQLite database a site, in which every commit is durable when it returns.

A write-ahead log and ``synchronous=FULL`` make it so (sqlite.org/pragma.html#pragma_synchronous).
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from p2pfed.daemon.durable_files import naming
from p2pfed.errors import DamagedStateError, RemoteProtocolError, StoreError
from p2pfed.protocol.header import SignedHeader

SCHEMA_VERSION = 3
BUSY_TIMEOUT_SECONDS = 10.0
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
REMEDY = (
    "it alone knows which rounds this site has signed, and one that is signed twice convicts "
    "the site. Move the state directory away, and bring it back with p2pfed restore; without "
    "a backup, have a new key for this site put into the topology file"
)

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS generations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    round_number INTEGER NOT NULL,
    published INTEGER NOT NULL,
    model BLOB NOT NULL,
    replica BLOB NOT NULL,
    site_state BLOB NOT NULL,
    since_round INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS envelopes (
    sequence INTEGER PRIMARY KEY,
    header BLOB NOT NULL,
    signature BLOB NOT NULL,
    chunk_digests BLOB NOT NULL,
    payload_key BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS replicas (
    site TEXT PRIMARY KEY,
    slot INTEGER NOT NULL,
    replica BLOB NOT NULL,
    round_number INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    since_round INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS standings (
    site TEXT PRIMARY KEY,
    absent_rounds INTEGER NOT NULL,
    is_returning INTEGER NOT NULL,
    patience INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS headers (
    sender BLOB NOT NULL,
    round_number INTEGER NOT NULL,
    header BLOB NOT NULL,
    signature BLOB NOT NULL,
    PRIMARY KEY (sender, round_number)
) STRICT;
CREATE TABLE IF NOT EXISTS equivocations (
    site TEXT PRIMARY KEY,
    first_header BLOB NOT NULL,
    first_signature BLOB NOT NULL,
    second_header BLOB NOT NULL,
    second_signature BLOB NOT NULL,
    found_at_seconds INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS history (round_number INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS exports (id INTEGER PRIMARY KEY AUTOINCREMENT, record TEXT NOT NULL)
STRICT;
"""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault."""
    # The low byte is the kind of error, the rest says where it came up.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


class Journal:
    """An open journal. One caller at a time, from any thread.

    Every method raises :class:`StoreError`, which names the file, where SQLite fails, and
    :class:`DamagedStateError` where what is stored is not what was.

    :raises StoreError: it cannot be opened, or was written by another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self.naming():
            self._database = sqlite3.connect(
                path,
                timeout=BUSY_TIMEOUT_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise

    def _prepare(self) -> None:
        database = self._database
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        [found] = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise DamagedStateError(f"{self._path}: {' '.join(found.split())}; {REMEDY}")
        database.executescript(_TABLES)
        with naming(self._path):
            self._path.chmod(0o600)
        version = database.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
        if version is None:
            database.execute(
                "INSERT INTO meta VALUES ('version', ?)", (str(SCHEMA_VERSION).encode(),)
            )
        elif version[0] != str(SCHEMA_VERSION).encode():
            raise StoreError(
                f"{self._path}: written by another p2pfed (state version "
                f"{version[0].decode()}, this one reads {SCHEMA_VERSION})"
            )

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Turn what goes wrong with stored rows within the block into an error about the file."""
        try:
            yield
        except sqlite3.Error as error:
            if is_damage(error):
                raise DamagedStateError(f"{self._path}: {error}; {REMEDY}") from error
            raise StoreError(f"{self._path}: {error}") from error
        except RemoteProtocolError as error:
            # Headers were verified before they were stored.
            raise DamagedStateError(f"{self._path}: {error}; {REMEDY}") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything that the block does, or nothing; durable once it has ended."""
        with self.naming():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                # A full disk makes SQLite roll back by itself, sometimes.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def size_bytes(self) -> int:
        """What it takes on the disk, the write-ahead log included; 0 where that cannot be told."""
        try:
            log = self._path.with_name(f"{self._path.name}-wal")
            return self._path.stat().st_size + log.stat().st_size
        except OSError:
            return 0  # what is wrong with the disk, the next commit says

    def rows(self, query: str, *values: object) -> list[Any]:
        with self.naming():
            return self._database.execute(query, values).fetchall()

    def close(self) -> None:
        with self.naming():
            self._database.close()


def keep_headers(
    database: sqlite3.Connection, headers: Mapping[tuple[bytes, int], SignedHeader]
) -> None:
    """Make the table hold ``headers``, in their order. All but those of a round are there already:
    thousands, in a large federation. A signature stands for what it signs."""
    stored = {
        (sender, round_number): signature
        for sender, round_number, signature in database.execute(
            "SELECT sender, round_number, signature FROM headers"
        )
    }
    gone = [
        key
        for key, signature in stored.items()
        if key not in headers or headers[key].signature != signature
    ]
    database.executemany("DELETE FROM headers WHERE sender = ? AND round_number = ?", gone)
    for key in gone:
        del stored[key]
    database.executemany(
        "INSERT INTO headers VALUES (?, ?, ?, ?)",
        [
            (*key, signed.encoded, signed.signature)
            for key, signed in headers.items()
            if key not in stored
        ],
    )
