"""A whole simulated federation: its sites, its network, what befalls them, and who watches."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from p2pfed.aggregation import Mixing
from p2pfed.attacks import make
from p2pfed.keys import Identity
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.plan import FederationPlan
from p2pfed.simulation.behaviour import Behaviour, behaviour_of
from p2pfed.simulation.checkers import Checkers
from p2pfed.simulation.clock import Clock
from p2pfed.simulation.envelopes import Signatures
from p2pfed.simulation.faults import Faults
from p2pfed.simulation.learning import Learner, Learning
from p2pfed.simulation.measurements import Measurements, RoundFigures
from p2pfed.simulation.network import Network
from p2pfed.simulation.peer import SimulatedPeer
from p2pfed.simulation.scenario import Scenario
from p2pfed.simulation.world import World
from p2pfed.topology import Topology
from p2pfed.topology.plan import plan_of

SCHEMA_DIGEST = b"p2pfed simulated schema".ljust(32, b"\0")
MAX_EVENTS_PER_SITE_ROUND = 5_000  # more means that somebody talks in circles


@dataclass(frozen=True, slots=True)
class SiteFigures:
    """What one site did."""

    name: str
    hostile: bool
    rounds: int
    restarts: int
    bytes_sent: Mapping[str, int]
    events: Mapping[str, int]
    notices: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a simulation. Times are virtual seconds."""

    seed: int
    trace_hash: str
    finished: bool
    seconds: float
    events: int
    rounds: tuple[RoundFigures, ...]
    sites: tuple[SiteFigures, ...]
    quarantined: tuple[str, ...] = ()
    checked: Mapping[str, int] = field(default_factory=dict)


class SimulatedFederation:
    """A federation under virtual time.

    :param topology: with ``round.rounds`` set: a simulation ends.
    :param identities: of every peer of the topology file, by name.
    :param evaluate_every: rounds between two evaluations of the honest sites' models.
    :param replay: the command that runs this simulation again, for who finds a fault.
    :param behaviours: of sites that act in a way that no scenario can say.
    :raises ValueError: the topology file says "until stopped".
    """

    def __init__(
        self,
        topology: Topology,
        identities: Mapping[str, Identity],
        scenario: Scenario,
        learner: Learner,
        seed: int,
        evaluate_every: int = 10,
        replay: str = "",
        behaviours: Mapping[str, Behaviour] | None = None,
    ) -> None:
        if topology.file.round.rounds == 0:
            raise ValueError("a simulation needs a number of rounds")
        self.world = World(seed)
        self.scenario = scenario
        self.replay = replay
        self.rounds = topology.file.round.rounds
        self.mixing = Mixing.of(topology.file)
        self.codec = topology.file.codec.name
        self.genesis = learner.genesis()
        self.genesis_digest = vector_digest(self.genesis)
        self.learning = Learning(learner)
        self.measurements = Measurements(learner, evaluate_every)
        self.signatures = Signatures()
        self.remembers_headers = bool(scenario.crash or scenario.storm)
        self.faults = Faults(self, topology)
        self.topology = self.faults.first_topology
        self._names = {identity.public_key: name for name, identity in identities.items()}
        self.peers = self._make_peers(topology, identities, behaviours or {})
        self._members = tuple(
            peer.name
            for peer in self.peers.values()
            if not peer.behaviour.hostile and peer.name in self.faults.last_topology.names
        )
        self._unfinished = set(self._members)
        self.checkers = Checkers(self)
        self.network = Network(self.world, scenario, self.peers)
        self._plans: dict[tuple[bytes, str], FederationPlan] = {}
        self._links: dict[tuple[bytes, str], frozenset[str]] = {}

    def _make_peers(
        self,
        topology: Topology,
        identities: Mapping[str, Identity],
        behaviours: Mapping[str, Behaviour],
    ) -> dict[str, SimulatedPeer]:
        scenario = self.scenario
        clocks = {one.site: Clock(one.offset_seconds, 1.0 + one.drift) for one in scenario.clock}
        factors = {one.site: one.factor for one in scenario.straggler}
        attacks = {one.site: make(one.attack, **one.options) for one in scenario.hostile}
        return {
            name: SimulatedPeer(
                self,
                index,
                name,
                identities[name],
                clocks.get(name, Clock()),
                factors.get(name, 1.0),
                behaviours.get(name) or behaviour_of(attacks.get(name)),
            )
            for index, name in enumerate(topology.names)
        }

    def run(self) -> Outcome:
        """Run until every honest site has closed its last round, or for ever if they do not:
        then a checker speaks up.

        :raises InvariantError: something that must hold does not.
        """
        starting = self.world.draw("start")
        for peer in self.peers.values():
            delay = starting.uniform(0.0, self.scenario.pace.start_spread_seconds)
            if peer.name in self.topology.names:
                self.world.after(delay, peer.start)
        self.network.heartbeats()
        self.faults.schedule()
        self.checkers.watch()
        most = MAX_EVENTS_PER_SITE_ROUND * len(self.peers) * (self.rounds + 20)
        while not self.finished() and self.world.step():
            if self.world.happened > most:
                self.checkers.fail("endless", f"more than {most} events and no end")
        self.checkers.ended()
        return self._outcome()

    def finished(self) -> bool:
        """Whether all faults are over and every honest member has closed its last round."""
        return self.faults.over and not self._unfinished

    def note_phase(self, peer: SimulatedPeer) -> None:
        """Keep count of those who are not done; a site that reloads may have rounds to go."""
        if peer.up and peer.engine.phase is Phase.FINISHED:
            self._unfinished.discard(peer.name)
        elif peer.name in self._members:
            self._unfinished.add(peer.name)

    def members(self) -> Iterable[SimulatedPeer]:
        """The honest sites that are to go on to the end."""
        return (self.peers[name] for name in self._members)

    def honest(self) -> Iterable[SimulatedPeer]:
        return (peer for peer in self.peers.values() if not peer.behaviour.hostile)

    def plan_of(self, topology: Topology, name: str) -> FederationPlan:
        key = (topology.digest, name)
        if key not in self._plans:
            self._plans[key] = plan_of(topology, name, SCHEMA_DIGEST, self.genesis_digest)
        return self._plans[key]

    def links_of(self, topology: Topology, name: str) -> frozenset[str]:
        """The neighbours of any round; nobody, for who is not in the file."""
        key = (topology.digest, name)
        if key not in self._links:
            member = name in topology.names
            self._links[key] = frozenset(topology.all_neighbours(name) if member else ())
        return self._links[key]

    def name_of(self, public_key: bytes) -> str | None:
        return self._names.get(public_key)

    def meet(self, peer: SimulatedPeer) -> None:
        """Let a site that started or changed its topology make its links."""
        for other in sorted(self.links_of(peer.topology, peer.name)):
            self.network.keep(peer.name, other)

    def committed(self, peer: SimulatedPeer, round_number: int) -> None:
        if not peer.behaviour.hostile:
            self.measurements.committed(peer.name, round_number, peer.model, self.world.now)
        self.checkers.committed(peer, round_number)

    def _outcome(self) -> Outcome:
        quarantined = {site for peer in self.members() for site in peer.engine.quarantined}
        for peer in self.members():
            self.measurements.evaluate(peer.name, self.rounds - 1, peer.model)
        return Outcome(
            seed=self.world.seed,
            trace_hash=self.world.trace_hash(),
            finished=self.finished(),
            seconds=self.world.now,
            events=self.world.happened,
            rounds=tuple(self.measurements.rounds()),
            sites=tuple(self._figures(peer) for peer in self.peers.values()),
            quarantined=tuple(sorted(quarantined)),
            checked=dict(self.checkers.counts),
        )

    def _figures(self, peer: SimulatedPeer) -> SiteFigures:
        return SiteFigures(
            peer.name,
            peer.behaviour.hostile,
            peer.committed_rounds,
            max(0, peer.process.life - 1),
            dict(self.network.traffic[peer.name].sent),
            dict(peer.handled),
            dict(peer.notices),
        )
