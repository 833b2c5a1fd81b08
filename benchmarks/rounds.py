"""Rounds of real daemons on loopback: time outside training, bytes, memory, idle traffic.

    python benchmarks/rounds.py [--peers 4] [--megabytes 0.1] [--graph complete] [--rounds 12]
                                [--codec int8] [--idle-seconds 10]

Model size is that of its float32 parameters. "outside training" is everything of a round but the
local steps: publish (encode, seal, sign, make durable), collect, aggregate, evaluate, commit.
Bytes a peer a round are compared with degree x encoded size.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

from p2pfed.config import load_site
from p2pfed.daemon.status import Status
from p2pfed.demo.daemons import Daemons, RunningSite
from p2pfed.demo.layout import free_ports
from p2pfed.keys import create_identity, format_public_key
from p2pfed.protocol.codecs import get_codec

POLL_SECONDS = 0.05
WARM_UP_ROUNDS = 2  # kernels are compiled, links made
PAGE_BYTES = 4096


def write_federation(directory: Path, arguments: argparse.Namespace) -> list[Path]:
    names = [f"site-{number}" for number in range(arguments.peers)]
    peers: list[dict[str, Any]] = []
    files: list[Path] = []
    for name, port in zip(names, free_ports(len(names)), strict=True):
        identity = create_identity(directory / name / "keys")
        address = f"/ip4/127.0.0.1/tcp/{port}"
        peers.append(
            {"name": name, "key": format_public_key(identity.public_key), "addresses": [address]}
        )
        site = {
            "schema_version": 1,
            "name": name,
            "topology": "../topology.toml",
            "listen": {"addresses": [address], "mdns": False},
            "task": {"path": str(Path(__file__).parent)},
        }
        files.append(directory / name / "site.toml")
        files[-1].write_text(tomli_w.dumps(site))
    topology = {
        "schema_version": 1,
        "federation": {"name": "benchmark"},
        "graph": {"kind": arguments.graph},
        "round": {"rounds": arguments.rounds, "local_steps": 1, "deadline_seconds": 300.0},
        "codec": {"name": arguments.codec},
        "task": {
            "kind": "python",
            "class": "flat_task:Flat",
            "options": {
                "parameters": parameters_of(arguments),
                "batch_size": 8,
                "momentum": 0.0,
            },
        },
        "peer": peers,
    }
    (directory / "topology.toml").write_text(tomli_w.dumps(topology))
    return files


def parameters_of(arguments: argparse.Namespace) -> int:
    return max(1, int(arguments.megabytes * 1e6 / 4))


def watch(site: RunningSite) -> Status:
    """Its status once it answers."""
    while (status := site.status()) is None:
        time.sleep(POLL_SECONDS)
    return status


def follow(daemons: Daemons, rounds: int) -> tuple[list[dict[str, float]], dict[str, Status]]:
    """Each observed round's phase seconds at every site, and the last statuses."""
    seen: dict[tuple[str, int], dict[str, float]] = {}
    last: dict[str, Status] = {}
    while True:
        for site in daemons.running:
            last[site.name] = status = watch(site)
            if status.round.number > WARM_UP_ROUNDS:
                seen[site.name, status.round.number] = status.round.last_seconds
        if all(status.round.number >= rounds for status in last.values()):
            return list(seen.values()), last
        time.sleep(POLL_SECONDS)


def memory_megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * PAGE_BYTES / 1e6


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--megabytes", type=float, default=0.1)
    parser.add_argument("--graph", default="complete")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--idle-seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2p-") as temporary:
        files = write_federation(Path(temporary), arguments)
        sites = tuple(load_site(path) for path in files)
        started = time.monotonic()
        with Daemons(sites) as daemons:
            for site in daemons.running:
                watch(site)
            answered = time.monotonic() - started
            phases, last = follow(daemons, arguments.rounds)
            report(arguments, phases, last, answered)
            report_idle(arguments, daemons)


def report(
    arguments: argparse.Namespace,
    phases: list[dict[str, float]],
    last: dict[str, Status],
    answered: float,
) -> None:
    outside = [sum(s for phase, s in one.items() if phase != "training") for one in phases]
    status = next(iter(last.values()))
    degree = len(status.neighbours)
    encoded = get_codec(arguments.codec).payload_bytes(parameters_of(arguments))
    sent = statistics.mean(one.totals.bytes_sent for one in last.values()) / arguments.rounds
    print(
        f"{arguments.peers} peers, {arguments.graph}, {arguments.megabytes:g} MB, "
        f"{arguments.codec}: all daemons answered after {answered:.1f} s"
    )
    print(
        f"  round outside training: median {statistics.median(outside):.3f} s, "
        f"fastest {min(outside):.3f}, slowest {max(outside):.3f} ({len(outside)} seen)"
    )
    for phase in ("publishing", "collecting", "aggregating", "committing"):
        print(f"    {phase:12} {statistics.median(one.get(phase, 0.0) for one in phases):.3f} s")
    print(
        f"  sent a peer a round: {sent:.0f} bytes, {sent / (degree * encoded):.2f} x "
        f"degree x encoded size ({degree} x {encoded})"
    )


def report_idle(arguments: argparse.Namespace, daemons: Daemons) -> None:
    if arguments.idle_seconds <= 0:
        return
    before = [watch(site) for site in daemons.running]
    used = [processor_seconds(status.site.pid) for status in before]
    began = time.monotonic()
    time.sleep(arguments.idle_seconds)  # the measurement itself: what happens when nothing does
    seconds = time.monotonic() - began
    after = [watch(site) for site in daemons.running]
    sent = statistics.mean(
        (b.totals.bytes_sent - a.totals.bytes_sent) / seconds
        for a, b in zip(before, after, strict=True)
    )
    cores = statistics.mean(
        (processor_seconds(status.site.pid) - earlier) / seconds
        for status, earlier in zip(after, used, strict=True)
    )
    memory = statistics.mean(memory_megabytes(status.site.pid) for status in after)
    print(
        f"  idle: {sent:.0f} bytes/s a peer, {100 * cores:.1f} % of a core, "
        f"{memory:.0f} MB in the daemon without its trainer"
    )
    config = str(daemons.running[0].site.path)
    command = [sys.executable, "-m", "p2pfed", "status", "--json", "--config", config]
    times = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run(command, capture_output=True, check=False)
        times.append(time.monotonic() - began)
    print(f"  p2pfed status: median {statistics.median(times):.2f} s")


if __name__ == "__main__":
    main()
