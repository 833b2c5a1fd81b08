"""Playbooks of the round engine: events in, the exact commands out."""

import dataclasses
from collections.abc import Mapping

import pytest

from p2pfed.errors import LocalProtocolError
from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.collecting import NO_HEADER
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.exchange import LINK_GRACE_SECONDS
from p2pfed.protocol.header import Header, Kind, SignedHeader
from p2pfed.protocol.messages import AnswerCode
from p2pfed.protocol.neighbours import (
    MOST_PATIENCE,
    NEVER_PUBLISHED,
    NOTHING_HELD,
    ReplicaState,
    Standing,
)
from p2pfed.protocol.own_state import OwnState
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.rounds import RoundEngine

GENESIS = b"G" * 32
TOPOLOGY = b"T" * 32
SCHEMA = b"S" * 32
FEDERATION = b"F" * 32


def plan(sites: str = "bc", **changes: object) -> FederationPlan:
    weights: Mapping[str, float] = {site: 1 / (len(sites) + 1) for site in sites}
    settings: dict[str, object] = {
        "topology_digest": TOPOLOGY,
        "schema_digest": SCHEMA,
        "federation_id": FEDERATION,
        "genesis_replica": GENESIS,
        "weights_of": lambda _round: weights,
        "time_varying": False,
        "total_rounds": 0,
        "local_steps": 3,
        "deadline_seconds": 60.0,
        "quorum": 0.5,
        "max_staleness": 1,
        "relayed": frozenset("abcdefgz"),
        "neighbours": frozenset(sites),
    }
    return FederationPlan(**{**settings, **changes})  # type: ignore[arg-type]


def name_of_replica(sender: str, round_number: int, variant: str = "") -> bytes:
    return f"{sender}{round_number}{variant}".encode().ljust(32, b".")


def signed(
    sender: str,
    round_number: int,
    *,
    before: bytes | None = None,
    kind: Kind = Kind.DELTA,
    variant: str = "",
    topology: bytes = TOPOLOGY,
    since: int = 0,
) -> SignedHeader:
    previous = name_of_replica(sender, round_number - 1) if round_number else GENESIS
    header = Header(
        version=1,
        federation_id=FEDERATION,
        kind=kind,
        sender=sender.encode().ljust(32, b"-"),
        topology_digest=topology,
        schema_digest=SCHEMA,
        round_number=round_number,
        sequence=round_number + 1,
        since_round=since,
        previous=NO_HEADER,
        replica_before=previous if before is None else before,
        replica_after=name_of_replica(sender, round_number, variant),
        codec="int8",
        key_commitment=bytes(32),
        chunks_root=bytes(32),
        chunk_count=1,
        payload_bytes=10,
        privacy_spend=0.0,
        time_seconds=0,
    )
    digest = f"{kind}{sender}{round_number}{variant}".encode().ljust(32, b"#")
    return SignedHeader(header=header, encoded=digest, signature=bytes(64), digest=digest)


def engine(
    sites: str = "bc",
    *,
    own: OwnState | None = None,
    replicas: Mapping[str, ReplicaState] | None = None,
    retained: tuple[SignedHeader, ...] = (),
    **changes: object,
) -> RoundEngine:
    return RoundEngine(
        plan(sites, **changes),
        own or OwnState(0, GENESIS, None),
        replicas or {},
        retained,
        HeaderLog(),
        (),
    )


def linked(peer: RoundEngine, sites: str = "bc", round_number: int = 0) -> None:
    for site in sites:
        commands = peer.handle(on.LinkUp(site, round_number, GENESIS, NEVER_PUBLISHED), 0.0)
        assert commands == []


def collecting(sites: str = "bc", **changes: object) -> RoundEngine:
    peer = engine(sites, **changes)
    peer.handle(on.Started(), 0.0)
    linked(peer, sites)
    peer.handle(on.TrainingFinished(0), 1.0)
    peer.handle(on.Published(signed("a", 0)), 2.0)
    assert peer.phase is Phase.COLLECTING
    return peer


def answer_of(commands: list[do.Command]) -> do.AnswerOffer:
    [answer] = [command for command in commands if isinstance(command, do.AnswerOffer)]
    return answer


def deliver(peer: RoundEngine, delta: SignedHeader, now: float) -> list[do.Command]:
    """An offer, its payload and its application, as the shell reports them."""
    site = chr(delta.header.sender[0])
    answer = peer.handle(on.OfferArrived(site, delta), now)
    assert do.AnswerOffer(site, AnswerCode.SEND, "") in answer
    assert do.ApplyPayload(site, delta) in peer.handle(on.PayloadReceived(site, delta), now)
    return peer.handle(on.ReplicaUpdated(site, delta), now)


def test_a_whole_round_from_training_to_the_next() -> None:
    peer = engine()
    assert peer.handle(on.Started(), 0.0) == [do.Train(0, 3)]
    linked(peer)
    assert peer.handle(on.TrainingFinished(0), 1.0) == [do.Publish(0, 1, NO_HEADER, GENESIS)]
    mine = signed("a", 0)
    assert peer.handle(on.Published(mine), 2.0) == [
        do.SetTimer(on.Timer.DEADLINE, 62.0),
        do.FloodHeader(mine, None),
        do.SendDelta("b", mine.digest),
        do.SendDelta("c", mine.digest),
    ]
    assert deliver(peer, signed("b", 0), 3.0) == []
    assert deliver(peer, signed("c", 0), 4.0) == [
        do.CancelTimer(on.Timer.DEADLINE),
        do.CancelTimer(on.Timer.GRACE),
        do.Aggregate(
            0, (do.AggregationInput("b", 1 / 3, 0), do.AggregationInput("c", 1 / 3, 0)), ()
        ),
    ]
    assert peer.handle(on.AggregationFinished(0), 5.0) == [do.CommitRound(0)]
    assert peer.handle(on.RoundCommitted(0), 6.0) == [do.Train(1, 3)]
    assert peer.handle(on.TrainingFinished(1), 7.0) == [
        do.Publish(1, 2, mine.digest, mine.header.replica_after)
    ]


def test_at_the_deadline_a_quorum_closes_the_round_without_the_missing() -> None:
    peer = collecting()
    deliver(peer, signed("b", 0), 3.0)
    commands = peer.handle(on.TimerFired(on.Timer.DEADLINE), 62.0)
    assert do.Aggregate(0, (do.AggregationInput("b", 1 / 3, 0),), ("c",)) in commands
    assert do.Notice(do.NoticeKind.ROUND_DEGRADED, 0, None, "without c") in commands


def test_without_a_quorum_the_round_waits_and_says_so_once() -> None:
    peer = collecting("bcd", quorum=0.6)
    deliver(peer, signed("b", 0), 3.0)
    asked = [do.RequestRepair("c", GENESIS), do.RequestRepair("d", GENESIS)]
    *commands, notice = peer.handle(on.TimerFired(on.Timer.DEADLINE), 62.0)
    assert commands == [*asked, do.SetTimer(on.Timer.DEADLINE, 122.0)]
    assert isinstance(notice, do.Notice)
    assert notice.kind is do.NoticeKind.QUORUM_MISSING
    assert peer.handle(on.TimerFired(on.Timer.GRACE), 63.0) == []
    # The question, or its answer, may have been lost.
    commands = peer.handle(on.TimerFired(on.Timer.DEADLINE), 122.0)
    assert commands == [*asked, do.SetTimer(on.Timer.DEADLINE, 182.0)]
    commands = deliver(peer, signed("c", 0), 130.0)
    assert any(isinstance(command, do.Aggregate) for command in commands)


def test_a_neighbour_that_goes_down_is_waited_for_until_its_grace_ends() -> None:
    peer = collecting()
    deliver(peer, signed("b", 0), 3.0)
    assert peer.handle(on.LinkDown("c"), 10.0) == [do.SetTimer(on.Timer.GRACE, 20.0)]
    commands = peer.handle(on.TimerFired(on.Timer.GRACE), 20.0)
    assert any(isinstance(command, do.Aggregate) for command in commands)


def closes(commands: list[do.Command]) -> bool:
    return any(isinstance(command, do.Aggregate) for command in commands)


def test_a_silent_neighbour_is_not_waited_for_until_it_is_heard_again() -> None:
    peer = collecting("bcd")
    deliver(peer, signed("b", 0), 3.0)
    assert peer.handle(on.NeighbourSilent("c"), 8.0) == []
    assert peer.waited_for(8.0) == ["d"]
    mine = signed("a", 0)
    assert peer.handle(on.NeighbourHeard("c"), 9.0) == [do.SendDelta("c", mine.digest)]
    assert peer.waited_for(9.0) == ["c", "d"]
    peer.handle(on.NeighbourSilent("c"), 10.0)
    # Silence, and a link that ends of it, give no further grace.
    assert peer.handle(on.LinkDown("c"), 15.0) == []
    assert closes(deliver(peer, signed("d", 0), 16.0))


def test_nothing_is_queued_for_a_silent_neighbour() -> None:
    peer = engine("bc")
    peer.handle(on.Started(), 0.0)
    linked(peer, "bc")
    peer.handle(on.NeighbourSilent("c"), 0.5)
    assert peer.handle(on.NeighbourHeard("c"), 0.6) == []  # nothing is published yet
    peer.handle(on.NeighbourSilent("c"), 0.7)
    peer.handle(on.TrainingFinished(0), 1.0)
    commands = peer.handle(on.Published(signed("a", 0)), 2.0)
    assert [c.site for c in commands if isinstance(c, do.SendDelta)] == ["b"]


def test_silence_closes_a_round_but_never_without_its_quorum() -> None:
    peer = collecting("bc")
    deliver(peer, signed("b", 0), 3.0)
    assert closes(peer.handle(on.NeighbourSilent("c"), 8.0))
    alone = collecting("bc")
    for site in "bc":
        assert alone.handle(on.NeighbourSilent(site), 8.0) == []
    assert alone.phase is Phase.COLLECTING
    assert closes(deliver(alone, signed("c", 0), 9.0))


def test_a_neighbour_that_is_down_but_heard_by_others_is_waited_for_until_the_deadline() -> None:
    peer = collecting("bc")
    deliver(peer, signed("b", 0), 3.0)
    assert peer.handle(on.LinkDown("c"), 10.0) == [do.SetTimer(on.Timer.GRACE, 20.0)]
    assert peer.handle(on.NeighbourHeard("c"), 12.0) == []
    assert peer.handle(on.TimerFired(on.Timer.GRACE), 20.0) == []
    assert peer.waited_for(61.0) == ["c"]
    assert closes(peer.handle(on.TimerFired(on.Timer.DEADLINE), 62.0))


def test_a_neighbour_that_nobody_hears_any_more_is_left_out_once_its_grace_is_over() -> None:
    peer = collecting("bc")
    deliver(peer, signed("b", 0), 3.0)
    peer.handle(on.LinkDown("c"), 10.0)
    peer.handle(on.NeighbourHeard("c"), 12.0)
    peer.handle(on.TimerFired(on.Timer.GRACE), 20.0)
    assert closes(peer.handle(on.NeighbourSilent("c"), 25.0))


def test_a_stranger_that_is_silent_changes_nothing() -> None:
    peer = collecting("bc")
    for event in (on.NeighbourSilent("z"), on.NeighbourHeard("z")):
        assert peer.handle(event, 5.0) == []
    assert peer.waited_for(5.0) == ["b", "c"]


def test_a_peer_that_slept_through_its_deadline_reads_what_came_before_it_closes() -> None:
    peer = collecting()
    late = 62.0 + LINK_GRACE_SECONDS + 1.0
    deliver(peer, signed("b", 0), 3.0)
    assert peer.handle(on.TimerFired(on.Timer.DEADLINE), late) == [
        do.SetTimer(on.Timer.DEADLINE, late + LINK_GRACE_SECONDS)
    ]
    commands = deliver(peer, signed("c", 0), late + 0.1)
    [aggregate] = [c for c in commands if isinstance(c, do.Aggregate)]
    assert aggregate.left_out == ()


def test_a_deadline_is_put_off_once_for_a_pause_and_not_for_a_late_timer() -> None:
    for late, put_off in ((1.0, False), (100.0, True)):
        peer = collecting()
        deliver(peer, signed("b", 0), 3.0)
        commands = peer.handle(on.TimerFired(on.Timer.DEADLINE), 62.0 + late)
        assert any(isinstance(c, do.SetTimer) for c in commands) is put_off
        assert any(isinstance(c, do.Aggregate) for c in commands) is not put_off
        if put_off:
            later = 62.0 + late + LINK_GRACE_SECONDS
            commands = peer.handle(on.TimerFired(on.Timer.DEADLINE), later)
            assert any(isinstance(c, do.Aggregate) for c in commands)


def test_a_stale_replica_is_used_within_the_bound_and_left_out_beyond_it() -> None:
    held = {"c": ReplicaState(name_of_replica("c", 3), 3, 4)}
    own = OwnState(4, name_of_replica("a", 3), None)
    for max_staleness, used in ((1, True), (0, False)):
        peer = engine(own=own, replicas=held, max_staleness=max_staleness)
        peer.handle(on.Started(), 0.0)
        peer.handle(on.LinkUp("b", 4, GENESIS, NEVER_PUBLISHED), 0.0)
        peer.handle(on.TrainingFinished(4), 1.0)
        peer.handle(on.Published(signed("a", 4)), 2.0)
        deliver(peer, signed("b", 4, before=GENESIS), 3.0)
        commands = peer.handle(on.TimerFired(on.Timer.DEADLINE), 62.0)
        [aggregate] = [c for c in commands if isinstance(c, do.Aggregate)]
        assert (do.AggregationInput("c", 1 / 3, 1) in aggregate.inputs) is used
        assert ("c" in aggregate.left_out) is not used


def test_a_neighbour_that_never_published_is_left_out_even_in_the_first_round() -> None:
    peer = collecting()
    deliver(peer, signed("b", 0), 3.0)
    commands = peer.handle(on.TimerFired(on.Timer.DEADLINE), 62.0)
    [aggregate] = [c for c in commands if isinstance(c, do.Aggregate)]
    assert aggregate.left_out == ("c",)


def test_a_delta_of_the_next_round_is_kept_until_its_round() -> None:
    peer = collecting()
    deliver(peer, signed("b", 0), 3.0)
    ahead = signed("b", 1)
    peer.handle(on.OfferArrived("b", ahead), 4.0)
    assert peer.handle(on.PayloadReceived("b", ahead), 4.0) == []
    deliver(peer, signed("c", 0), 5.0)
    peer.handle(on.AggregationFinished(0), 6.0)
    assert peer.handle(on.RoundCommitted(0), 7.0) == [do.Train(1, 3), do.ApplyPayload("b", ahead)]


def test_no_replica_changes_while_the_round_is_aggregated() -> None:
    peer = collecting()
    deliver(peer, signed("b", 0), 3.0)
    deliver(peer, signed("c", 0), 4.0)
    assert peer.phase is Phase.AGGREGATING
    later = signed("b", 1)
    peer.handle(on.OfferArrived("b", later), 5.0)
    assert peer.handle(on.PayloadReceived("b", later), 5.0) == []


def test_a_gap_in_the_chain_is_answered_with_a_request_for_what_is_missing() -> None:
    peer = collecting()
    commands = peer.handle(on.OfferArrived("b", signed("b", 1)), 3.0)
    assert answer_of(commands).code is AnswerCode.NOT_NOW
    assert do.RequestRepair("b", GENESIS) in commands


def test_what_a_neighbour_misses_is_sent_from_the_retained_deltas_or_as_a_snapshot() -> None:
    chain = tuple(signed("a", number) for number in range(3))
    peer = engine(own=OwnState(3, name_of_replica("a", 2), chain[2]), retained=chain)
    peer.handle(on.Started(), 0.0)
    newest = do.SendDelta("b", chain[2].digest)
    assert newest in peer.handle(on.LinkUp("b", 3, GENESIS, NEVER_PUBLISHED), 0.0)
    assert peer.handle(on.WantArrived("b", name_of_replica("a", 0)), 1.0) == [
        do.SendDelta("b", chain[1].digest),
        do.SendDelta("b", chain[2].digest),
    ]
    assert peer.handle(on.WantArrived("b", NOTHING_HELD), 1.0) == [do.SendSnapshot("b")]
    assert peer.handle(on.WantArrived("b", name_of_replica("a", 2)), 1.0) == []
    assert peer.handle(on.WantArrived("z", NOTHING_HELD), 1.0) == []


def test_a_hello_that_shows_another_replica_starts_a_repair() -> None:
    peer = engine()
    peer.handle(on.Started(), 0.0)
    assert peer.handle(on.LinkUp("b", 7, name_of_replica("b", 6), 6), 0.0) == [
        do.RequestRepair("b", GENESIS)
    ]


def test_a_peer_that_fell_behind_publishes_under_its_neighbours_round() -> None:
    peer = engine("bcd")
    peer.handle(on.Started(), 0.0)
    for site, number in (("b", 8), ("c", 7), ("d", 10**6)):
        peer.handle(on.LinkUp(site, number, name_of_replica(site, number - 1), number - 1), 0.0)
    notice, publish = peer.handle(on.TrainingFinished(0), 1.0)
    assert isinstance(notice, do.Notice)
    assert notice.kind is do.NoticeKind.ROUND_SKIPPED
    assert publish == do.Publish(8, 9, NO_HEADER, GENESIS)


def test_the_far_future_is_not_taken_from_one_liar() -> None:
    peer = collecting("bcd")
    commands = peer.handle(on.OfferArrived("b", signed("b", 10**6, before=GENESIS)), 3.0)
    assert answer_of(commands).code is AnswerCode.NOT_NOW
    assert not any(isinstance(command, do.RequestRepair) for command in commands)


def test_the_same_delta_again_is_not_taken_twice_and_an_old_one_is_stale() -> None:
    peer = collecting()
    deliver(peer, signed("b", 0), 3.0)
    [again] = peer.handle(on.OfferArrived("b", signed("b", 0)), 4.0)
    assert again == do.AnswerOffer("b", AnswerCode.HAVE, "")
    own = OwnState(5, name_of_replica("a", 4), None)
    held = {"b": ReplicaState(name_of_replica("b", 4), 4, 5)}
    later = engine(own=own, replicas=held)
    later.handle(on.Started(), 0.0)
    answer = answer_of(later.handle(on.OfferArrived("b", signed("b", 2)), 1.0))
    assert answer.code is AnswerCode.STALE


def test_a_delta_that_changes_nothing_is_still_its_rounds() -> None:
    peer = collecting("b")
    idle = signed("b", 0)
    unchanged = SignedHeader(
        dataclasses.replace(idle.header, replica_after=GENESIS),
        idle.encoded,
        idle.signature,
        idle.digest,
    )
    commands = deliver(peer, unchanged, 3.0)
    assert any(isinstance(command, do.Aggregate) for command in commands)
    [again] = peer.handle(on.OfferArrived("b", unchanged), 4.0)
    assert again == do.AnswerOffer("b", AnswerCode.HAVE, "")


def test_after_a_lost_replica_a_snapshot_of_the_same_state_is_taken() -> None:
    held = {"b": ReplicaState(NOTHING_HELD, 4, 5)}
    peer = engine(own=OwnState(5, name_of_replica("a", 4), None), replicas=held)
    peer.handle(on.Started(), 0.0)
    assert peer.handle(on.LinkUp("b", 5, name_of_replica("b", 4), 4), 0.0) == [
        do.RequestRepair("b", NOTHING_HELD)
    ]
    deliver(peer, signed("b", 4, kind=Kind.SNAPSHOT), 1.0)
    assert peer.neighbours["b"].held.replica == name_of_replica("b", 4)


def test_two_deltas_for_one_round_are_proof_and_end_the_sender() -> None:
    peer = collecting()
    first, second = signed("b", 0), signed("b", 0, variant="x")
    deliver(peer, first, 3.0)
    commands = peer.handle(on.HeaderHeard("c", "b", second), 4.0)
    assert commands == [do.Quarantine("b", first, second)]
    answer = answer_of(peer.handle(on.OfferArrived("b", signed("b", 1)), 5.0))
    assert answer.code is AnswerCode.REFUSED
    assert "b" not in peer.waited_for(5.0)
    assert peer.delivered() == []


def test_a_header_is_passed_on_once() -> None:
    peer = collecting()
    theirs = signed("z", 0)
    assert peer.handle(on.HeaderHeard("c", "z", theirs), 3.0) == [do.FloodHeader(theirs, "c")]
    assert peer.handle(on.HeaderHeard("b", "z", theirs), 3.0) == []
    distant = signed("y", 0)
    assert peer.handle(on.HeaderHeard("c", "y", distant), 3.0) == []  # kept, not passed on
    lie = signed("y", 0, variant="x")
    assert do.Quarantine("y", distant, lie) in peer.handle(on.HeaderHeard("b", "y", lie), 3.0)


def test_a_header_of_the_far_future_is_neither_kept_nor_passed_on() -> None:
    peer = collecting()
    far = signed("z", limits.ROUND_WINDOW + 1)
    assert peer.handle(on.HeaderHeard("c", "z", far), 3.0) == []
    near = signed("z", limits.ROUND_WINDOW)
    assert peer.handle(on.HeaderHeard("c", "z", near), 3.0) == [do.FloodHeader(near, "c")]


def test_another_topology_is_refused_and_both_digests_are_named() -> None:
    peer = collecting()
    answer, notice = peer.handle(on.OfferArrived("b", signed("b", 0, topology=b"U" * 32)), 3.0)
    assert isinstance(answer, do.AnswerOffer)
    assert answer.code is AnswerCode.REFUSED
    assert TOPOLOGY.hex()[:12] in answer.detail
    assert (b"U" * 32).hex()[:12] in answer.detail
    assert isinstance(notice, do.Notice)


def test_a_stranger_is_refused() -> None:
    peer = collecting()
    [answer] = peer.handle(on.OfferArrived("z", signed("z", 0)), 3.0)
    assert isinstance(answer, do.AnswerOffer)
    assert answer.code is AnswerCode.REFUSED


def test_a_payload_that_lies_is_left_out_and_nobody_waits_for_another() -> None:
    peer = collecting()
    deliver(peer, signed("c", 0), 3.0)
    lie = signed("b", 0)
    peer.handle(on.OfferArrived("b", lie), 3.0)
    peer.handle(on.PayloadReceived("b", lie), 3.0)
    commands = peer.handle(on.PayloadRejected("b", lie, "not finite"), 4.0)
    assert do.Notice(do.NoticeKind.DELTA_REJECTED, 0, "b", "not finite") in commands
    assert do.Aggregate(0, (do.AggregationInput("c", 1 / 3, 0),), ("b",)) in commands


def test_what_could_not_be_applied_is_asked_for_again_only_in_the_next_round() -> None:
    peer = collecting()
    lie = signed("b", 0)
    peer.handle(on.OfferArrived("b", lie), 3.0)
    peer.handle(on.PayloadReceived("b", lie), 3.0)
    peer.handle(on.PayloadRejected("b", lie, "not finite"), 4.0)
    following = signed("b", 1, before=lie.header.replica_after)
    commands = peer.handle(on.OfferArrived("b", following), 5.0)
    assert [c.code for c in commands if isinstance(c, do.AnswerOffer)] == [AnswerCode.NOT_NOW]
    assert not any(isinstance(c, do.RequestRepair) for c in commands)
    deliver(peer, signed("c", 0), 6.0)  # nobody is waited for any more
    peer.handle(on.AggregationFinished(0), 7.0)
    assert do.RequestRepair("b", GENESIS) in peer.handle(on.RoundCommitted(0), 8.0)


def test_a_neighbour_that_the_rule_refuses_is_excluded_from_this_round_only() -> None:
    peer = collecting()
    deliver(peer, signed("b", 0), 3.0)
    deliver(peer, signed("c", 0), 4.0)
    commands = peer.handle(on.AggregationFailed(0, "b", "not finite"), 5.0)
    assert do.Aggregate(0, (do.AggregationInput("c", 1 / 3, 0),), ("b",)) in commands
    peer.handle(on.AggregationFinished(0), 6.0)
    peer.handle(on.RoundCommitted(0), 7.0)
    assert peer.neighbours["b"].usable(1)


def test_failed_training_publishes_nothing_and_is_tried_again() -> None:
    peer = engine()
    peer.handle(on.Started(), 0.0)
    notice, timer = peer.handle(on.TrainingFailed(0, "NaN loss in batch 3"), 1.0)
    assert isinstance(notice, do.Notice)
    assert timer == do.SetTimer(on.Timer.RETRY, 6.0)
    assert peer.handle(on.TimerFired(on.Timer.RETRY), 6.0) == [do.Train(0, 3)]


def test_a_round_that_was_published_before_a_crash_goes_on_with_the_same_bytes() -> None:
    mine = signed("a", 4)
    own = OwnState(4, mine.header.replica_after, mine)
    peer = engine(own=own, retained=(mine,))
    commands = peer.handle(on.Started(), 100.0)
    assert not any(isinstance(c, do.Train | do.Publish) for c in commands)
    peer.handle(on.LinkUp("b", 4, GENESIS, NEVER_PUBLISHED), 100.0)
    assert peer.handle(on.WantArrived("b", name_of_replica("a", 3)), 101.0) == [
        do.SendDelta("b", mine.digest)
    ]


def test_the_last_round_finishes_and_the_peer_goes_on_answering() -> None:
    peer = collecting(total_rounds=1)
    deliver(peer, signed("b", 0), 3.0)
    deliver(peer, signed("c", 0), 4.0)
    peer.handle(on.AggregationFinished(0), 5.0)
    [notice] = peer.handle(on.RoundCommitted(0), 6.0)
    assert isinstance(notice, do.Notice)
    assert notice.kind is do.NoticeKind.FINISHED
    assert peer.phase is Phase.FINISHED
    assert peer.handle(on.WantArrived("b", GENESIS), 7.0) == [
        do.SendDelta("b", signed("a", 0).digest)
    ]


@pytest.mark.parametrize("stop_before", ["training", "collecting"])
def test_a_stop_is_immediate_where_nothing_is_half_done(stop_before: str) -> None:
    peer = collecting() if stop_before == "collecting" else engine()
    if stop_before == "training":
        peer.handle(on.Started(), 0.0)
    assert peer.handle(on.StopRequested(), 9.0) == [do.Halt()]
    assert peer.handle(on.TimerFired(on.Timer.DEADLINE), 62.0) == []


def test_a_stop_waits_for_the_aggregation_that_is_under_way() -> None:
    peer = collecting()
    deliver(peer, signed("b", 0), 3.0)
    deliver(peer, signed("c", 0), 4.0)
    assert peer.handle(on.StopRequested(), 5.0) == []
    assert peer.handle(on.AggregationFinished(0), 6.0) == [do.CommitRound(0)]
    assert peer.handle(on.RoundCommitted(0), 7.0) == [do.Halt()]


def test_a_stop_waits_for_the_delta_that_is_being_sealed() -> None:
    peer = engine()
    peer.handle(on.Started(), 0.0)
    peer.handle(on.TrainingFinished(0), 1.0)
    assert peer.handle(on.StopRequested(), 2.0) == []
    assert peer.handle(on.Published(signed("a", 0)), 3.0)[-1] == do.Halt()


def test_a_removed_neighbour_is_not_waited_for_and_a_new_one_is_met() -> None:
    peer = collecting()
    deliver(peer, signed("b", 0), 3.0)
    commands = peer.handle(on.PlanChanged(plan("b")), 4.0)
    assert any(isinstance(command, do.Aggregate) for command in commands)
    peer.handle(on.AggregationFinished(0), 5.0)
    peer.handle(on.RoundCommitted(0), 6.0)
    peer.handle(on.PlanChanged(plan("bd")), 7.0)
    assert sorted(peer.neighbours) == ["b", "d"]


@pytest.mark.parametrize(
    ("deadline_seconds", "ends_at"), [(20.0, 22.0), (100.0, 102.0), (1.0, 10.0)]
)
def test_another_deadline_counts_from_where_the_one_that_is_waited_for_did(
    deadline_seconds: float, ends_at: float
) -> None:
    peer = collecting()
    assert peer.deadline_at_seconds == 62.0
    commands = peer.handle(on.PlanChanged(plan(deadline_seconds=deadline_seconds)), 10.0)
    assert do.SetTimer(on.Timer.DEADLINE, ends_at) in commands
    assert peer.deadline_at_seconds == ends_at


def test_another_deadline_after_the_first_has_passed_is_for_what_comes_next() -> None:
    peer = collecting()
    peer.handle(on.TimerFired(on.Timer.DEADLINE), 62.0)
    commands = peer.handle(on.PlanChanged(plan(deadline_seconds=20.0)), 63.0)
    assert not any(isinstance(command, do.SetTimer) for command in commands)
    peer.handle(on.PlanChanged(plan(deadline_seconds=20.0, quorum=0.0)), 64.0)
    assert peer.phase is Phase.AGGREGATING


def test_who_is_removed_from_a_graph_that_varies_is_forgotten() -> None:
    peer = collecting("bcd", time_varying=True)
    peer.handle(on.PlanChanged(plan("bc", time_varying=True)), 3.0)
    assert sorted(peer.neighbours) == ["b", "c"]
    # One of another round alone is kept with its replica.
    later = plan("b", time_varying=True, neighbours=frozenset("bc"))
    peer.handle(on.PlanChanged(later), 4.0)
    assert sorted(peer.neighbours) == ["b", "c"]


RELOADED = b"R" * 32


def test_a_topology_that_comes_while_a_delta_is_sealed_is_in_force_once_it_is_out() -> None:
    peer = engine()
    peer.handle(on.Started(), 0.0)
    linked(peer)
    peer.handle(on.TrainingFinished(0), 1.0)
    assert peer.handle(on.PlanChanged(plan("bd", topology_digest=RELOADED)), 1.5) == []
    # The joiner is known at once, or its link would be forgotten.
    peer.handle(on.LinkUp("d", 0, GENESIS, NEVER_PUBLISHED), 1.6)
    # The delta was signed under the old file, which nobody takes any more.
    commands = peer.handle(on.Published(signed("a", 0)), 2.0)
    assert do.SendSnapshot("b") in commands
    assert do.SendSnapshot("d") in commands
    assert not any(isinstance(command, do.SendDelta) for command in commands)
    deliver(peer, signed("b", 0, topology=RELOADED), 3.0)
    commands = deliver(peer, signed("d", 0, topology=RELOADED), 4.0)
    [aggregate] = [command for command in commands if isinstance(command, do.Aggregate)]
    assert [one.site for one in aggregate.inputs] == ["b", "d"]


def test_envelopes_are_compared_with_the_new_topology_while_the_old_one_is_aggregated() -> None:
    peer = collecting()
    deliver(peer, signed("b", 0), 3.0)
    deliver(peer, signed("c", 0), 4.0)
    assert peer.phase is Phase.AGGREGATING
    peer.handle(on.PlanChanged(plan("bc", topology_digest=RELOADED)), 5.0)
    of_old = peer.handle(on.OfferArrived("b", signed("b", 1)), 5.1)
    assert answer_of(of_old).code is AnswerCode.REFUSED
    of_new = peer.handle(on.OfferArrived("b", signed("b", 1, topology=RELOADED)), 5.2)
    assert answer_of(of_new).code is AnswerCode.SEND


def test_what_was_signed_under_another_topology_is_not_sent_after_a_restart() -> None:
    mine = signed("a", 0)
    own = OwnState(0, name_of_replica("a", 0), mine)
    peer = engine(own=own, retained=(mine,), topology_digest=RELOADED)
    peer.handle(on.Started(), 0.0)
    # Nor as a snapshot, unasked, to one who was shown what it would restate.
    shown = name_of_replica("a", 0)
    assert peer.handle(on.LinkUp("b", 0, GENESIS, NEVER_PUBLISHED, shown), 1.0) == []
    assert peer.handle(on.WantArrived("b", GENESIS), 2.0) == [do.SendSnapshot("b")]
    assert peer.handle(on.WantArrived("b", shown), 2.0) == []
    # A link of which nobody knows what was said on it.
    commands = peer.handle(on.LinkUp("c", 0, GENESIS, NEVER_PUBLISHED), 3.0)
    assert commands == [do.SendSnapshot("c")]


def test_what_was_published_while_the_hellos_crossed_is_sent_whatever_was_signed_when() -> None:
    """Delta or, where it was signed under the old topology file, snapshot."""
    for topology in (RELOADED, TOPOLOGY):
        peer = engine()
        peer.handle(on.Started(), 0.0)
        linked(peer)
        peer.handle(on.TrainingFinished(0), 1.0)
        peer.handle(on.PlanChanged(plan(topology_digest=RELOADED)), 1.5)
        for site in "bc":
            peer.handle(on.LinkDown(site), 1.6)
        # Its hello to b went out before it had published, and b's came after; c said hello since.
        mine = signed("a", 0, topology=topology)
        peer.handle(on.Published(mine), 2.0)
        commands = peer.handle(on.LinkUp("b", 0, GENESIS, NEVER_PUBLISHED, GENESIS), 2.1)
        fresh = topology == RELOADED
        assert commands == [do.SendDelta("b", mine.digest) if fresh else do.SendSnapshot("b")]
        shown = name_of_replica("a", 0)
        commands = peer.handle(on.LinkUp("c", 0, GENESIS, NEVER_PUBLISHED, shown), 2.2)
        assert commands == ([do.SendDelta("c", mine.digest)] if fresh else [])


def test_who_was_silent_while_something_was_published_is_sent_it_once_it_is_heard() -> None:
    peer = engine()
    peer.handle(on.Started(), 0.0)
    linked(peer)
    peer.handle(on.NeighbourSilent("b"), 0.5)
    peer.handle(on.TrainingFinished(0), 1.0)
    peer.handle(on.PlanChanged(plan(topology_digest=RELOADED)), 1.5)
    commands = peer.handle(on.Published(signed("a", 0)), 2.0)
    assert do.SendSnapshot("c") in commands
    assert do.SendSnapshot("b") not in commands
    assert do.SendSnapshot("b") in peer.handle(on.NeighbourHeard("b"), 3.0)
    # It was sent that: heard again, it is sent nothing.
    peer.handle(on.NeighbourSilent("b"), 4.0)
    assert do.SendSnapshot("b") not in peer.handle(on.NeighbourHeard("b"), 5.0)


def test_on_a_graph_that_varies_deltas_are_taken_against_the_genesis_model() -> None:
    peer = collecting(time_varying=True)
    deliver(peer, signed("b", 0), 3.0)
    deliver(peer, signed("c", 0), 4.0)
    peer.handle(on.AggregationFinished(0), 5.0)
    peer.handle(on.RoundCommitted(0), 6.0)
    [publish] = peer.handle(on.TrainingFinished(1), 7.0)
    assert isinstance(publish, do.Publish)
    assert publish.replica_before == GENESIS
    deliver(peer, signed("b", 1, before=GENESIS), 8.0)


def test_a_shell_that_reports_what_was_not_asked_for_is_told_so() -> None:
    peer = engine()
    peer.handle(on.Started(), 0.0)
    with pytest.raises(LocalProtocolError):
        peer.handle(on.AggregationFinished(0), 1.0)
    with pytest.raises(LocalProtocolError):
        peer.handle(on.TrainingFinished(3), 1.0)


def test_who_catches_up_on_a_graph_that_varies_has_the_neighbours_of_its_new_round() -> None:
    def weights_of(round_number: int) -> Mapping[str, float]:
        return {"b": 0.5} if round_number < 3 else {"c": 0.5}

    peer = engine("b", weights_of=weights_of, time_varying=True)
    peer.handle(on.Started(), 0.0)
    linked(peer, "b", round_number=3)
    peer.handle(on.TrainingFinished(0), 1.0)
    assert peer.round_number == 3
    assert "c" in peer.neighbours


def one_round(peer: RoundEngine, number: int, absent: str = "") -> do.Aggregate:
    """Close a round without some neighbours, and begin the next."""
    at = 100.0 * number
    if number:
        peer.handle(on.TrainingFinished(number), at + 1.0)
        peer.handle(on.Published(signed("a", number)), at + 2.0)
    commands: list[do.Command] = []
    for site in "bcd":
        if site not in absent:
            held = peer.neighbours[site].held.replica
            commands += deliver(peer, signed(site, number, before=held), at + 3.0)
    if absent:
        commands += peer.handle(on.TimerFired(on.Timer.DEADLINE), at + 70.0)
    [aggregate] = [command for command in commands if isinstance(command, do.Aggregate)]
    return aggregate


def close(peer: RoundEngine, number: int, returned: tuple[str, ...] = ()) -> None:
    peer.handle(on.AggregationFinished(number, returned), 100.0 * number + 80.0)
    peer.handle(on.RoundCommitted(number), 100.0 * number + 81.0)


def returning(aggregate: do.Aggregate) -> list[str]:
    return [one.site for one in aggregate.inputs if one.returning]


def test_a_neighbour_that_was_away_is_returning_until_it_is_near_again() -> None:
    peer = collecting("bcd", max_staleness=0)
    for number in range(2):
        assert one_round(peer, number, absent="d").left_out == ("d",)
        close(peer, number)
    for number in range(2, 5):
        assert returning(one_round(peer, number)) == ["d"]
        close(peer, number, returned=("d",) if number == 4 else ())
    assert returning(one_round(peer, 5)) == []


def test_one_missed_round_makes_nobody_returning() -> None:
    peer = collecting("bcd", max_staleness=0)
    assert one_round(peer, 0, absent="d").left_out == ("d",)
    close(peer, 0)
    assert returning(one_round(peer, 1)) == []


def committed(peer: RoundEngine, number: int) -> do.CommitRound:
    """Close a round, and say what was committed with it."""
    [commit] = peer.handle(on.AggregationFinished(number), 100.0 * number + 80.0)
    assert isinstance(commit, do.CommitRound)
    peer.handle(on.RoundCommitted(number), 100.0 * number + 81.0)
    return commit


def resumed(commit: do.CommitRound, **changes: object) -> RoundEngine:
    """The peer after a crash: what was committed with its last round, and nothing else."""
    number = commit.round_number
    mine = signed("a", number)
    held = {
        site: ReplicaState(name_of_replica(site, number), number, number + 1) for site in "bcde"
    }
    own = OwnState(number + 1, mine.header.replica_after, mine)
    settings = plan("bcd", **{"max_staleness": 0, **changes})
    peer = RoundEngine(settings, own, held, (mine,), HeaderLog(), (), commit.standings)
    peer.handle(on.Started(), 100.0 * number + 90.0)
    for site in peer.neighbours:
        up = on.LinkUp(site, number + 1, held[site].replica, number, mine.header.replica_after)
        peer.handle(up, 100.0 * number + 91.0)
    return peer


def test_who_is_returning_is_not_forgotten_by_a_crash_nor_how_patient_one_was() -> None:
    peer = collecting("bcd", max_staleness=0)
    for number in range(2):
        one_round(peer, number, absent="d")
        commit = committed(peer, number)
    assert commit.standings == (Standing("d", 2, True),)
    peer = resumed(commit)
    for number in range(2, 4):
        assert returning(one_round(peer, number)) == ["d"]
        commit = committed(peer, number)
    left = MOST_PATIENCE - 2 * limits.RETURNING_COST
    assert commit.standings == (Standing("d", 0, True, left),)
    assert resumed(commit).neighbours["d"].standing == commit.standings[0]


def test_a_neighbour_that_is_none_in_this_round_keeps_its_standing_and_its_replica() -> None:
    one = do.CommitRound(3, (Standing("e", 3, True),))
    peer = resumed(one, neighbours=frozenset("bcde"))
    assert "e" not in peer.neighbours
    one_round(peer, 4)
    assert committed(peer, 4) == do.CommitRound(4, one.standings)
    peer.handle(on.PlanChanged(plan("bcde", neighbours=frozenset("bcde"))), 600.0)
    assert peer.neighbours["e"].returning
    assert peer.neighbours["e"].held.replica == name_of_replica("e", 3)


def test_what_is_known_of_a_site_goes_once_no_round_of_the_topology_needs_it() -> None:
    peer = resumed(do.CommitRound(3, (Standing("e", 3, True),)))
    one_round(peer, 4)
    # It is in no graph of the file with which the peer started.
    assert committed(peer, 4) == do.CommitRound(4, forgotten=("e",))
    peer.handle(on.TrainingFinished(5), 501.0)
    peer.handle(on.PlanChanged(plan("bc")), 501.5)  # while the delta is sealed
    peer.handle(on.Published(signed("a", 5)), 502.0)
    for site in "bc":
        deliver(peer, signed(site, 5, before=peer.neighbours[site].held.replica), 503.0)
    assert committed(peer, 5) == do.CommitRound(5, forgotten=("d",))
    # Who comes back begins anew: its old replica is not there any more.
    peer.handle(on.PlanChanged(plan("bcde")), 600.0)
    for site in "de":
        assert peer.neighbours[site].held.replica == GENESIS


def test_a_site_that_comes_back_before_the_round_is_committed_is_not_forgotten() -> None:
    peer = resumed(do.CommitRound(3))
    peer.handle(on.PlanChanged(plan("bc")), 350.0)
    peer.handle(on.PlanChanged(plan("bcd")), 351.0)
    peer.handle(on.LinkUp("d", 4, GENESIS, NEVER_PUBLISHED), 352.0)
    peer.handle(on.TrainingFinished(4), 401.0)
    peer.handle(on.Published(signed("a", 4)), 402.0)
    for site in "bcd":
        deliver(peer, signed(site, 4, before=peer.neighbours[site].held.replica), 403.0)
    assert committed(peer, 4) == do.CommitRound(4, forgotten=("e",))


def test_patience_with_who_keeps_going_away_and_stays_far_is_limited() -> None:
    peer = collecting("bcd", max_staleness=0)
    believed = 0
    for number in range(600):
        away = number % 10 < limits.ABSENT_ROUNDS
        believed += len(returning(one_round(peer, number, absent="d" if away else "")))
        close(peer, number)
    assert believed <= limits.RETURNING_ROUNDS + 600 // limits.RETURNING_COST
    # Once it has shown itself for long enough, an absence is believed again.
    assert believed > limits.RETURNING_ROUNDS
