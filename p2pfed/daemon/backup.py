"""A copy of a site's state in one archive, taken while its daemon runs, and the way back.

An old state is dangerous: a site that resumes it has forgotten what it signed since, and would
sign a second, different delta for a round that its neighbours hold one of. They would quarantine
it for ever, and rightly so. Therefore a state that comes out of an archive is *marked*: it holds
no delta to send again and stands before its next round, and a daemon that finds the mark signs
nothing until its neighbours have shown it the newest header that they hold under its key.

What is copied: the journal, without the deltas and their payload keys, and the three vectors that
the newest generation names. Neighbours' replicas are left out, for they can always be sent again.
"""

import hashlib
import io
import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol
from urllib.parse import quote

from pydantic import Field, ValidationError

from p2pfed import __version__
from p2pfed.config import Site
from p2pfed.daemon.durable_files import (
    PRIVATE_FILE_MODE,
    make_private_directory,
    publish_file,
    sync_directory,
)
from p2pfed.daemon.store import JOURNAL_NAME, RESTORED_MARK, SCHEMA_VERSION, Store
from p2pfed.errors import DamagedStateError, StoreError
from p2pfed.keys import ENCRYPTION_FILE_NAME, IDENTITY_FILE_NAME, Identity, load_identity
from p2pfed.protocol.digests import vector_hasher
from p2pfed.settings import Settings

FORMAT_VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
COPY_BYTES = 1 << 20
ATTEMPTS = 20  # a daemon that does a round in less time than the copy takes moves on meanwhile
BUSY_TIMEOUT_SECONDS = 10.0

_VECTORS = "vectors"
_KEYS = "keys"
_KEY_NAMES = tuple(f"{_KEYS}/{name}" for name in (IDENTITY_FILE_NAME, ENCRYPTION_FILE_NAME))


class Member(Settings):
    """One file of an archive. ``digest``: BLAKE2b-256 of the journal, a vector's own name, and
    empty for a key, which its peer id is checked by."""

    name: str = Field(pattern=r"^(journal\.sqlite|vectors/[0-9a-f]{64}\.f32|keys/[a-z]+\.key)$")
    size_bytes: int = Field(ge=0)
    digest: str = Field(pattern=r"^([0-9a-f]{64})?$")

    @property
    def is_key(self) -> bool:
        return self.name in _KEY_NAMES


class Manifest(Settings):
    """The first file of an archive. ``round`` is the one that the state goes on with."""

    format_version: Literal[1]
    software: str
    site: str
    peer_id: str
    round: int = Field(ge=0)
    created_at_seconds: int = Field(ge=0)
    members: tuple[Member, ...]

    @property
    def with_key(self) -> bool:
        return any(member.is_key for member in self.members)

    @property
    def size_bytes(self) -> int:
        return sum(member.size_bytes for member in self.members)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did; ``keys_written`` where the archive's key was put in place."""

    manifest: Manifest
    directory: Path
    keys_written: bool


class _Hasher(Protocol):
    def update(self, data: bytes, /) -> object: ...

    def hexdigest(self) -> str: ...


class _MovedOnError(Exception):
    """The daemon removed or overwrote a vector while it was being copied."""


def _hasher_of(name: str) -> _Hasher:
    return vector_hasher() if name.startswith(_VECTORS) else hashlib.blake2b(digest_size=32)


def back_up(site: Site, destination: Path, *, with_key: bool) -> Manifest:
    """Write the archive of a site's state to ``destination``, mode 0600; the daemon may run.

    :param with_key: put the secret keys in as well.
    :raises StoreError: ``destination`` exists, or something cannot be read or written.
    :raises KeyFileError: the site's keys cannot be read.
    """
    identity = load_identity(site.keys_directory)
    if os.path.lexists(destination):
        raise StoreError(f"{destination}: exists already and is never overwritten")
    try:
        with _new_file_beside(destination) as (temporary, file):
            for attempt in range(ATTEMPTS):
                try:
                    manifest = _write_archive(site, identity, file, with_key)
                    break
                except _MovedOnError as error:
                    if attempt + 1 == ATTEMPTS:
                        raise DamagedStateError(
                            f"{error}: missing, or not what its name says, {ATTEMPTS} times in a "
                            "row; if the daemon runs, its rounds are shorter than the copy takes: "
                            "p2pfed stop, and try again"
                        ) from None
                    file.seek(0)
                    file.truncate()
            file.flush()
            os.fsync(file.fileno())
            publish_file(temporary, destination)
    except OSError as error:
        raise StoreError(f"{error.filename or destination}: {error.strerror}") from error
    return manifest


@contextmanager
def _new_file_beside(destination: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A private file that its user may give the name ``destination``; else it is removed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{destination.name}-", dir=destination.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield Path(name), file
    finally:
        Path(name).unlink(missing_ok=True)


def _write_archive(site: Site, identity: Identity, file: IO[bytes], with_key: bool) -> Manifest:
    """:raises _MovedOnError: the daemon went on to another round meanwhile."""
    with ExitStack() as stack:
        journal, round_number, digests = _copied_journal(site.state_directory)
        # All are opened before any is read: one that the daemon removes now stays readable.
        sources: dict[str, IO[bytes]] = {JOURNAL_NAME: io.BytesIO(journal)}
        for digest in sorted(digests):
            name = f"{_VECTORS}/{digest.hex()}.f32"
            sources[name] = stack.enter_context(_open_vector(site.state_directory / name))
        if with_key:
            for name in _KEY_NAMES:
                path = site.keys_directory / Path(name).name
                sources[name] = stack.enter_context(path.open("rb"))
        members = tuple(_member(name, source) for name, source in sources.items())
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            software=f"p2pfed {__version__}",
            site=site.file.name,
            peer_id=identity.peer_id,
            round=round_number,
            created_at_seconds=int(time.time()),
            members=members,
        )
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            encoded = manifest.model_dump_json(indent=2).encode()
            archive.addfile(_entry(MANIFEST_NAME, len(encoded)), io.BytesIO(encoded))
            for member in members:
                _add(archive, member, sources[member.name], site.state_directory)
    return manifest


def _copied_journal(state_directory: Path) -> tuple[bytes, int, set[bytes]]:
    """The journal as of one moment, ready to be resumed from.

    It is copied through memory, so that no payload key ever lies in another file.

    :returns: the database, the round that it goes on with, the digests of what it needs.
    """
    source = state_directory / JOURNAL_NAME
    try:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
            if source.exists():
                with closing(_connect(f"file:{quote(str(source))}?mode=ro")) as running:
                    running.backup(database)
            else:
                # It never ran here; whether its key was ever used is not known.
                with tempfile.TemporaryDirectory(prefix="p2pfed-") as name:
                    Store(Path(name)).close()
                    with closing(_connect(str(Path(name) / JOURNAL_NAME))) as empty:
                        empty.backup(database)
            [sound] = database.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                raise DamagedStateError(f"{source}: {' '.join(sound.split())}")
            round_number, digests = mark(database)
            database.execute("VACUUM")  # what was deleted must not linger in free pages
            return database.serialize(), round_number, digests
    except sqlite3.Error as error:
        raise StoreError(f"{source}: {error}") from error


def _connect(place: str) -> sqlite3.Connection:
    return sqlite3.connect(
        place, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, uri=place.startswith("file:")
    )


def mark(database: sqlite3.Connection) -> tuple[int, set[bytes]]:
    """Make a journal one that must ask its neighbours before it signs anything.

    Its newest generation alone stays. Where a delta was published in it, the state moves on to
    the next round, with the trained model as it is: that round is signed once and never again.

    :returns: the round that it goes on with and the digests of the vectors that it names.
    :raises StoreError: another version of p2pfed wrote it.
    """
    version = database.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
    if version != (str(SCHEMA_VERSION).encode(),):
        raise StoreError(f"the journal is of another state version than {SCHEMA_VERSION}")
    database.execute("BEGIN IMMEDIATE")
    newest = database.execute(
        "SELECT id, round_number, published, model, replica, site_state FROM generations "
        "ORDER BY id DESC LIMIT 1"
    ).fetchone()
    round_number, digests = 0, set[bytes]()
    if newest is not None:
        round_number, digests = newest[1] + newest[2], set(newest[3:])
        database.execute("DELETE FROM generations WHERE id != ?", newest[:1])
        database.execute("UPDATE generations SET round_number = ?, published = 0", (round_number,))
    database.execute("DELETE FROM envelopes")
    database.execute(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)",
        (RESTORED_MARK, str(int(time.time())).encode()),
    )
    database.execute("COMMIT")
    return round_number, digests


def _open_vector(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise _MovedOnError(path) from None


def _member(name: str, source: IO[bytes]) -> Member:
    digest = Path(name).stem if name.startswith(_VECTORS) else ""
    if name == JOURNAL_NAME:
        hasher = _hasher_of(name)
        hasher.update(source.read())
        digest = hasher.hexdigest()
    size_bytes = source.seek(0, os.SEEK_END)
    source.seek(0)
    return Member(name=name, size_bytes=size_bytes, digest=digest)


def _entry(name: str, size_bytes: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size_bytes
    entry.mode = PRIVATE_FILE_MODE
    return entry


class _HashingReader:
    """Hashes a file as it is read."""

    def __init__(self, source: IO[bytes], hasher: _Hasher) -> None:
        self._source = source
        self.hasher = hasher

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.hasher.update(data)
        return data


def _add(archive: tarfile.TarFile, member: Member, source: IO[bytes], state: Path) -> None:
    reader = _HashingReader(source, _hasher_of(member.name))
    try:
        archive.addfile(_entry(member.name, member.size_bytes), reader)
    except OSError as error:
        if error.errno is None:  # tarfile's own: the file became shorter
            raise _MovedOnError(state / member.name) from None
        raise
    if member.digest and reader.hasher.hexdigest() != member.digest:
        raise _MovedOnError(state / member.name)


def restore(site: Site, archive: Path) -> Restored:
    """Put an archive's state, and its key where it holds one, in their places.

    :raises StoreError: there is a state already, the archive is damaged or of another site, or
        something cannot be written; then nothing was changed.
    :raises KeyFileError: the archive holds no key and the site's own cannot be read.
    """
    directory = site.state_directory
    if directory.exists() and any(directory.iterdir()):
        raise StoreError(
            f"{directory}: holds a state already; stop the daemon and move it away first"
        )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Beside the state directory: on the same disk, so that a rename puts it in place.
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}-", dir=directory.parent
        ) as scratch:
            state, keys = Path(scratch) / "state", Path(scratch) / _KEYS
            manifest = _unpack(archive, state, keys)
            _check_site(site, manifest, keys)
            _check_state(state, manifest)
            if directory.exists():
                directory.rmdir()
            publish_file(state, directory)
            # In this order: a state without a key signs nothing, a key without the marked
            # state could sign an old round again.
            written = manifest.with_key and _install_keys(keys, site.keys_directory)
    except (tarfile.TarError, EOFError) as error:
        raise StoreError(f"{archive}: damaged, or no backup of p2pfed: {error}") from error
    except OSError as error:
        raise StoreError(f"{error.filename or archive}: {error.strerror}") from error
    return Restored(manifest, directory, written)


def _unpack(archive: Path, state: Path, keys: Path) -> Manifest:
    """Unpack what the manifest lists, and nothing else, into two new directories."""
    make_private_directory(state)
    make_private_directory(keys)
    with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
        first = tar.next()
        if first is None or first.name != MANIFEST_NAME or first.size > MAX_MANIFEST_BYTES:
            raise StoreError(f"{archive}: no backup of p2pfed")
        manifest = _read_manifest(archive, _content(tar, first).read())
        missing = {member.name: member for member in manifest.members}
        while (entry := tar.next()) is not None:
            member = missing.pop(entry.name, None)
            if member is None or not entry.isreg() or entry.size != member.size_bytes:
                raise StoreError(f"{archive}: {entry.name!r} is not what its manifest says")
            target = keys / Path(member.name).name if member.is_key else state / member.name
            _unpack_one(_content(tar, entry), member, target, archive)
    if missing:
        raise StoreError(f"{archive}: ends before {', '.join(sorted(missing))}")
    return manifest


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(entry)
    if content is None:
        raise StoreError(f"{entry.name!r} in the archive is no file")
    return content


def _read_manifest(archive: Path, encoded: bytes) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(encoded)
    except ValidationError as error:
        raise StoreError(
            f"{archive}: its manifest cannot be read; another version of p2pfed may have made it"
        ) from error
    names = [member.name for member in manifest.members]
    if len(set(names)) != len(names) or JOURNAL_NAME not in names:
        raise StoreError(f"{archive}: its manifest contradicts itself")
    return manifest


def _unpack_one(source: IO[bytes], member: Member, target: Path, archive: Path) -> None:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    hasher = _hasher_of(member.name)

    def parts() -> Iterator[bytes]:
        while part := source.read(COPY_BYTES):
            hasher.update(part)
            yield part

    _write_private(target, parts())
    if member.digest and hasher.hexdigest() != member.digest:
        raise DamagedStateError(f"{archive}: {member.name} does not match its digest")


def _write_private(path: Path, parts: Iterator[bytes]) -> None:
    """A new file for this user alone, on stable storage; never one that is there already."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, PRIVATE_FILE_MODE), "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def _check_site(site: Site, manifest: Manifest, unpacked_keys: Path) -> None:
    """:raises StoreError: it is the state of another site, or of another key."""
    if manifest.site != site.file.name:
        raise StoreError(
            f"the backup is of site {manifest.site!r}, {site.path} describes {site.file.name!r}"
        )
    holds_own = (site.keys_directory / IDENTITY_FILE_NAME).exists()
    keys = site.keys_directory if holds_own or not manifest.with_key else unpacked_keys
    found = load_identity(keys).peer_id
    if found != manifest.peer_id:
        raise StoreError(
            f"the backup is of peer {manifest.peer_id}, the keys in {site.keys_directory} are "
            f"{found}'s"
        )


def _check_state(state: Path, manifest: Manifest) -> None:
    """Open it as the daemon will, and compare what it names with what came.

    :raises StoreError: it is not complete, or does not have to ask before it signs.
    """
    store = Store(state)
    try:
        found, marked = store.generation(), store.restored()
    finally:
        store.close()
    listed = {Path(m.name).stem for m in manifest.members if m.name.startswith(_VECTORS)}
    named = {d.hex() for d in (found.model, found.replica, found.site_state)} if found else set()
    if not marked or listed != named or (found is not None and found.published):
        raise DamagedStateError("the journal in the backup is not one that p2pfed backup made")
    sync_directory(state / _VECTORS)
    sync_directory(state)


def _install_keys(source: Path, target: Path) -> bool:
    """Copy key files that are not there yet; what is there was compared with the backup's."""
    make_private_directory(target)
    written = False
    for name in (ENCRYPTION_FILE_NAME, IDENTITY_FILE_NAME):
        if not (target / name).exists():
            _write_private(target / name, iter([(source / name).read_bytes()]))
            written = True
    sync_directory(target)
    return written


def mark_in_place(site: Site) -> int:
    """Mark the state that lies in the state directory already, however it got there: from a
    file-level backup, a snapshot of a virtual machine, or empty under a key that was used.

    :returns: the round that it goes on with.
    :raises StoreError: a daemon is using it, or it cannot be written.
    """
    store = Store(site.state_directory)  # it holds the lock
    try:
        with closing(_connect(str(site.state_directory / JOURNAL_NAME))) as database:
            round_number, _ = mark(database)
        store.collect_garbage()
    except sqlite3.Error as error:
        raise StoreError(f"{site.state_directory / JOURNAL_NAME}: {error}") from error
    finally:
        store.close()
    return round_number
