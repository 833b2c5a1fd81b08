"""What a peer waits for, and what it does once it is there: a round's models, or those of donors.

One that has trained publishes and collects; one from far behind awaits its neighbours' models
first. What opens and closes rounds is in ``rounds``.
"""

from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.exchange import Exchange
from p2pfed.protocol.joining import DONOR_STALENESS
from p2pfed.protocol.neighbours import Neighbour
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.shares import ramp_share, staleness_share

NO_HEADER = bytes(32)
_REPLICAS_ARE_READ = (Phase.ADOPTING, Phase.AGGREGATING, Phase.COMMITTING, Phase.STARTING)


class Collecting(Exchange):
    """The waits of one peer's rounds."""

    def _publish(self) -> None:
        self.phase = Phase.PUBLISHING
        # What it trained goes out, so it is one of them, if it can know where they are.
        self._absence.away &= not self._has_donors(linked=True)
        last = self.published or self._signed_rounds.newest
        self._commands.append(
            do.Publish(
                self.round_number,
                sequence=self.round_number + 1,
                previous=last.digest if last else NO_HEADER,
                replica_before=(
                    self._plan.genesis_replica if self._plan.time_varying else self._replica
                ),
                since_round=self._absence.since_round,
            )
        )

    def _join(self, now: float) -> None:
        """Await the neighbours' present models; what was trained is kept, should they not do."""
        self.phase = Phase.JOINING
        self._deadline_passed = False
        until = now + self._plan.deadline_seconds
        self._commands.append(do.SetTimer(on.Timer.DEADLINE, until))
        self._notice(
            do.NoticeKind.JOINING,
            None,
            f"{self.round_number - self._absence.model_round} rounds behind: a model of at least "
            f"{self._plan.donors_needed} neighbours is tried in the place of the own one",
        )
        for neighbour in self._of_this_round():
            if neighbour.linked and neighbour.idle() and not self._is_donor(neighbour):
                self._ask_for_repair(neighbour)
        self._release(now)

    def _has_donors(self, *, linked: bool) -> bool:
        """Whether it has neighbours enough to join by, or even links to as many."""
        counted = [
            n for n in self._of_this_round() if not n.quarantined and (n.linked or not linked)
        ]
        return len(counted) >= self._plan.donors_needed

    def _is_donor(self, neighbour: Neighbour) -> bool:
        return neighbour.usable(self.round_number) and self._staleness(neighbour) <= DONOR_STALENESS

    def _try_adopting(self) -> None:
        """Adopt once everybody who can give a model has, or at the deadline with enough."""
        present = self._of_this_round()
        if any(neighbour.applying is not None for neighbour in present):
            return
        donors = tuple(n.site for n in present if self._is_donor(n))
        awaited = [
            n
            for n in present
            if n.linked
            and not n.silent
            and not n.quarantined
            and n.site not in donors
            and not n.failed_in(self.round_number)
        ]
        enough = len(donors) >= self._plan.donors_needed
        if (awaited or not enough) and not self._deadline_passed:
            return
        self._commands.append(do.CancelTimer(on.Timer.DEADLINE))
        if enough:
            self.phase = Phase.ADOPTING
            self._commands.append(do.Adopt(self.round_number, donors))
            return
        self._notice(
            do.NoticeKind.NOT_ADOPTED,
            None,
            f"{len(donors)} neighbours gave a model, {self._plan.donors_needed} are needed",
        )
        self._absence.away = False
        self._publish()

    def _release(self, now: float) -> None:
        """Apply the kept payloads whose round has come, unless replicas are being read."""
        if self.phase in _REPLICAS_ARE_READ:
            return
        for neighbour in self.neighbours.values():
            due = neighbour.next_to_apply(self._visible_round())
            if due is not None:
                neighbour.kept.pop(0)
                neighbour.applying = due
                self._commands.append(do.ApplyPayload(neighbour.site, due))
        self._try_close(now)

    def _visible_round(self) -> int:
        """The last round whose deltas this one may see: where nobody is waited for, all."""
        return limits.MAX_ROUND_NUMBER if self._plan.asynchronous else self.round_number

    def _try_close(self, now: float) -> None:
        """Aggregate once everybody who can deliver has, or at the deadline with a quorum."""
        if self.phase is Phase.JOINING:
            self._try_adopting()
        if self.phase is not Phase.COLLECTING:
            return
        present = self._of_this_round()
        if any(neighbour.applying is not None for neighbour in present):
            return
        waiting = self.waited_for(now)
        if waiting and not self._deadline_passed:
            expiries = [self._end_of_grace(n) for n in present if n.site in waiting and n.silent]
            if expiries:
                self._commands.append(do.SetTimer(on.Timer.GRACE, min(expiries)))
            return
        if not self._has_quorum():
            if self._deadline_passed and not self._asked_since_deadline:
                self._asked_since_deadline = True
                for neighbour in present:
                    if neighbour.site in waiting and neighbour.linked and neighbour.idle():
                        self._ask_for_repair(neighbour)
                # The question may be lost as well, so it is asked until the quorum is there.
                again = now + self._plan.deadline_seconds
                self._commands.append(do.SetTimer(on.Timer.DEADLINE, again))
                self._notice_quorum(len(present))
            return
        self._aggregate(present)

    def _notice_quorum(self, present: int) -> None:
        """Say once a round that too few delivered."""
        if not self._quorum_noticed:
            self._quorum_noticed = True
            self._notice(
                do.NoticeKind.QUORUM_MISSING,
                None,
                f"{len(self.delivered())} of {present} neighbours delivered, {self._quorum()} "
                "are needed",
            )

    def _aggregate(self, present: list[Neighbour]) -> None:
        weights = self._plan.weights_of(self.round_number)
        inputs: list[do.AggregationInput] = []
        left_out: list[str] = []
        for neighbour in present:
            if self._may_count(neighbour):
                inputs.append(
                    do.AggregationInput(
                        neighbour.site,
                        weights[neighbour.site],
                        self._staleness(neighbour),
                        neighbour.counted(),
                        self._share(neighbour),
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

    def _share(self, neighbour: Neighbour) -> float:
        """How much of its weight counts."""
        share = ramp_share(self.round_number, neighbour.held.since_round)
        if self._plan.asynchronous:
            share *= staleness_share(self.round_number - neighbour.held.round_number)
        return share
