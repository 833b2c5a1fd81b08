"""Clocks that are stepped and sites that move."""

from pathlib import Path

import pytest
from conditions import (
    goes_on,
    nobody_was_held_up,
    nothing_broke,
    start,
    until_connected,
)
from federation import Federation, Hospital

from p2pfed.demo.layout import free_ports

pytestmark = pytest.mark.daemons

DAY_SECONDS = 86_400
PROGRAM = (str(Path(__file__).with_name("shifted_clock.py")),)


def set_clock(hospital: Hospital, seconds: float) -> None:
    """Let a daemon's clock, and that of its later lives, be off by so much."""
    new = hospital.directory / "clock.new"
    new.write_text(str(seconds))
    new.rename(hospital.directory / "clock")


def start_with_clock(hospital: Hospital) -> None:
    clock = {"P2PFED_TEST_CLOCK": str(hospital.directory / "clock")}
    start(hospital, environment=clock, program=PROGRAM)


def move(hospital: Hospital, port: int) -> None:
    """Let a site that is down listen elsewhere, with the topology file as it was."""
    address = f"/ip4/127.0.0.1/tcp/{port}"
    hospital.write_site(listen={"addresses": [address], "mdns": False})


@pytest.mark.slow
def test_sites_that_restart_elsewhere_are_found_with_the_topology_file_as_it_was(
    three: Federation,
) -> None:
    three.start()
    alpha, beta, gamma = three.hospitals
    goes_on(three.hospitals)
    first, second, third = free_ports(3)
    beta.kill()
    move(beta, first)
    beta.start()
    goes_on(three.hospitals)
    nobody_was_held_up((alpha, gamma))
    # Neither of two that moved can dial the other: only gamma, which waits for its quorum
    # meanwhile, will know where they are.
    for hospital in (alpha, beta):
        hospital.kill()
    move(alpha, second)
    move(beta, third)
    for hospital in (alpha, beta):
        hospital.start()
    goes_on(three.hospitals)
    status = until_connected(alpha, "beta")
    [towards_beta] = [one for one in status.neighbours if one.name == "beta"]
    if towards_beta.direction == "outbound":
        assert towards_beta.address == f"/ip4/127.0.0.1/tcp/{third}"
    nothing_broke(three)


@pytest.mark.slow
@pytest.mark.parametrize("days", [1, pytest.param(-1, marks=pytest.mark.slow)])
def test_a_clock_that_is_stepped_by_a_day_stops_nobody(three: Federation, days: int) -> None:
    for hospital in three.hospitals:
        set_clock(hospital, 0)
        start_with_clock(hospital)
    alpha, beta, gamma = three.hospitals
    goes_on(three.hospitals)
    set_clock(alpha, days * DAY_SECONDS)
    goes_on(three.hospitals)
    # A restart, when links, certificates and address records are made anew under that clock.
    alpha.kill()
    start_with_clock(alpha)
    goes_on(three.hospitals)
    set_clock(alpha, 0)
    goes_on(three.hospitals)
    nothing_broke(three)
    nobody_was_held_up((beta, gamma))


@pytest.mark.slow
def test_sites_whose_clocks_were_a_day_ahead_are_found_where_they_move_to(
    three: Federation,
) -> None:
    alpha, beta, gamma = three.hospitals
    for hospital in three.hospitals:
        set_clock(hospital, 0 if hospital is gamma else DAY_SECONDS)
        start_with_clock(hospital)
    goes_on(three.hospitals)
    ports = free_ports(2)
    for hospital, port in zip((alpha, beta), ports, strict=True):
        hospital.kill()
        set_clock(hospital, 0)
        move(hospital, port)
    for hospital in (alpha, beta):
        start_with_clock(hospital)
    goes_on(three.hospitals)
    nothing_broke(three)
