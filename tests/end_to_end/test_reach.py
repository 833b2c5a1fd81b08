"""Real daemons behind walls: one of three relays for two that nobody can dial."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import Federation, Hospital

from p2pfed.daemon.status import Status

pytestmark = pytest.mark.daemons


@pytest.fixture
def walled(short_tmp: Path) -> Iterator[Federation]:
    """The file's addresses of alpha and beta are closed ports; gamma alone can be dialled."""
    with Federation(short_tmp, ["alpha", "beta", "gamma"]) as federation:
        alpha, beta, gamma = federation.hospitals
        for hospital in (alpha, beta):
            hospital.write_site(listen={"addresses": [], "mdns": False})
        gamma.write_site(relay={"enabled": True})
        yield federation


def test_two_sites_that_nobody_can_dial_learn_together_through_a_third(walled: Federation) -> None:
    walled.start()
    alpha, beta, gamma = walled.hospitals
    for hospital in (alpha, beta):
        hospital.until("both links", lambda s: all(n.state == "connected" for n in s.neighbours))
    for hospital, other in ((alpha, beta), (beta, alpha)):
        status = hospital.until(
            "a delta through the relay",
            lambda s: s.round.number >= 3 and all(n.staleness == 0 for n in s.neighbours),
        )
        relays = {n.name: n.relay for n in status.neighbours}
        assert relays == {other.name: "gamma", "gamma": None}
        assert status.healthy
        assert f"gamma (relayed, {direction(hospital, other)})" in ping(hospital, other)
        assert "(direct, outbound)" in ping(hospital, gamma)
    carrying = gamma.until_round(3)
    assert [n.relay for n in carrying.neighbours] == [None, None]
    assert carrying.relay is not None
    assert carrying.relay.circuits >= 1
    assert carrying.relay.carried_bytes > 0
    assert alpha.until_round(3).relay is None
    assert all("Traceback" not in hospital.log.read_text() for hospital in walled.hospitals)
    report = json.loads(netcheck(alpha).stdout)
    assert report["daemon_running"]
    by_name = {each["name"]: each for each in report["neighbours"]}
    assert by_name["beta"]["relay"] == "gamma"
    assert by_name["beta"]["identity"] == "proven"
    assert [each["outcome"] for each in by_name["beta"]["addresses"]] == ["refused"]
    assert "for a direct way" in by_name["beta"]["advice"][0]
    assert by_name["gamma"]["advice"] == []
    # One of the two ends has to have a place at the relay for the edge between them.
    assert "gamma" in [*report["relays"], *json.loads(netcheck(beta).stdout)["relays"]]
    beta.send(signal.SIGKILL)
    beta.wait()
    alpha.until("the loss of beta", lambda s: not linked(s, "beta"))
    broken = netcheck(alpha)
    assert broken.returncode == 1
    beta.start()
    beta.until("alpha again", lambda s: linked(s, "alpha"))
    alpha.until("beta again", lambda s: linked(s, "beta"))


@pytest.mark.slow
def test_an_edge_works_where_one_end_can_dial(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "beta"]) as federation:
        alpha, beta = federation.hospitals
        alpha.write_site(listen={"addresses": [], "mdns": False})
        beta.start()
        beta.until("a failed attempt", lambda s: "refused" in (s.neighbours[0].last_error or ""))
        alone = cli("netcheck", "--config", str(alpha.config))
        assert alone.returncode == 0, alone.stdout + alone.stderr
        assert "no daemon runs" in alone.stdout
        assert f"beta: reachable via {beta.address} (direct, outbound)" in alone.stdout
        assert "identity: proven" in alone.stdout
        alpha.start()
        beta.until_round(2)
        status = alpha.until_round(2)
        assert [n.direction for n in status.neighbours] == ["outbound"]
        assert status.healthy
        (of_alpha,) = json.loads(netcheck(beta).stdout)["neighbours"]
        assert (of_alpha["reachable"], of_alpha["can_dial_us"]) == (True, "yes")
    nobody = cli("netcheck", "--config", str(alpha.config))
    assert nobody.returncode == 1
    assert "NOT reachable" in nobody.stdout
    assert f"allow outbound TCP 127.0.0.1:{beta.port}" in nobody.stdout


def linked(status: Status, name: str) -> bool:
    return next(n for n in status.neighbours if n.name == name).state == "connected"


def netcheck(hospital: Hospital) -> subprocess.CompletedProcess[str]:
    return cli("netcheck", "--json", "--config", str(hospital.config))


def direction(hospital: Hospital, other: Hospital) -> str:
    status = hospital.status()
    assert status is not None
    (found,) = (n.direction for n in status.neighbours if n.name == other.name)
    assert found is not None
    return found


def ping(hospital: Hospital, other: Hospital) -> str:
    done = cli("ping", other.name, "--count", "1", "--config", str(hospital.config))
    assert done.returncode == 0, done.stderr
    return done.stdout


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "p2pfed", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
