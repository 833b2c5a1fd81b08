"""What a failing disk does to stored bytes: another generation stands in where one is left, no
round is signed twice, and where nothing can be done the error says what to do."""

import itertools
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crashing_site import Committed, CrashingSite, Published, genesis_of, in_one_thread
from invariants import the_site_goes_on
from workload import Setting, neighbour_for, scratch

from p2pfed.daemon.store import JOURNAL_NAME, Generation, Store
from p2pfed.errors import DamagedStateError, StoreError
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.header import SignedHeader

SETTING = Setting(rounds=4)
DAMAGED_ROUND = 2


class PowerButton(Exception):  # noqa: N818 - nothing went wrong
    pass


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


DAMAGES: tuple[Callable[[Path], None], ...] = (flip_a_bit, cut_off, Path.unlink)


@dataclass(frozen=True)
class Stopped:
    """A state directory, as a kill left it, and what was promised until then."""

    directory: Path
    promises: tuple[object, ...]

    def vector(self, digest: bytes) -> Path:
        return self.directory / "vectors" / f"{digest.hex()}.f32"

    @contextmanager
    def opened(self) -> Iterator[Store]:
        store = Store(self.directory)
        try:
            yield store
        finally:
            store.close()

    def recover(self) -> tuple[tuple[Path, ...], Generation, SignedHeader | None]:
        with self.opened() as store:
            damaged = store.recover(vector_digest(genesis_of(SETTING.dimension)), SETTING.dimension)
            found = store.generation()
            assert found is not None
            return damaged, found, store.last_published()

    def go_on(self, given_up: frozenset[int] = frozenset()) -> None:
        neighbour = neighbour_for(SETTING)
        the_site_goes_on(self.directory, self.promises, neighbour, SETTING.dimension, given_up)

    def generations(self) -> list[Generation]:
        with closing(sqlite3.connect(self.directory / JOURNAL_NAME)) as journal:
            return [
                Generation(row[0], bool(row[1]), *row[2:])
                for row in journal.execute(
                    "SELECT round_number, published, model, replica, site_state FROM generations "
                    "ORDER BY id DESC"
                )
            ]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with in_one_thread(SETTING.worth_keeping_bytes):
        yield


@pytest.fixture
def root() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


def stop_at(root: Path, kind: type[Published] | type[Committed], round_number: int) -> Stopped:
    """Run the site until it has published or committed a round, and cut the power."""
    promises: list[object] = []

    def promise(made: object) -> None:
        promises.append(made)
        match made:
            case Published() if kind is Published:
                number = made.item.signed.header.round_number
            case Committed() if kind is Committed:
                number = made.generation.round_number - 1
            case _:
                return
        if number == round_number:
            raise PowerButton

    site = CrashingSite(root / "state", neighbour_for(SETTING), SETTING.dimension, promise)
    with pytest.raises(PowerButton):
        site.start()
        site.run()
    site.stop()
    return Stopped(root / "state", tuple(promises))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_start_of_a_round_falls_back_to_the_published_round_before(
    root: Path, damage: Callable[[Path], None]
) -> None:
    stopped = stop_at(root, Committed, DAMAGED_ROUND)
    newest, before = stopped.generations()
    path = stopped.vector(newest.model)
    damage(path)
    damaged, found, published = stopped.recover()
    assert damaged == (path,)
    assert found == before
    assert found.published
    # The round is closed once more with what was published in it.
    assert published is not None
    assert published.header.round_number == found.round_number == DAMAGED_ROUND
    assert published.header.replica_after == found.replica
    stopped.go_on()


def test_a_damaged_trained_model_is_replaced_by_what_was_published_of_it(root: Path) -> None:
    stopped = stop_at(root, Published, DAMAGED_ROUND + 1)
    newest, _ = stopped.generations()
    flip_a_bit(stopped.vector(newest.model))
    _, found, published = stopped.recover()
    assert found == Generation(
        newest.round_number, True, newest.replica, newest.replica, newest.site_state
    )
    assert published is not None
    assert published.header.round_number == newest.round_number
    stopped.go_on()


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_a_published_round_began_is_known_until_damage_takes_it(
    root: Path, damage: Callable[[Path], None]
) -> None:
    stopped = stop_at(root, Published, DAMAGED_ROUND)
    _, before = stopped.generations()
    genesis = vector_digest(genesis_of(SETTING.dimension))
    with stopped.opened() as store:
        assert store.round_start(genesis) == before.model
    damage(stopped.vector(before.model))
    damaged, found, _ = stopped.recover()
    assert damaged == (stopped.vector(before.model),)
    assert found == stopped.generations()[0]
    with stopped.opened() as store:
        assert store.round_start(genesis) is None
    stopped.go_on()


@pytest.mark.parametrize("kind", [Published, Committed])
def test_the_first_round_began_with_the_genesis_and_an_open_one_with_its_model(
    root: Path, kind: type[Published] | type[Committed]
) -> None:
    stopped = stop_at(root, kind, 0)
    newest = stopped.generations()[0]
    genesis = vector_digest(genesis_of(SETTING.dimension))
    with stopped.opened() as store:
        expected = genesis if kind is Published else newest.model
        assert store.round_start(genesis) == expected
    with closing(Store(root / "new")) as store:
        assert store.round_start(genesis) == genesis


def test_a_damaged_site_state_is_replaced_by_the_one_before_or_a_fresh_one(root: Path) -> None:
    stopped = stop_at(root, Published, DAMAGED_ROUND + 1)
    newest, before = stopped.generations()
    flip_a_bit(stopped.vector(newest.site_state))
    _, found, _ = stopped.recover()
    assert found.site_state == before.site_state
    flip_a_bit(stopped.vector(before.site_state))
    _, found, _ = stopped.recover()
    with stopped.opened() as store:
        assert not store.vector(found.site_state, SETTING.dimension).any()
    stopped.go_on()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_fresh_site_state_that_is_damaged_is_made_anew(
    root: Path, damage: Callable[[Path], None]
) -> None:
    """Its digest is that of the genesis, where both are zeros: the genesis is no file."""
    model, zeros = np.ones(100, np.float32), np.zeros(100, np.float32)
    store = Store(root / "state")
    digest = store.put_vector(zeros)
    generation = Generation(1, False, store.put_vector(model), digest, digest)
    store.commit_round(generation, {}, {}, {"round": 0})
    path = root / "state" / "vectors" / f"{digest.hex()}.f32"
    damage(path)
    assert store.recover(digest, zeros.size) == (path,)
    assert store.generation() == generation
    np.testing.assert_array_equal(store.vector(digest, zeros.size), zeros)
    assert store.recover(digest, zeros.size) == ()
    store.close()


@pytest.mark.parametrize("kind", [Published, Committed])
def test_where_the_published_replica_is_lost_the_next_round_builds_on_the_genesis(
    root: Path, kind: type[Published] | type[Committed]
) -> None:
    stopped = stop_at(root, kind, DAMAGED_ROUND + 1 if kind is Published else DAMAGED_ROUND)
    newest, _ = stopped.generations()
    assert newest.replica != newest.model
    flip_a_bit(stopped.vector(newest.replica))
    _, found, published = stopped.recover()
    following = newest.round_number + int(newest.published)
    genesis = vector_digest(genesis_of(SETTING.dimension))
    assert found == Generation(following, False, newest.model, genesis, newest.site_state)
    assert published is None
    # The round that went out stands, but this site does not fold its neighbours in any more.
    stopped.go_on(frozenset(range(newest.round_number, following)))


@pytest.mark.parametrize(
    ("kind", "number"),
    [(Published, 0), (Committed, 0), (Published, 1), (Committed, 1), (Published, 3)],
)
def test_whatever_is_damaged_no_round_is_signed_twice(
    root: Path, kind: type[Published] | type[Committed], number: int
) -> None:
    """Every subset of the vectors that two generations name."""
    stopped = stop_at(root, kind, number)
    digests = sorted({digest for g in stopped.generations() for digest in g.vectors()})
    models = {d for g in stopped.generations() for d in (g.model, g.replica)}
    signed = max(
        made.item.signed.header.round_number
        for made in stopped.promises
        if isinstance(made, Published)
    )
    committed = {m.record["round"] for m in stopped.promises if isinstance(m, Committed)}
    for size in range(1, len(digests) + 1):
        for lost in itertools.combinations(digests, size):
            copy = Stopped(root / "copy", stopped.promises)
            shutil.copytree(stopped.directory, copy.directory)
            for digest in lost:
                flip_a_bit(copy.vector(digest))
            if models <= set(lost):
                with pytest.raises(DamagedStateError, match=r"\.f32.*backup"):
                    copy.recover()
            else:
                _, found, published = copy.recover()
                last_signed = published.header.round_number if published else -1
                is_signed = last_signed == found.round_number
                assert found.round_number + int(is_signed) > signed
                assert found.published == is_signed
                again = copy.recover()
                assert again == ((), found, published)
                copy.go_on(frozenset(range(signed, found.round_number)) - committed)
            shutil.rmtree(copy.directory)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ciphertext_is_not_sent_and_its_round_not_signed_again(
    root: Path, damage: Callable[[Path], None]
) -> None:
    stopped = stop_at(root, Published, DAMAGED_ROUND)
    newest, _ = stopped.generations()
    damage(stopped.directory / "outbox" / f"{DAMAGED_ROUND + 1}.sealed")
    _, found, published = stopped.recover()
    assert found == newest
    assert published is not None
    assert published.header.round_number == DAMAGED_ROUND
    with stopped.opened() as store:
        assert DAMAGED_ROUND + 1 not in [item.signed.header.sequence for item in store.envelopes()]
    stopped.go_on()


def test_a_file_that_cannot_be_read_for_another_reason_is_not_taken_for_damaged(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = stop_at(root, Committed, DAMAGED_ROUND)

    def too_many(self: Path, *arguments: object) -> None:
        raise OSError(24, "Too many open files")

    with stopped.opened() as store:
        monkeypatch.setattr(Path, "open", too_many)
        with pytest.raises(StoreError, match="Too many open files") as caught:
            store.recover(b"g" * 32, SETTING.dimension)
        monkeypatch.undo()
    assert not isinstance(caught.value, DamagedStateError)
    assert stopped.recover()[0] == ()


def test_an_unreadable_block_counts_as_damage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = stop_at(root, Committed, DAMAGED_ROUND)
    newest, before = stopped.generations()
    bad, real = stopped.vector(newest.model), Path.open

    def unreadable(self: Path, *arguments: Any) -> object:
        if self == bad:
            raise OSError(5, "Input/output error")
        return real(self, *arguments)

    monkeypatch.setattr(Path, "open", unreadable)
    damaged, found, _ = stopped.recover()
    assert (damaged, found) == ((bad,), before)


def overwrite_pages(path: Path) -> None:
    """Noise behind the first page: the file is still a database by its head."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + os.urandom(len(content) - 4096))


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_a_signed_header(path: Path) -> None:
    with closing(sqlite3.connect(path)) as journal:
        [(header,)] = journal.execute("SELECT header FROM envelopes LIMIT 1").fetchall()
        changed = header[:-1] + bytes([header[-1] ^ 1])
        journal.execute("UPDATE envelopes SET header = ? WHERE header = ?", (changed, header))
        journal.commit()


@pytest.mark.parametrize(
    "damage", [overwrite_pages, cut_in_half, change_a_signed_header, Path.unlink]
)
def test_a_damaged_journal_stops_the_daemon_and_says_what_to_do(
    root: Path, damage: Callable[[Path], None]
) -> None:
    stopped = stop_at(root, Published, DAMAGED_ROUND)
    damage(stopped.directory / JOURNAL_NAME)
    for _ in range(2):  # nothing is held, made or repaired on the way
        with pytest.raises(DamagedStateError, match=r"journal\.sqlite: .*p2pfed restore"):
            stopped.recover()
