"""Real daemons on loopback for tests: small hospitals with generated data."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from p2pfed.daemon.control_link import DaemonLink
from p2pfed.daemon.status import Status
from p2pfed.demo.layout import free_ports
from p2pfed.errors import ControlError
from p2pfed.keys import create_identity, format_public_key

GUARD_SECONDS = 120.0  # how long a condition may take before the test fails; never slept through
POLL_SECONDS = 0.05


def write_data(path: Path, seed: int, rows: int = 120) -> None:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, 2))
    noise = generator.normal(scale=0.5, size=rows)
    labels = (features @ [1.0, -1.0] + noise > 0).astype(int)
    lines = ["a,b,outcome"]
    lines += [f"{a:.4f},{b:.4f},{y}" for (a, b), y in zip(features, labels, strict=True)]
    path.write_text("\n".join(lines) + "\n")


TASK = {
    "kind": "tabular",
    "seed": 0,
    "options": {
        "label": "outcome",
        "model": "logistic_regression",
        "batch_size": 16,
        "learning_rate": 0.1,
        "columns": [
            {"name": name, "kind": "numeric", "centre": 0.0, "scale": 1.0, "missing": "refuse"}
            for name in ("a", "b")
        ],
    },
}


class Hospital:
    """One site's directory and, while it runs, its daemon process."""

    def __init__(self, directory: Path, name: str, port: int) -> None:
        self.name = name
        self.directory = directory / name
        self.config = self.directory / "site.toml"
        self.address = f"/ip4/127.0.0.1/tcp/{port}"
        self.port = port
        self.identity = create_identity(self.directory / "keys")
        self.process: subprocess.Popen[str] | None = None
        self.link = DaemonLink(self.directory / "state" / "control.sock")
        self.log = self.directory / "daemon.log"

    @property
    def peer(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "key": format_public_key(self.identity.public_key),
            "addresses": [self.address],
        }

    def write_site(self, **changes: Any) -> None:
        document: dict[str, Any] = {
            "schema_version": 1,
            "name": self.name,
            "topology": "../topology.toml",
            "listen": {"addresses": [self.address], "mdns": False},
            "data": {"path": "data.csv"},
        }
        self.config.write_text(tomli_w.dumps({**document, **changes}))

    def start(self, *arguments: str) -> None:
        """Start the daemon, or what else Python is to run with ``arguments``."""
        arguments = arguments or ("-m", "p2pfed", "run", "--config", str(self.config))
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )

    def status(self) -> Status | None:
        try:
            return Status.from_json(self.link.get("/v1/status"))
        except ControlError:
            return None

    def until(self, what: str, holds: Callable[[Status], bool]) -> Status:
        """Wait for a condition on the status; the daemon must not end meanwhile."""
        until = time.monotonic() + GUARD_SECONDS
        while time.monotonic() < until:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended: {self.log.read_text()[-2000:]}"
            status = self.status()
            if status is not None and holds(status):
                return status
            time.sleep(POLL_SECONDS)
        raise AssertionError(f"{self.name}: {what} did not come; {self.log.read_text()[-2000:]}")

    def until_round(self, number: int) -> Status:
        return self.until(f"round {number}", lambda status: status.round.number >= number)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        code = self.process.wait(GUARD_SECONDS)
        self.process = None
        return code

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event.get("event") == name]

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Federation:
    """Several hospitals and their topology file; leaves no process behind."""

    def __init__(self, directory: Path, names: Iterable[str], **tables: Any) -> None:
        names = list(names)
        self.directory = directory
        self.topology = directory / "topology.toml"
        ports = free_ports(len(names))
        self.hospitals = [
            Hospital(directory, name, port) for name, port in zip(names, ports, strict=True)
        ]
        for seed, hospital in enumerate(self.hospitals):
            write_data(hospital.directory / "data.csv", seed)
            hospital.write_site()
        self.tables = tables
        self.write_topology()

    def write_topology(
        self,
        path: Path | None = None,
        members: Iterable[Hospital] | None = None,
        **changes: Any,
    ) -> None:
        """Write the file that all sites share, or another one; with some of the hospitals in it
        or, by default, with all."""
        document = {
            "schema_version": 1,
            "federation": {"name": "test"},
            "graph": {"kind": "complete"},
            "round": {"deadline_seconds": 5.0},
            "task": TASK,
            **self.tables,
            **changes,
            "peer": [
                hospital.peer for hospital in (self.hospitals if members is None else members)
            ],
        }
        (path or self.topology).write_text(tomli_w.dumps(document))

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *_: object) -> None:
        for hospital in self.hospitals:
            hospital.kill()

    def start(self) -> None:
        for hospital in self.hospitals:
            hospital.start()


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
