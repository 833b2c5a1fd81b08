"""The round engine: one peer's part in the federation, as a state machine without I/O.

``RoundEngine.handle(event, now)`` returns the commands that follow. The daemon and the
simulator drive the same engine; it reads no clock, draws no random number, logs nothing and
touches neither vectors nor sockets.

A round runs TRAINING -> PUBLISHING -> COLLECTING -> AGGREGATING -> COMMITTING. A peer that
fell behind publishes what it trained under its neighbours' (lower median) round: nothing of
its work is lost, and they are not kept waiting for rounds that they closed without it. One that
was away, and is far behind, goes JOINING -> ADOPTING after its first training, and begins anew
from its neighbours' model.
"""

from p2pfed.errors import LocalProtocolError
from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol.collecting import Collecting
from p2pfed.protocol.header import SignedHeader
from p2pfed.protocol.neighbours import ReplicaState
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.plan import FederationPlan

TRAINING_RETRY_SECONDS = 5.0  # the shell restarts the trainer meanwhile


_WORK_IN_HAND = (Phase.ADOPTING, Phase.PUBLISHING, Phase.AGGREGATING, Phase.COMMITTING)
_PLAN_IS_FIXED = (*_WORK_IN_HAND, Phase.STARTING)


class RoundEngine(Collecting):
    """One peer's rounds; the parameters are those of :class:`Exchange`."""

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
            case on.NeighbourSilent() | on.NeighbourHeard():
                self._hearing_changed(event, now)
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
            case on.Adopted() | on.AdoptionRefused():
                self._adoption_ended(event, now)
            case on.AggregationFinished() | on.AggregationFailed() | on.RoundCommitted():
                self._round_closed(event, now)
        return self._commands

    @property
    def signed_elsewhere(self) -> SignedHeader | None:
        """The newest own delta header that neighbours hold and this state does not know of."""
        return self._signed_rounds.newest

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
        longer_seconds = self._next_plan.deadline_seconds - self._plan.deadline_seconds
        self._plan, self._next_plan = self._next_plan, None
        self._meet_neighbours(now)
        waiting = self.phase is Phase.COLLECTING and not self._deadline_passed
        if longer_seconds and waiting and self.deadline_at_seconds is not None:
            self._wait_until(max(now, self.deadline_at_seconds + longer_seconds))

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
                elif self._absence.is_over(self.round_number) or not self._has_donors(linked=False):
                    self._publish()
                else:
                    self._join(now)
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

    def _adoption_ended(self, event: on.Adopted | on.AdoptionRefused, now: float) -> None:
        self._require(Phase.ADOPTING)
        self._require_round(event.round_number)
        match event:
            case on.Adopted():
                self._absence.joined(self.round_number)
                self._notice(do.NoticeKind.ADOPTED, None, "goes on from its neighbours' model")
                self.phase = Phase.TRAINING
                self._halt_if_safe()
                if not self._stopping:
                    self._begin_round(now)
            case on.AdoptionRefused():
                self._notice(do.NoticeKind.NOT_ADOPTED, None, event.reason)
                self._absence.away = False
                self._publish()

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
        self._wait_until(now + self._plan.deadline_seconds)
        self._commands.append(do.FloodHeader(self.published, None))
        for neighbour in self._of_this_round():
            if neighbour.linked and not neighbour.silent and not neighbour.quarantined:
                self._send_newest(neighbour)
        self._release(now)
        self._try_close(now)

    def _timer_fired(self, timer: on.Timer, now: float) -> None:
        match timer:
            case on.Timer.DEADLINE if self.phase is Phase.ASKING:
                self._deadline_passed = True
                self._stop_asking(now)
            case on.Timer.DEADLINE if self.phase is Phase.JOINING:
                self._deadline_passed = True
                self._try_close(now)
            case on.Timer.DEADLINE if self.phase is Phase.COLLECTING:
                if self._slept_through_deadline(now):
                    self._wait_until(now + self._grace_seconds())
                    return
                self._deadline_passed = True
                self._asked_since_deadline = False
                self._try_close(now)
            case on.Timer.GRACE:
                self._try_close(now)
            case on.Timer.RETRY if self.phase is Phase.TRAINING:
                self._commands.append(do.Train(self.round_number, self._plan.local_steps))
            case _:
                pass  # a timer of a round that closed meanwhile

    def _slept_through_deadline(self, now: float) -> bool:
        """Whether this process stood still when it ought to have closed the round: what its
        neighbours sent meanwhile is still to be read."""
        due = self.deadline_at_seconds
        return not self._deadline_passed and due is not None and now - due > self._grace_seconds()

    def _wait_until(self, until: float) -> None:
        self.deadline_at_seconds = until
        self._commands.append(do.SetTimer(on.Timer.DEADLINE, until))

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
                neighbour.linked, neighbour.silent = True, False
                neighbour.announced_round = event.round_number
                neighbour.told = event.shown
                if neighbour.quarantined:
                    return
                if event.replica != neighbour.tip():
                    self._ask_for_repair(neighbour)
                # What was published while the hellos crossed was sent to nobody.
                if self.published is not None:
                    self._send_newest(neighbour)
            case on.LinkDown():
                if not neighbour.silent:
                    neighbour.down_since_seconds = now
                neighbour.linked, neighbour.silent = False, True
                neighbour.arriving = None
                if not any(each.linked for each in self.neighbours.values()):
                    self._absence.away = True
                self._try_close(now)
            case on.NeighbourProgress():
                neighbour.announced_round = event.round_number
                if self.phase is Phase.JOINING:
                    self._catch_up(now)
                    self._release(now)
                # What it holds of this peer it showed before its first heartbeat.
                self._signed_rounds.reported.add(event.site)
                self._stop_asking(now)

    def _hearing_changed(self, event: on.NeighbourSilent | on.NeighbourHeard, now: float) -> None:
        neighbour = self.neighbours.get(event.site)
        if neighbour is None:
            return
        neighbour.silent = isinstance(event, on.NeighbourSilent)
        reached = neighbour.linked and not neighbour.silent and not neighbour.quarantined
        if reached and self.published is not None:
            # What was published meanwhile it was not sent: it would only have filled a queue.
            self._send_newest(neighbour)
        self._try_close(now)

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

    def _payload_applied(self, event: on.ReplicaUpdated | on.PayloadRejected, now: float) -> None:
        neighbour = self.neighbours.get(event.site)
        if neighbour is None:
            return  # removed from the topology meanwhile
        if neighbour.applying != event.signed:
            raise LocalProtocolError(f"no payload of {event.site} was being applied")
        neighbour.applying = None
        if isinstance(event, on.ReplicaUpdated):
            neighbour.held = ReplicaState.after(event.signed.header)
        else:
            # What follows on the chain builds on the refused payload.
            self._discard(neighbour)
            neighbour.rejected_in_round = self.round_number
            self._notice(do.NoticeKind.DELTA_REJECTED, event.site, event.reason)
        self._release(now)
        if neighbour.repair_later and neighbour.linked and neighbour.idle():
            self._ask_for_repair(neighbour)

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
                removed = self._forget_removed()
                self._commands.append(do.CommitRound(self.round_number, self._standings(), removed))
            case on.RoundCommitted():
                self._require(Phase.COMMITTING)
                if self._plan.is_last(self.round_number):
                    self._notice(do.NoticeKind.FINISHED, None, "the last round is done")
                self.round_number += 1
                self._absence.model_round = self.round_number
                self.phase = Phase.TRAINING
                self._halt_if_safe()
                if not self._stopping:
                    self._begin_round(now)

    def _halt_if_safe(self) -> None:
        """End where everything that was promised to a neighbour is durable."""
        if self._stopping and self.phase not in _WORK_IN_HAND:
            self.phase = Phase.HALTED
            self._commands.append(do.Halt())
