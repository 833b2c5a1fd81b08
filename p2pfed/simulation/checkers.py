"""What must hold in every simulation, whatever goes wrong in it.

A checker looks at what sites do, not at how: it knows the truth that no site knows. The first
thing that does not hold ends the simulation with what is needed to see it again.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import networkx as nx
import numpy as np
import numpy.typing as npt

from p2pfed.errors import InvariantError, RemoteProtocolError
from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.evidence import conflict
from p2pfed.protocol.header import SignedHeader
from p2pfed.protocol.neighbours import NOTHING_HELD
from p2pfed.protocol.phases import Phase
from p2pfed.simulation.envelopes import Envelope, Signatures
from p2pfed.simulation.network import LINK_TIMEOUT_SECONDS, MAX_RETRY_SECONDS
from p2pfed.simulation.outbox import QUEUED_ENVELOPES
from p2pfed.topology.resilience import detour_hops

if TYPE_CHECKING:
    from p2pfed.simulation.durable import Held
    from p2pfed.simulation.federation import SimulatedFederation
    from p2pfed.simulation.peer import SimulatedPeer

WATCH_SECONDS = 5.0
# After the last fault every site closes a round within this many deadlines, each with the time
# that a link takes to be noticed as dead and made again.
PROGRESS_DEADLINES = 4
# Where no message is lost, every honest neighbour counts again after so many rounds that begin
# once the last link had the time to be given up and made again.
HEALING_ROUNDS = 4
RELINKING_SECONDS = LINK_TIMEOUT_SECONDS + 2 * MAX_RETRY_SECONDS
RAMP_ROUNDS = 4  # by the specification
WEIGHT_TOLERANCE = 1e-9
SPREAD_TOLERANCE = 1e-3  # relative; codecs round


@dataclass(slots=True)
class _Spread:
    """Sums over the models of one round, before and after the sites' aggregation."""

    count: int
    complete: bool
    trained: npt.NDArray[np.float64]
    trained_squares: float
    mixed: npt.NDArray[np.float64]
    mixed_squares: float


class Checkers:
    """All checkers of one simulation; ``counts`` says how often each had something to check."""

    def __init__(self, federation: "SimulatedFederation") -> None:
        self._federation = federation
        self._world = federation.world
        self._signatures = Signatures()  # its own: a broken verification must not fool it
        self._published: dict[tuple[str, int], bytes] = {}
        self._last_round: dict[str, int] = {}
        self._symmetric: set[tuple[bytes, int, str, str]] = set()
        self._spread: dict[int, _Spread] = {}
        self._complete: dict[str, bool] = {}
        self._rounds_in_peace: Counter[str] = Counter()
        self._rejected: Counter[tuple[str, str, int]] = Counter()
        self.counts: Counter[str] = Counter()

    def fail(self, checker: str, detail: str) -> NoReturn:
        """:raises InvariantError: always."""
        raise InvariantError(
            checker,
            detail,
            self._world.seed,
            self._world.now,
            self._world.recent(),
            self._federation.replay,
        )

    def _check(self, checker: str, holds: bool, detail: str) -> None:
        self.counts[checker] += 1
        if not holds:
            self.fail(checker, detail)

    def handled(
        self, peer: "SimulatedPeer", event: on.Event, before: int, commands: Sequence[do.Command]
    ) -> None:
        """After the engine of a site took an event."""
        now = peer.engine.round_number
        self.counts["rounds_only_rise"] += 1
        if now < before:
            self.fail("rounds_only_rise", f"{peer.name}: from {before} {peer.state()}")
        for command in commands:
            if isinstance(command, do.Aggregate):
                self._check_convicted(peer, command)
        neighbour = peer.engine.neighbours.get(getattr(event, "site", ""))
        if neighbour is None:
            return
        if isinstance(event, on.PayloadRejected):
            self._rejected[peer.name, event.site, now] += 1
            times = self._rejected[peer.name, event.site, now]
            self._check(
                "no_one_is_asked_without_end",
                times <= limits.MAX_PENDING_PER_NEIGHBOUR + 1,
                f"{peer.name} refused {times} payloads of {event.site} in round {now}",
            )
        kept = len(neighbour.kept)
        outbox = peer.outboxes.get(neighbour.site)
        queued = len(outbox.queue) if outbox is not None else 0
        held = len(peer.received)
        most = (limits.MAX_PENDING_PER_NEIGHBOUR + 2) * len(peer.engine.neighbours)
        self.counts["queues_stay_bounded"] += 1
        if not (
            kept <= limits.MAX_PENDING_PER_NEIGHBOUR
            and queued <= QUEUED_ENVELOPES
            and held <= most
            and len(peer.headers) <= limits.HEADER_LOG_ENTRIES
            and len(commands) <= 4 * (len(peer.engine.neighbours) + limits.RETAINED_DELTAS)
        ):
            self.fail(
                "queues_stay_bounded",
                f"{peer.name}: {kept} deltas of {neighbour.site} wait, {queued} envelopes are "
                f"queued for it, {held} payloads are held, {len(commands)} commands came at once",
            )

    def published(self, peer: "SimulatedPeer", envelope: Envelope) -> None:
        """A site signed a delta and made it durable."""
        if peer.behaviour.hostile:
            return
        header = envelope.signed.header
        known = self._published.setdefault((peer.name, header.round_number), envelope.signed.digest)
        self._check(
            "one_delta_a_round",
            known == envelope.signed.digest,
            f"{peer.name} signed two deltas for round {header.round_number}",
        )

    def aggregates(self, peer: "SimulatedPeer", command: do.Aggregate) -> None:
        """A site is about to fold its neighbours' replicas in."""
        if peer.behaviour.hostile:
            return
        self._complete[peer.name] = not command.left_out
        self._check_healing(peer, command)
        for one in command.inputs:
            self._check_input(peer, one, command.round_number)
        self._check_weights(peer, command)

    def _check_input(
        self, peer: "SimulatedPeer", one: do.AggregationInput, round_number: int
    ) -> None:
        where = f"{peer.name} in round {round_number}, of {one.site}"
        staleness = round_number - self._check_model(peer, one.site, where).state.round_number
        self._check(
            "staleness_is_bounded",
            staleness <= peer.plan.max_staleness,
            f"{where}: its model is {staleness} rounds old",
        )

    def _check_model(self, peer: "SimulatedPeer", site: str, where: str) -> "Held":
        """Whether the model that is held of a neighbour is one that it signed."""
        held = peer.replicas.get(site)
        if held is None or held.state.replica == NOTHING_HELD:
            self.fail("only_verified_models", f"{where}: no replica is held")
        try:
            header = self._signatures.verify(held.signed.encoded, held.signed.signature).header
        except RemoteProtocolError as error:
            self.fail("only_verified_models", f"{where}: {error}")
        self._check(
            "only_verified_models",
            self._federation.name_of(header.sender) == site
            and header.replica_after == vector_digest(held.vector)
            and bool(np.isfinite(held.vector).all()),
            f"{where}: the model is not the one that its owner signed",
        )
        return held

    def _check_convicted(self, peer: "SimulatedPeer", command: do.Aggregate) -> None:
        """Looked at when it is decided: a conviction that comes later counts in the next round."""
        for one in command.inputs if not peer.behaviour.hostile else ():
            self._check(
                "nobody_convicted_counts",
                one.site not in peer.engine.quarantined,
                f"{peer.name} in round {command.round_number}: {one.site} was convicted of an "
                "equivocation",
            )

    def adopts(self, peer: "SimulatedPeer", command: do.Adopt) -> None:
        """A site is about to try its neighbours' model in the place of its own."""
        self._check(
            "nobody_joins_by_the_word_of_few",
            len(set(command.donors)) >= peer.plan.donors_needed,
            f"{peer.name} in round {command.round_number} takes {command.donors}",
        )
        for site in command.donors:
            self._check_model(peer, site, f"{peer.name} joins with the model of {site}")

    def _check_healing(self, peer: "SimulatedPeer", command: do.Aggregate) -> None:
        """Once nothing goes wrong any more, nobody honest is left out for long."""
        federation = self._federation
        healed_seconds = federation.faults.last_seconds + RELINKING_SECONDS
        if not federation.faults.over or self._world.now < healed_seconds:
            return
        self._rounds_in_peace[peer.name] += 1
        if federation.scenario.loses_messages or federation.scenario.straggler:
            return
        if peer.plan.asynchronous:
            return  # who is fast leaves the slow behind, and waits for a quorum of them only
        if self._rounds_in_peace[peer.name] <= HEALING_ROUNDS:
            return
        forgotten = [
            site
            for site in command.left_out
            if not federation.peers[site].behaviour.hostile
            and self._rounds_in_peace[site] > HEALING_ROUNDS
            and federation.peers[site].up
        ]
        self._check(
            "everybody_counts_again",
            not forgotten,
            f"{peer.name} left {', '.join(forgotten)} out of round {command.round_number}",
        )

    def _check_weights(self, peer: "SimulatedPeer", command: do.Aggregate) -> None:
        number = command.round_number
        given = {one.site: one.weight for one in command.inputs}
        # A file that is changed while vectors are worked on is in force from the next round on.
        fitting = [
            topology
            for topology in peer.topologies_of_round
            if peer.name in topology.names
            and _are_of(topology.weights(peer.name, number), given, command.left_out)
        ]
        self._check(
            "weights_sum_to_one",
            bool(fitting) and sum(given.values()) < 1.0 + WEIGHT_TOLERANCE,
            f"{peer.name} in round {number}: {given} with {command.left_out} left out",
        )
        topology = fitting[-1]
        for one in command.inputs:
            self._check_share(peer, one, number)
        for site, weight in given.items():
            edge = (topology.digest, number if topology.time_varying else 0, peer.name, site)
            if edge in self._symmetric:
                continue
            self._symmetric.add(edge)
            back = topology.weights(site, number).get(peer.name, 0.0)
            self._check(
                "weights_are_symmetric",
                abs(back - weight) <= WEIGHT_TOLERANCE,
                f"round {number}: {peer.name} weighs {site} {weight}, back it is {back}",
            )

    def _check_share(
        self, peer: "SimulatedPeer", one: do.AggregationInput, round_number: int
    ) -> None:
        """What is taken off a model that is not of an asynchronous round, and off one whose owner
        joined a short while ago."""
        state = peer.replicas[one.site].state
        apart = abs(round_number - state.round_number)
        due = 1.0 / (1 + apart) if peer.plan.asynchronous else 1.0
        if state.since_round:
            due *= min(1.0, max(1, round_number - state.since_round + 1) / RAMP_ROUNDS)
        self._check(
            "shares_follow_from_what_was_signed",
            abs(one.share - due) <= WEIGHT_TOLERANCE,
            f"{peer.name} in round {round_number}: {one.site} counts with {one.share}, not {due}",
        )

    def committed(self, peer: "SimulatedPeer", round_number: int) -> None:
        """A site closed a round."""
        if peer.behaviour.hostile:
            return
        last = self._last_round.get(peer.name, -1)
        self._last_round[peer.name] = round_number
        self._check(
            "rounds_close_once",
            round_number > last,
            f"{peer.name} closed round {round_number} after round {last}",
        )
        if self._federation.scenario.honest_and_quiet and not peer.plan.asynchronous:
            self._add_spread(peer, round_number)

    def _add_spread(self, peer: "SimulatedPeer", round_number: int) -> None:
        trained, mixed = peer.trained.astype(np.float64), peer.model.astype(np.float64)
        zero = np.zeros_like(trained)
        spread = self._spread.setdefault(
            round_number, _Spread(0, True, zero.copy(), 0.0, zero.copy(), 0.0)
        )
        spread.count += 1
        spread.complete &= self._complete.get(peer.name, False)
        spread.trained += trained
        spread.trained_squares += float(trained @ trained)
        spread.mixed += mixed
        spread.mixed_squares += float(mixed @ mixed)
        if spread.count < len(self._federation.peers):
            return
        del self._spread[round_number]
        if not spread.complete:
            return
        before = _variance(spread.count, spread.trained, spread.trained_squares)
        after = _variance(spread.count, spread.mixed, spread.mixed_squares)
        self._check(
            "mixing_brings_models_together",
            after <= before * (1.0 + SPREAD_TOLERANCE) + SPREAD_TOLERANCE**2,
            f"round {round_number}: mean squared distance to the mean {before:.6g} before the "
            f"aggregation, {after:.6g} after",
        )

    def quarantined(
        self, peer: "SimulatedPeer", site: str, first: SignedHeader, second: SignedHeader
    ) -> None:
        """A site convicted another."""
        self._check(
            "only_liars_are_convicted",
            self._federation.peers[site].behaviour.hostile and conflict(first, second),
            f"{peer.name} convicted {site}",
        )

    def watch(self) -> None:
        """Look from time to time whether everybody goes on, from now to the end."""
        self._world.after(WATCH_SECONDS, self._look)

    def _look(self) -> None:
        self.watch()
        federation = self._federation
        if not federation.faults.over:
            return
        for peer in federation.members():
            if peer.up and peer.engine.phase is Phase.FINISHED:
                continue
            since = max(
                peer.last_commit_seconds, peer.started_seconds, federation.faults.last_seconds
            )
            self.counts["nobody_waits_for_ever"] += 1
            if self._world.now - since > self._patience_seconds(peer):
                self.fail(
                    "nobody_waits_for_ever", f"{peer.name} {peer.state()} since {since:.0f} s"
                )

    def _patience_seconds(self, peer: "SimulatedPeer") -> float:
        once = (
            peer.plan.deadline_seconds / peer.clock.rate
            + 2 * peer.longest_training_seconds
            + LINK_TIMEOUT_SECONDS
            + MAX_RETRY_SECONDS
        )
        return PROGRESS_DEADLINES * once

    def ended(self) -> None:
        """After the last event."""
        federation = self._federation
        self._check_convictions()
        for peer in federation.members():
            self._check(
                "everybody_finishes",
                peer.up and peer.engine.round_number >= federation.rounds,
                f"{peer.name} ended in round {peer.engine.round_number} of {federation.rounds}",
            )

    def _check_convictions(self) -> None:
        """Who told its neighbours different things is found out by all of them, if what they
        tell one another meets behind its back. A proof is told once: only who was never away,
        and lost no message, must know it."""
        if not self._federation.scenario.quiet:
            return
        for liar in self._federation.peers.values():
            if not liar.behaviour.equivocates or liar.committed_rounds < HEALING_ROUNDS:
                continue
            neighbours = [
                peer for peer in self._federation.members() if liar.name in peer.engine.neighbours
            ]
            for peer in neighbours if self._headers_meet(liar.name) else ():
                self._check(
                    "liars_are_convicted",
                    liar.name in peer.engine.quarantined,
                    f"{peer.name} does not know that {liar.name} lies",
                )

    def _headers_meet(self, liar: str) -> bool:
        """Whether two headers that it tells to two neighbours come together without it."""
        topology = self._federation.topology
        links = nx.Graph(
            [(name, near) for name in topology.names for near in topology.all_neighbours(name)]
        )
        hops = detour_hops(links, liar)
        return hops is not None and 0 < hops <= 2 * topology.relays.hops


def _are_of(
    weights: Mapping[str, float], given: Mapping[str, float], left_out: Collection[str]
) -> bool:
    """Whether ``given``, with those left out, are the neighbours and weights of a file."""
    return set(given) | set(left_out) == set(weights) and all(
        abs(given[site] - weights[site]) <= WEIGHT_TOLERANCE for site in given
    )


def _variance(count: int, total: npt.NDArray[np.float64], squares: float) -> float:
    """The mean squared distance to the mean."""
    mean = total / count
    return squares / count - float(mean @ mean)
