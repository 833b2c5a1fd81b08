"""Backup and restore of a state directory, without a daemon."""

import io
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from test_store import publish, signed, vector

from p2pfed.cli.backup import backup_site, restore_site
from p2pfed.cli.site_commands import init_site
from p2pfed.config import Site, load_site
from p2pfed.daemon import backup
from p2pfed.daemon.backup import back_up, mark_in_place, restore
from p2pfed.daemon.privacy_ledger import Charge, PrivacyLedger
from p2pfed.daemon.private_training import KnownPast
from p2pfed.daemon.store import Generation, Store, StoredReplica
from p2pfed.errors import DamagedStateError, KeyFileError, StoreError, UsageError
from p2pfed.keys import load_identity
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.neighbours import NOTHING_HELD, ReplicaState

REPLICA = vector(77)
MARK = "restored"  # written into archives that another release may read


@pytest.fixture
def site(tmp_path: Path) -> Site:
    init_site(tmp_path / "alpha", "alpha")
    return load_site(tmp_path / "alpha" / "site.toml")


def commit(store: Store, number: int) -> Generation:
    """A whole round: published, then aggregated with a neighbour's replica."""
    generation = publish(store, number + 1)
    with store.replica_file("b", 0, 400) as file:
        file.write(REPLICA.tobytes())
    following = Generation(
        number + 1,
        False,
        store.put_vector(vector(5000 + number)),
        generation.replica,
        generation.site_state,
    )
    replica = StoredReplica(ReplicaState(vector_digest(REPLICA), number, number + 1), 0)
    store.commit_round(following, {"b": replica}, {(b"s" * 32, 5): signed(6)}, {"round": number})
    return following


def meta(site: Site, key: str) -> bytes | None:
    with closing(sqlite3.connect(site.state_directory / "journal.sqlite")) as database:
        row = database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def elsewhere(site: Site, directory: Path, *, with_keys: bool) -> Site:
    """The same site's files on a new machine, without a state."""
    directory.mkdir()
    shutil.copy(site.path, directory)
    if with_keys:
        shutil.copytree(site.keys_directory, directory / "keys")
    return load_site(directory / "site.toml")


def test_a_committed_state_comes_back_on_another_machine(site: Site, tmp_path: Path) -> None:
    store = Store(site.state_directory)
    store.bind(b"f" * 32)
    following = commit(store, 0)
    manifest = back_up(site, tmp_path / "b.tar", with_key=False)  # while the lock is held
    store.close()
    assert manifest.round == 1
    there = elsewhere(site, tmp_path / "new", with_keys=True)
    done = restore(there, tmp_path / "b.tar")
    assert not done.keys_written
    again = Store(there.state_directory)
    assert again.generation() == following
    np.testing.assert_array_equal(again.vector(following.model, 100), vector(5000))
    np.testing.assert_array_equal(again.vector(following.replica, 100), vector(1001))
    assert again.history(5) == [{"round": 0}]
    assert again.headers() == [signed(6)]
    # The vector can be sent again; the sequence still keeps an old header out.
    [held] = again.replicas(100).values()
    assert held.state == ReplicaState(NOTHING_HELD, 0, 1)
    with pytest.raises(StoreError, match="holds the state of federation"):
        again.bind(b"g" * 32)
    again.close()


def test_a_round_that_was_published_is_not_open_any_more_and_no_delta_comes_back(
    site: Site, tmp_path: Path
) -> None:
    store = Store(site.state_directory)
    publish(store, 1)
    newest = publish(store, 2)
    store.close()
    assert back_up(site, tmp_path / "b.tar", with_key=False).round == 2
    there = elsewhere(site, tmp_path / "new", with_keys=True)
    restore(there, tmp_path / "b.tar")
    assert meta(there, MARK) is not None
    again = Store(there.state_directory)
    assert again.generation() == Generation(
        2, False, newest.model, newest.replica, newest.site_state
    )
    assert again.envelopes() == []
    assert list((there.state_directory / "outbox").iterdir()) == []
    again.close()
    assert meta(site, MARK) is None, "the running site's own state was marked"


def test_no_payload_key_is_left_in_an_archive(site: Site, tmp_path: Path) -> None:
    store = Store(site.state_directory)
    with store.outbox_file(1, 10) as file:
        file.write(b"sealed")
    published = Generation(
        0,
        True,
        store.put_vector(vector(1)),
        store.put_vector(vector(2)),
        store.put_vector(np.empty(0, np.float32)),
    )
    secret = bytes(range(100, 132))
    store.commit_published(published, signed(1), b"d" * 32, secret)
    assert any(secret in path.read_bytes() for path in site.state_directory.glob("journal*"))
    back_up(site, tmp_path / "b.tar", with_key=False)
    store.close()
    content = (tmp_path / "b.tar").read_bytes()
    assert secret not in content
    assert load_identity(site.keys_directory).seed not in content


def test_the_key_comes_along_only_when_asked_for(site: Site, tmp_path: Path) -> None:
    store = Store(site.state_directory)
    commit(store, 0)
    store.close()
    back_up(site, tmp_path / "with.tar", with_key=True)
    back_up(site, tmp_path / "without.tar", with_key=False)
    for name in ("with.tar", "without.tar"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    identity = load_identity(site.keys_directory)
    assert identity.seed in (tmp_path / "with.tar").read_bytes()
    there = elsewhere(site, tmp_path / "new", with_keys=False)
    with pytest.raises(KeyFileError, match="p2pfed init"):
        restore(there, tmp_path / "without.tar")
    assert not there.state_directory.exists()
    assert restore(there, tmp_path / "with.tar").keys_written
    assert load_identity(there.keys_directory).seed == identity.seed


def test_a_site_that_never_ran_can_be_backed_up_and_its_empty_state_asks_first(
    site: Site, tmp_path: Path
) -> None:
    assert back_up(site, tmp_path / "b.tar", with_key=True).round == 0
    assert not site.state_directory.exists()
    there = elsewhere(site, tmp_path / "new", with_keys=False)
    restore(there, tmp_path / "b.tar")
    assert meta(there, MARK) is not None
    store = Store(there.state_directory)
    assert store.generation() is None
    store.close()


def test_a_state_that_is_there_is_never_overwritten(site: Site, tmp_path: Path) -> None:
    store = Store(site.state_directory)
    commit(store, 0)
    back_up(site, tmp_path / "b.tar", with_key=False)
    before = sorted(path.name for path in site.state_directory.iterdir())
    with pytest.raises(StoreError, match="move it away"):
        restore(site, tmp_path / "b.tar")
    with pytest.raises(StoreError, match="never overwritten"):
        back_up(site, tmp_path / "b.tar", with_key=False)
    assert sorted(path.name for path in site.state_directory.iterdir()) == before
    store.close()


def test_a_backup_of_another_site_or_another_key_is_refused(site: Site, tmp_path: Path) -> None:
    store = Store(site.state_directory)
    commit(store, 0)
    store.close()
    back_up(site, tmp_path / "b.tar", with_key=True)
    for name, reason in (("beta", "the backup is of site 'alpha'"), ("alpha", "of peer 12D3")):
        init_site(tmp_path / f"other-{name}", name)
        other = load_site(tmp_path / f"other-{name}" / "site.toml")
        with pytest.raises(StoreError, match=reason):
            restore(other, tmp_path / "b.tar")
        assert [path.name for path in other.path.parent.iterdir()].count("keys") == 1
        assert not other.state_directory.exists()


def rewritten(archive: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> Path:
    """The same archive with each member passed through ``change``; None leaves it out."""
    output = archive.with_name("changed.tar")
    with tarfile.open(archive) as old, tarfile.open(output, "w") as new:
        for entry in old.getmembers():
            source = old.extractfile(entry)
            assert source is not None
            changed = change(entry.name, source.read())
            if changed is not None:
                entry.name, content = changed
                entry.size = len(content)
                new.addfile(entry, io.BytesIO(content))
    return output


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGE: dict[str, Callable[[str, bytes], tuple[str, bytes] | None]] = {
    "a bit of a vector": lambda n, c: (n, flipped(c) if n.startswith("vectors") and c else c),
    "a bit of the journal": lambda n, c: (n, flipped(c) if n == "journal.sqlite" else c),
    "a vector is missing": lambda n, c: None if n.startswith("vectors") and c else (n, c),
    "a vector is longer": lambda n, c: (n, c + c if n.startswith("vectors") else c),
    "a path that leads out": lambda n, c: ("../" + n if n == "journal.sqlite" else n, c),
    "no manifest": lambda n, c: None if n == "manifest.json" else (n, c),
    "another format": lambda n, c: (
        n,
        json.dumps({**json.loads(c), "format_version": 2}).encode() if n == "manifest.json" else c,
    ),
    "a manifest that lists a file elsewhere": lambda n, c: (
        n,
        c.replace(b"journal.sqlite", b"keys/../../x.key") if n == "manifest.json" else c,
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_archive_is_refused_and_leaves_nothing(
    site: Site, tmp_path: Path, damage: str
) -> None:
    store = Store(site.state_directory)
    commit(store, 0)
    store.close()
    back_up(site, tmp_path / "b.tar", with_key=True)
    there = elsewhere(site, tmp_path / "new", with_keys=False)
    with pytest.raises(StoreError):
        restore(there, rewritten(tmp_path / "b.tar", DAMAGE[damage]))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["site.toml"]


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_what_is_no_archive_is_refused(site: Site, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.tar").write_bytes(content)
    with pytest.raises(StoreError):
        restore(site, tmp_path / "b.tar")
    assert not site.state_directory.exists()


def test_an_archive_cut_short_anywhere_is_refused(site: Site, tmp_path: Path) -> None:
    store = Store(site.state_directory)
    commit(store, 0)
    store.close()
    back_up(site, tmp_path / "b.tar", with_key=False)
    whole = (tmp_path / "b.tar").read_bytes()
    there = elsewhere(site, tmp_path / "new", with_keys=True)
    last_content = whole.rstrip(b"\0")
    for length in range(0, len(last_content) - 1, 1000):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(StoreError):
            restore(there, tmp_path / "cut.tar")
        assert not there.state_directory.exists()


def test_a_daemon_that_moves_on_during_the_copy_costs_another_attempt(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors above a megabyte are overwritten in place once nothing names them."""
    store = Store(site.state_directory)
    rounds = iter(range(100))

    def big(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=300_000).astype(np.float32)

    def play_a_round() -> None:
        number = next(rounds)
        with store.outbox_file(number + 1, 10) as file:
            file.write(b"sealed")
        empty = store.put_vector(np.empty(0, np.float32))
        model, replica = store.put_vector(big(2 * number)), store.put_vector(big(2 * number + 1))
        published = Generation(number, True, model, replica, empty)
        store.commit_published(published, signed(number + 1), b"d" * 32, b"k" * 32)
        mixed = store.put_vector(big(1000 + number))
        store.commit_round(Generation(number + 1, False, mixed, replica, empty), {}, {}, {})

    play_a_round()
    original, disturbed = backup._copied_journal, []

    def copied_then_overtaken(directory: Path) -> tuple[bytes, int, set[bytes]]:
        found = original(directory)
        if len(disturbed) < 2:
            disturbed.append(found[1])
            play_a_round()
            play_a_round()
        return found

    monkeypatch.setattr(backup, "_copied_journal", copied_then_overtaken)
    manifest = back_up(site, tmp_path / "b.tar", with_key=False)
    store.close()
    assert disturbed == [1, 3]
    assert manifest.round == 5
    there = elsewhere(site, tmp_path / "new", with_keys=True)
    restore(there, tmp_path / "b.tar")
    again = Store(there.state_directory)
    found = again.generation()
    assert found is not None
    np.testing.assert_array_equal(again.vector(found.model, 300_000), big(1004))
    again.close()


def test_a_vector_that_stays_damaged_is_named_and_no_archive_appears(
    site: Site, tmp_path: Path
) -> None:
    store = Store(site.state_directory)
    following = commit(store, 0)
    store.close()
    damaged = site.state_directory / "vectors" / f"{following.model.hex()}.f32"
    damaged.write_bytes(flipped(damaged.read_bytes()))
    with pytest.raises(DamagedStateError, match=damaged.name):
        back_up(site, tmp_path / "b.tar", with_key=False)
    assert [path.name for path in tmp_path.iterdir()] == ["alpha"]


def test_no_room_for_the_archive_is_an_error_with_a_name_and_leaves_nothing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_once = Store(site.state_directory)
    commit(commit_once, 0)
    commit_once.close()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"b\.tar: No space left on device"):
        back_up(site, tmp_path / "b.tar", with_key=False)
    assert [path.name for path in tmp_path.iterdir()] == ["alpha"]


def test_a_state_that_came_back_by_other_means_is_marked_in_place(site: Site) -> None:
    store = Store(site.state_directory)
    newest = publish(store, 3)
    with pytest.raises(StoreError, match="another daemon"):
        mark_in_place(site)
    store.close()
    assert mark_in_place(site) == 3
    again = Store(site.state_directory)
    assert again.generation() == Generation(
        3, False, newest.model, newest.replica, newest.site_state
    )
    assert again.envelopes() == []
    again.close()
    assert meta(site, MARK) is not None


def test_the_mark_goes_with_the_first_delta_that_is_signed_after_it(site: Site) -> None:
    store = Store(site.state_directory)
    publish(store, 3)
    assert not store.restored()
    store.close()
    mark_in_place(site)
    again = Store(site.state_directory)
    assert again.restored()
    publish(again, 7)
    assert not again.restored()
    again.close()


def test_the_commands_say_what_they_did_and_what_comes_next(site: Site, tmp_path: Path) -> None:
    store = Store(site.state_directory)
    commit(store, 0)
    store.close()
    lines = backup_site(site.path, tmp_path / "b.tar", with_key=True)
    assert "state of alpha before round 1" in lines[0]
    assert "pass for this site" in lines[1]
    assert "--with-key" in backup_site(site.path, tmp_path / "c.tar", with_key=False)[1]
    there = elsewhere(site, tmp_path / "new", with_keys=False)
    said = "\n".join(restore_site(there.path, tmp_path / "b.tar", in_place=False))
    assert "keys are back" in said
    assert "signs nothing before it knows" in said
    assert "p2pfed config check" in said
    for archive, in_place in ((None, False), (tmp_path / "b.tar", True)):
        with pytest.raises(UsageError):
            restore_site(there.path, archive, in_place=in_place)
    assert "before round" not in restore_site(there.path, None, in_place=True)[0]


def test_the_privacy_ledger_comes_back_and_the_restored_state_knows_where_it_ends(
    site: Site, tmp_path: Path
) -> None:
    identity = load_identity(site.keys_directory)
    store = Store(site.state_directory)
    ledger = PrivacyLedger(store.journal, identity)
    for number in range(2):
        ledger.reserve(Charge(number, bytes(32), 0.1, 1.0, 3, 1e-5))
        commit(store, number)
    back_up(site, tmp_path / "b.tar", with_key=False)
    ledger.reserve(Charge(2, bytes(32), 0.1, 1.0, 3, 1e-5))  # the backup cannot know of it
    store.close()
    there = elsewhere(site, tmp_path / "new", with_keys=True)
    restore(there, tmp_path / "b.tar")
    again = Store(there.state_directory)
    restored = PrivacyLedger(again.journal, identity)
    assert restored.spent() == ((0.1, 1.0, 6),)
    assert KnownPast.of(again) == KnownPast(2, True, 0.0)
    again.close()
