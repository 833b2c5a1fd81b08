"""What must hold of a state directory after any crash.

Each invariant is a function that raises :class:`BrokenInvariantError` under its own name.
:func:`examine` opens the directory as a daemon does and asks all of them in turn.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from crashing_site import (
    EDGE,
    FEDERATION,
    SITE,
    Bound,
    Charged,
    Committed,
    CrashingSite,
    Neighbour,
    Published,
    Quarantined,
    Sent,
    genesis_of,
    received,
    standing_after,
)

from p2pfed.daemon.durable_files import TEMPORARY_SUFFIX
from p2pfed.daemon.privacy_ledger import PrivacyLedger
from p2pfed.daemon.recovery import vector_is_intact
from p2pfed.daemon.store import (
    JOURNAL_NAME,
    SPARE_CIPHERTEXTS,
    SPARE_VECTORS,
    Generation,
    Store,
)
from p2pfed.errors import P2pfedError, StoreError
from p2pfed.protocol import limits
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.evidence import conflict
from p2pfed.protocol.neighbours import NOTHING_HELD

Kind = TypeVar("Kind")


class BrokenInvariantError(AssertionError):
    """An invariant does not hold. ``name`` is the function that found it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


@dataclass(frozen=True)
class Case:
    """A state directory after a crash, opened, and what had been promised before it."""

    directory: Path
    store: Store
    promises: tuple[object, ...]
    dimension: int
    journal: sqlite3.Connection

    def promised(self, kind: type[Kind]) -> list[Kind]:
        return [promise for promise in self.promises if isinstance(promise, kind)]

    def rows(self, query: str) -> list[Any]:
        """What the journal says, whatever the store makes of it."""
        return self.journal.execute(query).fetchall()

    @property
    def genesis_digest(self) -> bytes:
        return vector_digest(genesis_of(self.dimension))


def reading(directory: Path) -> closing[sqlite3.Connection]:
    """A connection of its own to the journal."""
    return closing(sqlite3.connect(f"file:{directory / JOURNAL_NAME}?mode=ro", uri=True))


def opens_without_error(directory: Path) -> Store:
    try:
        return Store(directory)
    except P2pfedError as error:
        raise BrokenInvariantError("opens_without_error", str(error)) from error


def binding_remains(case: Case) -> None:
    if not case.promised(Bound):
        return
    found = case.rows("SELECT value FROM meta WHERE key = 'federation'")
    if found != [(FEDERATION,)]:
        raise BrokenInvariantError("binding_remains", f"the directory belongs to {found}")


def quarantine_remains(case: Case) -> None:
    missing = {q.site for q in case.promised(Quarantined)} - set(case.store.quarantined())
    if missing:
        raise BrokenInvariantError("quarantine_remains", f"{missing} went free")


def named_vectors_are_intact(case: Case) -> None:
    """What any kept generation names is there: a crash damages neither the one that is resumed
    nor the one to fall back on."""
    for round_number, *digests in case.rows(
        "SELECT round_number, model, replica, site_state FROM generations"
    ):
        for digest in digests:
            path = case.directory / "vectors" / f"{digest.hex()}.f32"
            if not vector_is_intact(path, digest):
                raise BrokenInvariantError(
                    "named_vectors_are_intact", f"of round {round_number}: {path.name}"
                )


def no_committed_round_is_lost(case: Case) -> None:
    """The round goes on from the last commit that returned, or from one that was under way."""
    found = case.store.generation()
    position = _position(found)
    for committed in case.promised(Committed):
        if position < _position(committed.generation):
            raise BrokenInvariantError("no_committed_round_is_lost", f"resumes from {found}")
    for published in case.promised(Published):
        if position < (published.item.signed.header.round_number, True):
            raise BrokenInvariantError(
                "no_committed_round_is_lost", f"published, but resumes from {found}"
            )
    last = case.promised(Committed)[-1:]
    if last and (last[0].generation == found) != (position == _position(last[0].generation)):
        raise BrokenInvariantError("no_committed_round_is_lost", f"another generation: {found}")
    history = case.store.history(1000)
    for committed in case.promised(Committed):
        if committed.record not in history:
            raise BrokenInvariantError(
                "no_committed_round_is_lost", f"no record of {committed.record}"
            )


def _position(generation: Generation | None) -> tuple[int, bool]:
    if generation is None:
        return (0, False)
    return (generation.round_number, generation.published)


def published_envelopes_are_unchanged(case: Case) -> None:
    """Header, signature, key and ciphertext, byte by byte, as long as they are retained."""
    kept = {item.signed.header.sequence: item for item in case.store.envelopes()}
    newest = max(kept, default=0)
    for published in case.promised(Published):
        item = published.item
        sequence = item.signed.header.sequence
        if sequence <= newest - limits.RETAINED_DELTAS:
            continue
        found = kept.get(sequence)
        if found is None:
            raise BrokenInvariantError(
                "published_envelopes_are_unchanged", f"no envelope {sequence}"
            )
        for name in ("signed", "chunk_digests", "payload_key"):
            if getattr(found, name) != getattr(item, name):
                raise BrokenInvariantError(
                    "published_envelopes_are_unchanged", f"{sequence}: another {name}"
                )
        if found.ciphertext.read_bytes() != published.ciphertext:
            raise BrokenInvariantError(
                "published_envelopes_are_unchanged", f"{sequence}: another ciphertext"
            )
        received(found)


def no_round_is_signed_twice(case: Case) -> None:
    """The next header that this site may sign is for a round that it has not sent one for."""
    published = case.store.last_published()
    round_number, _ = _position(case.store.generation())
    is_signed = published is not None and published.header.round_number == round_number
    next_to_sign = round_number + int(is_signed)
    for sent in case.promised(Sent):
        number = sent.signed.header.round_number
        if number >= next_to_sign:
            raise BrokenInvariantError(
                "no_round_is_signed_twice", f"round {number} was sent, {next_to_sign} is next"
            )
        if published is not None and conflict(published, sent.signed):
            raise BrokenInvariantError(
                "no_round_is_signed_twice", f"another header for round {number}"
            )


def replicas_are_intact_or_not_held(case: Case) -> None:
    held = case.store.replicas(case.dimension)
    for site, slot, digest, round_number, sequence in case.rows(
        "SELECT site, slot, replica, round_number, sequence FROM replicas"
    ):
        state = held[site].state
        if (state.round_number, state.sequence) != (round_number, sequence):
            raise BrokenInvariantError(
                "replicas_are_intact_or_not_held", f"{site}: other numbers, {state}"
            )
        try:
            found = vector_digest(case.store.replica(site, slot, case.dimension))
        except StoreError:
            found = NOTHING_HELD
        if state.replica != (digest if found == digest else NOTHING_HELD):
            raise BrokenInvariantError(
                "replicas_are_intact_or_not_held", f"{site}: taken for {state}"
            )
    committed = case.promised(Committed)
    if committed and EDGE not in held:
        raise BrokenInvariantError("replicas_are_intact_or_not_held", "the neighbour is forgotten")


def standings_are_of_the_round(case: Case) -> None:
    """Who is returning, and how patient one is with it, belong to the round that is resumed."""
    rounds_closed, _ = _position(case.store.generation())
    expected = [standing_after(rounds_closed - 1)] if rounds_closed else []
    found = case.store.standings()
    if found != expected:
        raise BrokenInvariantError("standings_are_of_the_round", f"{found}, not {expected}")


def recovery_finds_no_damage(case: Case) -> None:
    before = case.store.generation()
    damaged = case.store.recover(case.genesis_digest, case.dimension)
    if damaged or case.store.generation() != before:
        raise BrokenInvariantError("recovery_finds_no_damage", f"damaged: {damaged}")


def no_stray_file_remains(case: Case) -> None:
    """The disk holds what rows name, and a few files to be overwritten."""
    case.store.collect_garbage()
    named = {
        "vectors": {
            f"{digest.hex()}.f32"
            for row in case.rows("SELECT model, replica, site_state FROM generations")
            for digest in row
        },
        "outbox": {f"{n}.sealed" for (n,) in case.rows("SELECT sequence FROM envelopes")},
        "replicas": {f"{s}.{n}.f32" for s, n in case.rows("SELECT site, slot FROM replicas")},
        "spool": set(),
    }
    spares = {"vectors": SPARE_VECTORS, "outbox": SPARE_CIPHERTEXTS, "replicas": 0, "spool": 0}
    for name, wanted in named.items():
        strays = {path.name for path in (case.directory / name).iterdir()} - wanted
        spare = {s for s in strays if s.startswith("spare-") and s.endswith(TEMPORARY_SUFFIX)}
        if strays - spare or len(spare) > spares[name]:
            raise BrokenInvariantError("no_stray_file_remains", f"in {name}: {strays}")
    beside = {path.name for path in case.directory.iterdir()} - set(named)
    if beside - {"lock", JOURNAL_NAME, f"{JOURNAL_NAME}-wal", f"{JOURNAL_NAME}-shm"}:
        raise BrokenInvariantError("no_stray_file_remains", f"beside the journal: {beside}")


def the_ledger_never_shrinks(case: Case) -> None:
    """Every charge is there from the moment that it allowed a training."""
    ledger = _ledger("the_ledger_never_shrinks", case)
    for charged in case.promised(Charged):
        if not ledger.holds(charged.charge):
            raise BrokenInvariantError("the_ledger_never_shrinks", f"no {charged.charge}")


def every_sent_delta_was_charged(case: Case) -> None:
    """What its neighbours may hold of a site has cost it what the header says, here too."""
    rounds = {row for (row,) in _ledger_rows(case, "round_number")}
    for sent in case.promised(Sent):
        header = sent.signed.header
        if header.round_number not in rounds:
            raise BrokenInvariantError(
                "every_sent_delta_was_charged", f"round {header.round_number} cost nothing"
            )
        if header.privacy_spend > len(_ledger_rows(case, "entry")):
            raise BrokenInvariantError(
                "every_sent_delta_was_charged",
                f"round {header.round_number} declares {header.privacy_spend} charges",
            )


def _ledger(name: str, case: Case) -> PrivacyLedger:
    try:
        return PrivacyLedger(case.store.journal, SITE)
    except StoreError as error:
        raise BrokenInvariantError(name, str(error)) from error


def _ledger_rows(case: Case, column: str) -> list[Any]:
    if not case.rows("SELECT 1 FROM sqlite_master WHERE name = 'privacy_ledger'"):
        return []
    return case.rows(f"SELECT {column} FROM privacy_ledger")  # noqa: S608 - no input of anybody


INVARIANTS: tuple[Callable[[Case], None], ...] = (
    binding_remains,
    quarantine_remains,
    named_vectors_are_intact,
    no_committed_round_is_lost,
    published_envelopes_are_unchanged,
    no_round_is_signed_twice,
    replicas_are_intact_or_not_held,
    standings_are_of_the_round,
    recovery_finds_no_damage,
    no_stray_file_remains,
    every_sent_delta_was_charged,
    the_ledger_never_shrinks,
)


def opening_again_changes_nothing(directory: Path) -> None:
    before = _contents(directory)
    opens_without_error(directory).close()
    after = _contents(directory)
    if before != after:
        raise BrokenInvariantError(
            "opening_again_changes_nothing", f"{before.keys() ^ after.keys()} differ"
        )


def _contents(directory: Path) -> dict[str, object]:
    """The rows of the journal and the files that are not to be overwritten or swept."""
    found: dict[str, object] = {
        str(path.relative_to(directory)): path.read_bytes()
        for folder in ("vectors", "outbox", "replicas")
        for path in (directory / folder).iterdir()
        if path.suffix != TEMPORARY_SUFFIX
    }
    with reading(directory) as journal:
        found["journal"] = list(journal.iterdump())
    return found


def the_site_goes_on(
    directory: Path,
    promises: tuple[object, ...],
    neighbour: Neighbour,
    dimension: int,
    given_up: frozenset[int] = frozenset(),
) -> None:
    """The engine finishes the rounds that are left, and no header that it sends contradicts one
    that was sent before the crash.

    :param given_up: rounds that cannot be closed any more.
    """
    made = list(promises)
    site = CrashingSite(directory, neighbour, dimension, made.append)
    try:
        site.start()
        site.run()
        done = {record["round"] for record in site.store.history(1000)}
    except (P2pfedError, AssertionError) as error:
        raise BrokenInvariantError(
            "the_site_goes_on", f"{type(error).__name__}: {error}"
        ) from error
    finally:
        site.stop()
    sent = [promise.signed for promise in made if isinstance(promise, Sent)]
    by_round = {signed.header.round_number: signed for signed in sent}
    for signed in sent:
        if conflict(signed, by_round[signed.header.round_number]):
            raise BrokenInvariantError(
                "the_site_goes_on", f"two headers for {signed.header.round_number}"
            )
    if done != set(range(len(neighbour.deltas))) - given_up:
        raise BrokenInvariantError("the_site_goes_on", f"rounds {sorted(done)} were committed")


def examine(
    directory: Path, promises: tuple[object, ...], dimension: int, only: str | None = None
) -> None:
    """Open ``directory`` and check every invariant that needs no further round.

    :param only: check no other than this.
    :raises BrokenInvariantError: at the first that does not hold.
    """
    store = opens_without_error(directory)
    try:
        with reading(directory) as journal:
            case = Case(directory, store, promises, dimension, journal)
            for invariant in INVARIANTS:
                if only in (None, invariant.__name__):
                    invariant(case)
    finally:
        store.close()
    if only in (None, opening_again_changes_nothing.__name__):
        opening_again_changes_nothing(directory)
