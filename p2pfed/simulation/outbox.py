"""Sending envelopes to one neighbour: one transfer at a time, a few tries, then a new link.

The counterpart of the daemon's outbox, in virtual time.
"""

from collections import deque
from typing import TYPE_CHECKING

from p2pfed.protocol import limits
from p2pfed.protocol.header import Kind
from p2pfed.simulation.envelopes import Envelope

if TYPE_CHECKING:
    from p2pfed.simulation.peer import SimulatedPeer

# As the daemon's, which tests compare.
QUEUED_ENVELOPES = limits.RETAINED_DELTAS + 2
ATTEMPTS = 3
FIRST_RETRY_SECONDS = 0.5
REPLY_BYTES = 40


class Outbox:
    """What one site still has to send to one neighbour."""

    def __init__(self, peer: "SimulatedPeer", recipient: str) -> None:
        self._peer = peer
        self._recipient = recipient
        self._network = peer.federation.network
        self.queue: deque[Envelope] = deque()
        self._sending: Envelope | None = None
        self._accepted = False
        self._attempt = 0
        self._transfer = 0  # grows with every attempt; answers to an older one mean nothing
        self.overflowed = 0

    def send(self, envelope: Envelope) -> None:
        if len(self.queue) >= QUEUED_ENVELOPES:
            self.overflowed += 1
            return
        self.queue.append(envelope)
        self._next()

    def has_snapshot(self) -> bool:
        waiting = [*self.queue, *([self._sending] if self._sending else [])]
        return any(one.signed.header.kind is Kind.SNAPSHOT for one in waiting)

    def broken(self) -> None:
        """The link went down: the next hello shows what the neighbour misses."""
        self._transfer += 1
        self._sending = None
        self.queue.clear()

    def _next(self) -> None:
        if self._sending is None and self.queue:
            self._sending = self.queue.popleft()
            self._attempt = 1
            self._offer()

    def _offer(self) -> None:
        envelope = self._sending
        assert envelope is not None  # noqa: S101 - both callers have one
        self._transfer += 1
        self._accepted = False
        if self._network.breaks(self._peer.name, self._recipient):
            self._failed(self._transfer)
            return
        repeated = self._network.repeats(self._peer.name, self._recipient)
        sent = self._network.send(
            self._peer.name,
            self._recipient,
            "offer",
            envelope.offer_bytes,
            self._arrives,
            envelope,
            self._transfer,
            reliable=True,
        )
        if not sent:
            self.broken()
        elif repeated:
            self._network.send(
                self._peer.name,
                self._recipient,
                "offer",
                envelope.offer_bytes,
                self._echo,
                envelope,
            )

    def _echo(self, _: str, envelope: Envelope) -> None:
        """The same offer once more: nothing follows it."""
        receiver = self._peer.federation.peers[self._recipient]
        if receiver.offer(self._peer.name, envelope):
            receiver.aborted(self._peer.name, envelope)

    def _arrives(self, _: str, envelope: Envelope, transfer: int) -> None:
        """The offer is at the neighbour: its answer goes back."""
        receiver = self._peer.federation.peers[self._recipient]
        wanted = receiver.offer(self._peer.name, envelope)
        self._network.send(
            self._recipient,
            self._peer.name,
            "answer",
            REPLY_BYTES,
            self._answered,
            envelope,
            wanted,
            transfer,
            reliable=True,
        )

    def _answered(self, _: str, envelope: Envelope, wanted: bool, transfer: int) -> None:
        if transfer != self._transfer or self._sending is not envelope or self._accepted:
            return
        if not wanted:
            self._done()
            return
        self._accepted = True
        size = envelope.size_bytes
        torn = self._network.breaks(self._peer.name, self._recipient)
        self._network.send(
            self._peer.name,
            self._recipient,
            "payload",
            size // 2 if torn else size,
            self._tears if torn else self._delivered,
            envelope,
            transfer,
            reliable=True,
        )

    def _tears(self, _: str, envelope: Envelope, transfer: int) -> None:
        self._peer.federation.peers[self._recipient].aborted(self._peer.name, envelope)
        self._failed(transfer)

    def _delivered(self, _: str, envelope: Envelope, transfer: int) -> None:
        self._peer.federation.peers[self._recipient].payload(self._peer.name, envelope)
        self._network.send(
            self._recipient,
            self._peer.name,
            "receipt",
            REPLY_BYTES,
            self._received,
            transfer,
            reliable=True,
        )

    def _received(self, _: str, transfer: int) -> None:
        if transfer == self._transfer:
            self._done()

    def _done(self) -> None:
        self._transfer += 1
        self._sending = None
        self._next()

    def _failed(self, transfer: int) -> None:
        if transfer != self._transfer or self._sending is None:
            return
        if self._attempt >= ATTEMPTS:
            self._network.cut(self._peer.name, self._recipient)
            return
        pause = FIRST_RETRY_SECONDS * 2 ** (self._attempt - 1)
        self._attempt += 1
        self._peer.later(pause, self._again, transfer)

    def _again(self, transfer: int) -> None:
        if transfer == self._transfer and self._sending is not None:
            self._offer()
