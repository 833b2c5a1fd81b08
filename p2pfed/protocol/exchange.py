"""What a peer exchanges with its neighbours, in whatever phase of a round it is.

Offers are answered, gaps are repaired, headers are compared and passed on. When replicas may change
and when a round is closed, ``rounds`` says.
"""

import math
from collections.abc import Iterable, Mapping

from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.header import Kind, SignedHeader
from p2pfed.protocol.joining import Absence
from p2pfed.protocol.messages import AnswerCode
from p2pfed.protocol.neighbours import (
    NEVER_PUBLISHED,
    Neighbour,
    OfferDecision,
    Repair,
    ReplicaState,
    Standing,
)
from p2pfed.protocol.own_state import OwnState, RetainedDeltas
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.signed_rounds import SignedRounds

LINK_GRACE_SECONDS = 10.0  # a neighbour that just went down is still waited for this long,
LINK_GRACE_DEADLINES = 0.5  # or for this fraction of the round's deadline if that is less


class Exchange:
    """One peer's neighbours, what is said between them, and where in its rounds the peer stands.

    :param own: the restored state of this peer.
    :param replicas: what was held of each neighbour when the daemon ended.
    :param retained: own envelopes still on disk, oldest first.
    :param headers: the log that finds equivocation, with what it held.
    :param standings: as they were committed with the last round.
    """

    def __init__(
        self,
        plan: FederationPlan,
        own: OwnState,
        replicas: Mapping[str, ReplicaState],
        retained: Iterable[SignedHeader],
        headers: HeaderLog,
        quarantined: Iterable[str],
        standings: Iterable[Standing] = (),
    ) -> None:
        self._plan = plan
        self._next_plan: FederationPlan | None = None
        self.round_number = own.round_number
        self._replica = own.replica
        self.published = own.published
        self._retained = RetainedDeltas(list(retained))
        self._retained.keep_only(plan.topology_digest)
        self._headers = headers
        self._quarantined = set(quarantined)
        self._restored = dict(replicas)
        self._restored_standings = {standing.site: standing for standing in standings}
        self._parted: set[str] = set()  # no neighbours any more; their replicas may be stored
        self.neighbours: dict[str, Neighbour] = {}
        self.phase = Phase.STARTING
        self._signed_rounds = SignedRounds(asking=own.restored)
        since = own.published.header.since_round if own.published is not None else 0
        # The later: a delta tells of it, and so does the model that was adopted before one.
        self._absence = Absence(own.round_number, max(since, own.since_round))
        self.deadline_at_seconds: float | None = None
        self._deadline_passed = False
        self._asked_since_deadline = False
        self._quorum_noticed = False
        self._stopping = False
        self._commands: list[do.Command] = []

    def waited_for(self, now: float) -> list[str]:
        """The neighbours of this round that have not delivered but still may in time."""
        if self._plan.asynchronous and self._has_quorum():
            return []
        return [
            neighbour.site
            for neighbour in self._of_this_round()
            if not self._has_delivered(neighbour)
            and not neighbour.quarantined
            and not neighbour.failed_in(self.round_number)
            and (not neighbour.silent or now < self._end_of_grace(neighbour))
        ]

    @property
    def quarantined(self) -> frozenset[str]:
        """The sites that were convicted of an equivocation."""
        return frozenset(self._quarantined)

    def delivered(self) -> list[str]:
        return [n.site for n in self._of_this_round() if self._has_delivered(n)]

    def _has_delivered(self, neighbour: Neighbour) -> bool:
        """Whether the round needs nothing better of it to close."""
        if self._plan.asynchronous:
            return self._may_count(neighbour)
        return neighbour.delivered(self.round_number)

    def _may_count(self, neighbour: Neighbour) -> bool:
        """Whether its model may enter this round's aggregation."""
        too_old = self._staleness(neighbour) > self._plan.max_staleness
        return neighbour.usable(self.round_number) and not too_old

    def _staleness(self, neighbour: Neighbour) -> int:
        return max(0, self.round_number - neighbour.held.round_number)

    def _quorum(self) -> int:
        return self._plan.quorum_of(len(self._of_this_round()))

    def _has_quorum(self) -> bool:
        return len(self.delivered()) >= self._quorum()

    def _meet_neighbours(self, now: float) -> None:
        """Bring the table of neighbours in line with the plan, keeping what is known."""
        wanted = set(self._plan.weights_of(self.round_number))
        if self._plan.time_varying:
            # A neighbour of some other round keeps its replica for the round it is due in.
            wanted |= self._plan.neighbours & set(self.neighbours)
        for site in sorted(wanted - set(self.neighbours)):
            self._meet(site, now)
        for site in sorted(set(self.neighbours) - wanted):
            if self.neighbours[site].applying is None:
                self._discard(self.neighbours.pop(site))
                self._parted.add(site)

    def _meet(self, site: str, now: float) -> Neighbour:
        genesis = ReplicaState(self._plan.genesis_replica, NEVER_PUBLISHED, 0)
        held = self._restored.pop(site, genesis)
        standing = self._restored_standings.pop(site, Standing(site))
        self.neighbours[site] = Neighbour(
            site,
            held,
            now,
            quarantined=site in self._quarantined,
            absent_rounds=standing.absent_rounds,
            returning=standing.returning,
            patience=standing.patience,
        )
        return self.neighbours[site]

    def _standings(self) -> tuple[Standing, ...]:
        """What is to be remembered; also of those that no round has needed since the start."""
        met = {site: neighbour.standing for site, neighbour in self.neighbours.items()}
        known = self._restored_standings | met
        return tuple(known[site] for site in sorted(known) if not known[site].is_ordinary)

    def _forget_removed(self) -> tuple[str, ...]:
        """Forget the sites that are neighbours in no round of the topology, nor of one that waits
        to be put in force; returns them so that their replicas can go too."""
        needed = self._plan.neighbours | self._newest_plan.neighbours | set(self.neighbours)
        known = self._parted | set(self._restored) | set(self._restored_standings)
        removed = sorted(known - needed)
        for site in removed:
            self._restored.pop(site, None)
            self._restored_standings.pop(site, None)
        self._parted.clear()
        return tuple(removed)

    @property
    def _newest_plan(self) -> FederationPlan:
        """What this peer tells its neighbours, and asks of their envelopes."""
        return self._next_plan or self._plan

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
        window = limits.ROUND_WINDOW
        if self._plan.asynchronous:
            window += self._plan.max_staleness  # by so much a fast neighbour may be ahead
        return max(self.round_number, self._median_announced_round()) + window

    def _median_announced_round(self) -> int:
        announced = sorted(
            n.announced_round for n in self.neighbours.values() if n.linked and not n.quarantined
        )
        return announced[(len(announced) - 1) // 2] if announced else 0

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

    def _send_newest(self, neighbour: Neighbour) -> None:
        """Send what was published last. A whole model costs much to seal: one is sent unasked only
        where the neighbour has not heard of it, else it asks if it lacks it."""
        if self._retained.headers:
            newest = self._retained.headers[-1].digest
            self._commands.append(do.SendDelta(neighbour.site, newest))
        elif neighbour.told != self._replica:
            self._commands.append(do.SendSnapshot(neighbour.site))
        neighbour.told = self._replica

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

    def _end_of_grace(self, neighbour: Neighbour) -> float:
        """Until when a neighbour of which nothing is heard is waited for: it gets a grace where
        its link went down, and none where the link is up and silent."""
        if neighbour.linked:
            return -math.inf
        return neighbour.down_since_seconds + self._grace_seconds()

    def _grace_seconds(self) -> float:
        return min(LINK_GRACE_SECONDS, LINK_GRACE_DEADLINES * self._plan.deadline_seconds)

    def _notice(self, kind: do.NoticeKind, site: str | None, detail: str) -> None:
        self._commands.append(do.Notice(kind, self.round_number, site, detail))
