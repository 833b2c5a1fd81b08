"""The topology file changes while real daemons run, and they are told to read it again.

Every phase of a round and every key of the file has its case with nodes in memory and on the file
alone (``test_nodes_reloading``, ``test_reloading``); these are the ones that need processes.
"""

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import GUARD_SECONDS, Federation, Hospital

from p2pfed.daemon.status import NeighbourStatus, Status
from p2pfed.demo.layout import free_ports
from p2pfed.errors import ControlError, ExitCode

pytestmark = [pytest.mark.daemons, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def four(short_tmp: Path) -> Iterator[Federation]:
    names = ["alpha", "beta", "gamma", "delta"]
    with Federation(short_tmp, names, round={"deadline_seconds": 30.0}) as federation:
        yield federation
        for hospital in federation.hospitals:
            if hospital.log.exists():
                log = hospital.log.read_text()
                assert "Traceback" not in log
                assert "equivocation" not in log


def reload(*hospitals: Hospital) -> list[list[str]]:
    """Have sites reload the file, one after the other; what changed for each."""
    return [hospital.link.post("/v1/reload")["changes"] for hospital in hospitals]


def partners(hospital: Hospital) -> dict[int, set[str]]:
    """Whom a running site folded in, by round."""
    journal = hospital.directory / "state" / "journal.sqlite"
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:
        records = [json.loads(row[0]) for row in database.execute("SELECT record FROM history")]
    return {record["round"]: set(record["weights"]) for record in records}


def neighbour(status: Status, name: str) -> NeighbourStatus:
    [found] = [n for n in status.neighbours if n.name == name]
    return found


def until_folded_in(hospital: Hospital, *names: str) -> Status:
    """Until the next rounds are done with exactly these neighbours, whose models are fresh: those
    of the round before, as long as a round's own have not come."""
    return hospital.until(
        f"rounds with {', '.join(names)}",
        lambda s: (
            {n.name for n in s.neighbours if n.weight > 0} == set(names)
            and not s.round.degraded
            and all(n.staleness in (0, 1) for n in s.neighbours)
        ),
    )


def test_a_site_joins_a_running_federation_and_another_leaves_it(four: Federation) -> None:
    alpha, beta, gamma, delta = four.hospitals
    four.write_topology(members=(alpha, beta, gamma))
    for hospital in (alpha, beta, gamma):
        hospital.start()
    alpha.until_round(2)
    four.write_topology()
    for changes in reload(alpha, beta, gamma):
        assert "+ peer delta" in changes
    delta.start()
    for hospital in four.hospitals:
        until_folded_in(hospital, *({h.name for h in four.hospitals} - {hospital.name}))
    # It may have begun alone, and went on where the others were.
    assert 1 not in partners(delta)

    four.write_topology(members=(alpha, beta, delta))
    digest = gamma.until_round(0).topology.digest
    for changes in reload(alpha, beta, delta):
        assert "- peer gamma" in changes
    left_after = max(hospital.until_round(0).round.number for hospital in (alpha, beta, delta))
    for hospital in (alpha, beta, delta):
        hospital.until_round(left_after + 2)
        later = {r: them for r, them in partners(hospital).items() if r > left_after}
        assert later
        assert not any("gamma" in them for them in later.values())
        names = {n.name for n in hospital.until_round(0).neighbours}
        assert names == {"alpha", "beta", "delta"} - {hospital.name}
    status = gamma.until(
        "three refusals", lambda s: all(n.refusal is not None for n in s.neighbours)
    )
    for other in status.neighbours:
        assert f"{other.name} refuses: {other.name} now has topology file" in (other.refusal or "")
        assert "lacks gamma's key" in (other.refusal or "")
    assert any("this site is alone" in line.problem for line in status.health)
    with pytest.raises(ControlError, match="this site, gamma, was taken out"):
        reload(gamma)
    assert gamma.until_round(0).topology.digest == digest


def test_edges_come_and_go_and_one_site_alone_cannot_change_them(four: Federation) -> None:
    alpha, beta, gamma, delta = four.hospitals

    def edges(*pairs: str) -> dict[str, Any]:
        return {"kind": "explicit", "edges": [pair.split("-") for pair in pairs]}

    ring = ("alpha-beta", "beta-gamma", "gamma-delta", "delta-alpha")
    four.write_topology(graph=edges(*ring))
    four.start()
    until_folded_in(alpha, "beta", "delta")
    four.write_topology(graph=edges(*ring, "alpha-gamma"))
    assert reload(alpha) == [["+ edge alpha - gamma"]]
    status = alpha.until(
        "a refusal of each", lambda s: all(n.refusal is not None for n in s.neighbours)
    )
    assert {n.name for n in status.neighbours} == {"beta", "gamma", "delta"}
    assert "no neighbour of yours" in (neighbour(status, "gamma").refusal or "")
    for hospital in (beta, delta):
        status = hospital.until("the refusal", lambda s: neighbour(s, "alpha").refusal is not None)
        refusal = neighbour(status, "alpha").refusal or ""
        assert "topology file differs" in refusal
        assert status.topology.digest[:12] in refusal
        assert "p2pfed reload" in refusal
    # The three others have a quorum without it.
    gamma.until_round(gamma.until_round(0).round.number + 2)

    reload(beta, gamma, delta)
    until_folded_in(alpha, "beta", "gamma", "delta")
    until_folded_in(gamma, "beta", "delta", "alpha")

    four.write_topology(graph=edges("alpha-beta", "beta-gamma", "alpha-gamma", "alpha-delta"))
    assert reload(gamma, alpha, beta, delta) == [["- edge delta - gamma"]] * 4
    until_folded_in(gamma, "alpha", "beta")
    until_folded_in(delta, "alpha")
    for hospital in four.hospitals:
        assert all(n.state == "connected" for n in hospital.until_round(0).neighbours)


def test_a_site_moves_to_another_address(four: Federation) -> None:
    alpha, beta, gamma, delta = four.hospitals
    four.start()
    until_folded_in(alpha, "beta", "gamma", "delta")
    beta.send(signal.SIGTERM)
    assert beta.wait() == 0
    [beta.port] = free_ports(1)
    before, beta.address = beta.address, f"/ip4/127.0.0.1/tcp/{beta.port}"
    beta.write_site()
    four.write_topology()
    for [change] in reload(alpha, gamma, delta):
        assert change == f"~ peer beta: addresses: {before} -> {beta.address}"
    beta.start()
    until_folded_in(beta, "alpha", "gamma", "delta")
    for hospital in (alpha, gamma, delta):
        status = until_folded_in(hospital, *({"alpha", "gamma", "delta", "beta"} - {hospital.name}))
        link = neighbour(status, "beta")
        if link.direction == "outbound":
            assert link.address == beta.address


def test_the_pace_changes_in_the_midst_of_a_round(four: Federation) -> None:
    alpha, beta, gamma, delta = four.hospitals
    others = (alpha, beta, gamma)
    slow = {"deadline_seconds": 3000.0, "quorum": 1.0, "max_staleness": 0}
    four.write_topology(round=slow)
    four.start()
    until_folded_in(alpha, "beta", "gamma", "delta")
    delta.send(signal.SIGKILL)
    delta.wait()
    stuck = alpha.until(
        "a round that waits",
        lambda s: s.round.phase == "collecting" and neighbour(s, "delta").state != "connected",
    )
    assert (stuck.round.deadline_in_seconds or 0.0) > 2000.0
    four.write_topology(round={**slow, "deadline_seconds": 1.0})
    for changes in reload(*others):
        assert changes == ["~ round.deadline_seconds: 3000.0 -> 1.0"]
    status = alpha.until(
        "a deadline that passed",
        lambda s: s.round.phase == "collecting" and any("quorum" in h.problem for h in s.health),
    )
    assert status.round.number <= stuck.round.number + 1
    four.write_topology(round={**slow, "deadline_seconds": 1.0, "quorum": 0.5})
    reload(*others)
    for hospital in others:
        reached = hospital.until_round(status.round.number + 2).round.number
        # A silent site's last model is not used at all any more.
        assert "delta" not in partners(hospital)[reached - 1]
    delta.start()
    until_folded_in(delta, "alpha", "beta", "gamma")


def cli_reload(hospital: Hospital) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "p2pfed", "reload", "--config", str(hospital.config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=GUARD_SECONDS,
    )


def test_what_cannot_change_is_refused_by_name_and_the_rounds_go_on(four: Federation) -> None:
    alpha, *_ = four.hospitals
    four.start()
    before = until_folded_in(alpha, "beta", "gamma", "delta")
    file = four.topology
    good = file.read_text()

    def refused(*says: str) -> None:
        done = cli_reload(alpha)
        assert done.returncode == ExitCode.CONFIGURATION
        for text in (str(file), *says):
            assert text in done.stderr
        assert alpha.until_round(0).topology.digest == before.topology.digest

    four.write_topology(codec={"name": "float32"}, round={"deadline_seconds": 1.0})
    refused("codec.name = 'float32'", "in force is 'int8'", "stop every site")
    four.write_topology(aggregation={"rule": "mean"}, federation={"name": "other"})
    refused("aggregation.rule = 'mean'", "federation.name = 'other'")
    file.write_text(good + "[[peer]\n")
    refused("line ")
    four.write_topology(round={"deadline_seconds": -1.0})
    refused("round.deadline_seconds")
    file.unlink()
    refused("no such file")
    file.write_text("[[peer]\n")
    alpha.send(signal.SIGHUP)
    reached = alpha.until(
        "the refusal", lambda _: bool(alpha.events("reload refused, nothing changed"))
    )
    [event] = alpha.events("reload refused, nothing changed")
    assert str(file) in event["reason"]
    assert reached.topology.digest == before.topology.digest
    file.write_text(good)
    assert reload(alpha) == [["nothing changed"]]
    for hospital in four.hospitals:
        status = hospital.until_round(reached.round.number + 2)
        assert all(n.state == "connected" for n in status.neighbours)
        assert not hospital.events("link down")


def shuffled(generator: np.random.Generator, hospitals: Iterable[Hospital]) -> list[Hospital]:
    hospitals = list(hospitals)
    return [hospitals[index] for index in generator.permutation(len(hospitals))]


def test_a_storm_of_reloads_ends_with_everybody_in_every_round(four: Federation) -> None:
    """In whatever phase each site is, in whatever order they hear of it, often in a hurry."""
    alpha, *_ = four.hospitals
    four.start()
    until_folded_in(alpha, "beta", "gamma", "delta")
    generator = np.random.default_rng(4)
    ring = {"kind": "ring"}
    for number in range(15):
        if number % 3 == 0:
            four.write_topology(graph=ring)
        elif number % 3 == 1:
            four.write_topology(round={"deadline_seconds": 20.0 + number})
        else:
            four.write_topology(graph=ring, round={"deadline_seconds": 5.0, "local_steps": 2})
        reload(*shuffled(generator, four.hospitals))
        if number % 5 == 4:
            reached = alpha.until_round(0).round.number
            for hospital in four.hospitals:
                hospital.until_round(reached + 2)
    four.write_topology()
    reload(*shuffled(generator, four.hospitals))
    for hospital in four.hospitals:
        status = until_folded_in(hospital, *({h.name for h in four.hospitals} - {hospital.name}))
        assert not any(n.quarantined for n in status.neighbours)
        assert status.totals.deltas_rejected == 0
