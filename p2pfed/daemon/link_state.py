"""What is known of one neighbour's link, and whom the links tell of it."""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import trio

from p2pfed.daemon.transport import ConnectionPath
from p2pfed.protocol.messages import HeartbeatReply, Hello, Message, Refusal

HEARTBEATS_AWAITED = 16  # the answer to an earlier one has no use
ROUND_TRIP_GAIN = 0.125  # RFC 6298, section 2

LinkPhase = Literal["connected", "dialling", "waiting", "refused"]


@dataclass(frozen=True, slots=True)
class LinkState:
    """What an operator wants to know of a link; times are on trio's clock."""

    phase: LinkPhase = "waiting"
    since_seconds: float = 0.0
    address: str | None = None
    direction: str | None = None
    round_trip_seconds: float | None = None
    round_number: int | None = None
    remote_phase: str | None = None
    last_error: str | None = None
    attempts: int = 0
    refusal: str | None = None
    software: str | None = None
    offences: int = 0  # times it broke the protocol; it is dialled again slowly after each


class LinkHandler(Protocol):
    """What the links need of the daemon; every call is made on the trio thread."""

    def local_hello(self) -> Hello: ...

    def check_hello(self, peer_id: str, hello: Hello) -> Refusal | None:
        """Whether the neighbour is of the same federation, with the same files."""

    def link_up(self, peer_id: str, hello: Hello, said: Hello) -> None:
        """The link carries messages now. ``said`` is what this end's own hello was."""

    def link_down(self, peer_id: str, reason: str) -> None: ...

    def heard(self, peer_id: str, message: Message) -> None:
        """A message that is not about the link itself.

        :raises RemoteProtocolError: it is not acceptable; the link is dropped.
        """


class Link:
    """The state of one neighbour's link."""

    def __init__(self, peer_id: str, name: str) -> None:
        self.peer_id = peer_id
        self.name = name
        self.state = LinkState(since_seconds=trio.current_time())
        self.nudge = trio.Event()
        self.ended = trio.Event()
        self.path: ConnectionPath | None = None  # of the control stream
        self.outgoing: trio.MemorySendChannel[Message] | None = None
        self.encryption_key: bytes | None = None
        self.scope = trio.CancelScope()
        self.control: trio.CancelScope | None = None
        self.superseded = False
        self.retry_at_once = False
        self.carried = False
        self.offended = False
        self.rebuffed = False  # by the last handshake; the phase says so until the next verdict
        self.opened_here = False
        self.pings: dict[int, tuple[float, trio.Event | None]] = {}
        self.next_token = 0
        self.heard_at_seconds = trio.current_time()
        self.received_bytes = 0

    def change(self, phase: LinkPhase, **changes: object) -> None:
        if phase != self.state.phase:
            changes["since_seconds"] = trio.current_time()
        self.state = replace(self.state, phase=phase, **changes)  # type: ignore[arg-type]

    def new_token(self, answered: trio.Event | None) -> int:
        """The token of a heartbeat that is sent now; its answer sets the event."""
        self.next_token = (self.next_token + 1) % 2**32
        self.pings[self.next_token] = (trio.current_time(), answered)
        while len(self.pings) > HEARTBEATS_AWAITED:
            del self.pings[next(iter(self.pings))]
        return self.next_token

    def take_reply(self, reply: HeartbeatReply) -> None:
        """Measure the round trip, unless the heartbeat was given up."""
        sent_at, answered = self.pings.pop(reply.token, (None, None))
        if sent_at is None:
            return
        if answered is not None:
            answered.set()
        sample = trio.current_time() - sent_at
        known = self.state.round_trip_seconds
        smoothed = sample if known is None else known + ROUND_TRIP_GAIN * (sample - known)
        self.state = replace(
            self.state,
            round_trip_seconds=smoothed,
            round_number=reply.round_number,
            remote_phase=reply.phase,
        )

    def excuse(self, seconds: float) -> None:
        """Count a pause of this process as no silence of the neighbour."""
        self.heard_at_seconds = min(self.heard_at_seconds + seconds, trio.current_time())
