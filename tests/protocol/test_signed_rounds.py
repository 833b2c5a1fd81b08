"""A peer whose state is older than what it signed never signs a round twice."""

from test_rounds_playbook import GENESIS, answer_of, engine, linked, signed

from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.collecting import NO_HEADER
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.neighbours import NEVER_PUBLISHED
from p2pfed.protocol.own_state import OwnState
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.rounds import RoundEngine


def restored(sites: str = "bc", round_number: int = 3, **changes: object) -> RoundEngine:
    """A peer that came back from a backup and has just started; its round's limit is 60 s."""
    peer = engine(sites, own=OwnState(round_number, GENESIS, None, restored=True), **changes)
    assert peer.handle(on.Started(), 0.0) == [do.SetTimer(on.Timer.DEADLINE, 60.0)]
    assert peer.phase is Phase.ASKING
    return peer


def published_round(peer: RoundEngine) -> do.Publish:
    [command] = [
        c
        for c in peer.handle(on.TrainingFinished(peer.round_number), 100.0)
        if isinstance(c, do.Publish)
    ]
    return command


def test_it_begins_once_every_neighbour_has_shown_what_it_holds() -> None:
    peer = restored()
    linked(peer, "bc", round_number=9)
    assert peer.handle(on.OwnHeaderHeard("b", signed("a", 12)), 1.0) == []
    assert peer.handle(on.NeighbourProgress("b", 9), 2.0) == []
    commands = peer.handle(on.NeighbourProgress("c", 9), 3.0)
    assert commands[-1] == do.Train(13, 3)
    assert do.CancelTimer(on.Timer.DEADLINE) in commands
    publish = published_round(peer)
    assert (publish.round_number, publish.sequence) == (13, 14)
    assert publish.previous == signed("a", 12).digest


def test_where_nobody_holds_a_newer_one_it_still_goes_on_behind_what_may_have_been_signed() -> None:
    """A neighbour that lost its own log may have lost the header that counts."""
    peer = restored()
    linked(peer, "bc", round_number=9)
    peer.handle(on.NeighbourProgress("b", 9), 2.0)
    assert peer.handle(on.NeighbourProgress("c", 9), 3.0)[-1] == do.Train(
        9 + limits.ROUND_WINDOW, 3
    )
    assert published_round(peer).previous == NO_HEADER


def test_a_state_newer_than_the_federation_keeps_its_round() -> None:
    peer = restored(round_number=30)
    linked(peer, "bc", round_number=9)
    peer.handle(on.NeighbourProgress("b", 9), 2.0)
    peer.handle(on.NeighbourProgress("c", 9), 3.0)
    assert peer.round_number == 30


def test_before_that_it_signs_nothing_and_sends_nothing() -> None:
    peer = restored()
    assert peer.handle(on.LinkUp("b", 9, signed("b", 8).header.replica_after, 8), 1.0) == [
        do.RequestRepair("b", GENESIS)
    ]
    assert peer.handle(on.WantArrived("b", GENESIS), 1.0) == []
    snapshot = signed("b", 8, before=bytes(32))
    assert answer_of(peer.handle(on.OfferArrived("b", snapshot), 2.0)) is not None
    assert peer.handle(on.TimerFired(on.Timer.GRACE), 20.0) == []
    assert peer.phase is Phase.ASKING


def test_past_the_deadline_a_quorum_is_enough_but_not_less() -> None:
    peer = restored("bcde", quorum=0.5)
    linked(peer, "bcde", round_number=9)
    peer.handle(on.NeighbourProgress("b", 9), 2.0)
    assert peer.handle(on.TimerFired(on.Timer.DEADLINE), 60.0) == []
    peer.handle(on.OwnHeaderHeard("c", signed("a", 20)), 61.0)
    assert peer.handle(on.NeighbourProgress("c", 9), 62.0)[-1] == do.Train(21, 3)


def test_a_lone_restored_peer_waits_for_somebody() -> None:
    peer = restored("b", quorum=0.0)
    assert peer.handle(on.TimerFired(on.Timer.DEADLINE), 60.0) == []
    linked(peer, "b", round_number=9)
    assert peer.handle(on.NeighbourProgress("b", 9), 90.0)[-1] == do.Train(11, 3)


def test_on_a_graph_that_varies_the_deadline_is_waited_for() -> None:
    peer = restored(time_varying=True)
    linked(peer, "bc", round_number=9)
    peer.handle(on.NeighbourProgress("b", 9), 2.0)
    assert peer.handle(on.NeighbourProgress("c", 9), 3.0) == []
    peer.handle(on.LinkUp("d", 9, GENESIS, NEVER_PUBLISHED), 4.0)
    peer.handle(on.OwnHeaderHeard("d", signed("a", 12)), 4.0)
    peer.handle(on.NeighbourProgress("d", 9), 5.0)
    assert peer.handle(on.TimerFired(on.Timer.DEADLINE), 60.0)[-1] == do.Train(13, 3)


def test_what_a_quarantined_neighbour_says_is_not_waited_for() -> None:
    peer = restored()
    linked(peer, "bc", round_number=9)
    peer.handle(on.EquivocationHeard("b", "c", signed("c", 1), signed("c", 1, variant="x")), 1.0)
    assert peer.handle(on.NeighbourProgress("b", 9), 2.0)[-1] == do.Train(11, 3)


def test_no_round_is_signed_past_the_last() -> None:
    peer = restored(total_rounds=10)
    linked(peer, "bc", round_number=9)
    peer.handle(on.NeighbourProgress("b", 10), 2.0)
    commands = peer.handle(on.NeighbourProgress("c", 10), 3.0)
    assert peer.phase is Phase.FINISHED
    assert not any(isinstance(command, do.Train) for command in commands)


def test_a_restored_peer_can_be_stopped_while_it_asks() -> None:
    assert restored().handle(on.StopRequested(), 1.0) == [do.Halt()]


def test_a_state_that_turned_old_unnoticed_skips_what_a_neighbour_shows() -> None:
    """A snapshot of a virtual machine was brought back, and nobody said so."""
    peer = engine(own=OwnState(3, signed("a", 2).header.replica_after, signed("a", 2)))
    assert do.Train(3, 3) in peer.handle(on.Started(), 0.0)
    [notice] = peer.handle(on.OwnHeaderHeard("b", signed("a", 7)), 1.0)
    assert isinstance(notice, do.Notice)
    assert notice.kind is do.NoticeKind.SIGNED_ELSEWHERE
    assert notice.site == "b"
    assert peer.handle(on.OwnHeaderHeard("c", signed("a", 7)), 1.0) == []
    assert published_round_of_old(peer) == 8


def published_round_of_old(peer: RoundEngine) -> int:
    commands = peer.handle(on.TrainingFinished(3), 2.0)
    return next(c.round_number for c in commands if isinstance(c, do.Publish))


def test_an_old_state_ends_where_the_last_round_was_signed() -> None:
    peer = engine(own=OwnState(3, GENESIS, signed("a", 2)), total_rounds=8)
    peer.handle(on.Started(), 0.0)
    peer.handle(on.OwnHeaderHeard("b", signed("a", 7)), 1.0)
    commands = peer.handle(on.TrainingFinished(3), 2.0)
    assert not any(isinstance(command, do.Publish) for command in commands)
    assert peer.phase is Phase.FINISHED


def test_what_it_knows_of_itself_is_no_news() -> None:
    peer = engine(own=OwnState(3, GENESIS, signed("a", 2)))
    peer.handle(on.Started(), 0.0)
    for number in (0, 1, 2):
        assert peer.handle(on.OwnHeaderHeard("b", signed("a", number)), 1.0) == []


def test_the_newest_header_of_a_sender_is_found() -> None:
    log = HeaderLog([signed("a", 4), signed("b", 9), signed("a", 2)])
    assert log.newest(signed("a", 0).header.sender) == signed("a", 4)
    assert log.newest(b"?" * 32) is None
