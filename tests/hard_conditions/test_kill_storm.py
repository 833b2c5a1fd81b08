"""The storm of SIGKILLs: a short one, and that its witnesses see what they are there to see."""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conditions import GUARD_SECONDS

from p2pfed.daemon.store import Generation, Store
from p2pfed.keys import Identity, create_identity
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.header import Header, Kind, SignedHeader, sign_header

STORM = Path(__file__).parents[2] / "benchmarks" / "kill_storm.py"


@pytest.fixture(scope="module")
def storm() -> Any:
    return SimpleNamespace(**runpy.run_path(str(STORM)))


@dataclass
class Ended:
    """As much of a site as the witness looks at."""

    name: str
    site: SimpleNamespace
    left: Any
    last_done: int


class DeadSite:
    """A state directory that a daemon left after it published round 3."""

    def __init__(self, directory: Path, storm: Any, identity: Identity) -> None:
        self.directory = directory
        self._storm = storm
        self._identity = identity
        with closing(Store(directory)) as store:
            self.model = store.put_vector(np.arange(8, dtype=np.float32))
            site_state = store.put_vector(np.ones(2, np.float32))
            generation = Generation(3, True, self.model, self.model, site_state)
            store.commit_published(generation, self.signed(b"a"), bytes(32), bytes(32))

    def signed(self, mark: bytes) -> SignedHeader:
        header = Header(
            version=1,
            federation_id=bytes(32),
            kind=Kind.DELTA,
            sender=self._identity.public_key,
            topology_digest=bytes(32),
            schema_digest=bytes(32),
            round_number=3,
            sequence=4,
            since_round=0,
            previous=bytes(32),
            replica_before=bytes(32),
            replica_after=mark * 32,
            codec="float32",
            key_commitment=bytes(32),
            chunks_root=bytes(32),
            chunk_count=1,
            payload_bytes=32,
            privacy_spend=0.0,
            time_seconds=0,
        )
        return sign_header(self._identity, header)

    def ended(self, last_done: int = 2) -> Ended:
        return Ended(
            "alpha",
            SimpleNamespace(state_directory=self.directory),
            self._storm.read_journal(self.directory),
            last_done,
        )


@pytest.fixture
def dead(storm: Any, tmp_path: Path) -> Iterator[DeadSite]:
    yield DeadSite(tmp_path / "state", storm, create_identity(tmp_path / "keys"))


def test_a_sound_end_is_no_break_and_reading_it_changes_nothing(storm: Any, dead: DeadSite) -> None:
    before = {path.name: path.read_bytes() for path in dead.directory.glob("journal*")}
    assert storm.Witness().breaks_of(dead.ended()) == []
    assert {path.name: path.read_bytes() for path in dead.directory.glob("journal*")} == before


def test_a_round_that_was_reported_done_and_is_not_in_the_journal_is_a_break(
    storm: Any, dead: DeadSite
) -> None:
    [found] = storm.Witness().breaks_of(dead.ended(last_done=3))
    assert "lost round 3" in found


def test_a_journal_without_a_generation_is_a_break_once_a_round_was_done(
    storm: Any, tmp_path: Path, dead: DeadSite
) -> None:
    assert storm.read_journal(tmp_path) is None
    assert storm.Witness().breaks_of(replace(dead.ended(), left=None)) == [
        "alpha forgot everything"
    ]


@pytest.mark.parametrize("flip", [True, False])
def test_a_vector_that_is_damaged_or_missing_is_a_break(
    storm: Any, dead: DeadSite, flip: bool
) -> None:
    path = dead.directory / "vectors" / f"{dead.model.hex()}.f32"
    if flip:
        content = bytearray(path.read_bytes())
        content[5] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    assert vector_digest(np.zeros(8, np.float32)) != dead.model
    found = storm.Witness().breaks_of(dead.ended())
    assert len(found) == 2  # it is the model and the replica
    assert all(path.name in one for one in found)


def test_another_header_for_the_same_round_in_a_later_life_is_a_break(
    storm: Any, dead: DeadSite
) -> None:
    witness = storm.Witness()
    ended = dead.ended()
    assert witness.breaks_of(ended) == []
    [(key, _)] = ended.left.said.items()
    later = replace(ended, left=replace(ended.left, said={key: dead.signed(b"b").encoded}))
    [found] = witness.breaks_of(later)
    assert "signed two headers for round 3" in found


def test_a_quarantine_in_the_journal_is_a_break(storm: Any, dead: DeadSite) -> None:
    with closing(Store(dead.directory)) as store:
        store.add_equivocation("beta", dead.signed(b"a"), dead.signed(b"b"))
    assert storm.Witness().breaks_of(dead.ended()) == ["alpha quarantined beta"]


DONE = '{"event": "round done", "round": %d, "timestamp": "2030-01-01T00:00:0%dZ"}\n'


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (DONE % (1, 1) + DONE % (2, 2), None),
        (DONE % (1, 1) + '{"event": "rou' + DONE % (2, 2), None),
        (DONE % (2, 1) + DONE % (2, 2), "did round 2 again"),
        (DONE % (2, 1) + DONE % (1, 2), "did round 1 again"),
        ('{"event": "delta rejected", "site": "beta", "detail": "not finite"}\n', "not finite"),
        ('{"event": "equivocation: two deltas", "site": "beta"}\n', "blames beta"),
        ("Traceback (most recent call last):\n", "traceback"),
        ('{"event": "state restored", "round": 2, "published": true}\n', "resumed (2, True)"),
    ],
)
def test_what_a_log_must_not_say_is_a_break(
    storm: Any, dead: DeadSite, tmp_path: Path, log: str, says: str | None
) -> None:
    place = SimpleNamespace(
        file=SimpleNamespace(name="alpha"),
        control_socket=tmp_path / "control.sock",
        path=tmp_path / "site.toml",
    )
    site = storm.StormSite(place)
    site.left = dead.ended().left
    (tmp_path / "daemon.log").write_text(log)
    found = site.new_breaks()
    assert site.new_breaks() == []
    if says is None:
        assert found == []
        assert site.last_done == 2
    else:
        assert len(found) == 1
        assert says in found[0]


@pytest.mark.daemons
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kills", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_a_storm_of_kills_breaks_nothing(tmp_path: Path, kills: int) -> None:
    report = tmp_path / "storm.json"
    done = subprocess.run(
        [sys.executable, str(STORM), f"--kills={kills}", "--seed=4", f"--json={report}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=kills * GUARD_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    document = json.loads(report.read_text())
    assert document["breaks"] == []
    assert document["kills"] == len(document["each"]) >= kills
    assert document["recovered"] > 0
    assert min(document["last_rounds"].values()) > 0
