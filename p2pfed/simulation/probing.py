"""The daemon's failure detector at a simulated site: what ``daemon.probing`` is to a real one."""

from typing import TYPE_CHECKING

from p2pfed.protocol.events import NeighbourHeard, NeighbourSilent
from p2pfed.protocol.liveness import HEARTBEAT_SECONDS, LivenessDetector
from p2pfed.protocol.liveness_events import (
    AnswerProbe,
    AskHelper,
    Heard,
    Linked,
    LivenessChanged,
    LivenessEvent,
    Ping,
    ProbeAsked,
    ProbeReported,
    RoundTrip,
    Tick,
    Unlinked,
    Watch,
)
from p2pfed.simulation.network import HEARTBEAT_BYTES

if TYPE_CHECKING:
    from p2pfed.simulation.peer import SimulatedPeer

# The daemon looks four times as often; here that would cost more than the rounds themselves.
TICK_SECONDS = HEARTBEAT_SECONDS
PROBE_BYTES = 50  # and as much for its answer


class SimulatedProbing:
    """The detector of one life of a site, on the site's own clock."""

    def __init__(self, peer: "SimulatedPeer") -> None:
        self._peer = peer
        self.detector = LivenessDetector(self._now(), TICK_SECONDS)
        self.change_topology()
        self._tick()

    def change_topology(self) -> None:
        peer = self._peer
        federation, topology = peer.federation, peer.topology
        own = federation.links_of(topology, peer.name)
        common = {other: own & federation.links_of(topology, other) for other in sorted(own)}
        self._tell(Watch(common, topology.file.round.deadline_seconds))

    def linked(self, other: str) -> None:
        quality = self._peer.federation.network.link(self._peer.name, other)
        there_and_back = sum(
            way.quality.delay_seconds + way.quality.jitter_seconds / 2
            for way in quality.directions.values()
        )
        self._tell(RoundTrip(other, there_and_back))
        self._tell(Linked(other))

    def unlinked(self, other: str) -> None:
        self._tell(Unlinked(other))

    def heard(self, other: str) -> None:
        self._tell(Heard(other))

    def asked(self, asker: str, target: str, token: int) -> None:
        self._tell(ProbeAsked(asker, target, token))

    def reported(self, helper: str, target: str, token: int, ago: float | None) -> None:
        self._tell(ProbeReported(helper, target, token, ago))

    def pinged(self, sender: str) -> None:
        self.heard(sender)
        self._say(sender, "heartbeat", HEARTBEAT_BYTES, "heard")

    def _now(self) -> float:
        return self._peer.clock.local(self._peer.world.now)

    def _tick(self) -> None:
        self._tell(Tick())
        self._peer.later(TICK_SECONDS / self._peer.clock.rate, self._tick)

    def _tell(self, event: LivenessEvent) -> None:
        for command in self.detector.handle(event, self._now()):
            match command:
                case Ping(site):
                    self._say(site, "heartbeat", HEARTBEAT_BYTES, "pinged")
                case AskHelper(helper, target, token):
                    self._say(helper, "probe", PROBE_BYTES, "asked", target, token)
                case AnswerProbe(asker, target, token, ago):
                    self._say(asker, "probe", PROBE_BYTES, "reported", target, token, ago)
                case NeighbourSilent() | NeighbourHeard():
                    self._peer.handle(command)
                case LivenessChanged():
                    pass  # for a log

    def _say(self, site: str, what: str, size_bytes: int, method: str, *arguments: object) -> None:
        peer = self._peer
        receiver = peer.federation.peers[site].probing
        peer.federation.network.send(
            peer.name, site, what, size_bytes, getattr(receiver, method), *arguments
        )
