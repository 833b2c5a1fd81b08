"""A long run of real daemons under churn: does anything grow?

    python benchmarks/soak.py [--minutes 30] [--sites 4] [--seed 0] [--json FILE] [--keep DIR]

Real daemons on loopback with a model of 1000 parameters, in a ring with one chord. Drawn from the
seed, every few seconds something happens: a daemon is killed (SIGKILL) or stopped and started
again some seconds later, a trainer is killed, a daemon is frozen (SIGSTOP) for some seconds, the
chord is put into or taken out of the topology file and every daemon reloads it.

Half of the sites (the first ones) are never restarted: what grows in a process shows there. They
see everything else, the churn of their neighbours included. Printed at intervals is what each
daemon uses: resident and proportional memory, event-loop tasks, descriptors, threads, the trainer's
memory, and what its state directory holds. At the end, each of them at the start, midway and at the
end, and its slope over the second half, by least squares.

Flat means, for a process that was there well before the second half: the slope, less twice its
standard error, is at most ``FLAT_SHARE_AN_HOUR`` of the mean for memory, ``FLAT_COUNT_AN_HOUR`` for
what is counted, ``FLAT_KIB_AN_HOUR`` for the state directory without its journal; or the whole rise
is less than twice the scatter about the line. A run of a few minutes still sees the memory settle.
The journal grows until it holds 10 000 rounds; there, flat means at most
``JOURNAL_BYTES_A_ROUND`` a round. The exit status is 1 where something is not flat, a daemon ended
by itself, a traceback was printed, a site was quarantined, or a site that was never restarted
stood still.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from soak_slopes import Sample, print_slopes, slopes

from p2pfed.cli.machine_report import open_files
from p2pfed.config import Site, load_site
from p2pfed.daemon.control_link import DaemonLink
from p2pfed.daemon.status import Status
from p2pfed.daemon.store import JOURNAL_NAME
from p2pfed.demo.daemons import run_command
from p2pfed.demo.layout import free_ports
from p2pfed.errors import ControlError
from p2pfed.keys import create_identity, format_public_key

POLL_SECONDS = 0.2
SAMPLE_SECONDS = 5.0
REPORT_SECONDS = 60.0
START_LIMIT_SECONDS = 120.0
STOP_LIMIT_SECONDS = 30.0
STANDSTILL_SECONDS = 120.0  # a site that was never restarted does a round within this time
PAUSE_SECONDS = (3.0, 12.0)  # between two happenings
DOWN_SECONDS = (0.5, 8.0)
FROZEN_SECONDS = (1.0, 8.0)
STARTING_SHARE = 0.2  # of what happens may hit a daemon that is just starting
STEP_SECONDS = 0.1
LOCAL_STEPS = 4
DEADLINE_SECONDS = 5.0
HAPPENINGS = ("kill", "stop", "kill trainer", "freeze", "reload")


@dataclass
class SoakSite:
    """A site, its daemon's process while there is one, and what was seen of it."""

    site: Site
    steady: bool
    process: subprocess.Popen[bytes] | None = None
    life: int = 0
    frozen: bool = False
    busy: bool = False  # something is happening to it
    last: Status | None = None
    last_round_at_seconds: float = 0.0
    ended: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.site.file.name

    @property
    def log(self) -> Path:
        return self.site.path.with_name("daemon.log")

    @property
    def answered(self) -> bool:
        """Whether the daemon that runs now has answered."""
        pid = self.process.pid if self.process is not None else None
        return self.last is not None and self.last.site.pid == pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                run_command(self.site), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.life += 1

    def send(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        """Make the daemon end, and wait for it."""
        if self.process is None:
            return
        self.send(number)
        try:
            code = self.process.wait(STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.ended.append(f"{number.name} did not end it")
            self.process.kill()
            code = self.process.wait()
        # Before it has answered it may not have come to handle signals yet.
        expected = (0,) if self.answered else (0, -signal.SIGTERM)
        if number is signal.SIGTERM and code not in expected:
            self.ended.append(f"its exit status after {number.name} was {code}")
        self.process = None

    def look(self, now: float) -> None:
        """Take its status, where it can answer, and note an end that nobody asked for."""
        if self.process is None or self.frozen:
            return
        code = self.process.poll()
        if code is not None:
            self.ended.append(f"it ended by itself with exit status {code}")
            self.process = None
            return
        try:
            status = Status.from_json(DaemonLink(self.site.control_socket).get("/v1/status"))
        except ControlError:
            return
        if self.last is None or status.round.number != self.last.round.number:
            self.last_round_at_seconds = now
        self.last = status

    def reload(self) -> None:
        if self.process is not None and not self.frozen:
            try:
                DaemonLink(self.site.control_socket).post("/v1/reload")
            except ControlError:
                return  # it is just starting and will read the new file

    def sample(self, now: float) -> Sample | None:
        if self.process is None or self.last is None or not self.answered:
            return None
        pid, trainer = self.process.pid, self.last.trainer.pid
        state = self.site.state_directory
        journal = [size_kib(path) for path in sorted(state.glob(f"{JOURNAL_NAME}*"))]
        return Sample(
            at_seconds=now,
            site=self.name,
            life=self.life,
            round=self.last.round.number,
            rss_kib=kib_of(pid, "status", "VmRSS"),
            pss_kib=kib_of(pid, "smaps_rollup", "Pss"),
            trainer_pss_kib=kib_of(trainer, "smaps_rollup", "Pss") if trainer else 0.0,
            tasks=self.last.resources.tasks,
            descriptors=sum(open_files(pid).values()),
            threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
            journal_kib=journal[0],
            log_kib=sum(journal[1:]),
            state_kib=max(0.0, sum(map(size_kib, state.rglob("*"))) - sum(journal)),
        )


def size_kib(path: Path) -> float:
    try:
        return path.stat().st_size / 1024 if path.is_file() else 0.0
    except FileNotFoundError:
        return 0.0  # the daemon removed it meanwhile


def kib_of(pid: int, file: str, row: str) -> float:
    """A row of a file of /proc in KiB; 0 where the process is gone."""
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{row}:"):
                return float(line.split()[1])
    except OSError:
        pass
    return 0.0


class Soak:
    """The federation and what happens to it.

    :param draw: decides what happens, when, and to whom.
    """

    def __init__(self, directory: Path, count: int, draw: random.Random) -> None:
        self._directory = directory
        self._draw = draw
        self._chord = True
        self._names = [f"site-{number}" for number in range(count)]
        self._peers: list[dict[str, Any]] = []
        self.sites = [
            SoakSite(load_site(file), steady=index < count / 2)
            for index, file in enumerate(self._write())
        ]
        self.happened: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self._due: list[tuple[float, Callable[[], None]]] = []

    def _write(self) -> Iterator[Path]:
        for name, port in zip(self._names, free_ports(len(self._names)), strict=True):
            identity = create_identity(self._directory / name / "keys")
            address = f"/ip4/127.0.0.1/tcp/{port}"
            key = format_public_key(identity.public_key)
            self._peers.append({"name": name, "key": key, "addresses": [address]})
            file = self._directory / name / "site.toml"
            site = {
                "schema_version": 1,
                "name": name,
                "topology": "../topology.toml",
                "listen": {"addresses": [address], "mdns": False},
                "task": {"path": str(Path(__file__).parent.absolute())},
            }
            file.write_text(tomli_w.dumps(site))
            yield file
        self._write_topology()

    def _write_topology(self) -> None:
        names = self._names
        edges = [[names[i], names[(i + 1) % len(names)]] for i in range(len(names))]
        if self._chord:
            edges.append([names[0], names[len(names) // 2]])
        document = {
            "schema_version": 1,
            "federation": {"name": "soak"},
            "graph": {"kind": "explicit", "edges": edges},
            "round": {"local_steps": LOCAL_STEPS, "deadline_seconds": DEADLINE_SECONDS},
            "task": {
                "kind": "python",
                "class": "paced_task:Paced",
                "options": {
                    "parameters": 1000,
                    "batch_size": 8,
                    "momentum": 0.9,
                    "step_seconds": STEP_SECONDS,
                },
            },
            "peer": self._peers,
        }
        # Renamed into place: a daemon may be starting at this moment.
        new = self._directory / "topology.new"
        new.write_text(tomli_w.dumps(document))
        new.replace(self._directory / "topology.toml")

    def run(self, minutes: float) -> None:
        """Let it run; the caller prints what came of it."""
        for site in self.sites:
            site.start()
        self._wait_for_all()
        began = time.monotonic()
        until, sample_at, report_at = began + 60 * minutes, began, began + REPORT_SECONDS
        next_at = began + self._draw.uniform(*PAUSE_SECONDS)
        for site in self.sites:
            site.last_round_at_seconds = began
        while (now := time.monotonic()) < until:
            for site in self.sites:
                site.look(now)
            for entry in [entry for entry in self._due if entry[0] <= now]:
                self._due.remove(entry)
                entry[1]()
            if now >= next_at:
                self._let_something_happen(now)
                next_at = now + self._draw.uniform(*PAUSE_SECONDS)
            if now >= sample_at:
                found = [site.sample(now - began) for site in self.sites]
                self.samples += [sample for sample in found if sample is not None]
                sample_at = now + SAMPLE_SECONDS
            if now >= report_at:
                self._report((now - began) / 60)
                report_at = now + REPORT_SECONDS
            self._stop_at_standstill(now)
            time.sleep(POLL_SECONDS)
        for _, undo in self._due:
            undo()
        self._wait_for_all()

    def _wait_for_all(self) -> None:
        """Until every daemon answers; the ones that ended are in their ``ended``."""
        until = time.monotonic() + START_LIMIT_SECONDS
        for site in self.sites:
            site.last = None
        while any(site.last is None and not site.ended for site in self.sites):
            if time.monotonic() > until:
                raise TimeoutError("a daemon did not answer; see daemon.log (--keep DIR)")
            for site in self.sites:
                site.look(time.monotonic())
            time.sleep(POLL_SECONDS)

    def _stop_at_standstill(self, now: float) -> None:
        for site in self.sites:
            if site.steady and now - site.last_round_at_seconds > STANDSTILL_SECONDS:
                site.ended.append(f"it did no round for {STANDSTILL_SECONDS:g} s")
                site.last_round_at_seconds = now

    def _let_something_happen(self, now: float) -> None:
        what = self._draw.choice(HAPPENINGS)
        restart = what in ("kill", "stop")
        able = [s for s in self.sites if not (s.busy or (restart and s.steady)) and s.process]
        if self._draw.random() >= STARTING_SHARE:
            able = [site for site in able if site.answered]
        if what == "reload":
            self._chord = not self._chord
            self._write_topology()
            for site in self.sites:
                site.reload()
        elif not able:
            return
        else:
            self._act(what, self._draw.choice(able), now)
        self.happened[what] += 1

    def _act(self, what: str, site: SoakSite, now: float) -> None:
        if what == "kill trainer":
            if site.last is not None and site.last.trainer.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(site.last.trainer.pid, signal.SIGKILL)
            return
        site.busy = True
        if what == "freeze":
            site.send(signal.SIGSTOP)
            site.frozen = True
            self._due.append((now + self._draw.uniform(*FROZEN_SECONDS), lambda: thaw(site)))
        else:
            site.end(signal.SIGKILL if what == "kill" else signal.SIGTERM)
            self._due.append((now + self._draw.uniform(*DOWN_SECONDS), lambda: revive(site)))

    def _report(self, minutes: float) -> None:
        newest = {sample.site: sample for sample in self.samples}
        print(f"\n{minutes:.1f} min; " + ", ".join(f"{n} {w}" for w, n in self.happened.items()))
        print(
            f"{'site':10}{'life':>5}{'round':>7}{'RSS MB':>8}{'PSS MB':>8}{'trainer':>9}"
            f"{'tasks':>7}{'files':>7}{'threads':>8}{'journal kB':>12}{'log kB':>8}{'state kB':>10}"
        )
        for one in newest.values():
            print(
                f"{one.site:10}{one.life:>5}{one.round:>7}{one.rss_kib / 1024:>8.1f}"
                f"{one.pss_kib / 1024:>8.1f}{one.trainer_pss_kib / 1024:>9.1f}"
                f"{one.tasks:>7}{one.descriptors:>7}{one.threads:>8}{one.journal_kib:>12.0f}"
                f"{one.log_kib:>8.0f}{one.state_kib:>10.0f}",
                flush=True,
            )

    def broken(self) -> list[str]:
        """What must not have happened to any site."""
        found = [f"{site.name}: {end}" for site in self.sites for end in site.ended]
        for site in self.sites:
            text = site.log.read_text(encoding="utf-8", errors="replace")
            found += [f"{site.name}: its log holds a traceback"] if "Traceback" in text else []
            if site.last is not None:
                found += [
                    f"{site.name}: {n.name} is quarantined"
                    for n in site.last.neighbours
                    if n.quarantined
                ]
        return found

    def close(self) -> None:
        for site in self.sites:
            if site.process is not None:
                site.send(signal.SIGCONT)
                site.process.kill()
                site.process.wait()


def thaw(site: SoakSite) -> None:
    site.send(signal.SIGCONT)
    site.frozen = site.busy = False
    site.last_round_at_seconds = time.monotonic()


def revive(site: SoakSite) -> None:
    site.start()
    site.busy = False


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--sites", type=int, default=4, choices=range(4, 17), metavar="4..16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="an empty directory for every file of the run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2p-") as temporary:
        directory = arguments.keep or Path(temporary)
        soak = Soak(directory, arguments.sites, random.Random(arguments.seed))
        try:
            soak.run(arguments.minutes)
            broken = soak.broken()
        finally:
            soak.close()
    found = slopes(soak.samples, arguments.minutes)
    print_slopes(found)
    if not found:
        broken.append("too short a run to say whether anything grows")
    growing = [f"{one.site}: {one.quantity} is not flat" for one in found if not one.flat]
    if arguments.json is not None:
        document = {
            "minutes": arguments.minutes,
            "seed": arguments.seed,
            "happened": dict(soak.happened),
            "rounds": {s.name: s.last.round.number if s.last else None for s in soak.sites},
            "slopes": [{**asdict(one), "flat": one.flat} for one in found],
            "broken": broken,
            "samples": [asdict(sample) for sample in soak.samples],
        }
        arguments.json.write_text(json.dumps(document), encoding="utf-8")
    for line in (*broken, *growing):
        print(line)
    print("everything is flat" if not growing and not broken else "not everything is well")
    return 1 if growing or broken else 0


if __name__ == "__main__":
    sys.exit(main())
