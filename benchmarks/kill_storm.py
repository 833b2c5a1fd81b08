"""A storm of SIGKILLs over a running federation, and what must hold after each.

    python benchmarks/kill_storm.py [--kills 300] [--seed 0] [--pause-seconds 1.0] [--json FILE]

The four hospitals of the heart demo run as real daemons. One is killed at a random moment,
sometimes its trainer instead, sometimes two at once, sometimes one that has not yet recovered
from its last end; each is started again at once, while the others go on. After every end the
journal that the dead daemon left is read from a copy, and after every start the log and the
status of the living one:

- rounds: no round that was reported done is lost or done twice; the daemon resumes exactly the
  generation that its journal names.
- model: every vector that the generation names has the digest that is its name; the model that
  a daemon reports before its first round is the committed one.
- one word: no two headers of one sender for one round exist in any journal of any site at any
  time, in whichever life they were signed; nobody is quarantined.
- nothing wasted: no delta is rejected. No daemon prints a traceback or ends by itself.
- recovery: it is healthy, linked to all that run, and has done a round, within
  ``RECOVERY_LIMIT_SECONDS``.

One line is printed for each kill, and a summary; the exit status is 1 where anything broke.
"""

import argparse
import datetime
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tomli_w

from p2pfed.config import Site
from p2pfed.daemon.control_link import DaemonLink
from p2pfed.daemon.status import Status
from p2pfed.daemon.store import JOURNAL_NAME
from p2pfed.demo.daemons import run_command
from p2pfed.demo.layout import DemoOptions, write_layout
from p2pfed.errors import ControlError
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.header import parse_signed_header
from p2pfed.settings import read_toml
from p2pfed.shipped import demo_folder

DEADLINE_SECONDS = 3.0
POLL_SECONDS = 0.05
START_LIMIT_SECONDS = 120.0
RECOVERY_LIMIT_SECONDS = 120.0
STOP_LIMIT_SECONDS = 20.0
MOST_DOWN = 2  # of four
QUORUM = 0.3  # of three neighbours: the one that is left will do
TRAINER_SHARE, PAIR_SHARE, AGAIN_SHARE = 0.15, 0.12, 0.08

What = Literal["daemon", "trainer", "pair", "again"]


@dataclass(frozen=True)
class Left:
    """What a daemon that ended left in its journal. Vectors are named by their digests."""

    round_number: int
    published: bool
    vectors: tuple[bytes, ...]  # model, replica, site_state
    said: dict[tuple[bytes, int], bytes]  # headers known here, own ones too, by sender and round
    quarantined: tuple[str, ...]

    @property
    def model(self) -> bytes:
        return self.vectors[0]


def read_journal(state: Path) -> Left | None:
    """The journal of a daemon that is not running, read from a copy, so that to look at it
    recovers nothing; None where it did not get as far as its first commit."""
    with tempfile.TemporaryDirectory(prefix="p2p-journal-") as copy:
        for suffix in ("", "-wal"):
            path = state / (JOURNAL_NAME + suffix)
            if path.exists():
                shutil.copyfile(path, Path(copy) / path.name)
        database = sqlite3.connect(Path(copy) / JOURNAL_NAME)
        try:
            if not database.execute(
                "SELECT 1 FROM sqlite_master WHERE name = 'generations'"
            ).fetchone():
                return None
            generation = database.execute(
                "SELECT round_number, published, model, replica, site_state FROM generations "
                "ORDER BY id DESC LIMIT 1"
            ).fetchone()
            rows = database.execute(
                "SELECT header, signature FROM envelopes UNION ALL "
                "SELECT header, signature FROM headers"
            ).fetchall()
            quarantined = database.execute("SELECT site FROM equivocations").fetchall()
        finally:
            database.close()
    if generation is None:
        return None
    said: dict[tuple[bytes, int], bytes] = {}
    for header, signature in rows:
        signed = parse_signed_header(header, signature)
        said[signed.header.sender, signed.header.round_number] = header
    return Left(
        generation[0],
        bool(generation[1]),
        tuple(generation[2:]),
        said,
        tuple(site for (site,) in quarantined),
    )


def event_of(line: bytes) -> dict[str, Any] | None:
    """A line of the log as the event it is; one that a kill cut short is followed, on the same
    line, by the next life's first."""
    for start in (0, line.find(b'{"', 1)):
        try:
            event = json.loads(line[start:])
        except ValueError:
            continue
        return event if isinstance(event, dict) else None
    return None


@dataclass
class Kill:
    """One line of the report.

    :ivar at_seconds: since the storm began.
    """

    number: int
    what: What
    site: str
    round: int
    phase: str
    at_seconds: float
    recovered_after_seconds: float | None = None


class StormSite:
    """One hospital through all of its daemon's lives."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.name = site.file.name
        self._link = DaemonLink(site.control_socket)
        self._log = site.path.with_name("daemon.log")
        self._read_bytes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.last_done = -1
        self.left: Left | None = None
        self.kill: Kill | None = None  # what it has not yet recovered from
        self.trainer_restarts = 0
        self.longest_pause_seconds = 0.0
        self._done_at: datetime.datetime | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                run_command(self.site),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def ended_by_itself(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def end(self) -> None:
        """SIGKILL, and wait until the kernel has taken everything back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int | None:
        """SIGTERM; the exit status, or None where it had to be killed."""
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.end()
            return None
        self._process = None
        return code

    def status(self) -> Status | None:
        try:
            return Status.from_json(self._link.get("/v1/status"))
        except ControlError:
            return None

    def read_journal(self) -> None:
        self.left = read_journal(self.site.state_directory)

    def new_breaks(self) -> list[str]:
        """What the log says since it was last read that it must not."""
        with self._log.open("rb") as file:
            file.seek(self._read_bytes)
            lines = file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # it is being written, or its writer was killed; then it grows no more
        self._read_bytes += sum(map(len, lines))
        found = []
        for line in lines:
            event = event_of(line)
            if event is not None:
                found += self._breaks_of(event)
            elif b"Traceback" in line:
                found.append(f"{self.name} printed a traceback")
        return found

    def _breaks_of(self, event: dict[str, Any]) -> list[str]:
        match event.get("event"):
            case "daemon started":
                self._done_at = None
            case "round done":
                return self._take_round(event)
            case "state restored" if self.left is not None:
                restored = (event["round"], event["published"])
                if restored != (self.left.round_number, self.left.published):
                    return [f"{self.name} resumed {restored}, its journal said {self.left}"]
            case "delta rejected":
                return [f"{self.name} rejected a delta of {event['site']}: {event['detail']}"]
            case str(name) if name.startswith("equivocation"):
                return [f"{self.name} blames {event['site']} for an equivocation"]
        return []

    def _take_round(self, event: dict[str, Any]) -> list[str]:
        done = event["round"]
        moment = datetime.datetime.fromisoformat(event["timestamp"])
        if self._done_at is not None:
            pause = (moment - self._done_at).total_seconds()
            self.longest_pause_seconds = max(self.longest_pause_seconds, pause)
        self._done_at = moment
        before, self.last_done = self.last_done, max(self.last_done, done)
        return [] if done > before else [f"{self.name} did round {done} again after {before}"]


class Witness:
    """What all journals together may say, over all lives."""

    def __init__(self) -> None:
        self._said: dict[tuple[bytes, int], bytes] = {}

    def breaks_of(self, site: StormSite) -> list[str]:
        """Check what a dead daemon left; call after its log was read to the end."""
        left, name = site.left, site.name
        if left is None:
            return [f"{name} forgot everything"] if site.last_done >= 0 else []
        found = [f"{name} quarantined {other}" for other in left.quarantined]
        if left.round_number <= site.last_done:
            found.append(f"{name} lost round {site.last_done}: it is in {left.round_number}")
        for digest in left.vectors:
            path = site.site.state_directory / "vectors" / f"{digest.hex()}.f32"
            if not path.exists():
                found.append(f"{name} lost the vector {path.name}")
            elif vector_digest(np.fromfile(path, dtype=np.float32)) != digest:
                found.append(f"{name}: {path.name} is not what its name says")
        for key, header in left.said.items():
            if self._said.setdefault(key, header) != header:
                found.append(f"{key[0].hex()[:12]} signed two headers for round {key[1]}")
        return found


@dataclass
class Outcome:
    kills: list[Kill] = field(default_factory=list)
    breaks: list[str] = field(default_factory=list)
    seconds: float = 0.0
    last_rounds: dict[str, int] = field(default_factory=dict)
    longest_pauses_seconds: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        times = [
            kill.recovered_after_seconds
            for kill in self.kills
            if kill.recovered_after_seconds is not None
        ]
        return {
            "kills": len(self.kills),
            "kinds": dict(Counter(kill.what for kill in self.kills)),
            "phases": dict(Counter(kill.phase for kill in self.kills)),
            "recovered": len(times),
            "recovered_after_median_seconds": round(statistics.median(times), 2) if times else None,
            "recovered_after_most_seconds": round(max(times), 2) if times else None,
            "longest_pauses_seconds": self.longest_pauses_seconds,
            "last_rounds": self.last_rounds,
            "seconds": round(self.seconds, 1),
            "breaks": self.breaks,
        }


class Storm:
    """Kills and watches until the kills are used up and every site has recovered."""

    def __init__(self, sites: tuple[Site, ...], arguments: argparse.Namespace) -> None:
        self._sites = [StormSite(site) for site in sites]
        self._most = arguments.kills
        self._pause_seconds = arguments.pause_seconds
        self._random = random.Random(arguments.seed)
        self._began = time.monotonic()
        self._drawn = self._draw()
        self._witness = Witness()
        self.outcome = Outcome()

    def run(self) -> Outcome:
        try:
            for site in self._sites:
                site.start()
            self._until_all_run()
            self._rage()
            self._calm_down()
        finally:
            for site in self._sites:
                site.end()
        self.outcome.seconds = self._elapsed_seconds()
        self.outcome.last_rounds = {site.name: site.last_done for site in self._sites}
        self.outcome.longest_pauses_seconds = {
            site.name: round(site.longest_pause_seconds, 2) for site in self._sites
        }
        return self.outcome

    def _elapsed_seconds(self) -> float:
        return time.monotonic() - self._began

    def _break(self, found: list[str]) -> None:
        for one in found:
            print(f"BREAK: {one}", flush=True)
        self.outcome.breaks += found

    def _until_all_run(self) -> None:
        until = time.monotonic() + START_LIMIT_SECONDS
        while time.monotonic() < until and not self.outcome.breaks:
            if all(self._look(site) for site in self._sites):
                return
            time.sleep(POLL_SECONDS)
        self._break(["the federation did not start"])

    def _rage(self) -> None:
        next_at = time.monotonic()
        while len(self.outcome.kills) < self._most and not self.outcome.breaks:
            for site in self._sites:
                self._look(site)
            if time.monotonic() >= next_at and self._strike():
                next_at = time.monotonic() + self._random.expovariate(1 / self._pause_seconds)
            time.sleep(POLL_SECONDS * self._random.random())

    def _calm_down(self) -> None:
        """Let all recover, then stop them as an operator does and look at what they leave."""
        while not self.outcome.breaks and any(site.kill for site in self._sites):
            for site in self._sites:
                self._look(site)
            time.sleep(POLL_SECONDS)
        for site in self._sites:
            code = site.stop()
            if code != 0:
                self._break([f"{site.name} ended with {code} when told to stop"])
            self._inspect(site)

    def _look(self, site: StormSite) -> bool:
        """Check a running site; True once it has recovered from its last kill."""
        self._break(site.new_breaks())
        if site.ended_by_itself:
            self._break([f"{site.name} ended by itself"])
            return False
        status = site.status()
        kill = site.kill
        if status is not None:
            self._break(self._breaks_of_status(site, status))
            if self._has_recovered(site, status):
                if kill is not None:
                    self._note_recovery(site, kill)
                site.trainer_restarts = status.trainer.restarts
                return True
        if kill is not None and self._elapsed_seconds() - kill.at_seconds > RECOVERY_LIMIT_SECONDS:
            self._break([f"{site.name} did not recover from kill {kill.number}: {status}"])
        return False

    @staticmethod
    def _breaks_of_status(site: StormSite, status: Status) -> list[str]:
        found = [
            f"{site.name} holds {neighbour.name} in quarantine"
            for neighbour in status.neighbours
            if neighbour.quarantined
        ]
        first = status.totals.rounds_done == 0 and site.left is not None
        if first and site.left is not None and status.model.digest != site.left.model.hex():
            found.append(f"{site.name} goes on from {status.model.digest[:12]}, not as committed")
        return found

    def _has_recovered(self, site: StormSite, status: Status) -> bool:
        """Healthy, a round further, its trainer anew, and linked to all that have not just been
        killed themselves."""
        away = {other.name for other in self._sites if other.kill is not None}
        kill = site.kill
        if kill is not None and kill.what == "trainer":
            further = (
                status.trainer.restarts > site.trainer_restarts and status.round.number > kill.round
            )
        else:
            further = status.totals.rounds_done > 0
        return (
            further
            and status.healthy
            and all(
                neighbour.state == "connected"
                for neighbour in status.neighbours
                if neighbour.name not in away
            )
        )

    def _note_recovery(self, site: StormSite, kill: Kill) -> None:
        kill.recovered_after_seconds = round(self._elapsed_seconds() - kill.at_seconds, 2)
        site.kill = None
        print(
            f"kill {kill.number:4}  {kill.what:8} {kill.site:12} round {kill.round:6} "
            f"{kill.phase:12} recovered after {kill.recovered_after_seconds:6.2f} s",
            flush=True,
        )

    def _draw(self) -> What:
        kinds: tuple[What, ...] = ("again", "trainer", "pair", "daemon")
        shares = (AGAIN_SHARE, TRAINER_SHARE, PAIR_SHARE)
        return self._random.choices(kinds, (*shares, 1 - sum(shares)))[0]

    def _strike(self) -> bool:
        """Do what was drawn last, if enough of the others are well for it, and draw anew."""
        well = [site for site in self._sites if site.kill is None]
        down = [site for site in self._sites if site.kill is not None]
        what = self._drawn
        if len(down) + (what == "pair") >= MOST_DOWN and what != "again":
            return False
        match what:
            case "again" if not down:
                pass
            case "again":
                self._kill(what, [self._random.choice(down)])
            case "pair":
                self._kill(what, self._random.sample(well, 2))
            case "trainer":
                self._kill_trainer(self._random.choice(well))
            case _:
                self._kill(what, [self._random.choice(well)])
        self._drawn = self._draw()
        return True

    def _kill(self, what: What, victims: list[StormSite]) -> None:
        for site in victims:
            self._note_kill(what, site, site.status())
            site.end()
        for site in victims:
            self._inspect(site)
            site.start()

    def _kill_trainer(self, site: StormSite) -> None:
        status = site.status()
        if status is None or status.trainer.pid is None:
            return
        try:
            os.kill(status.trainer.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it had just been replaced
        self._note_kill("trainer", site, status)

    def _note_kill(self, what: What, site: StormSite, status: Status | None) -> None:
        former = site.kill
        if former is not None:
            print(
                f"kill {former.number:4}  {former.what:8} {former.site:12} round "
                f"{former.round:6} {former.phase:12} killed again before it recovered",
                flush=True,
            )
        site.kill = Kill(
            number=len(self.outcome.kills) + 1,
            what=what,
            site=site.name,
            round=status.round.number if status else site.last_done + 1,
            phase=status.round.phase if status else "starting",
            at_seconds=self._elapsed_seconds(),
        )
        self.outcome.kills.append(site.kill)

    def _inspect(self, site: StormSite) -> None:
        """Read what a daemon that has ended said and left."""
        self._break(site.new_breaks())
        site.read_journal()
        self._break(self._witness.breaks_of(site))
        site.trainer_restarts = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--pause-seconds", type=float, default=1.0, help="mean time from one kill to the next"
    )
    parser.add_argument("--json", type=Path, help="write the summary and every kill to a file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2p-") as temporary:
        layout = write_layout(
            demo_folder("heart"),
            Path(temporary),
            DemoOptions(rounds=0, seed=arguments.seed, deadline_seconds=DEADLINE_SECONDS),
        )
        document = read_toml(layout.topology)
        document["round"]["quorum"] = QUORUM
        layout.topology.write_text(tomli_w.dumps(document), encoding="utf-8")
        outcome = Storm(layout.sites, arguments).run()
    summary = outcome.summary()
    print(json.dumps(summary, indent=2))
    if arguments.json is not None:
        document = {**summary, "each": [asdict(kill) for kill in outcome.kills]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if outcome.breaks else 0)


if __name__ == "__main__":
    main()
