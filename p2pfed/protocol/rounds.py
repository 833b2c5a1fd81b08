"""The round engine: one peer's part in the federation, as a state machine without I/O.

``RoundEngine.handle(event, now)`` returns the commands that follow. The daemon and the
simulator drive the same engine; it reads no clock, draws no random number, logs nothing and
touches neither vectors nor sockets.

A round runs TRAINING -> PUBLISHING -> COLLECTING -> AGGREGATING -> COMMITTING. A peer that
fell behind publishes what it trained under its neighbours' (lower median) round: nothing of
its work is lost, and they are not kept waiting for rounds that they closed without it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from p2pfed.errors import LocalProtocolError
from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.header import Kind, SignedHeader
from p2pfed.protocol.messages import AnswerCode
from p2pfed.protocol.neighbours import (
    NEVER_PUBLISHED,
    Neighbour,
    OfferDecision,
    Repair,
    ReplicaState,
)
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.signed_rounds import SignedRounds

NO_HEADER = bytes(32)
LINK_GRACE_SECONDS = 10.0  # a neighbour that just went down is still waited for this long,
LINK_GRACE_DEADLINES = 0.5  # or for this fraction of the round's deadline if that is less
TRAINING_RETRY_SECONDS = 5.0  # the shell restarts the trainer meanwhile


class Phase(StrEnum):
    STARTING = "starting"
    ASKING = "asking"  # a restored peer learns from its neighbours which rounds it has signed
    TRAINING = "training"
    PUBLISHING = "publishing"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    COMMITTING = "committing"
    FINISHED = "finished"
    HALTED = "halted"


_WORK_IN_HAND = (Phase.PUBLISHING, Phase.AGGREGATING, Phase.COMMITTING)
_PLAN_IS_FIXED = (*_WORK_IN_HAND, Phase.STARTING)
_REPLICAS_ARE_READ = (Phase.AGGREGATING, Phase.COMMITTING, Phase.STARTING)


@dataclass(frozen=True, slots=True)
class OwnState:
    """What a peer knows of itself when its daemon starts; rebuilt from the store.

    ``published`` is the last own delta header. Where it belongs to ``round_number`` the round
    was published before the daemon ended, and goes on from there with the same bytes.
    ``restored``: the state is older than what the peer has signed, or may be.
    """

    round_number: int
    replica: bytes
    published: SignedHeader | None
    restored: bool = False


@dataclass(slots=True)
class RetainedDeltas:
    """The own envelopes that can still be sent again, oldest first."""

    headers: list[SignedHeader] = field(default_factory=list)

    def add(self, signed: SignedHeader) -> None:
        self.headers.append(signed)
        del self.headers[: -limits.RETAINED_DELTAS]

    def keep_only(self, topology_digest: bytes) -> None:
        """Drop those that were signed under another topology file."""
        self.headers = [s for s in self.headers if s.header.topology_digest == topology_digest]

    def after(self, replica_held: bytes) -> list[SignedHeader]:
        """The chain from ``replica_held`` to the newest, or nothing where it is broken."""
        for index, signed in enumerate(self.headers):
            if signed.header.replica_before == replica_held:
                return self.headers[index:]
        return []


class RoundEngine:
    """One peer's rounds.

    :param own: the restored state of this peer.
    :param replicas: what was held of each neighbour when the daemon ended.
    :param retained: own envelopes still on disk, oldest first.
    :param headers: the log that finds equivocation, with what it held.
    """

    def __init__(
        self,
        plan: FederationPlan,
        own: OwnState,
        replicas: Mapping[str, ReplicaState],
        retained: Iterable[SignedHeader],
        headers: HeaderLog,
        quarantined: Iterable[str],
    ) -> None:
        self._plan = plan
        self._next_plan: FederationPlan | None = None
        self.round_number = own.round_number
        self.phase = Phase.STARTING
        self._replica = own.replica
        self.published = own.published
        self._retained = RetainedDeltas(list(retained))
        self._retained.keep_only(plan.topology_digest)
        self._headers = headers
        self._quarantined = set(quarantined)
        self._restored = dict(replicas)
        self._signed_rounds = SignedRounds(asking=own.restored)
        self.neighbours: dict[str, Neighbour] = {}
        self.deadline_at_seconds: float | None = None
        self._deadline_passed = False
        self._asked_since_deadline = False
        self._quorum_noticed = False
        self._stopping = False
        self._commands: list[do.Command] = []

    def handle(self, event: on.Event, now: float) -> list[do.Command]:  # noqa: PLR0912
        """Take one event and return what is to be done about it, in order.

        :raises LocalProtocolError: the shell reports something that it was not asked for.
        """
        if self.phase is Phase.HALTED:
            return []
        self._commands = []
        match event:
            case on.Started():
                self._start(now)
            case on.StopRequested():
                self._stopping = True
                self._halt_if_safe()
            case on.TimerFired():
                self._timer_fired(event.timer, now)
            case on.PlanChanged():
                self._take_plan(event.plan, now)
            case on.LinkUp() | on.LinkDown() | on.NeighbourProgress():
                self._link_changed(event, now)
            case on.TrainingFinished() | on.TrainingFailed() | on.Published():
                self._own_work_done(event, now)
            case on.OfferArrived():
                self._answer_offer(event)
            case on.PayloadReceived() | on.TransferAborted():
                self._transfer_ended(event, now)
            case on.ReplicaUpdated() | on.PayloadRejected():
                self._payload_applied(event, now)
            case on.WantArrived():
                self._repair(event)
            case on.HeaderHeard():
                self._observe(event.sender, event.signed, event.heard_from)
            case on.OwnHeaderHeard():
                self._take_own_header(event.heard_from, event.signed)
            case on.EquivocationHeard():
                self._quarantine(event.sender, event.first, event.second)
            case on.AggregationFinished() | on.AggregationFailed() | on.RoundCommitted():
                self._round_closed(event, now)
        return self._commands

    def waited_for(self, now: float) -> list[str]:
        """The neighbours of this round that have not delivered but still may in time."""
        return [
            neighbour.site
            for neighbour in self._of_this_round()
            if not neighbour.delivered(self.round_number)
            and not neighbour.quarantined
            and not neighbour.failed_in(self.round_number)
            and (neighbour.linked or now < neighbour.down_since_seconds + self._grace_seconds())
        ]

    @property
    def quarantined(self) -> frozenset[str]:
        """The sites that were convicted of an equivocation."""
        return frozenset(self._quarantined)

    def delivered(self) -> list[str]:
        return [n.site for n in self._of_this_round() if n.delivered(self.round_number)]

    def _require(self, *phases: Phase) -> None:
        if self.phase not in phases:
            raise LocalProtocolError(f"not expected while {self.phase}")

    def _require_round(self, round_number: int) -> None:
        if round_number != self.round_number:
            raise LocalProtocolError(f"round {round_number} is not round {self.round_number}")

    def _start(self, now: float) -> None:
        self._require(Phase.STARTING)
        self._meet_neighbours(now)
        published = self.published
        if self._signed_rounds.asking:
            self.phase = Phase.ASKING
            until = now + self._plan.deadline_seconds
            self._commands.append(do.SetTimer(on.Timer.DEADLINE, until))
        elif published is not None and published.header.round_number == self.round_number:
            self._collect(now)
        else:
            self._begin_round(now)

    def _stop_asking(self, now: float) -> None:
        """Begin once every neighbour has shown what it holds, or, past the deadline, a quorum."""
        if self.phase is not Phase.ASKING:
            return
        honest = {n.site for n in self.neighbours.values() if not n.quarantined}
        heard = len(self._signed_rounds.reported & honest)
        # Where the graph varies, the neighbours of other rounds may hold a newer header.
        everybody = heard == len(honest) and not self._plan.time_varying
        if not everybody and not (
            self._deadline_passed and heard >= max(1, self._plan.quorum_of(len(honest)))
        ):
            return
        self.round_number = self._signed_rounds.resume_at(
            self.round_number, self._median_announced_round()
        )
        if self._plan.total_rounds:
            self.round_number = min(self.round_number, self._plan.total_rounds)
        self._commands.append(do.CancelTimer(on.Timer.DEADLINE))
        self._notice(
            do.NoticeKind.ROUND_SKIPPED,
            None,
            f"the state was restored; its first round is {self.round_number}, for no earlier one "
            "is certain not to have been signed",
        )
        self._begin_round(now)

    def _take_own_header(self, heard_from: str, signed: SignedHeader) -> None:
        """Note a delta that this peer signed; one that it does not know of came from an older
        or another copy of its state, and its round is never signed again."""
        rounds, published = self._signed_rounds, self.published
        last = published.header.round_number if published is not None else -1
        if signed.header.round_number <= max(last, rounds.first_free - 1):
            return
        rounds.shown(signed)
        if not rounds.asking:
            self._notice(
                do.NoticeKind.SIGNED_ELSEWHERE,
                heard_from,
                f"holds a delta of this site for round {signed.header.round_number} that this "
                "state does not know: its state is old, or its key is in use elsewhere",
            )

    def _meet_neighbours(self, now: float) -> None:
        """Bring the table of neighbours in line with the plan, keeping what is known."""
        wanted = set(self._plan.weights_of(self.round_number))
        if self._plan.time_varying:
            # A neighbour of some other round keeps its replica for the round it is due in.
            wanted |= set(self.neighbours)
        for site in sorted(wanted - set(self.neighbours)):
            self._meet(site, now)
        for site in sorted(set(self.neighbours) - wanted):
            if self.neighbours[site].applying is None:
                self._discard(self.neighbours.pop(site))

    def _meet(self, site: str, now: float) -> Neighbour:
        genesis = ReplicaState(self._plan.genesis_replica, NEVER_PUBLISHED, 0)
        held = self._restored.pop(site, genesis)
        self.neighbours[site] = Neighbour(site, held, now, quarantined=site in self._quarantined)
        return self.neighbours[site]

    def _take_plan(self, plan: FederationPlan, now: float) -> None:
        """Take a new plan: for what is said to others at once, for whom to aggregate as soon as
        no vector is being worked on."""
        self._next_plan = plan
        # Envelopes signed under the old topology are refused by those who reloaded: who
        # misses one gets a snapshot, signed anew.
        self._retained.keep_only(plan.topology_digest)
        for site in sorted(set(plan.weights_of(self.round_number)) - set(self.neighbours)):
            self._meet(site, now)
        self._change_plan(now)
        if self.phase is Phase.FINISHED:
            self._begin_round(now)
        else:
            self._stop_asking(now)
            self._try_close(now)

    def _change_plan(self, now: float) -> None:
        """Put a plan that waits in force, unless a vector is being worked on."""
        if self._next_plan is None or self.phase in _PLAN_IS_FIXED:
            return
        self._plan, self._next_plan = self._next_plan, None
        self._meet_neighbours(now)

    @property
    def _newest_plan(self) -> FederationPlan:
        """What this peer tells its neighbours, and asks of their envelopes."""
        return self._next_plan or self._plan

    def _begin_round(self, now: float) -> None:
        self._change_plan(now)
        self._meet_neighbours(now)
        if self._plan.total_rounds and self.round_number >= self._plan.total_rounds:
            self.phase = Phase.FINISHED
            self._release(now)
            return
        self._deadline_passed = False
        self._asked_since_deadline = False
        self._quorum_noticed = False
        self.deadline_at_seconds = None
        self.phase = Phase.TRAINING
        self._commands.append(do.Train(self.round_number, self._plan.local_steps))
        self._release(now)
        for neighbour in self.neighbours.values():
            if neighbour.repair_later and neighbour.linked:
                self._ask_for_repair(neighbour)

    def _own_work_done(
        self, event: on.TrainingFinished | on.TrainingFailed | on.Published, now: float
    ) -> None:
        match event:
            case on.TrainingFinished(round_number):
                self._require(Phase.TRAINING)
                self._require_round(round_number)
                self._catch_up(now)
                if self._plan.total_rounds and self.round_number >= self._plan.total_rounds:
                    self._begin_round(now)
                    return
                self.phase = Phase.PUBLISHING
                last = self.published or self._signed_rounds.newest
                self._commands.append(
                    do.Publish(
                        self.round_number,
                        sequence=self.round_number + 1,
                        previous=last.digest if last else NO_HEADER,
                        replica_before=(
                            self._plan.genesis_replica if self._plan.time_varying else self._replica
                        ),
                    )
                )
            case on.TrainingFailed(round_number, reason):
                self._require(Phase.TRAINING)
                self._notice(do.NoticeKind.TRAINING_FAILED, None, reason)
                self._commands.append(do.SetTimer(on.Timer.RETRY, now + TRAINING_RETRY_SECONDS))
            case on.Published(signed):
                self._require(Phase.PUBLISHING)
                self._require_round(signed.header.round_number)
                self.published = signed
                self._replica = signed.header.replica_after
                self._retained.add(signed)
                self._retained.keep_only(self._newest_plan.topology_digest)
                self._collect(now)
                self._halt_if_safe()

    def _catch_up(self, now: float) -> None:
        """Move on to the round that most linked neighbours are in, if it is ahead."""
        ahead = self._median_announced_round()
        if self._plan.total_rounds:
            ahead = min(ahead, self._plan.total_rounds - 1)
        ahead = max(ahead, self._signed_rounds.first_free)
        if ahead > self.round_number:
            self._notice(do.NoticeKind.ROUND_SKIPPED, None, f"to round {ahead} of the neighbours")
            self.round_number = ahead
            self._meet_neighbours(now)  # of that round, where the graph varies

    def _collect(self, now: float) -> None:
        """Send the published delta and wait for the neighbours' own."""
        assert self.published is not None  # noqa: S101 - both callers have just published
        self.phase = Phase.COLLECTING
        self._change_plan(now)
        self.deadline_at_seconds = now + self._plan.deadline_seconds
        self._commands.append(do.SetTimer(on.Timer.DEADLINE, self.deadline_at_seconds))
        self._commands.append(do.FloodHeader(self.published, None))
        for neighbour in self._of_this_round():
            if neighbour.linked and not neighbour.quarantined:
                self._send_newest(neighbour.site)
        self._release(now)
        self._try_close(now)

    def _timer_fired(self, timer: on.Timer, now: float) -> None:
        match timer:
            case on.Timer.DEADLINE if self.phase is Phase.ASKING:
                self._deadline_passed = True
                self._stop_asking(now)
            case on.Timer.DEADLINE if self.phase is Phase.COLLECTING:
                self._deadline_passed = True
                self._asked_since_deadline = False
                self._try_close(now)
            case on.Timer.GRACE:
                self._try_close(now)
            case on.Timer.RETRY if self.phase is Phase.TRAINING:
                self._commands.append(do.Train(self.round_number, self._plan.local_steps))
            case _:
                pass  # a timer of a round that closed meanwhile

    def _link_changed(
        self, event: on.LinkUp | on.LinkDown | on.NeighbourProgress, now: float
    ) -> None:
        neighbour = self.neighbours.get(event.site)
        if neighbour is None:
            if not isinstance(event, on.LinkUp) or not self._plan.time_varying:
                return
            neighbour = self._meet(event.site, now)
        match event:
            case on.LinkUp():
                neighbour.linked = True
                neighbour.announced_round = event.round_number
                if neighbour.quarantined:
                    return
                if event.replica != neighbour.tip():
                    self._ask_for_repair(neighbour)
                # What was published while the hellos crossed was sent to nobody.
                if self.published is not None:
                    self._send_newest(neighbour.site)
            case on.LinkDown():
                neighbour.linked = False
                neighbour.down_since_seconds = now
                neighbour.arriving = None
                self._try_close(now)
            case on.NeighbourProgress():
                neighbour.announced_round = event.round_number
                # What it holds of this peer it showed before its first heartbeat.
                self._signed_rounds.reported.add(event.site)
                self._stop_asking(now)

    def _answer_offer(self, event: on.OfferArrived) -> None:
        neighbour = self.neighbours.get(event.site)
        if neighbour is None:
            decision = OfferDecision(AnswerCode.REFUSED, "not a neighbour in this topology")
        else:
            decision = self._decide(neighbour, event.signed)
        self._commands.append(do.AnswerOffer(event.site, decision.code, decision.detail))
        if neighbour is None:
            return
        if decision.code is AnswerCode.SEND:
            neighbour.arriving = event.signed
        elif decision.code is AnswerCode.REFUSED:
            self._notice(do.NoticeKind.DELTA_REFUSED, event.site, decision.detail)
        if decision.repair is Repair.AT_ONCE:
            self._ask_for_repair(neighbour)
        elif decision.repair is Repair.LATER:
            neighbour.repair_later = True

    def _decide(self, neighbour: Neighbour, signed: SignedHeader) -> OfferDecision:
        header, plan = signed.header, self._newest_plan
        for mine, theirs, what in (
            (plan.federation_id, header.federation_id, "federation"),
            (plan.topology_digest, header.topology_digest, "topology file"),
            (plan.schema_digest, header.schema_digest, "model schema"),
        ):
            if mine != theirs:
                return OfferDecision(
                    AnswerCode.REFUSED,
                    f"its {what} is {theirs.hex()[:12]}, this peer's is {mine.hex()[:12]}",
                )
        if header.kind is Kind.DELTA:
            self._observe(neighbour.site, signed, neighbour.site)
        if neighbour.rejected_in_round == self.round_number:
            # Or it could have the same payload received and refused without end.
            return OfferDecision(
                AnswerCode.NOT_NOW, "what it sent this round could not be applied", Repair.LATER
            )
        return neighbour.decide(signed, self._plan.genesis_replica, self._newest_round())

    def _newest_round(self) -> int:
        """The last round whose delta is taken: a liar cannot claim the far future, and a peer
        that fell behind still takes its neighbours' present."""
        return max(self.round_number, self._median_announced_round()) + limits.ROUND_WINDOW

    def _median_announced_round(self) -> int:
        announced = sorted(
            n.announced_round for n in self.neighbours.values() if n.linked and not n.quarantined
        )
        return announced[(len(announced) - 1) // 2] if announced else 0

    def _transfer_ended(self, event: on.PayloadReceived | on.TransferAborted, now: float) -> None:
        neighbour = self.neighbours.get(event.site)
        if neighbour is None or neighbour.arriving != event.signed:
            if isinstance(event, on.PayloadReceived):
                self._commands.append(do.DiscardPayload(event.site, event.signed))
            return
        neighbour.arriving = None
        if isinstance(event, on.PayloadReceived):
            neighbour.kept.append(event.signed)
            self._release(now)

    def _release(self, now: float) -> None:
        """Apply the kept payloads whose round has come, unless replicas are being read."""
        if self.phase in _REPLICAS_ARE_READ:
            return
        for neighbour in self.neighbours.values():
            due = neighbour.next_to_apply(self.round_number)
            if due is not None:
                neighbour.kept.pop(0)
                neighbour.applying = due
                self._commands.append(do.ApplyPayload(neighbour.site, due))
        self._try_close(now)

    def _payload_applied(self, event: on.ReplicaUpdated | on.PayloadRejected, now: float) -> None:
        neighbour = self.neighbours.get(event.site)
        if neighbour is None:
            return  # removed from the topology meanwhile
        if neighbour.applying != event.signed:
            raise LocalProtocolError(f"no payload of {event.site} was being applied")
        neighbour.applying = None
        header = event.signed.header
        if isinstance(event, on.ReplicaUpdated):
            neighbour.held = ReplicaState(
                header.replica_after, header.round_number, header.sequence
            )
        else:
            # What follows on the chain builds on the refused payload.
            self._discard(neighbour)
            neighbour.rejected_in_round = self.round_number
            self._notice(do.NoticeKind.DELTA_REJECTED, event.site, event.reason)
        self._release(now)
        if neighbour.repair_later and neighbour.linked and neighbour.idle():
            self._ask_for_repair(neighbour)

    def _discard(self, neighbour: Neighbour) -> None:
        for signed in neighbour.forget_transfers():
            self._commands.append(do.DiscardPayload(neighbour.site, signed))

    def _ask_for_repair(self, neighbour: Neighbour) -> None:
        """Ask for what is missing; once a round of who sent what could not be applied, or it
        would be asked for, sent and refused without end."""
        neighbour.repair_later = neighbour.rejected_in_round == self.round_number
        if neighbour.repair_later:
            return
        self._commands.append(do.RequestRepair(neighbour.site, neighbour.tip()))

    def _send_newest(self, site: str) -> None:
        if self._retained.headers:
            self._commands.append(do.SendDelta(site, self._retained.headers[-1].digest))
        else:
            self._commands.append(do.SendSnapshot(site))

    def _repair(self, event: on.WantArrived) -> None:
        if self.published is None:
            return
        if event.site not in self.neighbours or self.neighbours[event.site].quarantined:
            return
        missing = self._retained.after(event.replica_held)
        if missing:
            self._commands.extend(do.SendDelta(event.site, s.digest) for s in missing)
        elif event.replica_held != self._replica:
            self._commands.append(do.SendSnapshot(event.site))

    def _observe(self, sender: str, signed: SignedHeader, heard_from: str) -> None:
        """Pass a near site's header on if it is new; two for one round are proof of a lie.

        One of the far future is nobody's delta yet: taking it would let its sender fill the
        log and the links with rounds that it makes up.
        """
        if signed.header.round_number > self._newest_round():
            return
        conflict = self._headers.observe(signed)
        if conflict is None:
            return
        if conflict.digest == signed.digest:
            if sender in self._plan.relayed:
                self._commands.append(do.FloodHeader(signed, heard_from))
        else:
            self._quarantine(sender, conflict, signed)

    def _quarantine(self, site: str, first: SignedHeader, second: SignedHeader) -> None:
        if site in self._quarantined:
            return
        self._quarantined.add(site)
        self._commands.append(do.Quarantine(site, first, second))
        neighbour = self.neighbours.get(site)
        if neighbour is not None:
            neighbour.quarantined = True
            self._discard(neighbour)

    def _of_this_round(self) -> list[Neighbour]:
        return [
            self.neighbours[site]
            for site in sorted(self._plan.weights_of(self.round_number))
            if site in self.neighbours
        ]

    def _grace_seconds(self) -> float:
        return min(LINK_GRACE_SECONDS, LINK_GRACE_DEADLINES * self._plan.deadline_seconds)

    def _try_close(self, now: float) -> None:
        """Aggregate once everybody who can deliver has, or at the deadline with a quorum."""
        if self.phase is not Phase.COLLECTING:
            return
        present = self._of_this_round()
        if any(neighbour.applying is not None for neighbour in present):
            return
        waiting = self.waited_for(now)
        if waiting and not self._deadline_passed:
            expiries = [
                n.down_since_seconds + self._grace_seconds()
                for n in present
                if n.site in waiting and not n.linked
            ]
            if expiries:
                self._commands.append(do.SetTimer(on.Timer.GRACE, min(expiries)))
            return
        delivered = len(self.delivered())
        quorum = self._plan.quorum_of(len(present))
        if delivered < quorum:
            if self._deadline_passed and not self._asked_since_deadline:
                self._asked_since_deadline = True
                for neighbour in present:
                    if neighbour.site in waiting and neighbour.linked and neighbour.idle():
                        self._ask_for_repair(neighbour)
                # The question may be lost as well, so it is asked until the quorum is there.
                again = now + self._plan.deadline_seconds
                self._commands.append(do.SetTimer(on.Timer.DEADLINE, again))
                self._notice_quorum(delivered, len(present), quorum)
            return
        self._aggregate(present)

    def _notice_quorum(self, delivered: int, present: int, quorum: int) -> None:
        """Say once a round that too few delivered."""
        if not self._quorum_noticed:
            self._quorum_noticed = True
            self._notice(
                do.NoticeKind.QUORUM_MISSING,
                None,
                f"{delivered} of {present} neighbours delivered, {quorum} are needed",
            )

    def _aggregate(self, present: list[Neighbour]) -> None:
        weights = self._plan.weights_of(self.round_number)
        inputs: list[do.AggregationInput] = []
        left_out: list[str] = []
        for neighbour in present:
            staleness = max(0, self.round_number - neighbour.held.round_number)
            if neighbour.usable(self.round_number) and staleness <= self._plan.max_staleness:
                inputs.append(
                    do.AggregationInput(
                        neighbour.site, weights[neighbour.site], staleness, neighbour.counted()
                    )
                )
            else:
                left_out.append(neighbour.site)
                neighbour.left_out()
        self.phase = Phase.AGGREGATING
        self._commands.append(do.CancelTimer(on.Timer.DEADLINE))
        self._commands.append(do.CancelTimer(on.Timer.GRACE))
        if left_out:
            self._notice(do.NoticeKind.ROUND_DEGRADED, None, "without " + ", ".join(left_out))
        self._commands.append(do.Aggregate(self.round_number, tuple(inputs), tuple(left_out)))

    def _round_closed(
        self,
        event: on.AggregationFinished | on.AggregationFailed | on.RoundCommitted,
        now: float,
    ) -> None:
        self._require_round(event.round_number)
        match event:
            case on.AggregationFailed():
                self._require(Phase.AGGREGATING)
                if event.site is None or event.site not in self.neighbours:
                    raise LocalProtocolError(f"aggregation failed at this site: {event.reason}")
                self.neighbours[event.site].excluded_in_round = self.round_number
                self._notice(do.NoticeKind.NEIGHBOUR_EXCLUDED, event.site, event.reason)
                self._aggregate(self._of_this_round())
            case on.AggregationFinished():
                self._require(Phase.AGGREGATING)
                for site in event.returned:
                    self.neighbours[site].returning = False
                self.phase = Phase.COMMITTING
                self._commands.append(do.CommitRound(self.round_number))
            case on.RoundCommitted():
                self._require(Phase.COMMITTING)
                if self._plan.is_last(self.round_number):
                    self._notice(do.NoticeKind.FINISHED, None, "the last round is done")
                self.round_number += 1
                self.phase = Phase.TRAINING
                self._halt_if_safe()
                if not self._stopping:
                    self._begin_round(now)

    def _halt_if_safe(self) -> None:
        """End where everything that was promised to a neighbour is durable."""
        if self._stopping and self.phase not in _WORK_IN_HAND:
            self.phase = Phase.HALTED
            self._commands.append(do.Halt())

    def _notice(self, kind: do.NoticeKind, site: str | None, detail: str) -> None:
        self._commands.append(do.Notice(kind, self.round_number, site, detail))
