"""Which neighbours are there: a failure detector without I/O, one for all neighbours of a peer.

``LivenessDetector.handle(event, now)`` returns the commands that follow; it reads no clock and
draws no random number. It follows SWIM (Das, Gupta, Motivala 2002) in asking others before it
believes in a silence, and Lifeguard (Dadgar, Phillips, Currey 2018) in doubting itself first.

A neighbour goes from ALIVE to SUSPECT when its link is silent for longer than a heartbeat and its
answer take, or is down; and on to UNREACHABLE when its suspicion has lasted too long:

    answer     = clamp(ROUND_TRIPS_OF_AN_ANSWER * round trip, MIN_, MAX_ANSWER_SECONDS)
    suspicion  = clamp(ROUND_TRIPS_OF_A_SUSPICION * round trip, MIN_, MAX_SUSPICION_SECONDS)
    ALIVE   -> SUSPECT      after (1 + score) * (HEARTBEAT_SECONDS + answer) of silence
    SUSPECT -> UNREACHABLE  after (1 + score) * suspicion more

where score is that of ``LocalHealth`` (for the second step, the higher of when the suspicion
began and now), and all silence is awake time. As long as it is not heard, up to ``HELPERS`` common
neighbours at a time are asked whether they hear it; for the second step, it counts as heard when
the last of them did. Heard on its own link, it is ALIVE at once.

UNREACHABLE means that no round waits for it and that no delta is queued for it, and nothing else:
its links are sought as before, and the next byte ends it. SWIM spreads suspicions and confirms
them by hearsay; here nobody can be talked out of a neighbour, because members may lie (Byzantine
sites):

- **What a helper says only ever extends the benefit of the doubt.** A report counts where the
  helper heard the neighbour after this site last did, or after its link went down. That a helper
  does not hear it is no evidence: it does nothing that saying nothing would not do.
- **A lie costs at most one round's deadline for each absence.** The word of others counts for no
  longer than ``patience_seconds`` after this site last heard the neighbour, and no round waits
  beyond its deadline in any case.
- Helpers that do not answer at all raise the score, which lengthens timeouts; nothing that others
  do or leave undone shortens one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pfed.protocol.events import NeighbourHeard, NeighbourSilent
from p2pfed.protocol.liveness_events import (
    AnswerProbe,
    AskHelper,
    Heard,
    Linked,
    Liveness,
    LivenessChanged,
    LivenessCommand,
    LivenessEvent,
    Ping,
    ProbeAsked,
    ProbeReported,
    RoundTrip,
    Tick,
    Unlinked,
    Watch,
)
from p2pfed.protocol.local_health import TICK_SECONDS, LocalHealth
from p2pfed.protocol.messages import MAX_TOKEN
from p2pfed.protocol.probe_answers import ANSWER_WAIT_SECONDS, ProbeAnswers, Waiting

HEARTBEAT_SECONDS = 1.0  # each end of a link sends one
HELPERS = 3  # k of SWIM: asked about a neighbour at a time
ROUND_TRIPS_OF_AN_ANSWER = 4  # a timeout of mean and four deviations is usual (RFC 6298)
MIN_ANSWER_SECONDS = 0.5
MAX_ANSWER_SECONDS = 3.0
ROUND_TRIPS_OF_A_SUSPICION = 20
MIN_SUSPICION_SECONDS = 3.0  # time for two probes of helpers
MAX_SUSPICION_SECONDS = 10.0  # in good health, a silent link is judged before it is given up


@dataclass(slots=True)
class _Probe:
    """The question that is out about one neighbour."""

    token: int
    asked_at: float
    unanswered: set[str]
    answered: bool = False


@dataclass(slots=True)
class _Watched:
    """One neighbour. All times are awake time, but for ``heard_at_now``."""

    site: str
    common: frozenset[str]
    heard_at: float
    heard_at_now: float  # the same on the caller's clock, for who asks
    suspect_since: float
    suspect_multiplier: int = 1  # of this site's health when the suspicion began
    linked: bool = False
    lost_at: float | None = None  # when its link went down
    liveness: Liveness = Liveness.SUSPECT
    round_trip_seconds: float = 0.0
    word: dict[str, float] = field(default_factory=dict)  # when a helper heard it, by helper
    probe: _Probe | None = None
    probes: int = 0
    next_probe_at: float = 0.0
    awaited: bool = False  # what the round engine was told last

    def answer_seconds(self) -> float:
        expected = ROUND_TRIPS_OF_AN_ANSWER * self.round_trip_seconds
        return min(max(expected, MIN_ANSWER_SECONDS), MAX_ANSWER_SECONDS)

    def suspicion_seconds(self) -> float:
        expected = ROUND_TRIPS_OF_A_SUSPICION * self.round_trip_seconds
        return min(max(expected, MIN_SUSPICION_SECONDS), MAX_SUSPICION_SECONDS)


class LivenessDetector:
    """The neighbours of one peer, and the peer's own health.

    :param now: seconds on the clock of ``handle``.
    :param tick_seconds: how often the shell ticks; what is due is seen at the next tick.
    """

    def __init__(self, now: float, tick_seconds: float = TICK_SECONDS) -> None:
        self.health = LocalHealth(now, tick_seconds)
        self._tick_seconds = tick_seconds
        self._watched: dict[str, _Watched] = {}
        self._answers = ProbeAnswers()
        self._patience_seconds = 0.0
        self._token = 0
        self._awake = self.health.awake(now)
        self._commands: list[LivenessCommand] = []

    def liveness(self, site: str) -> Liveness:
        """:raises KeyError: the site is not watched."""
        return self._watched[site].liveness

    def vouched_by(self, site: str) -> tuple[str, ...]:
        """The helpers whose word now speaks for a neighbour that this site does not hear.

        :raises KeyError: the site is not watched.
        """
        return tuple(sorted(self._word_for(self._watched[site])))

    def handle(self, event: LivenessEvent, now: float) -> list[LivenessCommand]:
        """Take one event and return what is to be done about it, in order. An event about a
        site that is not watched changes nothing."""
        self._commands = []
        if isinstance(event, Tick):
            self.health.tick(now)
        self._awake = self.health.awake(now)
        match event:
            case Watch():
                self._watch(event, now)
            case Tick():
                self._tick(now)
            case ProbeAsked():
                self._take_request(event, now)
            case Linked() | Unlinked() | Heard() | RoundTrip():
                watched = self._watched.get(event.site)
                if watched is not None:
                    self._take_own(watched, event, now)
            case ProbeReported():
                self._take_report(event)
        return self._commands

    def _watch(self, event: Watch, now: float) -> None:
        self._patience_seconds = event.patience_seconds
        for site in set(self._watched) - set(event.common):
            del self._watched[site]
            self._answers.forget(site)
        for site, common in event.common.items():
            watched = self._watched.get(site)
            if watched is None:
                awake = self._awake
                self._watched[site] = _Watched(site, common, awake, now, suspect_since=awake)
            else:
                watched.common = common
                watched.word = {one: at for one, at in watched.word.items() if one in common}

    def _take_own(
        self, watched: _Watched, event: Linked | Unlinked | Heard | RoundTrip, now: float
    ) -> None:
        match event:
            case Linked():
                watched.linked = watched.awaited = True
                self._hear(watched, now)
            case Unlinked():
                watched.linked = watched.awaited = False
                watched.lost_at = watched.next_probe_at = self._awake
                if watched.liveness is Liveness.ALIVE:
                    self._change(watched, Liveness.SUSPECT)
                self._answer(self._answers.about(watched.site), now)
                self._answers.forget(watched.site)
            case Heard():
                # Bytes before a hello say that a machine is there, not that it takes part.
                if watched.linked:
                    self._hear(watched, now)
            case RoundTrip():
                watched.round_trip_seconds = event.seconds

    def _hear(self, watched: _Watched, now: float) -> None:
        watched.heard_at, watched.heard_at_now = self._awake, now
        watched.word.clear()
        watched.probe = None
        self._change(watched, Liveness.ALIVE)
        self._tell_engine(watched)
        self._answer(self._answers.about(watched.site), now)

    def _tick(self, now: float) -> None:
        self._answer(self._answers.overdue(self._awake), now)
        for watched in self._watched.values():
            self._judge(watched)
            if watched.liveness is not Liveness.ALIVE and self._awake >= watched.next_probe_at:
                self._probe(watched)

    def _judge(self, watched: _Watched) -> None:
        silence = self._awake - watched.heard_at
        if watched.liveness is Liveness.ALIVE and silence > self._silence_allowed(watched):
            watched.next_probe_at = self._awake
            self._change(watched, Liveness.SUSPECT)
        elif (
            watched.liveness is Liveness.SUSPECT
            and self._awake - watched.suspect_since > self._suspicion_seconds(watched)
            and not self._word_for(watched)
        ):
            self._change(watched, Liveness.UNREACHABLE)
        self._tell_engine(watched)

    def _silence_allowed(self, watched: _Watched) -> float:
        return self.health.multiplier * (HEARTBEAT_SECONDS + watched.answer_seconds())

    def _suspicion_seconds(self, watched: _Watched) -> float:
        """What was begun in bad health is given all of its time, though health is better now."""
        multiplier = max(self.health.multiplier, watched.suspect_multiplier)
        return multiplier * watched.suspicion_seconds()

    def _word_for(self, watched: _Watched) -> list[str]:
        """The helpers that heard it when this site no longer did, and lately enough for its
        suspicion not to be over."""
        if watched.liveness is Liveness.ALIVE or self._out_of_patience(watched):
            return []
        last = max(watched.heard_at, watched.lost_at or watched.heard_at)
        longest = self._silence_allowed(watched) + self._suspicion_seconds(watched)
        oldest = self._awake - longest
        return [helper for helper, at in watched.word.items() if at > last and at >= oldest]

    def _out_of_patience(self, watched: _Watched) -> bool:
        return self._awake - watched.heard_at > self._patience_seconds

    def _probe(self, watched: _Watched) -> None:
        """Ask the neighbour, and others about it."""
        if watched.probe is not None and not watched.probe.answered:
            self.health.probe_failed()
        watched.probe = None
        if watched.linked:
            self._commands.append(Ping(watched.site))
        helpers = [] if self._out_of_patience(watched) else self._helpers_for(watched)
        wait = HEARTBEAT_SECONDS
        if helpers:
            self._token = self._token % MAX_TOKEN + 1
            watched.probe = _Probe(self._token, self._awake, {one.site for one in helpers})
            watched.probes += 1
            slowest = max(one.answer_seconds() for one in helpers)
            wait = ANSWER_WAIT_SECONDS + slowest + self._tick_seconds
            for one in helpers:
                self._commands.append(AskHelper(one.site, watched.site, self._token))
        watched.next_probe_at = self._awake + self.health.multiplier * wait

    def _helpers_for(self, watched: _Watched) -> list[_Watched]:
        """Others than last time where there are more: one liar is not asked every time."""
        able = [
            self._watched[site]
            for site in sorted(watched.common & set(self._watched))
            if self._watched[site].liveness is Liveness.ALIVE
        ]
        first = HELPERS * watched.probes % len(able) if able else 0
        return (able[first:] + able[:first])[:HELPERS]

    def _take_report(self, event: ProbeReported) -> None:
        watched = self._watched.get(event.target)
        probe = watched.probe if watched is not None else None
        if watched is None or probe is None or probe.token != event.token:
            return
        if event.helper not in probe.unanswered:
            return
        probe.unanswered.discard(event.helper)
        probe.answered = True
        if event.heard_seconds_ago is None:
            return
        # At the latest: the age was stated some time after the question was put.
        heard_at = probe.asked_at - max(0.0, event.heard_seconds_ago)
        watched.word[event.helper] = max(heard_at, watched.word.get(event.helper, heard_at))
        if self._word_for(watched):
            self._change(watched, Liveness.SUSPECT)
        self._tell_engine(watched)

    def _take_request(self, event: ProbeAsked, now: float) -> None:
        """Answer a neighbour of both for a neighbour of both, and nobody else."""
        target, asker = self._watched.get(event.target), self._watched.get(event.asker)
        if target is None or asker is None or not asker.linked:
            return
        if event.asker not in target.common or event.asker == event.target:
            return
        if not self._answers.takes(event.asker, event.target, self._awake):
            return
        self._answers.wait(event.asker, event.target, event.token, self._awake)
        if not target.linked or now - target.heard_at_now <= HEARTBEAT_SECONDS:
            self._answer(self._answers.about(event.target), now)
        else:
            self._commands.append(Ping(event.target))

    def _answer(self, requests: Iterable[Waiting], now: float) -> None:
        for one in requests:
            target = self._watched.get(one.target)
            known = target is not None and target.linked
            ago = now - target.heard_at_now if target is not None and known else None
            self._commands.append(AnswerProbe(one.asker, one.target, one.token, ago))

    def _change(self, watched: _Watched, after: Liveness) -> None:
        before = watched.liveness
        if before is after:
            return
        watched.liveness = after
        if before is Liveness.ALIVE:
            watched.suspect_since = self._awake
            watched.suspect_multiplier = self.health.multiplier
        silent_seconds = self._awake - watched.heard_at
        vouched_by = self.vouched_by(watched.site)
        self._commands.append(
            LivenessChanged(watched.site, before, after, silent_seconds, vouched_by)
        )

    def _tell_engine(self, watched: _Watched) -> None:
        """A link that is up speaks for a neighbour until it is unreachable; where it is down,
        only others can."""
        awaited = watched.liveness is not Liveness.UNREACHABLE and (
            watched.linked or bool(self._word_for(watched))
        )
        if awaited != watched.awaited:
            watched.awaited = awaited
            verdict = NeighbourHeard if awaited else NeighbourSilent
            self._commands.append(verdict(watched.site))
