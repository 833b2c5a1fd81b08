"""The state directory."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfed.daemon.recovery import vector_is_intact
from p2pfed.daemon.replica_files import REPLICA_SLOTS
from p2pfed.daemon.store import Generation, Store, StoredReplica
from p2pfed.errors import DamagedStateError, StoreError
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.header import Header, Kind, SignedHeader, sign_header
from p2pfed.protocol.neighbours import NOTHING_HELD, ReplicaState, Standing

SITE = Identity(b"\x01" * 32, b"\x02" * 32)


def signed(sequence: int) -> SignedHeader:
    return sign_header(
        SITE,
        Header(
            1, b"f" * 32, Kind.DELTA, SITE.public_key, b"t" * 32, b"s" * 32, sequence - 1, sequence,
            0, bytes(32), b"b" * 32, b"a" * 32, "int8", b"k" * 32, b"r" * 32, 1, 10, 0.0, 0,
        ),
    )  # fmt: skip


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=100).astype(np.float32)


def write_replica(store: Store, slot: int, content: np.ndarray) -> None:
    with store.replica_file("b", slot, 400) as file:
        file.write(content.tobytes())


def publish(store: Store, sequence: int) -> Generation:
    with store.outbox_file(sequence, 10) as file:
        file.write(b"sealed %d" % sequence)
    generation = Generation(
        sequence - 1,
        True,
        store.put_vector(vector(sequence)),
        store.put_vector(vector(sequence + 1000)),
        store.put_vector(np.empty(0, np.float32)),
    )
    store.commit_published(generation, signed(sequence), b"d" * 32, b"k" * 32)
    return generation


def test_a_round_survives_closing_and_opening(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    assert store.generation() is None
    generation = publish(store, 1)
    store.close()
    again = Store(tmp_path / "state")
    assert again.generation() == generation
    np.testing.assert_array_equal(again.vector(generation.model, 100), vector(1))
    [item] = again.envelopes()
    assert item.signed == signed(1)
    assert item.ciphertext.read_bytes() == b"sealed 1"
    assert again.vector(generation.site_state, 0).shape == (0,)
    again.close()


def test_only_recent_generations_and_envelopes_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    for sequence in range(1, 30):
        publish(store, sequence)
    store.collect_garbage()
    assert len(store.envelopes()) == limits.RETAINED_DELTAS
    assert len(list((tmp_path / "state" / "outbox").iterdir())) == limits.RETAINED_DELTAS
    assert len(list((tmp_path / "state" / "vectors").iterdir())) == 2 * 2 + 1
    store.close()


def test_one_sequence_is_published_once_ever(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    publish(store, 1)
    with pytest.raises(StoreError):
        publish(store, 1)
    assert len(store.envelopes()) == 1
    store.close()


def test_a_damaged_vector_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    generation = publish(store, 1)
    path = tmp_path / "state" / "vectors" / f"{generation.model.hex()}.f32"
    path.write_bytes(b"\0" * 400)
    assert not vector_is_intact(path, generation.model)
    path.write_bytes(b"\0" * 396)
    with pytest.raises(StoreError, match="396 bytes"):
        store.vector(generation.model, 100)
    store.close()


def commit(store: Store, slot: int, replica: np.ndarray, number: int) -> None:
    state = ReplicaState(vector_digest(replica), number, number + 1)
    generation = publish(store, number + 1)
    following = Generation(
        number + 1, False, generation.model, generation.replica, generation.site_state
    )
    store.commit_round(
        following,
        {"b": StoredReplica(state, slot)},
        {(SITE.public_key, 5): signed(6)},
        {"round": 1},
    )


def test_what_a_site_is_known_to_be_goes_with_the_round_and_its_replica_when_it_does(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "state"
    store = Store(directory)
    sites = {}
    for site in ("b", "c"):
        for slot in REPLICA_SLOTS:
            with store.replica_file(site, slot, 400) as file:
                file.write(vector(1).tobytes())
        sites[site] = StoredReplica(ReplicaState(vector_digest(vector(1)), 0, 1), 0)
    made = publish(store, 1)
    standings = [Standing("b", 3, True, 8), Standing("z", 1)]
    joined = Generation(1, False, made.model, made.replica, made.site_state, since_round=1)
    store.commit_round(joined, sites, {}, {"round": 0}, standings)
    store.close()

    store = Store(directory)
    assert store.standings() == standings
    assert store.generation() == joined
    assert set(store.replicas(100)) == {"b", "c"}
    del sites["c"]
    following = dataclasses.replace(joined, round_number=2)
    store.commit_round(following, sites, {}, {"round": 1})
    assert store.standings() == []
    assert set(store.replicas(100)) == {"b"}
    # The slot of b that no row names is the one to be written next.
    held = {path.name for path in (directory / "replicas").iterdir()}
    assert not {name for name in held if name.startswith("c.")}
    store.close()
    Store(directory).close()
    assert [path.name for path in (directory / "replicas").iterdir()] == ["b.0.f32"]


def header_of(site: Identity, number: int, payload_bytes: int = 10) -> SignedHeader:
    header = dataclasses.replace(
        signed(1).header, sender=site.public_key, round_number=number, payload_bytes=payload_bytes
    )
    return sign_header(site, header)


SITES = [Identity(bytes([number]) * 32, bytes([number]) * 32) for number in (1, 2, 3)]
HEADERS = [header_of(*of) for of in itertools.product(SITES, range(4), (10, 11))]


@settings(max_examples=15)  # every commit waits for the disk
@given(kept=st.lists(st.lists(st.sampled_from(HEADERS), max_size=12), min_size=1, max_size=5))
def test_the_headers_of_the_last_commit_are_kept_in_their_order(
    tmp_path_factory: pytest.TempPathFactory, kept: list[list[SignedHeader]]
) -> None:
    directory = tmp_path_factory.mktemp("headers") / "state"
    store = Store(directory)
    log: dict[tuple[bytes, int], SignedHeader] = {}
    for number, round_headers in enumerate(kept):
        now = {(each.header.sender, each.header.round_number): each for each in round_headers}
        # As the log does it: what goes out goes out, what is new comes last.
        log = {key: known for key, known in log.items() if now.get(key) == known}
        log |= now
        generation = Generation(number + 1, False, *(store.put_vector(vector(n)) for n in range(3)))
        store.commit_round(generation, {}, log, {"round": number})
        assert store.headers() == list(log.values())
    store.close()
    again = Store(directory)
    assert again.headers() == list(log.values())
    again.close()


def test_headers_that_are_stored_already_are_not_written_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    generation = Generation(1, False, *(store.put_vector(vector(n)) for n in range(3)))

    def commit_with(rounds: range) -> int:
        log = {(SITE.public_key, number): header_of(SITE, number) for number in rounds}
        before = store._journal._database.total_changes
        store.commit_round(generation, {}, log, {"round": 0})
        return store._journal._database.total_changes - before

    commit_with(range(200))
    unchanged = commit_with(range(200))
    assert commit_with(range(1, 201)) == unchanged + 2
    store.close()


def test_a_replica_is_written_beside_the_one_in_use(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    write_replica(store, 0, vector(1))
    commit(store, 0, vector(1), 0)
    in_use = store.replica("b", 0, 100)
    for _ in range(2):  # the slot is written twice while somebody still reads the old pages
        write_replica(store, 1, vector(2))
    np.testing.assert_array_equal(in_use, vector(1))
    store.close()
    again = Store(tmp_path / "state")
    assert again.replicas(100)["b"].state.replica == vector_digest(vector(1))
    assert again.headers() == [signed(6)]
    assert again.history(5) == [{"round": 1}]
    again.close()


def test_a_replica_that_a_power_cut_damaged_counts_as_not_held(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    write_replica(store, 0, vector(1))
    commit(store, 0, vector(1), 6)
    store.close()
    (tmp_path / "state" / "replicas" / "b.0.f32").write_bytes(b"\0" * 400)
    again = Store(tmp_path / "state")
    assert again.replicas(100)["b"].state == ReplicaState(NOTHING_HELD, 6, 7)
    again.close()


def test_evidence_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.add_equivocation("mallory", signed(1), signed(2))
    store.add_equivocation("mallory", signed(1), signed(2))
    store.close()
    again = Store(tmp_path / "state")
    assert again.quarantined() == ["mallory"]
    again.close()


def test_a_directory_belongs_to_one_federation_and_one_daemon(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.bind(b"f" * 32)
    store.bind(b"f" * 32)
    with pytest.raises(StoreError, match="another state directory"):
        store.bind(b"g" * 32)
    code = (
        "import pathlib, sys; from p2pfed.daemon.store import Store\n"
        "Store(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "another daemon is using this state directory" in done.stderr
    store.close()


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o755)
    with pytest.raises(StoreError, match="chmod 700"):
        Store(tmp_path / "state")


def test_a_damaged_journal_says_so(tmp_path: Path) -> None:
    Store(tmp_path / "state").close()
    (tmp_path / "state" / "journal.sqlite").write_bytes(os.urandom(8192))
    with pytest.raises(DamagedStateError, match=r"journal\.sqlite"):
        Store(tmp_path / "state")


def test_what_an_interrupted_write_left_is_swept(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.new_vector("mixed", 100)
    store.put_vector(vector(1))
    store.close()
    again = Store(tmp_path / "state")
    assert list((tmp_path / "state" / "vectors").iterdir()) == []
    again.close()
