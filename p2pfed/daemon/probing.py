"""The shell of the failure detector: feeds it what the links hear, and does what it says.

Bytes of any stream count as life, so the transport's counters are looked at with every tick. The
same ticks measure the event loop's lag: they are due at fixed times, and come late where this
process was kept waiting.
"""

from collections.abc import Mapping

import structlog
import trio

from p2pfed.daemon.health import BUSY_SCORE
from p2pfed.daemon.links import Links
from p2pfed.daemon.runtime import Runtime
from p2pfed.daemon.transport import Transport
from p2pfed.keys import peer_id_from_public_key, public_key_from_peer_id
from p2pfed.protocol import limits
from p2pfed.protocol.events import NeighbourHeard, NeighbourSilent
from p2pfed.protocol.liveness import LivenessDetector
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
from p2pfed.protocol.local_health import TICK_SECONDS
from p2pfed.protocol.messages import NEVER_HEARD, ProbeReport, ProbeRequest
from p2pfed.topology import Topology

log = structlog.get_logger(__name__)

MILLISECONDS = 1000


class Probing:
    """One daemon's detector at work.

    :param own_name: this site's name.
    """

    def __init__(
        self,
        runtime: Runtime,
        links: Links,
        transport: Transport,
        topology: Topology,
        own_name: str,
    ) -> None:
        self._runtime = runtime
        self._links = links
        self._transport = transport
        self._own_name = own_name
        self._detector = LivenessDetector(trio.current_time())
        self._peer_ids: Mapping[str, str] = {}
        self._bytes: dict[str, int] = {}
        self._busy = False
        self.change_topology(topology)

    def change_topology(self, topology: Topology) -> None:
        common = topology.common_neighbours(self._own_name)
        self._peer_ids = {name: topology.peer(name).peer_id_text for name in common}
        self._bytes = {name: known for name, known in self._bytes.items() if name in common}
        self._tell(Watch(common, topology.file.round.deadline_seconds))

    @property
    def local_health_score(self) -> int:
        """0 where this process is well, up to ``local_health.HIGHEST_SCORE``."""
        return self._detector.health.score

    @property
    def lag_seconds(self) -> float:
        """For how long the event loop stood still at most, since it was last well."""
        return self._detector.health.lag_seconds

    def liveness(self, name: str) -> Liveness:
        """:raises KeyError: no neighbour of that name."""
        return self._detector.liveness(name)

    def vouched_by(self, name: str) -> tuple[str, ...]:
        """Who hears a neighbour that this site does not.

        :raises KeyError: no neighbour of that name.
        """
        return self._detector.vouched_by(name)

    async def run(self) -> None:
        while True:
            self._tick()
            await trio.sleep(TICK_SECONDS)

    def linked(self, name: str) -> None:
        self._tell(Linked(name))

    def unlinked(self, name: str) -> None:
        self._tell(Unlinked(name))

    def heard(self, name: str) -> None:
        self._tell(Heard(name))

    def take(self, sender: str, message: ProbeRequest | ProbeReport) -> None:
        """Take what a neighbour asks, or answers."""
        target = self._name_of(message.target)
        match message:
            case ProbeRequest(_, token):
                self._tell(ProbeAsked(sender, target, token))
            case ProbeReport(_, token, milliseconds):
                ago = None if milliseconds == NEVER_HEARD else milliseconds / MILLISECONDS
                self._tell(ProbeReported(sender, target, token, ago))

    def _name_of(self, public_key: bytes) -> str:
        """A neighbour's name, or what is no name of any."""
        peer_id = peer_id_from_public_key(public_key)
        return next((name for name, known in self._peer_ids.items() if known == peer_id), "")

    def _tick(self) -> None:
        for name, peer_id in self._peer_ids.items():
            received = self._transport.bytes_arrived(peer_id)
            if received != self._bytes.get(name, 0):
                self._bytes[name] = received
                self._tell(Heard(name))
            state = self._links.state(peer_id)
            if state is not None and state.round_trip_seconds is not None:
                self._tell(RoundTrip(name, state.round_trip_seconds))
        self._tell(Tick())
        busy = self.lag_seconds > 0.0 and self.local_health_score >= BUSY_SCORE
        if busy and not self._busy:
            log.warning("this machine is too busy", lag_seconds=round(self.lag_seconds, 1))
        self._busy = busy

    def _tell(self, event: LivenessEvent) -> None:
        for command in self._detector.handle(event, trio.current_time()):
            self._execute(command)

    def _execute(self, command: LivenessCommand) -> None:
        match command:
            case Ping(site):
                self._links.send_heartbeat(self._peer_ids[site])
            case AskHelper(helper, target, token):
                key = public_key_from_peer_id(self._peer_ids[target])
                self._links.post(self._peer_ids[helper], ProbeRequest(key, token))
            case AnswerProbe(asker, target, token, ago):
                key = public_key_from_peer_id(self._peer_ids[target])
                milliseconds = NEVER_HEARD if ago is None else round(ago * MILLISECONDS)
                milliseconds = min(milliseconds, limits.MAX_HEARD_MILLISECONDS)
                self._links.post(self._peer_ids[asker], ProbeReport(key, token, milliseconds))
            case NeighbourSilent() | NeighbourHeard():
                self._runtime.dispatch(command)
            case LivenessChanged():
                self._log(command)
                self._runtime.changed()

    @staticmethod
    def _log(change: LivenessChanged) -> None:
        facts = {"site": change.site, "silent_seconds": round(change.silent_seconds, 1)}
        if change.after is Liveness.UNREACHABLE:
            log.warning("neighbour unreachable", **facts)
        elif change.before is Liveness.UNREACHABLE:
            vouched_by = list(change.vouched_by)
            log.info("neighbour no longer unreachable", **facts, vouched_by=vouched_by)
        else:
            log.debug("neighbour liveness", state=change.after.value, **facts)
