"""Relays in the topology file, and what a check says of those who cannot reach each other."""

from pathlib import Path
from typing import Any

import pytest
from topology_documents import document, identity, load

from p2pfed.errors import ConfigurationError
from p2pfed.topology.file import circuit_address, relay_of
from p2pfed.topology.lint import check


def through(name: str) -> str:
    return circuit_address(identity(name).peer_id)


def with_addresses(**addresses: list[str]) -> dict[str, Any]:
    """Sites a to d in a ring; those that are not named keep their direct address."""
    content = document()
    for peer in content["peer"]:
        peer["addresses"] = addresses.get(peer["name"], peer["addresses"])
    return content


def warnings(directory: Path, **addresses: list[str]) -> list[str]:
    found = check(load(directory, with_addresses(**addresses))).warnings
    return [each for each in found if "address" in each]


def test_a_circuit_address_names_its_relay() -> None:
    peer_id = identity("a").peer_id
    assert relay_of(circuit_address(peer_id)) == peer_id
    assert relay_of("/ip4/192.0.2.1/tcp/7400") is None
    assert relay_of("/p2p/x/p2p-circuit/p2p/y") is None


def test_addresses_through_a_member_are_taken(tmp_path: Path) -> None:
    topology = load(tmp_path, with_addresses(a=[through("c"), through("a")]))
    assert topology.peer("a").addresses == (through("c"), through("a"))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (through("z"), "no peer of this file"),
        ("/p2p/nobody/p2p-circuit", "peer id"),
        (f"/ip4/192.0.2.1/tcp/1{through('c')}", "alone"),
    ],
)
def test_what_is_no_relay_of_this_federation_is_refused(
    address: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, with_addresses(a=[address]))
    (problem,) = caught.value.problems
    assert problem.key == "peer[0].addresses[0]"
    assert says in str(problem)


def test_an_edge_that_neither_end_can_make_is_warned_about(tmp_path: Path) -> None:
    (warning,) = warnings(tmp_path, a=[], b=[])
    assert "a and b" in warning
    assert "relays" in warning
    assert warnings(tmp_path, a=[], c=[]) == []  # no neighbours in this ring


def test_a_relay_makes_the_edge_possible(tmp_path: Path) -> None:
    direct = "/ip4/192.0.2.9/tcp/7400"
    assert warnings(tmp_path, a=[], b=[through("c")]) == []
    assert warnings(tmp_path, a=[], b=[], d=[direct, through("d")]) == []
    # To relay for others is no address of one's own.
    assert warnings(tmp_path, a=[], b=[], d=[through("d")]) == [
        "d is to relay, but has no address at which it can be dialled"
    ]
