"""The failure detector: events in, the exact commands out; and what holds whatever happens."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from p2pfed.protocol.events import NeighbourHeard, NeighbourSilent
from p2pfed.protocol.liveness import (
    HEARTBEAT_SECONDS,
    HELPERS,
    MAX_ANSWER_SECONDS,
    MAX_SUSPICION_SECONDS,
    MIN_ANSWER_SECONDS,
    MIN_SUSPICION_SECONDS,
    LivenessDetector,
)
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
from p2pfed.protocol.local_health import HIGHEST_SCORE, TICK_SECONDS
from p2pfed.protocol.probe_answers import ANSWER_WAIT_SECONDS, REQUEST_PAUSE_SECONDS

PATIENCE_SECONDS = 60.0
ALLOWED_SECONDS = HEARTBEAT_SECONDS + MIN_ANSWER_SECONDS  # of silence, with a quick neighbour
GONE_SECONDS = ALLOWED_SECONDS + MIN_SUSPICION_SECONDS
SLACK_SECONDS = 2 * TICK_SECONDS

ALIVE, SUSPECT, UNREACHABLE = Liveness


class Peer:
    """A detector whose neighbours all know one another, on a clock that is moved by hand."""

    def __init__(self, sites: str = "bcd", patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.now = 1000.0
        self.said: list[LivenessCommand] = []
        self.detector = LivenessDetector(self.now)
        self.sites = sites
        self.tell(Watch({s: frozenset(sites) - {s} for s in sites}, patience_seconds))
        self.tell(Tick())
        for site in sites:
            self.tell(Linked(site))
        self.said.clear()

    def tell(self, event: LivenessEvent) -> list[LivenessCommand]:
        commands = self.detector.handle(event, self.now)
        self.said += commands
        return commands

    def run(
        self, seconds: float, hearing: str = "", answer: Callable[[AskHelper], None] | None = None
    ) -> None:
        """Let time pass, hearing some at every tick; ``answer`` takes each question at once."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += TICK_SECONDS
            for site in hearing:
                self.tell(Heard(site))
            for command in self.tell(Tick()):
                if answer is not None and isinstance(command, AskHelper):
                    answer(command)

    def report(self, heard_seconds_ago: float | None) -> Callable[[AskHelper], None]:
        """Helpers that all say the same."""

        def answer(asked: AskHelper) -> None:
            self.tell(ProbeReported(asked.helper, asked.target, asked.token, heard_seconds_ago))

        return answer

    def state(self, site: str) -> Liveness:
        return self.detector.liveness(site)

    def verdicts(self) -> list[LivenessCommand]:
        return [c for c in self.said if isinstance(c, NeighbourSilent | NeighbourHeard)]

    def asked(self) -> list[AskHelper]:
        return [command for command in self.said if isinstance(command, AskHelper)]


def test_a_neighbour_that_is_heard_stays_alive_and_nothing_is_said() -> None:
    peer = Peer()
    for _ in range(100):
        peer.run(HEARTBEAT_SECONDS, "")
        for site in "bcd":
            peer.tell(Heard(site))
    assert peer.said == []
    assert {peer.state(site) for site in "bcd"} == {ALIVE}


def test_a_silent_neighbour_is_asked_and_asked_about_and_then_unreachable() -> None:
    peer = Peer()
    peer.run(ALLOWED_SECONDS, "cd")
    assert peer.said == []
    peer.run(TICK_SECONDS, "cd")
    assert peer.said == [
        LivenessChanged("b", ALIVE, SUSPECT, ALLOWED_SECONDS + TICK_SECONDS, ()),
        Ping("b"),
        AskHelper("c", "b", 1),
        AskHelper("d", "b", 1),
    ]
    peer.run(MIN_SUSPICION_SECONDS, "cd", peer.report(None))
    assert peer.state("b") is SUSPECT
    assert peer.verdicts() == []
    peer.run(TICK_SECONDS, "cd")
    assert peer.state("b") is UNREACHABLE
    assert peer.verdicts() == [NeighbourSilent("b")]


def test_a_byte_makes_it_alive_at_once() -> None:
    peer = Peer()
    peer.run(GONE_SECONDS + SLACK_SECONDS, "cd", peer.report(None))
    peer.said.clear()
    commands = peer.tell(Heard("b"))
    assert [type(command) for command in commands] == [LivenessChanged, NeighbourHeard]
    assert peer.state("b") is ALIVE
    peer.run(ALLOWED_SECONDS, "cd")
    assert peer.state("b") is ALIVE


@pytest.mark.parametrize(
    ("round_trip_seconds", "answer_seconds", "suspicion_seconds"),
    [
        (0.001, MIN_ANSWER_SECONDS, MIN_SUSPICION_SECONDS),
        (0.3, 1.2, 6.0),
        (9.0, MAX_ANSWER_SECONDS, MAX_SUSPICION_SECONDS),
    ],
)
def test_timeouts_follow_the_round_trip_between_floor_and_ceiling(
    round_trip_seconds: float, answer_seconds: float, suspicion_seconds: float
) -> None:
    peer = Peer("b")  # nobody can be asked, so nothing else moves them
    peer.tell(RoundTrip("b", round_trip_seconds))
    peer.run(HEARTBEAT_SECONDS + answer_seconds - TICK_SECONDS)
    assert peer.state("b") is ALIVE
    peer.run(SLACK_SECONDS)
    assert peer.state("b") is SUSPECT
    peer.run(suspicion_seconds - SLACK_SECONDS)
    assert peer.state("b") is SUSPECT
    peer.run(2 * SLACK_SECONDS)
    assert peer.state("b") is UNREACHABLE


def test_a_link_that_goes_down_is_asked_about_at_once() -> None:
    peer = Peer()
    [changed] = peer.tell(Unlinked("b"))
    assert isinstance(changed, LivenessChanged)
    assert changed.after is SUSPECT
    peer.run(TICK_SECONDS, "cd")
    assert [asked.helper for asked in peer.asked()] == ["c", "d"]
    # The engine knows by the link itself; it waits longer only where others hear it.
    assert peer.verdicts() == []


def test_a_neighbour_whose_link_is_down_is_vouched_for_by_who_heard_it_since() -> None:
    peer = Peer()
    peer.run(HEARTBEAT_SECONDS, "cd")
    peer.tell(Unlinked("b"))
    # Heard before the link went: no proof that it outlived it.
    peer.run(TICK_SECONDS, "cd", peer.report(TICK_SECONDS + 0.1))
    assert peer.verdicts() == []
    assert peer.detector.vouched_by("b") == ()
    peer.run(2.0, "cd", peer.report(0.1))
    assert peer.verdicts() == [NeighbourHeard("b")]
    assert peer.detector.vouched_by("b") == ("c", "d")
    peer.run(30.0, "cd", peer.report(0.1))
    assert peer.state("b") is SUSPECT
    peer.tell(Linked("b"))
    assert peer.state("b") is ALIVE
    assert peer.verdicts() == [NeighbourHeard("b")]


def test_a_slow_answer_makes_no_old_news_fresh() -> None:
    peer = Peer()
    peer.tell(Unlinked("b"))
    peer.run(TICK_SECONDS, "cd")
    asked = peer.asked()[0]
    # It may have been under way all the time since it was asked for.
    peer.run(1.0, "cd")
    peer.tell(ProbeReported(asked.helper, "b", asked.token, 0.9))
    assert peer.verdicts() == []
    assert peer.detector.vouched_by("b") == ()


def test_word_of_a_neighbour_ends_what_it_began() -> None:
    peer = Peer()
    peer.tell(Unlinked("b"))
    peer.run(5.0, "cd", peer.report(0.1))
    peer.run(GONE_SECONDS + SLACK_SECONDS, "cd", peer.report(None))
    assert peer.verdicts() == [NeighbourHeard("b"), NeighbourSilent("b")]
    assert peer.state("b") is UNREACHABLE
    peer.run(3.0, "cd", peer.report(0.1))
    assert peer.verdicts()[2:] == [NeighbourHeard("b")]
    assert peer.state("b") is SUSPECT


def test_a_lying_helper_extends_the_wait_up_to_the_patience_and_no_further() -> None:
    peer = Peer("bc", patience_seconds=30.0)
    peer.run(29.0, "c", peer.report(0.0))
    assert peer.state("b") is SUSPECT
    assert peer.verdicts() == []
    peer.run(1.0 + SLACK_SECONDS, "c", peer.report(0.0))
    assert peer.state("b") is UNREACHABLE
    peer.said.clear()
    peer.run(300.0, "c", peer.report(0.0))
    # Nor is it asked for ever.
    assert peer.verdicts() == []
    assert peer.asked() == []


@pytest.mark.parametrize("lie", [None, 1e6])
def test_a_lying_helper_cannot_shorten_the_wait(lie: float | None) -> None:
    def when_unreachable(answer: Callable[[Peer], Callable[[AskHelper], None]] | None) -> float:
        peer = Peer()
        start = peer.now
        while peer.state("b") is not UNREACHABLE:
            peer.run(TICK_SECONDS, "cd", answer(peer) if answer else None)
        return peer.now - start

    told = when_unreachable(lambda peer: peer.report(lie))
    untold = GONE_SECONDS + TICK_SECONDS
    assert untold - 1e-9 <= told <= untold + SLACK_SECONDS
    # Who says nothing at all makes this site doubt itself, so it waits longer.
    assert when_unreachable(None) >= told


def test_nobody_is_talked_out_of_a_neighbour_that_is_heard() -> None:
    peer = Peer()
    for _ in range(200):
        for helper in "cd":
            for token in range(5):
                peer.tell(ProbeReported(helper, "b", token, None))
        peer.run(TICK_SECONDS, "bcd")
    assert peer.said == []


def test_only_who_was_asked_is_believed_and_only_once() -> None:
    peer = Peer("bcdef")
    peer.tell(Unlinked("b"))
    peer.run(ALLOWED_SECONDS, "cdef")
    asked = peer.asked()[:HELPERS]
    assert len(asked) == HELPERS
    [not_asked] = set("cdef") - {one.helper for one in asked}
    first = asked[0]
    for report in (
        ProbeReported(not_asked, "b", first.token, 0.0),
        ProbeReported(first.helper, "b", first.token + 99, 0.0),
        ProbeReported(first.helper, "z", first.token, 0.0),
        ProbeReported(first.helper, "c", first.token, 0.0),
    ):
        assert peer.tell(report) == []
    peer.tell(ProbeReported(first.helper, "b", peer.asked()[-1].token, None))
    assert peer.tell(ProbeReported(first.helper, "b", peer.asked()[-1].token, 0.0)) == []


def test_other_helpers_are_asked_in_turn_and_only_who_is_alive() -> None:
    peer = Peer("bcdefg")
    peer.tell(Unlinked("b"))
    peer.tell(Unlinked("g"))
    peer.run(3.0, "cdef", peer.report(None))
    probes: dict[int, list[str]] = {}
    for asked in peer.asked():
        if asked.target == "b":
            probes.setdefault(asked.token, []).append(asked.helper)
    first, second, *_ = probes.values()
    assert first == ["c", "d", "e"]
    assert second == ["f", "c", "d"]


def test_a_pause_of_this_process_declares_nobody_dead() -> None:
    peer = Peer()
    peer.run(1.0, "bcd")
    peer.now += 20.0
    peer.run(TICK_SECONDS)
    assert peer.detector.health.score == HIGHEST_SCORE
    assert peer.said == []
    # As it wakes up, links that the others gave up break; they are given time to come back.
    for site in "bcd":
        peer.tell(Unlinked(site))
    peer.run((1 + HIGHEST_SCORE) * MIN_SUSPICION_SECONDS - SLACK_SECONDS)
    assert {peer.state(site) for site in "bcd"} == {SUSPECT}
    for site in "bcd":
        peer.tell(Linked(site))
    assert {peer.state(site) for site in "bcd"} == {ALIVE}
    peer.run(HIGHEST_SCORE + 1.0, "bcd")
    assert peer.detector.health.score == 0


def test_helpers_that_do_not_answer_either_make_this_site_doubt_itself() -> None:
    peer = Peer("bcde")
    peer.run(ALLOWED_SECONDS + TICK_SECONDS, "cde")
    assert peer.detector.health.score == 0
    peer.run(ANSWER_WAIT_SECONDS + MIN_ANSWER_SECONDS + SLACK_SECONDS, "cde")
    assert peer.detector.health.score == 1
    # One answer, whatever it says, is enough to know that this site is heard.
    peer.run(10.0, "cde", lambda asked: peer.report(None)(asked) if asked.helper == "c" else None)
    assert peer.detector.health.score == 0


def test_a_helper_answers_from_what_it_heard_lately() -> None:
    peer = Peer()
    peer.run(0.75)
    assert peer.tell(ProbeAsked("c", "b", 7)) == [AnswerProbe("c", "b", 7, 0.75)]


def test_a_helper_pings_a_quiet_target_once_before_it_answers() -> None:
    peer = Peer()
    peer.run(HEARTBEAT_SECONDS + TICK_SECONDS, "cd")
    assert peer.tell(ProbeAsked("c", "b", 7)) == [Ping("b")]
    assert peer.tell(Heard("b")) == [AnswerProbe("c", "b", 7, 0.0)]
    peer.run(HEARTBEAT_SECONDS + TICK_SECONDS, "cd")
    assert peer.tell(ProbeAsked("d", "b", 8)) == [Ping("b")]
    peer.said.clear()
    peer.run(ANSWER_WAIT_SECONDS, "cd")
    silent = HEARTBEAT_SECONDS + TICK_SECONDS + ANSWER_WAIT_SECONDS
    answers = [command for command in peer.said if isinstance(command, AnswerProbe)]
    assert answers == [AnswerProbe("d", "b", 8, silent)]


def test_a_helper_without_a_link_says_never() -> None:
    peer = Peer()
    peer.tell(Unlinked("b"))
    assert peer.tell(ProbeAsked("c", "b", 7)) == [AnswerProbe("c", "b", 7, None)]
    # Also where the link goes while it finds out.
    peer.run(HEARTBEAT_SECONDS + TICK_SECONDS, "d")
    assert peer.tell(ProbeAsked("d", "c", 8)) == [Ping("c")]
    assert AnswerProbe("d", "c", 8, None) in peer.tell(Unlinked("c"))


def test_a_helper_that_slept_does_not_pass_off_old_news_as_fresh() -> None:
    peer = Peer()
    peer.now += 20.0
    peer.tell(Tick())
    assert peer.tell(ProbeAsked("c", "b", 7)) == [Ping("b")]


def test_only_common_neighbours_get_an_answer_and_only_so_often() -> None:
    peer = Peer()
    peer.tell(Watch({"b": frozenset("c"), "c": frozenset("b"), "d": frozenset()}, PATIENCE_SECONDS))
    for asker, target in (("d", "b"), ("z", "b"), ("c", "z"), ("c", "d"), ("b", "b")):
        assert peer.tell(ProbeAsked(asker, target, 1)) == []
    assert len(peer.tell(ProbeAsked("c", "b", 2))) == 1
    for token in range(100):
        assert peer.tell(ProbeAsked("c", "b", token)) == []
    peer.run(REQUEST_PAUSE_SECONDS, "bcd")
    assert len(peer.tell(ProbeAsked("c", "b", 3))) == 1
    peer.tell(Unlinked("c"))
    peer.run(REQUEST_PAUSE_SECONDS, "bd")
    assert peer.tell(ProbeAsked("c", "b", 4)) == []


def test_a_changed_topology_keeps_what_is_known_and_drops_who_left() -> None:
    peer = Peer()
    peer.run(GONE_SECONDS + SLACK_SECONDS, "cd", peer.report(None))
    peer.tell(Watch({s: frozenset("bce") - {s} for s in "bce"}, PATIENCE_SECONDS))
    assert peer.state("b") is UNREACHABLE
    assert peer.state("c") is ALIVE
    assert peer.state("e") is SUSPECT
    with pytest.raises(KeyError):
        peer.state("d")
    for event in (Heard("d"), Linked("d"), Unlinked("d"), RoundTrip("d", 1.0)):
        assert peer.tell(event) == []


SITES = "bcd"
sites = st.sampled_from(SITES)


class AnyHistory(RuleBasedStateMachine):
    """Any order of events, with honest and lying helpers and pauses of the process itself."""

    @initialize()
    def begin(self) -> None:
        self.peer = Peer(SITES)
        self.linked = set(SITES)
        self.silent_ticks = dict.fromkeys(SITES, 0)
        self.awaited = dict.fromkeys(SITES, True)
        self.questions: list[AskHelper] = []

    def tell(self, event: LivenessEvent) -> None:
        for command in self.peer.tell(event):
            match command:
                case NeighbourSilent(site):
                    assert self.awaited[site], "the engine is told what it knows"
                    self.awaited[site] = False
                case NeighbourHeard(site):
                    assert not self.awaited[site], "the engine is told what it knows"
                    self.awaited[site] = True
                case AskHelper():
                    assert command.helper in self.linked - {command.target}
                    self.questions.append(command)
                case LivenessChanged(_, before, after):
                    assert (before, after) != (ALIVE, UNREACHABLE)

    @rule(ticks=st.integers(1, 40))
    def time_passes(self, ticks: int) -> None:
        for _ in range(ticks):
            self.peer.now += TICK_SECONDS
            for site in SITES:
                self.silent_ticks[site] += 1
            self.tell(Tick())

    @rule(seconds=st.floats(0.0, 100.0))
    def the_process_stands_still(self, seconds: float) -> None:
        self.peer.now += seconds

    @rule(site=sites)
    def a_byte_comes(self, site: str) -> None:
        if site in self.linked:
            self.silent_ticks[site] = 0
        self.tell(Heard(site))

    @rule(site=sites)
    def a_link_comes_up(self, site: str) -> None:
        if site not in self.linked:
            self.linked.add(site)
            self.awaited[site] = True  # the engine takes it from the link
            self.silent_ticks[site] = 0
            self.tell(Linked(site))

    @rule(site=sites)
    def a_link_goes_down(self, site: str) -> None:
        if site in self.linked:
            self.linked.discard(site)
            self.awaited[site] = False
            self.tell(Unlinked(site))

    @rule(site=sites, seconds=st.floats(0.0, 20.0))
    def a_round_trip_is_measured(self, site: str, seconds: float) -> None:
        self.tell(RoundTrip(site, seconds))

    @rule(index=st.integers(0, 5), ago=st.one_of(st.none(), st.floats(0.0, 100.0)))
    def a_helper_says_something(self, index: int, ago: float | None) -> None:
        for asked in self.questions[-1 - index :][:1]:
            self.tell(ProbeReported(asked.helper, asked.target, asked.token, ago))

    @rule(asker=sites, about=sites, token=st.integers(0, 3))
    def a_neighbour_asks(self, asker: str, about: str, token: int) -> None:
        self.tell(ProbeAsked(asker, about, token))

    @invariant()
    def who_is_heard_is_awaited(self) -> None:
        for site in self.linked:
            if self.silent_ticks[site] * TICK_SECONDS <= ALLOWED_SECONDS:
                assert self.peer.state(site) is ALIVE
                assert self.awaited[site]
            if self.silent_ticks[site] * TICK_SECONDS <= GONE_SECONDS:
                assert self.peer.state(site) is not UNREACHABLE

    @invariant()
    def the_engine_waits_for_nobody_who_is_unreachable(self) -> None:
        for site in SITES:
            if self.peer.state(site) is UNREACHABLE:
                assert not self.awaited[site]
            elif site in self.linked:
                assert self.awaited[site]

    @invariant()
    def the_score_is_bounded(self) -> None:
        assert 0 <= self.peer.detector.health.score <= HIGHEST_SCORE

    def teardown(self) -> None:
        """Silence leads to the end of the wait, whatever was before and whoever lies."""
        if not hasattr(self, "peer"):
            return
        peer = self.peer
        longest = (1 + HIGHEST_SCORE) * (
            HEARTBEAT_SECONDS + MAX_ANSWER_SECONDS + MAX_SUSPICION_SECONDS
        )
        peer.run(PATIENCE_SECONDS + longest, "cd", peer.report(0.0))
        assert peer.state("b") is UNREACHABLE


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
