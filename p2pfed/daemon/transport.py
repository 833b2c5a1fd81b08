"""What the daemon needs of a network: authenticated byte streams to members, and no more.

Everything above this interface runs unchanged over libp2p and over the tests' in-memory
network.
"""

import abc
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Literal, Protocol

import trio

from p2pfed.errors import TransportError
from p2pfed.topology.file import relay_of

READ_BYTES = 131_072  # what one read asks for; small reads cost a library call each
ANOTHER_KEY = "another key answers there"  # in a failed dial's reason
Direction = Literal["inbound", "outbound"]


@dataclass(frozen=True, slots=True)
class ConnectionPath:
    """How a peer is connected: ``address`` is a multiaddr, ``since_seconds`` on trio's clock."""

    address: str
    direction: Direction
    since_seconds: float

    @property
    def relay(self) -> str | None:
        """The peer id of the member that relays it, or None where it is direct."""
        return relay_of(self.address)


@dataclass(frozen=True, slots=True)
class RelayTerms:
    """What a site that relays for others allows.

    :ivar circuits: at the same time, of all members together.
    :ivar circuit_bytes: of one circuit, in each direction; then it is cut.
    :ivar circuit_seconds: for which one circuit lasts; then it is cut.
    :ivar bytes_per_second: of all circuits together.
    """

    circuits: int
    circuit_bytes: int
    circuit_seconds: int
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class RelayedTraffic:
    """What this site carries for others as a relay.

    :ivar circuits: open now.
    :ivar circuits_opened: since the daemon began.
    :ivar carried_bytes: in both directions; each counts once, though it came in and went out.
    """

    circuits: int
    circuits_opened: int
    carried_bytes: int


class Stream(abc.ABC):
    """One bidirectional byte stream with an authenticated peer.

    Every method raises TransportError when the stream or its connection fails. Sending and
    receiving are not interrupted by cancellation half-way through a message of the layer
    below; an idle deadline ends them instead.
    """

    peer_id: str
    protocol: str

    @abc.abstractmethod
    async def send_all(self, data: bytes | memoryview) -> None: ...

    @abc.abstractmethod
    async def receive_some(self, max_bytes: int = READ_BYTES) -> bytes:
        """At least one byte, or ``b""`` at the end; an end never means success."""

    async def receive_exactly(self, count: int) -> bytes:
        """:raises TransportError: the stream ends before ``count`` bytes."""
        parts = bytearray()
        while len(parts) < count:
            part = await self.receive_some(min(READ_BYTES, count - len(parts)))
            if not part:
                raise TransportError(f"the stream ended after {len(parts)} of {count} bytes")
            parts += part
        return bytes(parts)

    @abc.abstractmethod
    async def close(self) -> None:
        """End the stream in order; bounded in time."""

    @abc.abstractmethod
    async def abort(self) -> None:
        """Reset the stream; bounded in time."""


class ConnectionObserver(Protocol):
    """Told on the trio thread about connections; must be quick."""

    def connected(self, peer_id: str, address: str, direction: Direction) -> None: ...

    def disconnected(self, peer_id: str, reason: str) -> None: ...

    def refused(self, peer_id: str | None, address: str | None, reason: str) -> None: ...


StreamHandler = Callable[[Stream], Awaitable[None]]


class Transport(abc.ABC):
    """A peer's network. Only members of the roster get as far as a handler."""

    listen_addresses: tuple[str, ...]

    @abc.abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled, then close every connection in order.

        :raises TransportError: an address cannot be listened on.
        """

    @abc.abstractmethod
    def set_roster(self, peer_ids: Collection[str]) -> None:
        """Who may connect at all; the connection of one who may no longer is dropped."""

    @abc.abstractmethod
    def set_handler(self, protocol: str, handler: StreamHandler) -> None: ...

    @abc.abstractmethod
    async def dial(self, peer_id: str, address: str, timeout_seconds: float) -> None:
        """Connect to ``peer_id`` at a multiaddr, unless it is connected already; a direct
        address is tried, and takes over, also where it is connected through a relay.

        At ``/p2p/RELAY/p2p-circuit`` the peer is reached through RELAY, which has to be connected
        directly.

        :raises TransportError: refused, timed out, or another key answered.
        """

    def relay_for_others(self, terms: RelayTerms) -> None:  # noqa: ARG002 - nothing to do them by
        """Carry circuits between members from now on.

        :raises TransportError: this transport has no relays.
        """
        raise TransportError("this transport does not relay")

    async def reserve(self, relay: str, timeout_seconds: float) -> None:  # noqa: ARG002 - as above
        """Have a directly connected member accept circuits to this peer, for some minutes.

        :raises TransportError: it does not relay, or refuses, or this transport has no relays.
        """
        raise TransportError("this transport has no relays")

    @abc.abstractmethod
    async def open_stream(self, peer_id: str, protocol: str) -> Stream: ...

    @abc.abstractmethod
    async def drop(self, peer_id: str, reason: str) -> None:
        """Kill the peer's connection; whatever is blocked on it fails."""

    @abc.abstractmethod
    def path(self, peer_id: str) -> ConnectionPath | None:
        """How the peer is connected, or None."""

    @abc.abstractmethod
    def bytes_sent(self, peer_id: str) -> int:
        """On streams between this peer and ``peer_id``, whoever carries them.

        Every byte counts for one peer: of a circuit it is the one at its far end, and neither the
        relay at its ends nor the ends at the relay, which has ``relayed``.
        """

    @abc.abstractmethod
    def bytes_received(self, peer_id: str) -> int:
        """As ``bytes_sent``."""

    def bytes_arrived(self, peer_id: str) -> int:
        """Whatever its connection brought, circuits included: a sign of life as it grows."""
        return self.bytes_received(peer_id)

    def relayed(self) -> RelayedTraffic | None:
        """What is carried for others; None where this peer does not relay."""
        return None
