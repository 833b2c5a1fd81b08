"""Playbooks of a peer that comes new or from far behind, and of those who see it come."""

import math

import pytest
from test_rounds_playbook import (
    GENESIS,
    collecting,
    deliver,
    engine,
    name_of_replica,
    signed,
)

from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol.collecting import NO_HEADER
from p2pfed.protocol.joining import JOINING_ROUNDS, donors_needed, is_worth_adopting
from p2pfed.protocol.limits import RAMP_ROUNDS
from p2pfed.protocol.neighbours import NEVER_PUBLISHED, ReplicaState
from p2pfed.protocol.own_state import OwnState
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.rounds import RoundEngine
from p2pfed.protocol.shares import ramp_share

PRESENT = JOINING_ROUNDS + 1


def newcomer(sites: str = "bcd", present: int = PRESENT, **changes: object) -> RoundEngine:
    """One at the beginning, whose neighbours are all in round ``present``."""
    peer = engine(sites, **changes)
    peer.handle(on.Started(), 0.0)
    for site in sites:
        replica = name_of_replica(site, present - 1)
        peer.handle(on.LinkUp(site, present, replica, present - 1), 0.0)
    return peer


def joining(sites: str = "bcd", **changes: object) -> RoundEngine:
    peer = newcomer(sites, **changes)
    peer.handle(on.TrainingFinished(0), 1.0)
    assert peer.phase is Phase.JOINING
    return peer


def give(peer: RoundEngine, site: str, round_number: int = PRESENT) -> list[do.Command]:
    return deliver(peer, signed(site, round_number, before=GENESIS), 2.0)


def notices(commands: list[do.Command]) -> list[do.NoticeKind]:
    return [command.kind for command in commands if isinstance(command, do.Notice)]


def test_one_from_far_behind_awaits_everybodys_model_and_begins_anew_from_them() -> None:
    peer = newcomer()
    commands = peer.handle(on.TrainingFinished(0), 1.0)
    assert notices(commands) == [do.NoticeKind.ROUND_SKIPPED, do.NoticeKind.JOINING]
    assert do.SetTimer(on.Timer.DEADLINE, 61.0) in commands
    assert [c.site for c in commands if isinstance(c, do.RequestRepair)] == ["b", "c", "d"]
    give(peer, "b")
    give(peer, "c")
    assert peer.phase is Phase.JOINING
    assert do.Adopt(PRESENT, ("b", "c", "d")) in give(peer, "d")
    commands = peer.handle(on.Adopted(PRESENT), 3.0)
    assert do.Train(PRESENT, 3) in commands
    assert peer.handle(on.TrainingFinished(PRESENT), 4.0) == [
        do.Publish(PRESENT, PRESENT + 1, NO_HEADER, GENESIS, since_round=PRESENT)
    ]


def test_at_the_deadline_enough_models_will_do() -> None:
    peer = joining("bcde")
    for site in "bcd":
        give(peer, site)
    assert peer.phase is Phase.JOINING
    commands = peer.handle(on.TimerFired(on.Timer.DEADLINE), 61.0)
    assert do.Adopt(PRESENT, ("b", "c", "d")) in commands


def test_one_that_goes_down_is_not_awaited() -> None:
    peer = joining("bcde")
    for site in "bcd":
        give(peer, site)
    assert do.Adopt(PRESENT, ("b", "c", "d")) in peer.handle(on.LinkDown("e"), 3.0)


def test_those_who_are_not_linked_yet_are_waited_for_until_the_deadline() -> None:
    peer = engine("bcd")
    peer.handle(on.Started(), 0.0)
    peer.handle(on.LinkUp("b", PRESENT, GENESIS, NEVER_PUBLISHED), 0.0)
    peer.handle(on.TrainingFinished(0), 1.0)
    give(peer, "b")
    assert peer.phase is Phase.JOINING
    for site in "cd":
        peer.handle(on.LinkUp(site, PRESENT, GENESIS, NEVER_PUBLISHED), 2.0)
        commands = give(peer, site)
    assert do.Adopt(PRESENT, ("b", "c", "d")) in commands


def test_with_too_few_models_at_the_deadline_the_own_one_is_published() -> None:
    peer = joining()
    give(peer, "b")
    give(peer, "c")
    commands = peer.handle(on.TimerFired(on.Timer.DEADLINE), 61.0)
    assert notices(commands) == [do.NoticeKind.NOT_ADOPTED]
    assert do.Publish(PRESENT, PRESENT + 1, NO_HEADER, GENESIS) in commands


def test_what_does_worse_on_the_own_hold_out_is_not_adopted() -> None:
    peer = joining()
    for site in "bcd":
        give(peer, site)
    commands = peer.handle(on.AdoptionRefused(PRESENT, "a loss of 9"), 3.0)
    assert commands[0] == do.Notice(do.NoticeKind.NOT_ADOPTED, PRESENT, None, "a loss of 9")
    assert do.Publish(PRESENT, PRESENT + 1, NO_HEADER, GENESIS) in commands


def test_models_of_long_ago_are_no_donations() -> None:
    peer = joining()
    give(peer, "b")
    give(peer, "c")
    give(peer, "d", PRESENT - 5)
    assert peer.phase is Phase.JOINING


def test_a_joining_peer_follows_its_neighbours_on() -> None:
    peer = joining()
    for site in "bcd":
        peer.handle(on.NeighbourProgress(site, PRESENT + 4), 2.0)
    for site in "bc":
        give(peer, site, PRESENT + 4)
    assert do.Adopt(PRESENT + 4, ("b", "c", "d")) in give(peer, "d", PRESENT + 4)


@pytest.mark.parametrize(
    ("sites", "present", "changes"),
    [
        ("bcd", JOINING_ROUNDS, {}),
        ("bc", 1000, {}),
        ("bcde", 1000, {"donors_needed": 5}),
    ],
    ids=["not far enough", "two neighbours", "two liars are feared"],
)
def test_others_publish_what_they_trained(
    sites: str, present: int, changes: dict[str, object]
) -> None:
    commands = newcomer(sites, present, **changes).handle(on.TrainingFinished(0), 1.0)
    assert do.Publish(present, present + 1, NO_HEADER, GENESIS) in commands


def progress(peer: RoundEngine, round_number: int) -> None:
    for site in "bcd":
        peer.handle(on.NeighbourProgress(site, round_number), 3.0)


def next_training_finished(peer: RoundEngine) -> list[do.Command]:
    """Close round 0 and train in round 1, while everybody else is in round 1000."""
    for site in "bcd":
        deliver(peer, signed(site, 0), 3.0)
    peer.handle(on.AggregationFinished(0), 3.0)
    peer.handle(on.RoundCommitted(0), 3.0)
    progress(peer, 1000)
    return peer.handle(on.TrainingFinished(1), 4.0)


def test_who_only_trains_slowly_never_loses_its_work() -> None:
    commands = next_training_finished(collecting("bcd"))
    assert [c.round_number for c in commands if isinstance(c, do.Publish)] == [1000]


def test_who_lost_sight_of_everybody_joins_again() -> None:
    peer = collecting("bcd")
    for site in "bcd":
        deliver(peer, signed(site, 0), 3.0)
    peer.handle(on.AggregationFinished(0), 3.0)
    peer.handle(on.RoundCommitted(0), 3.0)
    for site in "bcd":
        peer.handle(on.LinkDown(site), 3.0)
    for site in "bcd":
        peer.handle(on.LinkUp(site, 1000, GENESIS, NEVER_PUBLISHED), 4.0)
    assert do.NoticeKind.JOINING in notices(peer.handle(on.TrainingFinished(1), 5.0))


def test_a_joining_peer_may_be_stopped_and_an_adopting_one_ends_its_work() -> None:
    assert do.Halt() in joining().handle(on.StopRequested(), 2.0)
    peer = joining()
    for site in "bcd":
        give(peer, site)
    assert peer.handle(on.StopRequested(), 2.0) == []
    assert do.Halt() in peer.handle(on.Adopted(PRESENT), 3.0)


@pytest.mark.parametrize(("since", "share"), [(0, 1.0), (20, 1 / 4), (18, 3 / 4), (9, 1.0)])
def test_one_that_joined_a_short_while_ago_counts_for_less(since: int, share: float) -> None:
    before = signed("a", 19)
    peer = engine(
        "b",
        own=OwnState(20, before.header.replica_after, before),
        replicas={"b": ReplicaState(name_of_replica("b", 20), 20, 21, since)},
    )
    peer.handle(on.Started(), 0.0)
    peer.handle(on.TrainingFinished(20), 1.0)
    commands = peer.handle(on.Published(signed("a", 20)), 2.0)
    [aggregate] = [c for c in commands if isinstance(c, do.Aggregate)]
    assert [one.share for one in aggregate.inputs] == [share]


def test_who_joined_says_so_from_there_on_also_after_a_restart() -> None:
    before = signed("a", 19, since=12)
    peer = engine("b", own=OwnState(20, before.header.replica_after, before))
    peer.handle(on.Started(), 0.0)
    [publish] = peer.handle(on.TrainingFinished(20), 1.0)
    assert isinstance(publish, do.Publish)
    assert publish.since_round == 12


def test_who_crashed_between_its_adoption_and_its_delta_still_says_when_it_joined() -> None:
    before = signed("a", 3)
    own = OwnState(20, before.header.replica_after, before, since_round=20)
    peer = engine("b", own=own)
    peer.handle(on.Started(), 0.0)
    [publish] = peer.handle(on.TrainingFinished(20), 1.0)
    assert isinstance(publish, do.Publish)
    assert publish.since_round == 20


def test_a_share_grows_to_one_and_a_founders_is_one_from_the_first_round_on() -> None:
    grown = [ramp_share(number, 9) for number in range(9, 9 + RAMP_ROUNDS)]
    assert grown == [(place + 1) / RAMP_ROUNDS for place in range(RAMP_ROUNDS)]
    assert ramp_share(10**6, 9) == ramp_share(0, 0) == 1.0
    assert ramp_share(5, 9) == 1 / RAMP_ROUNDS  # seen by one that is behind


def test_there_are_always_more_honest_donors_than_others() -> None:
    assert [donors_needed(b) for b in range(4)] == [3, 3, 5, 7]


@pytest.mark.parametrize(
    ("loss", "own_loss", "worth"),
    [
        (0.5, 0.5, True),
        (0.6, 0.5, True),
        (0.7, 0.5, False),
        (math.nan, 0.5, False),
        (math.inf, math.inf, False),
        (9.0, math.nan, True),
        (None, 0.5, True),
        (0.5, None, True),
    ],
)
def test_a_model_is_adopted_unless_it_is_much_worse(
    loss: float | None, own_loss: float | None, worth: bool
) -> None:
    assert is_worth_adopting(loss, own_loss) is worth
