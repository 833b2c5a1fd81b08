"""A simulated site: the round engine of the daemon, and a shell that does what it asks.

The shell keeps what the daemon keeps, and forgets at a crash what the daemon would. Vectors
are real, and so are headers, signatures, codecs and the aggregation rule.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from p2pfed.aggregation import NeighbourModel, gather
from p2pfed.errors import AggregationError, AuthenticationError
from p2pfed.keys import Identity
from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.header import Kind, SignedHeader
from p2pfed.protocol.joining import is_worth_adopting
from p2pfed.protocol.neighbours import NEVER_PUBLISHED
from p2pfed.protocol.own_state import OwnState
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.rounds import RoundEngine
from p2pfed.simulation.behaviour import Behaviour
from p2pfed.simulation.clock import Clock
from p2pfed.simulation.durable import Durable, Held, Replicas
from p2pfed.simulation.envelopes import Envelope, Statement, encode_delta, encode_snapshot
from p2pfed.simulation.outbox import Outbox
from p2pfed.simulation.probing import SimulatedProbing
from p2pfed.simulation.process import Process
from p2pfed.simulation.scenario import Pace
from p2pfed.topology import Topology

if TYPE_CHECKING:
    from p2pfed.simulation.federation import SimulatedFederation

Vector = npt.NDArray[np.float32]

NOTICE_BYTES = 600  # a header on its own
WANT_BYTES = 50


@dataclass(frozen=True, slots=True)
class Hello:
    """What a site says of itself when a link is made."""

    round_number: int
    replica: bytes
    published_round: int
    topology_digest: bytes


class SimulatedPeer:
    """One site.

    :param training_factor: its training takes this many times longer.
    """

    def __init__(
        self,
        federation: "SimulatedFederation",
        index: int,
        name: str,
        identity: Identity,
        clock: Clock,
        training_factor: float,
        behaviour: Behaviour,
    ) -> None:
        self.federation = federation
        self.world = federation.world
        self.index = index
        self.name = name
        self.identity = identity
        self.clock = clock
        self._training_factor = training_factor
        self._draws = federation.world.draw(f"site {name}")
        genesis = federation.genesis
        self.durable = Durable(0, None, genesis, np.zeros_like(genesis), genesis)
        self.process = Process(federation.world)
        self.behaviour = behaviour
        self.topology: Topology = federation.topology
        self.topologies_of_round = [self.topology]  # held since its last round was closed
        self.handled: Counter[str] = Counter()
        self.notices: Counter[str] = Counter()
        self.committed_rounds = 0
        self.last_commit_seconds = 0.0
        self.started_seconds = 0.0
        self.engine: RoundEngine
        self.probing: SimulatedProbing

    @property
    def replicas(self) -> dict[str, Held]:
        """What it holds of its neighbours, by name."""
        return self._replicas.held

    @property
    def up(self) -> bool:
        return self.process.up

    @property
    def frozen(self) -> bool:
        return self.process.frozen

    @property
    def pace(self) -> Pace:
        return self.federation.scenario.pace

    @property
    def plan(self) -> FederationPlan:
        return self.federation.plan_of(self.topology, self.name)

    def start(self) -> None:
        """Start, or start again, from what is durable."""
        durable = self.durable
        self.process.start()
        self.started_seconds = self.world.now
        self.model = durable.model
        self.trained = durable.model
        self._start = None if durable.in_its_midst else durable.model
        self.momentum = durable.momentum
        self.own_replica = durable.replica
        self.own_digest = (
            durable.published.header.replica_after
            if durable.published
            else self.federation.genesis_digest
        )
        self._replicas = Replicas(
            durable.replicas, self.federation.genesis, self.federation.genesis_digest
        )
        self.envelopes = OrderedDict(durable.envelopes)
        self.headers = HeaderLog(durable.headers)
        self.received: dict[bytes, Envelope] = {}
        self.links: set[str] = set()
        self.progress_known: dict[str, int] = {}
        self.outboxes: dict[str, Outbox] = {}
        self._timers: dict[on.Timer, int] = {}
        self._job = 0
        self.engine = RoundEngine(
            self.plan,
            OwnState(
                durable.round_number,
                self.own_digest,
                durable.published,
                since_round=durable.since_round,
            ),
            {site: held.state for site, held in durable.replicas.items()},
            [envelope.signed for envelope in durable.envelopes.values()],
            self.headers,
            durable.quarantined,
            durable.standings,
        )
        self.world.record(self.name, "starts", number=durable.round_number)
        self.handle(on.Started())
        self.probing = SimulatedProbing(self)
        self.federation.meet(self)

    def crash(self) -> None:
        """End at once, as by SIGKILL."""
        if not self.up:
            return
        self.world.record(self.name, "crashes", number=self.engine.round_number)
        self.process.end()
        self.federation.learning.forget(self._job)
        self.federation.note_phase(self)
        self.federation.network.cut_all(self.name)

    def freeze(self) -> None:
        """Stand still: nothing is received, sent or noticed until ``thaw``."""
        if self.up and not self.frozen:
            self.world.record(self.name, "freezes", number=self.engine.round_number)
            self.process.freeze()
            self.federation.network.froze(self.name)

    def thaw(self, *, clock_stood: bool) -> None:
        """Go on as if nothing had been.

        :param clock_stood: its clock stood still as well.
        """
        if self.frozen:
            self.world.record(self.name, "thaws", number=self.engine.round_number)
            stood_seconds = self.process.thaw(clock_stood=clock_stood)
            if clock_stood:
                self.clock.offset_seconds -= self.clock.rate * stood_seconds

    def later(self, seconds: float, action: Callable[..., None], *arguments: object) -> None:
        """Let something happen in this life of the site; a crash forgets it."""
        self.process.later(seconds, action, *arguments)

    def when_awake(self, action: Callable[..., None], *arguments: object) -> None:
        """Let something happen that comes from outside, once it does not stand still."""
        self.process.when_awake(action, *arguments)

    def change_topology(self, topology: Topology) -> None:
        """Take another topology file; every link is made anew, so that both ends compare it."""
        self.when_awake(self._change_topology, topology)

    def _change_topology(self, topology: Topology) -> None:
        self.topology = topology
        self.topologies_of_round.append(topology)
        if self.up:
            self.handle(on.PlanChanged(self.plan))
            self.probing.change_topology()
            self.federation.network.cut_all(self.name)
            self.federation.meet(self)

    @property
    def longest_training_seconds(self) -> float:
        return self.pace.training_seconds * self._training_factor * (1 + self.pace.training_spread)

    def state(self) -> str:
        """What it is doing, for a person to read."""
        if not self.up:
            return "is down"
        if self.frozen:
            return "is frozen"
        waiting = self.engine.waited_for(self.clock.local(self.world.now))
        return (
            f"is {self.engine.phase} in round {self.engine.round_number}, waiting for "
            f"{', '.join(waiting) or 'nobody'}"
        )

    def wants(self, other: str) -> bool:
        return self.up and other in self.federation.links_of(self.topology, self.name)

    def accepts(self, other: "SimulatedPeer") -> bool:
        """What the daemon's handshake compares."""
        return (
            self.wants(other.name)
            and other.name not in self.engine.quarantined
            and self.topology.digest == other.topology.digest
        )

    def hello(self) -> Hello:
        published = self.engine.published
        return Hello(
            self.engine.round_number,
            self.own_digest,
            published.header.round_number if published else NEVER_PUBLISHED,
            self.topology.digest,
        )

    def linked(self, other: str, hello: Hello, said: Hello) -> None:
        """A link is made. ``said`` is what this site's own hello was."""
        if other in self.links:
            return
        self.links.add(other)
        self.progress_known[other] = hello.round_number
        self.handle(
            on.LinkUp(other, hello.round_number, hello.replica, hello.published_round, said.replica)
        )
        self.probing.linked(other)

    def unlinked(self, other: str) -> None:
        outbox = self.outboxes.get(other)
        if outbox is not None:
            outbox.broken()
        if other in self.links:
            self.links.discard(other)
            self.handle(on.LinkDown(other))
            self.probing.unlinked(other)

    def hears(self, other: str) -> None:
        """A heartbeat came, or its answer."""
        self.probing.heard(other)

    def knows_otherwise(self, other: str, round_number: int) -> bool:
        return self.progress_known.get(other) != round_number

    def progress(self, other: str, round_number: int) -> None:
        if other in self.links:
            self.progress_known[other] = round_number
            self.handle(on.NeighbourProgress(other, round_number))

    def handle(self, event: on.Event) -> list[do.Command]:
        """Tell the engine, and do what it says."""
        kind = type(event).__name__
        self.handled[kind] += 1
        about = event.timer.value if isinstance(event, on.TimerFired) else _about(event)
        self.world.record(self.name, kind, about, getattr(event, "round_number", 0))
        before = self.engine.round_number
        commands = self.engine.handle(event, self.clock.local(self.world.now))
        self.federation.checkers.handled(self, event, before, commands)
        self.federation.note_phase(self)
        for command in commands:
            self._execute(command)
        return commands

    def _execute(self, command: do.Command) -> None:  # noqa: PLR0912 - one line a command
        work = self.pace.work_seconds
        match command:
            case do.SetTimer(timer, at_seconds):
                token = self._timers[timer] = self._timers.get(timer, 0) + 1
                wait = self.clock.wait_until(at_seconds, self.world.now)
                self.later(wait, self._fire, timer, token)
            case do.CancelTimer(timer):
                self._timers[timer] = self._timers.get(timer, 0) + 1
            case do.Train(round_number, local_steps):
                self._train(round_number, local_steps)
            case do.Publish():
                self.later(work, self._publish, command)
            case do.SendDelta(site, header_digest):
                envelope = self.envelopes.get(header_digest)
                if envelope is not None and self.behaviour.sends(self, envelope):
                    self.outbox(site).send(envelope)
            case do.SendSnapshot(site):
                self._send_snapshot(site)
            case do.ApplyPayload(site, signed):
                self.later(work, self._apply, site, signed)
            case do.DiscardPayload(_, signed):
                self.received.pop(signed.digest, None)
            case do.RequestRepair(site, replica_held):
                self.tell(site, "want", WANT_BYTES, "wanted", replica_held)
            case do.FloodHeader(signed, except_site):
                if self.behaviour.floods(self, signed):
                    self._flood("header", NOTICE_BYTES, "header_heard", except_site, signed)
            case do.Quarantine(site, first, second):
                self._quarantine(site, first, second)
            case do.Aggregate():
                self.later(work, self._aggregate, command)
            case do.Adopt():
                self.later(work, self._adopt, command)
            case do.CommitRound():
                self.later(work, self._commit, command)
            case do.Notice(kind):
                self.notices[kind.value] += 1
            case do.Halt() | do.AnswerOffer():
                pass

    def _fire(self, timer: on.Timer, token: int) -> None:
        if self._timers.get(timer) == token:
            self.handle(on.TimerFired(timer))

    def _train(self, round_number: int, local_steps: int) -> None:
        seconds = self.pace.training_seconds * self._training_factor
        seconds *= 1.0 + self.pace.training_spread * self._draws.random()
        self.federation.learning.forget(self._job)
        self._job = self.federation.learning.request(
            self.index, round_number, local_steps, self.model, self.momentum
        )
        self.later(seconds, self._trained, round_number)

    def _trained(self, round_number: int) -> None:
        if self.engine.phase.value == "training" and self.engine.round_number == round_number:
            self.handle(on.TrainingFinished(round_number))

    def _publish(self, command: do.Publish) -> None:
        """Encode, sign, make durable; only then is the engine told."""
        trained, momentum = self.federation.learning.result(self._job)
        model = self.behaviour.publishes(self, command.round_number, trained)
        against_genesis = command.replica_before == self.federation.genesis_digest
        before = self.federation.genesis if against_genesis else self.own_replica
        statement = Statement(
            command.round_number,
            command.sequence,
            command.previous,
            command.replica_before,
            int(self.clock.local(self.world.now)),
            command.since_round,
        )
        envelope, after = encode_delta(
            self.identity,
            self.plan,
            self.federation.codec,
            statement,
            model,
            before,
            seed=self._draws.getrandbits(63),
        )
        self.trained, self.momentum = trained, momentum
        self.replica_before, self.own_replica = before, after
        self.own_digest = envelope.signed.header.replica_after
        self.envelopes[envelope.signed.digest] = envelope
        while len(self.envelopes) > limits.RETAINED_DELTAS:
            self.envelopes.popitem(last=False)
        self.durable.round_number = command.round_number
        self.durable.published = envelope.signed
        self.durable.model, self.durable.momentum = trained, momentum
        self.durable.replica = after
        self.durable.envelopes = OrderedDict(self.envelopes)
        self.federation.checkers.published(self, envelope)
        self.later(self.pace.work_seconds, self._published, envelope)

    def _published(self, envelope: Envelope) -> None:
        self.handle(on.Published(envelope.signed))
        self.behaviour.published(self, envelope)

    def outbox(self, site: str) -> Outbox:
        if site not in self.outboxes:
            self.outboxes[site] = Outbox(self, site)
        return self.outboxes[site]

    def tell(self, site: str, what: str, size_bytes: int, method: str, *arguments: object) -> None:
        """Call a method of a linked neighbour, with this site's name first."""
        receiver = self.federation.peers[site]
        self.federation.network.send(
            self.name, site, what, size_bytes, getattr(receiver, method), *arguments
        )

    def _flood(
        self, what: str, size_bytes: int, method: str, except_site: str | None, *arguments: object
    ) -> None:
        for site in self.engine.neighbours:
            if site != except_site and site in self.links:
                self.tell(site, what, size_bytes, method, *arguments)

    def _send_snapshot(self, site: str) -> None:
        published, outbox = self.engine.published, self.outbox(site)
        if published is None or outbox.has_snapshot():
            return
        outbox.send(encode_snapshot(self.identity, self.plan, published, self.own_replica))

    def wanted(self, other: str, replica_held: bytes) -> None:
        self.handle(on.WantArrived(other, replica_held))

    def header_heard(self, heard_from: str, signed: SignedHeader) -> None:
        self.handled["HeaderNotice"] += 1
        if self.headers.knows(signed.digest):
            return
        try:
            verified = self.federation.signatures.verify(signed.encoded, signed.signature)
        except AuthenticationError:
            self.notices["bad_signature"] += 1
            return
        sender = self.federation.name_of(verified.header.sender)
        if sender is not None and sender != self.name and verified.header.kind is Kind.DELTA:
            self.handle(on.HeaderHeard(heard_from, sender, verified))

    def proof_heard(self, heard_from: str, first: SignedHeader, second: SignedHeader) -> None:
        sender = self.federation.name_of(first.header.sender)
        if sender is not None:
            self.handle(on.EquivocationHeard(heard_from, sender, first, second))

    def _quarantine(self, site: str, first: SignedHeader, second: SignedHeader) -> None:
        self.durable.quarantined |= {site}
        self.federation.checkers.quarantined(self, site, first, second)
        self._flood("proof", 2 * NOTICE_BYTES, "proof_heard", site, first, second)

    def offer(self, other: str, envelope: Envelope) -> bool:
        """Answer a neighbour's offer; whether its payload is wanted."""
        signed = envelope.signed
        try:
            verified = self.federation.signatures.verify(signed.encoded, signed.signature)
        except AuthenticationError:
            self.notices["bad_signature"] += 1
            return False
        if self.federation.name_of(verified.header.sender) != other:
            self.notices["foreign_envelope"] += 1
            return False
        self._answer: do.AnswerOffer | None = None
        for command in self.handle(on.OfferArrived(other, verified)):
            if isinstance(command, do.AnswerOffer):
                return command.code.value == "send"
        return False

    def payload(self, other: str, envelope: Envelope) -> None:
        self.received[envelope.signed.digest] = envelope
        self.handle(on.PayloadReceived(other, envelope.signed))

    def aborted(self, other: str, envelope: Envelope) -> None:
        self.handle(on.TransferAborted(other, envelope.signed))

    def _apply(self, site: str, signed: SignedHeader) -> None:
        envelope = self.received.pop(signed.digest)
        try:
            self._replicas.apply(site, envelope, self.own_replica)
        except AuthenticationError as error:
            self.notices["rejected"] += 1
            self.handle(on.PayloadRejected(site, signed, str(error)))
            return
        self.handle(on.ReplicaUpdated(site, signed))

    def _aggregate(self, command: do.Aggregate) -> None:
        self.federation.checkers.aggregates(self, command)
        models = [
            NeighbourModel(
                one.site, self.replicas[one.site].vector, one.counted_weight, one.returning
            )
            for one in command.inputs
        ]
        mixing = self.federation.mixing
        # A liar goes on from what it knows to be true.
        own = self.trained if self.behaviour.hostile else self.own_replica
        mixed = np.empty_like(own)
        try:
            outcome = mixing.aggregate(
                command.round_number, self.plan.total_rounds, own, models, mixed, self._start
            )
        except AggregationError as error:
            self.handle(on.AggregationFailed(command.round_number, error.site, str(error)))
            return
        self.notices["dropped"] += len(outcome.dropped)
        step = np.float32(mixing.step)
        self._mixed = self.trained + step * (mixed - own)
        self.handle(on.AggregationFinished(command.round_number, outcome.returned))

    def _adopt(self, command: do.Adopt) -> None:
        """Try what the donors' models come to; no site of a simulation has a hold-out of its
        own, so the federation's serves."""
        self.federation.checkers.adopts(self, command)
        gathered = np.empty_like(self.model)
        try:
            gather({site: self.replicas[site].vector for site in command.donors}, gathered)
        except AggregationError as error:
            self.handle(on.AdoptionRefused(command.round_number, str(error)))
            return
        if not is_worth_adopting(*self.federation.learning.errors(gathered, self.model)):
            self.handle(on.AdoptionRefused(command.round_number, "its error is larger"))
            return
        self.momentum = np.zeros_like(gathered)
        self.durable.since_round = command.round_number
        self._begin_from(gathered, command.round_number)
        self.handle(on.Adopted(command.round_number))

    def _begin_from(self, model: Vector, round_number: int) -> None:
        """Make a model durable as the start of a round."""
        self.model = self._start = model
        self.last_commit_seconds = self.world.now
        self.topologies_of_round = [self.topology]
        durable = self.durable
        durable.round_number = round_number
        durable.model, durable.momentum = self.model, self.momentum
        durable.replicas = dict(self.replicas)
        if self.federation.remembers_headers:
            durable.headers = tuple(self.headers.entries().values())

    def _commit(self, command: do.CommitRound) -> None:
        round_number = command.round_number
        for site in command.forgotten:
            self.replicas.pop(site, None)
        self.durable.standings = command.standings
        self._begin_from(self._mixed, round_number + 1)
        self.committed_rounds += 1
        self.federation.committed(self, round_number)
        self.handle(on.RoundCommitted(round_number))


def _about(event: on.Event) -> str:
    """Whom an event is about, for the trace."""
    site: str = getattr(event, "site", getattr(event, "sender", ""))
    return site
