"""Playbooks of the round engine in its asynchronous mode: it waits for nobody it need not."""

import pytest
from test_rounds_playbook import (
    GENESIS,
    collecting,
    deliver,
    engine,
    linked,
    name_of_replica,
    signed,
)

from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.messages import AnswerCode
from p2pfed.protocol.neighbours import ReplicaState
from p2pfed.protocol.own_state import OwnState
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.rounds import RoundEngine
from p2pfed.protocol.shares import staleness_share


def aggregation_of(commands: list[do.Command]) -> do.Aggregate:
    [aggregate] = [command for command in commands if isinstance(command, do.Aggregate)]
    return aggregate


def in_round(number: int, held: dict[str, int], **changes: object) -> list[do.Command]:
    """What follows when a peer publishes in a round, with older or newer models of others."""
    peer = engine(
        "".join(held),
        own=OwnState(number, name_of_replica("a", number - 1), None),
        replicas={
            site: ReplicaState(name_of_replica(site, last), last, last + 1)
            for site, last in held.items()
        },
        asynchronous=True,
        **changes,
    )
    peer.handle(on.Started(), 0.0)
    for site, last in held.items():
        replica = name_of_replica(site, last)
        peer.handle(on.LinkUp(site, number, replica, last), 0.0)
    peer.handle(on.TrainingFinished(number), 1.0)
    return peer.handle(on.Published(signed("a", number)), 2.0)


def test_a_round_closes_at_once_where_a_quorum_of_models_may_be_used() -> None:
    aggregate = aggregation_of(in_round(5, {"b": 4, "c": 2, "d": 5}, max_staleness=2))
    assert aggregate.inputs == (
        do.AggregationInput("b", 1 / 4, 1, share=1 / 2),
        do.AggregationInput("d", 1 / 4, 0, share=1.0),
    )
    assert aggregate.left_out == ("c",)


def test_a_model_that_is_ahead_counts_as_much_as_one_that_is_behind_by_as_many_rounds() -> None:
    aggregate = aggregation_of(in_round(5, {"b": 3, "c": 7}, max_staleness=2))
    shares = {one.site: (one.staleness, one.share) for one in aggregate.inputs}
    assert shares == {"b": (2, 1 / 3), "c": (0, 1 / 3)}


def test_one_who_is_ahead_of_a_quorum_waits_for_it_until_it_is_there() -> None:
    commands = in_round(5, {"b": 1, "c": 1, "d": 5})
    assert not any(isinstance(command, do.Aggregate) for command in commands)


def test_what_is_missing_for_the_quorum_is_asked_for_at_the_deadline() -> None:
    peer = collecting(asynchronous=True)
    assert peer.waited_for(3.0) == ["b", "c"]
    commands = peer.handle(on.TimerFired(on.Timer.DEADLINE), 62.0)
    assert [c.site for c in commands if isinstance(c, do.RequestRepair)] == ["b", "c"]
    assert aggregation_of(deliver(peer, signed("b", 0), 63.0)).left_out == ("c",)
    assert peer.phase is Phase.AGGREGATING


def test_a_delta_of_a_later_round_is_applied_as_soon_as_it_is_there() -> None:
    peer = collecting(asynchronous=True, quorum=1.0)
    deliver(peer, signed("b", 0), 3.0)
    deliver(peer, signed("b", 1), 4.0)
    aggregate = aggregation_of(deliver(peer, signed("c", 0), 5.0))
    assert [(one.site, one.share) for one in aggregate.inputs] == [("b", 1 / 2), ("c", 1.0)]


def answer(peer: RoundEngine, round_number: int) -> AnswerCode:
    offered = signed("b", round_number, before=GENESIS)
    [found] = [
        command
        for command in peer.handle(on.OfferArrived("b", offered), 1.0)
        if isinstance(command, do.AnswerOffer)
    ]
    return found.code


@pytest.mark.parametrize("max_staleness", [0, 3])
def test_nobody_is_taken_at_its_word_about_a_future_beyond_the_bound(max_staleness: int) -> None:
    newest = limits.ROUND_WINDOW + max_staleness
    for round_number, code in ((newest + 1, AnswerCode.NOT_NOW), (newest, AnswerCode.SEND)):
        peer = engine(asynchronous=True, max_staleness=max_staleness)
        peer.handle(on.Started(), 0.0)
        linked(peer)
        assert answer(peer, round_number) is code


def test_a_share_is_one_for_the_same_round_and_falls_with_the_distance() -> None:
    assert [staleness_share(apart) for apart in (0, 1, -1, 3)] == [1.0, 1 / 2, 1 / 2, 1 / 4]
