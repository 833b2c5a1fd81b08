"""Each checker can fail: known bugs are planted, and each is caught by name."""

from typing import Any

import numpy as np
import pytest
from small_federations import federation

from p2pfed.aggregation import Mixing
from p2pfed.errors import InvariantError
from p2pfed.protocol import collecting
from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.header import sign_header
from p2pfed.protocol.messages import AnswerCode
from p2pfed.protocol.neighbours import Neighbour, OfferDecision, Repair
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.receiving import Application, Applied
from p2pfed.protocol.rounds import RoundEngine
from p2pfed.simulation.behaviour import Behaviour
from p2pfed.simulation.envelopes import Envelope, Statement, encode_delta
from p2pfed.simulation.peer import SimulatedPeer

STORM = {"storm": {"from_seconds": 2.0, "until_seconds": 30.0, "crashes": 4, "partitions": 2}}


def caught(
    seeds: int = 4, names: str = "abcd", behaviour: Behaviour | None = None, **settings: Any
) -> set[str]:
    """The checkers that spoke up over a few seeds; ``behaviour`` is that of the last site."""
    found = set()
    for seed in range(seeds):
        hostile = {names[-1]: behaviour} if behaviour is not None else None
        simulated = federation(names, seed, behaviours=hostile, **settings)
        try:
            simulated.run()
        except InvariantError as error:
            found.add(error.checker)
    return found


class Impostor(Behaviour):
    """It publishes its own delta under the name of another site."""

    hostile = True

    def published(self, peer: SimulatedPeer, envelope: Envelope) -> None:
        victim = peer.federation.peers["a"]
        header = envelope.signed.header
        forged, _ = encode_delta(
            victim.identity, peer.plan, header.codec,
            Statement(header.round_number, header.sequence, header.previous,
                      peer.federation.genesis_digest, 0),
            peer.trained, peer.federation.genesis, seed=1,
        )  # fmt: skip
        other = sign_header(peer.identity, forged.signed.header)
        signed = type(forged.signed)(
            forged.signed.header, forged.signed.encoded, other.signature, forged.signed.digest
        )
        for site in sorted(peer.links):
            peer.outbox(site).send(Envelope(signed, forged.chunks))

    def sends(self, peer: SimulatedPeer, envelope: Envelope) -> bool:
        return False


class Swindler(Behaviour):
    """Its payloads are others than their headers promise."""

    hostile = True

    def published(self, peer: SimulatedPeer, envelope: Envelope) -> None:
        envelope.chunks = tuple(chunk[::-1] for chunk in envelope.chunks)


class TwoFaced(Behaviour):
    """Two headers for each round, one for each half of its neighbours."""

    hostile = True
    equivocates = True

    def published(self, peer: SimulatedPeer, envelope: Envelope) -> None:
        header = envelope.signed.header
        statement = Statement(
            header.round_number, header.sequence, header.previous, header.replica_before, 0
        )
        other, _ = encode_delta(
            peer.identity, peer.plan, header.codec, statement,
            peer.trained + np.float32(1), peer.replica_before, seed=1,
        )  # fmt: skip
        for place, site in enumerate(sorted(peer.links)):
            peer.outbox(site).send((envelope, other)[place % 2])

    def sends(self, peer: SimulatedPeer, envelope: Envelope) -> bool:
        return False

    def floods(self, peer: SimulatedPeer, signed: object) -> bool:
        return False


@pytest.mark.parametrize(
    "liar", [Impostor(), Swindler(), TwoFaced()], ids=lambda one: type(one).__name__
)
def test_without_a_bug_no_liar_breaks_what_must_hold(liar: Behaviour) -> None:
    assert caught(seeds=2, behaviour=liar) == set()


def test_without_a_bug_no_fault_does() -> None:
    assert caught(scenario=STORM, rounds=60) == set()


def test_a_signature_that_nobody_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    def believe(self: SimulatedPeer, other: str, envelope: Envelope) -> bool:
        answers = self.handle(on.OfferArrived(other, envelope.signed))
        return any(isinstance(a, do.AnswerOffer) and a.code is AnswerCode.SEND for a in answers)

    monkeypatch.setattr(SimulatedPeer, "offer", believe)
    assert "only_verified_models" in caught(behaviour=Impostor())


def test_a_payload_that_nobody_compares_with_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Application, "finish", lambda _self: Applied(1.0))
    assert caught(behaviour=Swindler()) == {"only_verified_models"}


def test_a_round_number_that_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def catch_up(self: RoundEngine, _now: float) -> None:
        self.round_number = max(0, self._median_announced_round())

    monkeypatch.setattr(RoundEngine, "_catch_up", catch_up)
    scenario = {"straggler": [{"site": site, "factor": 30.0} for site in "ab"]}
    assert "rounds_only_rise" in caught(names="abcde", scenario=scenario)


def test_an_equivocation_that_nobody_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    observe = HeaderLog.observe

    def blind(self: HeaderLog, signed: Any) -> Any:
        seen = observe(self, signed)
        return seen if seen is signed else None

    monkeypatch.setattr(HeaderLog, "observe", blind)
    assert caught(behaviour=TwoFaced()) == {"liars_are_convicted"}


def test_a_convicted_site_that_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    quarantine = RoundEngine._quarantine

    def forgiving(self: RoundEngine, site: str, first: Any, second: Any) -> None:
        quarantine(self, site, first, second)
        if site in self.neighbours:
            self.neighbours[site].quarantined = False

    monkeypatch.setattr(RoundEngine, "_quarantine", forgiving)
    assert "nobody_convicted_counts" in caught(behaviour=TwoFaced())


def test_an_honest_site_that_is_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    observe = HeaderLog.observe

    def paranoid(self: HeaderLog, signed: Any) -> Any:
        seen = observe(self, signed)
        known = self._entries.get((signed.header.sender, signed.header.round_number - 1))
        return known if known is not None and signed.header.round_number == 3 else seen

    monkeypatch.setattr(HeaderLog, "observe", paranoid)
    assert caught(seeds=1) == {"only_liars_are_convicted"}


def test_a_queue_without_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = Neighbour.decide

    def greedy(self: Neighbour, signed: Any, genesis: bytes, newest_round: int) -> OfferDecision:
        decision = decide(self, signed, genesis, newest_round + 100)
        late = decision.repair is Repair.LATER and self.arriving is None
        return OfferDecision(AnswerCode.SEND, "") if late else decision

    monkeypatch.setattr(Neighbour, "decide", greedy)
    scenario = {"straggler": [{"site": "a", "factor": 200.0}]}
    settings = {"round": {"deadline_seconds": 1.0, "quorum": 0.0}}
    assert "queues_stay_bounded" in caught(scenario=scenario, rounds=20, **settings)


def test_a_weight_that_only_one_end_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    from p2pfed.topology import topology as topology_module

    monkeypatch.setattr(topology_module, "mixing_weight", lambda mine, _theirs: 1 / (1 + mine))
    graph = {"kind": "explicit", "edges": [["a", "b"], ["b", "c"], ["c", "d"], ["b", "d"]]}
    assert caught(seeds=1, graph=graph) == {"weights_are_symmetric"}


def test_a_left_out_weight_that_goes_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    aggregate = SimulatedPeer._aggregate

    def generous(self: SimulatedPeer, command: do.Aggregate) -> None:
        share = 1 + len(command.left_out)
        inputs = tuple(
            do.AggregationInput(one.site, one.weight * share, one.staleness)
            for one in command.inputs
        )
        aggregate(self, do.Aggregate(command.round_number, inputs, command.left_out))

    monkeypatch.setattr(SimulatedPeer, "_aggregate", generous)
    assert "weights_sum_to_one" in caught(scenario=STORM, rounds=15)


def test_a_model_that_counts_for_more_than_its_age_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RoundEngine, "_share", lambda _self, _neighbour: 1.0)
    scenario = {"straggler": [{"site": "a", "factor": 3.0}]}
    settings = {"round": {"mode": "async", "max_staleness": 9}}
    assert caught(seeds=1, scenario=scenario, **settings) == {"shares_follow_from_what_was_signed"}


LATE = {"join": [{"site": "e", "at_seconds": 40.0}]}


def test_a_newcomer_that_counts_in_full_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "ramp_share", lambda _round, _since: 1.0)
    found = caught(seeds=1, names="abcde", scenario=LATE, rounds=40)
    assert found == {"shares_follow_from_what_was_signed"}


def test_a_newcomer_that_trusts_a_single_donor(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: RoundEngine) -> None:
        donors = [n.site for n in self._of_this_round() if self._is_donor(n)][:1]
        if donors:
            self.phase = Phase.ADOPTING
            self._commands.append(do.Adopt(self.round_number, tuple(donors)))

    monkeypatch.setattr(RoundEngine, "_try_adopting", hasty)
    found = caught(seeds=1, names="abcde", scenario=LATE, rounds=40)
    assert found == {"nobody_joins_by_the_word_of_few"}


def test_a_delta_that_a_crash_makes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    start = SimulatedPeer.start

    def forgetful(self: SimulatedPeer) -> None:
        if self.durable.published is not None and self.durable.round_number:
            self.durable.published = None
        start(self)

    monkeypatch.setattr(SimulatedPeer, "start", forgetful)
    found = caught(seeds=12, scenario=STORM, rounds=15)
    assert found & {"one_delta_a_round", "only_liars_are_convicted"}


def test_a_round_that_is_not_made_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = SimulatedPeer._commit

    def careless(self: SimulatedPeer, round_number: int) -> None:
        before = self.durable.round_number, self.durable.published
        commit(self, round_number)
        self.durable.round_number, self.durable.published = before

    monkeypatch.setattr(SimulatedPeer, "_commit", careless)
    found = caught(seeds=12, scenario=STORM, rounds=15)
    assert found & {"rounds_close_once", "one_delta_a_round", "rounds_only_rise"}


def test_a_gap_that_nobody_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RoundEngine, "_ask_for_repair", lambda _self, _neighbour: None)
    monkeypatch.setattr(RoundEngine, "_send_newest", lambda _self, _site: None)
    found = caught(scenario=STORM, rounds=80)
    assert found & {"everybody_counts_again", "nobody_waits_for_ever"}


def test_a_transfer_that_is_never_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    link_changed = RoundEngine._link_changed

    def stuck(self: RoundEngine, event: Any, now: float) -> None:
        neighbour = self.neighbours.get(event.site)
        arriving = neighbour.arriving if neighbour is not None else None
        link_changed(self, event, now)
        if neighbour is not None and isinstance(event, on.LinkDown):
            neighbour.arriving = arriving

    monkeypatch.setattr(RoundEngine, "_link_changed", stuck)
    scenario = {**STORM, "links": {"bytes_per_second": 2000.0}}
    found = caught(seeds=12, scenario=scenario, rounds=80)
    assert found & {"everybody_counts_again", "nobody_waits_for_ever"}


def test_a_deadline_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = SimulatedPeer._execute

    def timeless(self: SimulatedPeer, command: do.Command) -> None:
        if not (isinstance(command, do.SetTimer) and command.timer is on.Timer.DEADLINE):
            execute(self, command)

    monkeypatch.setattr(SimulatedPeer, "_execute", timeless)
    scenario = {"straggler": [{"site": "d", "factor": 1e4}]}
    assert caught(seeds=1, scenario=scenario) == {"nobody_waits_for_ever"}


def test_a_model_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = SimulatedPeer._execute

    def hospitable(self: SimulatedPeer, command: do.Command) -> None:
        if isinstance(command, do.Aggregate):
            weights = self.plan.weights_of(command.round_number)
            late = [site for site in command.left_out if site in self.replicas]
            inputs = command.inputs + tuple(
                do.AggregationInput(site, weights[site], 9) for site in late
            )
            left_out = tuple(site for site in command.left_out if site not in late)
            command = do.Aggregate(command.round_number, inputs, left_out)
        execute(self, command)

    monkeypatch.setattr(SimulatedPeer, "_execute", hospitable)
    scenario = {"straggler": [{"site": "d", "factor": 60.0}]}
    assert caught(seeds=1, scenario=scenario) == {"staleness_is_bounded"}


def test_mixing_that_drives_models_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    aggregate = Mixing.aggregate

    def away(self: Mixing, *inputs: Any) -> Any:
        outcome = aggregate(self, *inputs)
        own, out = inputs[2], inputs[4]
        np.subtract(2 * own, out, out=out)
        return outcome

    monkeypatch.setattr(Mixing, "aggregate", away)
    assert caught(seeds=1) == {"mixing_brings_models_together"}


def test_an_engine_that_talks_in_circles(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = RoundEngine._payload_applied

    def forgiving(self: RoundEngine, event: Any, now: float) -> None:
        applied(self, event, now)
        self.neighbours[event.site].rejected_in_round = None

    monkeypatch.setattr(RoundEngine, "_payload_applied", forgiving)
    assert caught(seeds=1, behaviour=Swindler()) == {"no_one_is_asked_without_end"}


def test_a_violation_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: RoundEngine, _now: float) -> None:
        self.round_number = -1

    monkeypatch.setattr(RoundEngine, "_catch_up", forget)
    simulated = federation(seed=7)
    simulated.replay = "p2pfed simulate ring-4.toml --seed 7"
    with pytest.raises(InvariantError, match="rounds_only_rise, seed 7") as error:
        simulated.run()
    assert "run it again: p2pfed simulate ring-4.toml --seed 7" in str(error.value)
    assert "TrainingFinished" in str(error.value)


def test_a_timer_that_fires_a_moment_too_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pfed.simulation.world.math.ceil", int)
    monkeypatch.setattr("p2pfed.simulation.federation.MAX_EVENTS_PER_SITE_ROUND", 300)
    assert "endless" in caught(seeds=8, scenario=STORM)
