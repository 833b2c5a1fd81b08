"""What a peer must not forget: its round, its model, what it published, what it was sent.

One directory a site. SQLite (write-ahead log, ``synchronous=FULL``) holds the journal and
names the vectors, which are files called by their digest. Two commits a round: after the own
delta is sealed and *before* a byte of it leaves, and after the aggregation. A crash between
them resumes the round with the same bytes, so that it never looks like equivocation.

All methods block; the daemon calls them from worker threads, one at a time.
"""

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pfed.daemon.durable_files import (
    TEMPORARY_SUFFIX,
    PendingFile,
    PendingVector,
    SpareFiles,
    durable_file,
    make_private_directory,
    map_vector,
    naming,
    sync_directory,
)
from p2pfed.daemon.journal import REMEDY, SCHEMA_VERSION, Journal, keep_headers
from p2pfed.daemon.recovery import (
    Generation,
    ciphertext_is_intact,
    stand_in,
    start_of_round,
    vector_is_intact,
)
from p2pfed.daemon.replica_files import ReplicaFiles
from p2pfed.daemon.sendable import Sendable
from p2pfed.errors import DamagedStateError, StoreError
from p2pfed.protocol import limits
from p2pfed.protocol.digests import vector_bytes, vector_digest
from p2pfed.protocol.header import SignedHeader, parse_signed_header
from p2pfed.protocol.neighbours import NOTHING_HELD, ReplicaState, Standing

KEPT_GENERATIONS = 2  # round states whose vectors are kept, newest included
SPARE_VECTORS = 2  # of a model's size, to be overwritten
SPARE_CIPHERTEXTS = 1
KEPT_HISTORY_ROUNDS = 10_000  # rows of the round journal
KEPT_EXPORTS = 1_000  # model files that a report lists
JOURNAL_NAME = "journal.sqlite"
# Key in the table meta of a state that came back from a backup and has signed nothing since.
RESTORED_MARK = "restored"

__all__ = ["JOURNAL_NAME", "SCHEMA_VERSION", "Generation", "Store", "StoredReplica"]


@dataclass(frozen=True, slots=True)
class StoredReplica:
    state: ReplicaState
    slot: int


class Store:
    """A site's state directory.

    :ivar database_bytes: size of the journal as of the last commit, its log included.
    :raises StoreError: the directory is unusable, held by another daemon, or belongs to
        another federation.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._snapshots_made = 0
        self._spare_vectors = SpareFiles(SPARE_VECTORS)
        self._spare_ciphertexts = SpareFiles(SPARE_CIPHERTEXTS)
        replicas = directory / "replicas"
        self._replica_files = ReplicaFiles(replicas)
        for path in (directory, self._vectors, self._outbox, replicas, self.spool):
            make_private_directory(path)
        self._lock = self._hold_lock()
        try:
            self._journal = self._open_journal()
            try:
                self._sweep()
            except BaseException:
                self._journal.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise
        self.database_bytes = self._journal.size_bytes()

    @property
    def journal(self) -> Journal:
        """For the privacy ledger, whose table lies in it."""
        return self._journal

    @property
    def spool(self) -> Path:
        """Where payloads that are being received are kept."""
        return self.directory / "spool"

    @property
    def _vectors(self) -> Path:
        return self.directory / "vectors"

    @property
    def _outbox(self) -> Path:
        return self.directory / "outbox"

    def close(self) -> None:
        try:
            self._journal.close()
        finally:
            os.close(self._lock)

    def _hold_lock(self) -> int:
        path = self.directory / "lock"
        with naming(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StoreError(
                f"{self.directory}: another daemon is using this state directory; "
                "stop it with p2pfed stop, or give this site its own state directory"
            ) from None
        return descriptor

    def _open_journal(self) -> Journal:
        path = self.directory / JOURNAL_NAME
        if not path.exists() and any(self._outbox.glob("*.sealed")):
            raise DamagedStateError(f"{path}: missing, where it has been; {REMEDY}")
        return Journal(path)

    def bind(self, federation_id: bytes) -> None:
        """Tie the directory to a federation, or check that it is tied to this one."""
        rows = self._journal.rows("SELECT value FROM meta WHERE key = 'federation'")
        if not rows:
            with self._journal.transaction() as database:
                database.execute("INSERT INTO meta VALUES ('federation', ?)", (federation_id,))
        elif rows[0][0] != federation_id:
            raise StoreError(
                f"{self.directory}: holds the state of federation {rows[0][0].hex()[:12]}, the "
                f"topology file describes {federation_id.hex()[:12]} (its name, model, seed or "
                "task options differ); use another state directory for another federation"
            )

    def new_vector(self, name: str, dimension: int) -> PendingVector:
        return PendingVector(self._vectors / f"{name}{TEMPORARY_SUFFIX}", dimension)

    def new_vector_file(self, name: str, dimension: int) -> PendingFile:
        """As ``new_vector``, for one that is written from start to end: that is faster."""
        return PendingFile(
            self._vectors / f"{name}{TEMPORARY_SUFFIX}", self._spare_vectors, 4 * dimension
        )

    def keep_vector(self, pending: PendingVector | PendingFile, digest: bytes) -> None:
        try:
            pending.commit(self._vector_path(digest))
        except StoreError:
            pending.discard()
            raise

    def put_vector(self, vector: npt.NDArray[np.float32]) -> bytes:
        """Store a copy of ``vector``, shape (d,), float32, and return its digest."""
        digest = vector_digest(vector)
        path = self._vector_path(digest)
        if path.exists():
            # Its bytes are durable; its name is not, where an attempt ended between the two.
            sync_directory(self._vectors)
        else:
            with durable_file(path, self._spare_vectors, vector.nbytes) as file:
                file.write(vector_bytes(vector))
        return digest

    def vector(self, digest: bytes, dimension: int) -> npt.NDArray[np.float32]:
        """A stored vector, mapped read-only, shape ``(dimension,)``."""
        return map_vector(self._vector_path(digest), dimension)

    def _vector_path(self, digest: bytes) -> Path:
        return self._vectors / f"{digest.hex()}.f32"

    def generation(self) -> Generation | None:
        """Where to resume, or None in a new directory."""
        return next(iter(self._generations()), None)

    def _generations(self) -> list[Generation]:
        """The newest first."""
        rows = self._journal.rows(
            "SELECT round_number, published, model, replica, site_state, since_round "
            "FROM generations ORDER BY id DESC"
        )
        return [Generation(row[0], bool(row[1]), *row[2:]) for row in rows]

    def round_start(self, genesis: bytes) -> bytes | None:
        """The digest of the model that the round to resume began with; None where damage took it.

        To be called after ``recover``.

        :param genesis: digest of the model that the federation starts from.
        """
        generations = self._generations()
        if not generations:
            return genesis
        return start_of_round(*generations, published=self.last_published(), genesis=genesis)

    def recover(self, genesis: bytes, state_floats: int) -> tuple[Path, ...]:
        """Check what is resumed from and what can be sent again; settle for what is left.

        To be called before a daemon reads anything else. A damaged ciphertext is forgotten, its
        header is not. For a damaged vector the generation before stands in, or what of the
        newest is intact: see ``recovery.stand_in``.

        :param genesis: digest of the model that the federation starts from.
        :param state_floats: length of what this site keeps.
        :returns: the files that were damaged; they are gone now.
        :raises DamagedStateError: no model is left to resume from.
        """
        damaged = []
        for item in self.envelopes():
            with naming(item.ciphertext):
                if not ciphertext_is_intact(item):
                    item.ciphertext.unlink()
                    damaged.append(item.ciphertext)
        generations = self._generations()
        if generations:
            damaged += self._settle_for(generations, genesis, state_floats)
            self.collect_garbage()
        return tuple(damaged)

    def _settle_for(
        self, generations: list[Generation], genesis: bytes, state_floats: int
    ) -> list[Path]:
        damaged: list[Path] = []

        @cache
        def is_intact(digest: bytes) -> bool:
            path = self._vector_path(digest)
            with naming(path):
                intact = vector_is_intact(path, digest)
            if not intact:
                damaged.append(path)
            return intact

        @cache
        def fresh_site_state() -> npt.NDArray[np.float32]:
            return np.zeros(state_floats, np.float32)

        newest, *before = generations
        chosen = stand_in(
            newest,
            before[0] if before else None,
            genesis,
            is_intact,
            lambda: vector_digest(fresh_site_state()),
        )
        if chosen is None:
            files = ", ".join(str(path) for path in damaged)
            raise DamagedStateError(
                f"{files}: damaged, and nothing is left to resume from; restore one of them from "
                "a backup of any age (its name is its digest, so a wrong one does no harm)"
            )
        # A published round's rule may ask for the model with which the round began.
        start_is_lost = any(not g.published and not is_intact(g.model) for g in before)
        # First the files: whoever stores the same vector again takes their names for it.
        for path in damaged:
            with naming(path):
                path.unlink(missing_ok=True)
        if not self._vector_path(chosen.site_state).exists():
            self.put_vector(fresh_site_state())
        if chosen == newest and not start_is_lost:
            return damaged
        with self._journal.transaction() as database:
            if start_is_lost:
                database.execute(
                    "DELETE FROM generations WHERE id < (SELECT MAX(id) FROM generations)"
                )
            if chosen != newest:
                database.execute(
                    "DELETE FROM generations WHERE id = (SELECT MAX(id) FROM generations)"
                )
                if chosen not in before:
                    self._add_generation(database, chosen)
                    if chosen.replica != newest.replica:
                        # What they led to is not known here any more.
                        database.execute("DELETE FROM envelopes")
        return damaged

    def restored(self) -> bool:
        """Whether this peer may have signed rounds that this state does not know of."""
        return bool(self._journal.rows("SELECT 1 FROM meta WHERE key = ?", RESTORED_MARK))

    def outbox_file(self, sequence: int, size_bytes: int) -> AbstractContextManager[PendingFile]:
        """The ciphertext of an own delta, to be written once and then never changed."""
        return durable_file(self.ciphertext_path(sequence), self._spare_ciphertexts, size_bytes)

    def ciphertext_path(self, sequence: int) -> Path:
        return self._outbox / f"{sequence}.sealed"

    def snapshot_path(self) -> Path:
        """A new name for a snapshot that is sent once; what a crash leaves is swept."""
        self._snapshots_made += 1
        return self._outbox / f"snapshot-{self._snapshots_made}{TEMPORARY_SUFFIX}"

    def commit_published(
        self,
        generation: Generation,
        signed: SignedHeader,
        chunk_digests: bytes,
        payload_key: bytes,
    ) -> None:
        """Record an own delta whose ciphertext and vectors are already durable.

        What it displaces is removed when the round is committed: neighbours are waiting now.
        """
        sequence = signed.header.sequence
        with self._journal.transaction() as database:
            self._add_generation(database, generation)
            database.execute(
                "INSERT INTO envelopes VALUES (?, ?, ?, ?, ?)",
                (sequence, signed.encoded, signed.signature, chunk_digests, payload_key),
            )
            database.execute(
                "DELETE FROM envelopes WHERE sequence NOT IN "
                "(SELECT sequence FROM envelopes ORDER BY sequence DESC LIMIT ?)",
                (limits.RETAINED_DELTAS,),
            )
            database.execute("DELETE FROM meta WHERE key = ?", (RESTORED_MARK,))

    def commit_round(
        self,
        generation: Generation,
        replicas: Mapping[str, StoredReplica],
        headers: Mapping[tuple[bytes, int], SignedHeader],
        record: Mapping[str, Any],
        standings: Iterable[Standing] = (),
    ) -> None:
        """Record the aggregated model, the neighbours' replicas and what was heard.

        A replica that was stored and is not among ``replicas`` is deleted.

        :param standings: of the neighbours whose absences are to be remembered.
        """
        with self._journal.transaction() as database:
            self._add_generation(database, generation)
            stored = [site for (site,) in database.execute("SELECT site FROM replicas")]
            gone = [site for site in stored if site not in replicas]
            database.executemany("DELETE FROM replicas WHERE site = ?", [(site,) for site in gone])
            database.executemany(
                "INSERT OR REPLACE INTO replicas VALUES (?, ?, ?, ?, ?, ?)",
                [(site, stored.slot, *astuple(stored.state)) for site, stored in replicas.items()],
            )
            database.execute("DELETE FROM standings")
            database.executemany(
                "INSERT INTO standings VALUES (?, ?, ?, ?)", [astuple(one) for one in standings]
            )
            keep_headers(database, headers)
            round_number = generation.round_number - 1
            database.execute(
                "INSERT OR REPLACE INTO history VALUES (?, ?)",
                (round_number, json.dumps(record, sort_keys=True)),
            )
            database.execute(
                "DELETE FROM history WHERE round_number <= ?",
                (round_number - KEPT_HISTORY_ROUNDS,),
            )
        self.database_bytes = self._journal.size_bytes()
        for site in gone:
            self._replica_files.delete(site)
        self.collect_garbage()

    def _add_generation(self, database: sqlite3.Connection, generation: Generation) -> None:
        # A commit that is tried again must not displace the generation before.
        database.execute(
            "DELETE FROM generations WHERE round_number = ? AND published = ?",
            (generation.round_number, int(generation.published)),
        )
        database.execute(
            "INSERT INTO generations "
            "(round_number, published, model, replica, site_state, since_round) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                generation.round_number,
                int(generation.published),
                generation.model,
                generation.replica,
                generation.site_state,
                generation.since_round,
            ),
        )
        database.execute(
            "DELETE FROM generations WHERE id NOT IN "
            "(SELECT id FROM generations ORDER BY id DESC LIMIT ?)",
            (KEPT_GENERATIONS,),
        )

    def envelopes(self) -> list[Sendable]:
        """The own deltas that can be sent again, oldest first."""
        rows = self._journal.rows(
            "SELECT sequence, header, signature, chunk_digests, payload_key FROM envelopes "
            "ORDER BY sequence"
        )
        with self._journal.naming():
            return [
                Sendable(parse_signed_header(header, signature), chunk_digests, payload_key, path)
                for sequence, header, signature, chunk_digests, payload_key in rows
                if (path := self.ciphertext_path(sequence)).exists()
            ]

    def last_published(self) -> SignedHeader | None:
        """The newest own delta header, also where its ciphertext was lost: its round is signed."""
        found = self._signed(
            "SELECT header, signature FROM envelopes ORDER BY sequence DESC LIMIT 1"
        )
        return found[0] if found else None

    def headers(self) -> list[SignedHeader]:
        """The members' headers that were heard of in recent rounds, as they came in."""
        return self._signed("SELECT header, signature FROM headers ORDER BY rowid")

    def _signed(self, query: str) -> list[SignedHeader]:
        rows = self._journal.rows(query)
        with self._journal.naming():
            return [parse_signed_header(header, signature) for header, signature in rows]

    def replica_file(
        self, site: str, slot: int, size_bytes: int
    ) -> AbstractContextManager[PendingFile]:
        """A slot to write a neighbour's next replica into: see :class:`ReplicaFiles`."""
        return self._replica_files.writing(site, slot, size_bytes)

    def replica(self, site: str, slot: int, dimension: int) -> npt.NDArray[np.float32]:
        """A neighbour's replica, mapped read-only, shape ``(dimension,)``."""
        return self._replica_files.map(site, slot, dimension)

    def replicas(self, dimension: int) -> dict[str, StoredReplica]:
        """What was held of each neighbour.

        One that a power cut damaged is known by its digest and counts as not held, while its
        sequence number still keeps old headers out.
        """
        found: dict[str, StoredReplica] = {}
        for site, slot, *columns in self._journal.rows(
            "SELECT site, slot, replica, round_number, sequence, since_round FROM replicas"
        ):
            state = ReplicaState(*columns)
            try:
                intact = vector_digest(self.replica(site, slot, dimension))
            except StoreError:
                intact = NOTHING_HELD
            if intact != state.replica:
                state = replace(state, replica=NOTHING_HELD)
            found[site] = StoredReplica(state, slot)
        return found

    def standings(self) -> list[Standing]:
        """How the neighbours' absences were counted when the last round was committed."""
        rows = self._journal.rows(
            "SELECT site, absent_rounds, is_returning, patience FROM standings ORDER BY site"
        )
        return [Standing(site, absent, bool(back), left) for site, absent, back, left in rows]

    def add_equivocation(self, site: str, first: SignedHeader, second: SignedHeader) -> None:
        with self._journal.transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO equivocations VALUES (?, ?, ?, ?, ?, ?)",
                (
                    site,
                    first.encoded,
                    first.signature,
                    second.encoded,
                    second.signature,
                    int(time.time()),
                ),
            )

    def add_export(self, record: Mapping[str, Any]) -> None:
        """Note a model file that was written, for the lineage in reports."""
        with self._journal.transaction() as database:
            database.execute(
                "INSERT INTO exports (record) VALUES (?)", (json.dumps(record, sort_keys=True),)
            )
            database.execute(
                "DELETE FROM exports WHERE id <= (SELECT MAX(id) FROM exports) - ?",
                (KEPT_EXPORTS,),
            )

    def quarantined(self) -> list[str]:
        return [
            site for (site,) in self._journal.rows("SELECT site FROM equivocations ORDER BY site")
        ]

    def history(self, most: int) -> list[dict[str, Any]]:
        """The records of the last ``most`` rounds, oldest first."""
        rows = self._journal.rows(
            "SELECT record FROM history ORDER BY round_number DESC LIMIT ?", most
        )
        return [json.loads(record) for (record,) in reversed(rows)]

    def _sweep(self) -> None:
        """Remove what an interrupted write or transfer left behind."""
        for directory in (self._vectors, self._outbox, self._replica_files.directory):
            for path in directory.glob(f"*{TEMPORARY_SUFFIX}"):
                with naming(path):
                    path.unlink()
        # A replica that no row names was never part of a round. While the daemon runs, it may
        # be one that is about to be.
        self._replica_files.keep_only(self._journal.rows("SELECT site, slot FROM replicas"))
        self.collect_garbage()

    def collect_garbage(self) -> None:
        """Remove vectors and ciphertexts that no row names any more."""
        vectors = {digest.hex() for g in self._generations() for digest in g.vectors()}
        sequences = {
            str(number) for (number,) in self._journal.rows("SELECT sequence FROM envelopes")
        }
        for path in self._vectors.glob("*.f32"):
            if path.stem not in vectors:
                self._spare_vectors.give(path)
        for path in self._outbox.glob("*.sealed"):
            if path.stem not in sequences:
                self._spare_ciphertexts.give(path)
