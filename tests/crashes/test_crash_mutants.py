"""Bugs that are planted on purpose, each found by the invariant that is there for it.

A harness that lets one of these pass would let the real one pass.
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from crash_states import CrashState, power_losses, process_kills
from crashing_site import Sent
from recording import Operation, Recorder
from workload import Mutant, Setting, record, scratch, walk

from p2pfed.daemon import durable_files, store
from p2pfed.daemon.durable_files import PendingFile, PendingVector, publish_file
from p2pfed.daemon.journal import Journal
from p2pfed.daemon.privacy_ledger import FIRST_SEAL, HEAD_KEY, Charge, PrivacyLedger
from p2pfed.daemon.store import Generation, Store, StoredReplica
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.neighbours import ReplicaState

SETTING = Setting()
SEED = 7


Enumeration = Callable[[Sequence[Operation], Path], Iterator[CrashState]]


def on_power_loss(log: Sequence[Operation], root: Path) -> Iterator[CrashState]:
    return power_losses(log, root, each=5, seed=SEED)


def finds(
    mutant: Mutant, enumeration: Enumeration, invariant: str, *, also_in_recovery: bool = False
) -> None:
    """Plant the bug, and look for a crash state in which the invariant is broken by it.

    :param also_in_recovery: the bug is in what is done after the crash as well.
    """
    with scratch() as root:
        log = record(root, SETTING, mutant)
        with mutant(Recorder(root)) if also_in_recovery else nullcontext():
            outcome = walk(enumeration(log, root), root, SETTING, only=invariant)
    assert invariant in outcome.broken, (outcome.states, outcome.broken)


@contextmanager
def _patched(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, value in changes:
            stack.enter_context(patch.object(owner, name, value))
        yield


def no_directory_fsync(_recorder: Recorder) -> Any:
    def nothing(_path: Path) -> None:
        return

    return _patched((durable_files, "sync_directory", nothing), (store, "sync_directory", nothing))


def no_file_fsync(_recorder: Recorder) -> Any:
    recorded = os.fsync

    def directories_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            recorded(descriptor)

    return _patched((os, "fsync", directories_only))


def rename_before_fsync(_recorder: Recorder) -> Any:
    sync = PendingFile.sync

    def commit(self: PendingFile, final: Path) -> None:
        self._temporary.rename(final)
        sync(self)
        self._close()
        durable_files.sync_directory(final.parent)

    return _patched((PendingFile, "sync", lambda _self: None), (PendingFile, "commit", commit))


def transaction_before_blobs(_recorder: Recorder) -> Any:
    put, publish = Store.put_vector, Store.commit_published
    waiting: list[np.ndarray] = []

    def put_later(self: Store, vector: np.ndarray) -> bytes:
        waiting.append(vector.copy())
        return vector_digest(vector)

    def then_put(self: Store, *arguments: Any) -> None:
        publish(self, *arguments)
        for vector in waiting:
            put(self, vector)
        waiting.clear()

    return _patched((Store, "put_vector", put_later), (Store, "commit_published", then_put))


def send_before_outbox_commit(recorder: Recorder) -> Any:
    publish = Store.commit_published

    def send_first(self: Store, generation: Generation, signed: Any, *more: Any) -> None:
        recorder.promise(Sent(signed))
        publish(self, generation, signed, *more)

    return _patched((Store, "commit_published", send_first))


def garbage_before_commit(_recorder: Recorder) -> Any:
    commit = Store.commit_round

    def collect_first(self: Store, generation: Generation, *more: Any) -> None:
        newest = self.generation()
        assert newest is not None
        kept = {digest.hex() for g in (newest, generation) for digest in g.vectors()}
        for path in (self.directory / "vectors").glob("*.f32"):
            if path.stem not in kept:
                self._spare_vectors.give(path)
        commit(self, generation, *more)

    return _patched((Store, "commit_round", collect_first))


def recycles_what_a_row_names(_recorder: Recorder) -> Any:
    def only_the_newest(self: Store) -> None:
        newest = self.generation()
        named = {digest.hex() for digest in newest.vectors()} if newest else set()
        for path in (self.directory / "vectors").glob("*.f32"):
            if path.stem not in named:
                self._spare_vectors.give(path)

    return _patched((Store, "collect_garbage", only_the_newest))


def journal_not_synchronous(_recorder: Recorder) -> Any:
    prepare = Journal._prepare

    def lax(self: Journal) -> None:
        prepare(self)
        self._database.execute("PRAGMA synchronous=OFF")

    return _patched((Journal, "_prepare", lax))


def new_directories_not_synced(_recorder: Recorder) -> Any:
    def make(path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    return _patched((store, "make_private_directory", make))


def ciphertext_not_synced(_recorder: Recorder) -> Any:
    @contextmanager
    def outbox_file(self: Store, sequence: int, size_bytes: int) -> Iterator[PendingFile]:
        path = self.ciphertext_path(sequence)
        pending = PendingFile(path.with_suffix(".partial"))
        with patch.object(pending, "sync", lambda: None):
            yield pending
            pending._close()
            publish_file(path.with_suffix(".partial"), path)

    return _patched((Store, "outbox_file", outbox_file))


def mapped_vector_not_synced(_recorder: Recorder) -> Any:
    def commit(self: PendingVector, final: Path) -> None:
        publish_file(self._temporary, final)

    return _patched((PendingVector, "commit", commit))


def leftovers_not_swept(_recorder: Recorder) -> Any:
    return _patched((Store, "_sweep", lambda _self: None))


def replicas_taken_on_trust(_recorder: Recorder) -> Any:
    def replicas(self: Store, _dimension: int) -> dict[str, StoredReplica]:
        return {
            site: StoredReplica(ReplicaState(replica, round_number, sequence), slot)
            for site, slot, replica, round_number, sequence in self._journal.rows(
                "SELECT site, slot, replica, round_number, sequence FROM replicas"
            )
        }

    return _patched((Store, "replicas", replicas))


def evidence_cleared_with_the_round(_recorder: Recorder) -> Any:
    commit = Store.commit_round

    def forget(
        self: Store, generation: Generation, replicas: Mapping[str, Any], *more: Any
    ) -> None:
        commit(self, generation, replicas, *more)
        with self._journal.transaction() as database:
            database.execute("DELETE FROM equivocations")

    return _patched((Store, "commit_round", forget))


def standings_after_the_round(_recorder: Recorder) -> Any:
    commit = Store.commit_round

    def in_two_steps(self: Store, generation: Generation, *more: Any) -> None:
        *others, standings = more
        commit(self, generation, *others, self.standings())
        commit(self, generation, *others, standings)

    return _patched((Store, "commit_round", in_two_steps))


def opening_leaves_a_row(_recorder: Recorder) -> Any:
    sweep = Store._sweep

    def write(self: Store) -> None:
        sweep(self)
        with self._journal.transaction() as database:
            database.execute("INSERT INTO history SELECT -1 - COUNT(*), '{}' FROM history")

    return _patched((Store, "_sweep", write))


def charged_after_sending(_recorder: Recorder) -> Any:
    reserve, commit = PrivacyLedger.reserve, Store.commit_round
    waiting: list[tuple[PrivacyLedger, Charge]] = []

    def reserve_later(self: PrivacyLedger, charge: Charge) -> None:
        waiting.append((self, charge))

    def then_reserve(self: Store, *arguments: Any) -> None:
        for ledger, charge in waiting:
            if ledger._journal is self._journal:  # not of an earlier start
                reserve(ledger, charge)
        waiting.clear()
        commit(self, *arguments)

    return _patched(
        (PrivacyLedger, "reserve", reserve_later), (Store, "commit_round", then_reserve)
    )


def charged_in_memory_alone(_recorder: Recorder) -> Any:
    def remember(self: PrivacyLedger, charge: Charge) -> None:
        self._charges.append(charge)

    return _patched((PrivacyLedger, "reserve", remember))


def ledger_of_the_last_round_alone(_recorder: Recorder) -> Any:
    reserve = PrivacyLedger.reserve

    def begin_anew(self: PrivacyLedger, charge: Charge) -> None:
        with self._journal.transaction() as database:
            database.execute("DELETE FROM privacy_ledger")
            database.execute("DELETE FROM meta WHERE key = ?", (HEAD_KEY,))
        self._charges.clear()
        self._releases.clear()
        self._seal = FIRST_SEAL
        reserve(self, charge)

    return _patched((PrivacyLedger, "reserve", begin_anew))


def binding_not_written(_recorder: Recorder) -> Any:
    return _patched((Store, "bind", lambda _self, _federation_id: None))


@pytest.mark.parametrize(
    ("mutant", "enumeration", "invariant"),
    [
        (no_directory_fsync, on_power_loss, "named_vectors_are_intact"),
        (no_file_fsync, on_power_loss, "named_vectors_are_intact"),
        (rename_before_fsync, on_power_loss, "named_vectors_are_intact"),
        (mapped_vector_not_synced, on_power_loss, "named_vectors_are_intact"),
        (ciphertext_not_synced, on_power_loss, "published_envelopes_are_unchanged"),
        (new_directories_not_synced, on_power_loss, "binding_remains"),
        (journal_not_synchronous, on_power_loss, "no_committed_round_is_lost"),
        (journal_not_synchronous, on_power_loss, "no_round_is_signed_twice"),
        (transaction_before_blobs, process_kills, "named_vectors_are_intact"),
        (send_before_outbox_commit, process_kills, "no_round_is_signed_twice"),
        (garbage_before_commit, process_kills, "named_vectors_are_intact"),
        (recycles_what_a_row_names, process_kills, "named_vectors_are_intact"),
        (evidence_cleared_with_the_round, process_kills, "quarantine_remains"),
        (standings_after_the_round, process_kills, "standings_are_of_the_round"),
        (binding_not_written, process_kills, "binding_remains"),
        (charged_after_sending, process_kills, "every_sent_delta_was_charged"),
        (charged_in_memory_alone, process_kills, "every_sent_delta_was_charged"),
        (journal_not_synchronous, on_power_loss, "every_sent_delta_was_charged"),
        (journal_not_synchronous, on_power_loss, "the_ledger_never_shrinks"),
        (ledger_of_the_last_round_alone, process_kills, "the_ledger_never_shrinks"),
    ],
)
def test_a_wrong_order_is_found(mutant: Mutant, enumeration: Enumeration, invariant: str) -> None:
    finds(mutant, enumeration, invariant)


@pytest.mark.parametrize(
    ("mutant", "enumeration", "invariant"),
    [
        (leftovers_not_swept, process_kills, "no_stray_file_remains"),
        (replicas_taken_on_trust, on_power_loss, "replicas_are_intact_or_not_held"),
        (opening_leaves_a_row, process_kills, "opening_again_changes_nothing"),
    ],
)
def test_a_wrong_recovery_is_found(
    mutant: Mutant, enumeration: Enumeration, invariant: str
) -> None:
    finds(mutant, enumeration, invariant, also_in_recovery=True)
