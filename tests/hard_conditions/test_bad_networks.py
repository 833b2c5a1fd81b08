"""Networks that lose, block and swallow packets."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conditions import (
    goes_on,
    nobody_was_held_up,
    nothing_broke,
    until_connected,
    until_said,
)
from federation import GUARD_SECONDS, Federation
from namespaces import (
    SmallNetwork,
    network_or_skip,
    no_inbound_connections,
    random_loss,
    silence_from,
)

pytestmark = pytest.mark.daemons

LOSS = 0.2
CAP_KILOBITS_PER_SECOND = 512


@pytest.fixture
def network(three: Federation) -> Iterator[SmallNetwork]:
    network = network_or_skip(three)
    yield network
    network.close()


@pytest.mark.slow
def test_an_edge_whose_packets_vanish_is_noticed_at_both_ends_and_made_again(
    three: Federation, network: SmallNetwork
) -> None:
    for hospital in three.hospitals:
        network.start(hospital)
    alpha, beta, gamma = three.hospitals
    for hospital in three.hospitals:
        until_connected(hospital, *({"alpha", "beta", "gamma"} - {hospital.name}))
    network.filter("alpha", silence_from(network.addresses["beta"]))
    network.filter("beta", silence_from(network.addresses["alpha"]))
    for here, there in ((alpha, "beta"), (beta, "alpha")):
        line = until_said(here, f"{there} is not connected")
        assert line.command == f"p2pfed ping {there}"
    apart = gamma.until_round(0)
    assert [one.state for one in apart.neighbours] == ["connected", "connected"]
    # Each still has gamma, and a quorum with it.
    for hospital in three.hospitals:
        hospital.until_round(apart.round.number + 3)
    network.clear("alpha")
    network.clear("beta")
    goes_on(three.hospitals)
    nothing_broke(three)
    nobody_was_held_up(three.hospitals)


@pytest.mark.slow
def test_a_site_that_one_other_cannot_hear_is_waited_for_while_a_third_hears_it(
    short_tmp: Path,
) -> None:
    names = ["alpha", "beta", "gamma"]
    with (
        Federation(short_tmp, names, round={"deadline_seconds": 2 * GUARD_SECONDS}) as federation,
        closing(network_or_skip(federation)) as network,
    ):
        alpha, *_ = federation.hospitals
        for hospital in federation.hospitals:
            network.start(hospital)
        for hospital in federation.hospitals:
            until_connected(hospital, *({*names} - {hospital.name}))
        before = alpha.until_round(2)
        network.filter("alpha", silence_from(network.addresses["beta"]))
        # Its link is long gone, and the round still open for it.
        apart = alpha.until(
            "beta away, and heard by gamma",
            lambda status: any(
                one.name == "beta" and one.state != "connected" and one.vouched_by == ["gamma"]
                for one in status.neighbours
            ),
        )
        assert apart.round.phase == "collecting"
        assert until_said(alpha, "heard by gamma").problem.startswith("beta is not connected")
        network.clear("alpha")
        goes_on(federation.hospitals)
        nothing_broke(federation)
        since = [one for one in alpha.events("round done") if one["round"] >= before.round.number]
        assert not any(one["degraded"] for one in since)


@pytest.mark.slow
def test_a_site_that_nobody_can_dial_takes_part_because_it_dials(
    three: Federation, network: SmallNetwork
) -> None:
    # The others' peer ids are lower, so that they are given the first try.
    last = max(three.hospitals, key=lambda one: one.identity.peer_id)
    network.filter(last.name, no_inbound_connections())
    for hospital in three.hospitals:
        network.start(hospital)
    status = until_connected(last, *(one.name for one in three.hospitals if one is not last))
    assert [one.direction for one in status.neighbours] == ["outbound", "outbound"]
    assert network.dropped(last.name) > 0  # they did try
    goes_on(three.hospitals)
    nothing_broke(three)
    nobody_was_held_up(three.hospitals)


@pytest.mark.slow
def test_rounds_go_on_over_a_network_that_loses_a_fifth_and_is_slow(
    three: Federation, network: SmallNetwork
) -> None:
    for site in network.addresses:
        network.filter(site, random_loss(LOSS))
        network.cap(site, CAP_KILOBITS_PER_SECOND)
    for hospital in three.hospitals:
        network.start(hospital)
    for hospital in three.hospitals:
        hospital.until(
            "five rounds and deltas of both neighbours",
            lambda status: (
                status.round.number >= 5
                and all(one.last_delta_age_seconds is not None for one in status.neighbours)
            ),
        )
    for site in network.addresses:
        assert network.dropped(site) > 0
        network.clear(site)
    goes_on(three.hospitals)
    nothing_broke(three)
