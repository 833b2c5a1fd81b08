"""What an IT engineer is told about the network."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
import trio
from relayed_sites import Triple
from transport_doubles import Site as Peer
from transport_doubles import identity, running

from p2pfed.cli.netcheck import render
from p2pfed.config import Site, load_site
from p2pfed.daemon.addresses import AddressBook
from p2pfed.daemon.netcheck import NeighbourCheck, Report, check_alone, check_running, probe
from p2pfed.keys import format_public_key
from p2pfed.topology import Topology, load_topology
from p2pfed.topology.file import circuit_address

NUMBERS = {"alpha": 1, "beta": 2, "gamma": 3}
UNROUTED = "/ip6/100::1/tcp/7400"  # RFC 6666: packets to it are discarded


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port whose connections are neither accepted nor refused: its queue is full."""
    with socket.socket() as listener, socket.socket() as filler:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        filler.connect(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port: int = probe_socket.getsockname()[1]
        return port


async def test_every_outcome_of_a_connection_has_its_plain_name(
    open_port: int, closed_port: int, silent_port: int
) -> None:
    for address, outcome, says in (
        (f"/ip4/127.0.0.1/tcp/{open_port}", "open", "open"),
        (f"/dns4/localhost/tcp/{open_port}", "open", "open"),
        (f"/ip4/127.0.0.1/tcp/{closed_port}", "refused", "refuses"),
        (f"/ip4/127.0.0.1/tcp/{silent_port}", "timed out", "within 0.3 s"),
        ("/dns/no-such-host.invalid/tcp/7400", "unknown name", "no-such-host.invalid"),
        ("/unix/tmp", "failed", "an address looks like"),
    ):
        check = await probe(address, 0.3 if outcome == "timed out" else 20.0)
        assert (check.address, check.outcome) == (address, outcome), check.detail
        assert says in check.detail


@pytest.mark.parametrize("error", [101, 113])
async def test_a_network_without_a_route_is_named(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(self: object, address: object) -> None:
        raise OSError(error, "unreachable")

    monkeypatch.setattr("trio._socket._SocketType.connect", unreachable)
    assert (await probe(UNROUTED)).outcome == "no route"


def files(
    directory: Path, addresses: dict[str, list[str]], **tables: object
) -> tuple[Site, Topology]:
    """Alpha's site file, and a topology in which all are neighbours."""
    document = {
        "schema_version": 1,
        "federation": {"name": "test"},
        "graph": {"kind": "complete"},
        "task": {"kind": "tabular"},
        "peer": [
            {
                "name": name,
                "key": format_public_key(identity(NUMBERS[name]).public_key),
                "addresses": listed,
            }
            for name, listed in addresses.items()
        ],
    }
    (directory / "topology.toml").write_text(tomli_w.dumps(document))
    (directory / "site.toml").write_text(
        tomli_w.dumps({"schema_version": 1, "name": "alpha", **tables})
    )
    return load_site(directory / "site.toml"), load_topology(directory / "topology.toml")


async def examine(
    directory: Path, addresses: dict[str, list[str]], **tables: object
) -> dict[str, NeighbourCheck]:
    """Alpha alone, without a daemon; by neighbour."""
    site, topology = files(directory, addresses, **tables)
    alpha = identity(NUMBERS["alpha"])
    report = await check_alone(site, topology, alpha.seed, alpha.peer_id)
    assert Report.from_json(report.to_json()) == report
    assert not report.daemon_running
    assert report.ok == all(each.reachable for each in report.neighbours)
    assert "\n".join(render(report)).count("reachable") >= len(report.neighbours)
    return {each.name: each for each in report.neighbours}


async def test_neighbours_that_answer_with_their_key_are_reachable(tmp_path: Path) -> None:
    beta, gamma = Peer(2), Peer(3)
    alpha = Peer(1, listen=())
    async with running(beta, gamma):
        for peer in (beta, gamma):
            peer.transport.set_roster([alpha.peer_id])
        found = await examine(
            tmp_path, {"alpha": [], "beta": [beta.address], "gamma": [gamma.address]}
        )
    for name, peer in (("beta", beta), ("gamma", gamma)):
        check = found[name]
        assert check.reachable
        assert check.identity == "proven"
        assert check.path == f"{peer.address} (direct, outbound)"
        assert check.round_trip_seconds is not None
        assert check.can_dial_us == "unknown"
        assert check.advice == []


async def test_another_key_a_closed_port_and_no_address_each_get_their_advice(
    tmp_path: Path, closed_port: int
) -> None:
    stranger = Peer(9)
    async with running(stranger):
        stranger.transport.set_roster([identity(1).peer_id])
        found = await examine(
            tmp_path,
            {
                "alpha": [],
                "beta": [stranger.address],
                "gamma": [f"/ip4/127.0.0.1/tcp/{closed_port}"],
            },
            listen={"addresses": ["/ip4/127.0.0.1/tcp/4100"]},
        )
    beta, gamma = found["beta"], found["gamma"]
    assert not beta.reachable
    assert beta.identity == "another key"
    assert "something else answers" in beta.advice[0]
    assert gamma.identity == "not checked"
    assert f"allow outbound TCP 127.0.0.1:{closed_port}" in gamma.advice[0]
    assert "inbound TCP 4100 here from gamma" in gamma.advice[0]
    found = await examine(tmp_path, {"alpha": [], "beta": []}, listen={"addresses": []})
    first, second = found["beta"].advice
    assert "gives no address" in first
    assert "set listen.addresses" in first
    assert "a member that relays" in second


async def test_a_silent_address_says_what_to_open_on_which_side(
    tmp_path: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pfed.daemon.netcheck.probe.__defaults__", (0.3,))
    found = await examine(tmp_path, {"alpha": [], "beta": [f"/ip4/127.0.0.1/tcp/{silent_port}"]})
    (advice,) = found["beta"].advice
    assert advice == (
        f"open outbound TCP 127.0.0.1:{silent_port} to beta, or inbound TCP 7400 here from beta; "
        "one of the two is enough"
    )


async def test_an_open_port_without_a_session_is_not_called_reachable(tmp_path: Path) -> None:
    beta = Peer(2)
    async with running(beta):  # alpha is not on its roster
        found = await examine(tmp_path, {"alpha": [], "beta": [beta.address]})
    assert not found["beta"].reachable
    assert found["beta"].addresses[0].outcome == "open"
    assert "its own copy of the topology file" in (found["beta"].detail or "")
    assert "no session with beta" in found["beta"].advice[0]


async def test_without_a_daemon_relays_are_tried_as_well(tmp_path: Path, closed_port: int) -> None:
    triple = Triple()
    async with running(*triple.sites):
        await triple.reserve(triple.beta)
        found = await examine(
            tmp_path,
            {
                "alpha": [],
                "beta": [f"/ip4/127.0.0.1/tcp/{closed_port}", triple.address],
                "gamma": [triple.gamma.address],
            },
        )
    beta = found["beta"]
    assert beta.reachable
    assert beta.relay == "gamma"
    assert beta.path == "gamma (relayed, outbound)"
    assert beta.relays == ["gamma"]
    assert beta.advice[0].startswith("works through gamma; for a direct way: ")


async def test_own_ports_that_another_program_has_are_named(tmp_path: Path, open_port: int) -> None:
    site, topology = files(
        tmp_path,
        {"alpha": [], "beta": []},
        listen={"addresses": [f"/ip4/127.0.0.1/tcp/{open_port}"]},
    )
    report = await check_alone(site, topology, identity(1).seed, identity(1).peer_id)
    (own,) = report.listen
    assert own.state == "taken"
    assert str(open_port) in own.detail
    assert f"listens on {own.address}: taken" in "\n".join(render(report))


async def test_what_other_sites_wrote_does_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    check = await probe("/ip4/\x1b[2J/tcp/7400\r")
    assert check.outcome == "failed"
    site, topology = files(tmp_path, {"alpha": [], "beta": []})
    report = await check_alone(site, topology, identity(1).seed, identity(1).peer_id)
    report.neighbours[0].addresses.append(check)
    assert all(line.isprintable() for line in render(report))


class NoLinks:
    """The links of a daemon that has none up."""

    def __init__(self) -> None:
        self.nudged = False

    def nudge_all(self) -> None:
        self.nudged = True

    def state(self, peer_id: str) -> None:
        return None


async def test_a_running_daemon_tells_whom_it_hears_and_tries_the_others_again(
    tmp_path: Path,
) -> None:
    alpha, beta, gamma = Peer(1), Peer(2), Peer(3)
    async with running(alpha, beta):
        await beta.dial(alpha)
        await alpha.recorder.wait("connected", beta.peer_id)
        site, topology = files(
            tmp_path,
            {"alpha": [], "beta": [], "gamma": [circuit_address(beta.peer_id)]},
            listen={"addresses": [alpha.address]},
        )
        links = NoLinks()
        report = await check_running(
            site,
            topology,
            alpha.peer_id,
            links=links,  # type: ignore[arg-type]
            transport=alpha.transport,
            book=AddressBook({peer.peer_id_text: peer.addresses for peer in topology.file.peers}),
            relays_held=[gamma.peer_id],
        )
    assert links.nudged
    assert report.daemon_running
    assert report.relays == ["gamma"]
    assert [own.state for own in report.listen] == ["bound"]
    of_beta, of_gamma = report.neighbours
    assert (of_beta.reachable, of_beta.can_dial_us) == (True, "yes")
    assert (of_gamma.reachable, of_gamma.can_dial_us) == (False, "unknown")
    assert of_gamma.relays == ["beta"]
    assert not report.ok


async def test_nothing_of_an_examination_is_left_running(tmp_path: Path) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    await examine(tmp_path, {"alpha": [], "beta": []})
    assert trio.lowlevel.current_statistics().tasks_living == before
