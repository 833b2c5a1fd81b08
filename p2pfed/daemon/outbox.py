"""Sending own envelopes: one queue and one transfer at a time for each neighbour.

A slow neighbour delays nobody else. What cannot be delivered is dropped after a few tries:
the neighbour sees at the next hello or the next offer that it misses something, and asks.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

import structlog
import trio

from p2pfed.daemon.delta_exchange import SendOutcome, send_envelope
from p2pfed.daemon.links import Links
from p2pfed.daemon.sendable import Sendable
from p2pfed.daemon.transport import Transport
from p2pfed.errors import TransportError
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.envelope import Offer, wrap_key
from p2pfed.protocol.header import SignedHeader

log = structlog.get_logger(__name__)

QUEUED_ENVELOPES = limits.RETAINED_DELTAS + 2  # the whole retained chain, one snapshot, one new
ATTEMPTS = 3
FIRST_RETRY_SECONDS = 0.5  # doubled at each further attempt


class _Lane:
    """What is to be sent to one neighbour, and the task that sends it.

    :param former: of the same peer before it was forgotten; it may still be sending.
    """

    def __init__(self, former: "_Lane | None") -> None:
        self.queue, self.source = trio.open_memory_channel[Sendable](QUEUED_ENVELOPES)
        self.closed = False
        self.ended = trio.Event()
        self.former = former

    def close(self) -> Iterator[Sendable]:
        """Take nothing more; gives back what was not begun."""
        self.closed = True
        self.queue.close()
        with contextlib.suppress(trio.EndOfChannel):
            while True:
                yield self.source.receive_nowait()


class Outbox:
    """The sending side of one daemon.

    :param on_sent: told the peer id, the header and the outcome of each finished transfer.
    """

    def __init__(
        self,
        transport: Transport,
        links: Links,
        identity: Identity,
        on_sent: Callable[[str, SignedHeader, SendOutcome], None],
    ) -> None:
        self._transport = transport
        self._links = links
        self._identity = identity
        self._on_sent = on_sent
        self._snapshots: Counter[str] = Counter()  # queued or under way, by peer id
        self._lanes: dict[str, _Lane] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def send(self, peer_id: str, item: Sendable) -> None:
        """Queue ``item`` for a linked neighbour; a full queue drops it and says so."""
        lane = self._lanes.get(peer_id)
        if lane is None or lane.closed:
            assert self._nursery is not None  # noqa: S101 - run() has started
            lane = self._lanes[peer_id] = _Lane(former=lane)
            self._nursery.start_soon(self._serve, peer_id, lane)
        self._snapshots[peer_id] += item.throw_away
        try:
            lane.queue.send_nowait(item)
        except trio.WouldBlock:
            log.warning("outbox full", peer=peer_id, round=item.signed.header.round_number)
            self._done(peer_id, item)

    def has_snapshot(self, peer_id: str) -> bool:
        """Whether a snapshot for this peer is still to be sent."""
        return self._snapshots[peer_id] > 0

    def forget(self, peer_id: str) -> None:
        """Stop sending to a peer that is no neighbour any more; a transfer under way ends."""
        lane = self._lanes.get(peer_id)
        if lane is not None and not lane.closed:
            for item in lane.close():
                self._done(peer_id, item)

    async def _serve(self, peer_id: str, lane: _Lane) -> None:
        if lane.former is not None:
            await lane.former.ended.wait()
            lane.former = None
        async with lane.source:
            async for item in lane.source:
                try:
                    await self._send_with_retries(peer_id, item)
                finally:
                    self._done(peer_id, item)
        lane.ended.set()
        if self._lanes.get(peer_id) is lane:
            del self._lanes[peer_id]

    async def _send_with_retries(self, peer_id: str, item: Sendable) -> None:
        pause_seconds = FIRST_RETRY_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            recipient = self._links.encryption_key(peer_id)
            if recipient is None:
                return  # the link went down; its next hello shows what the peer misses
            offer = Offer(
                signed=item.signed,
                chunk_digests=item.chunk_digests,
                wrapped_key=wrap_key(
                    self._identity, recipient, item.payload_key, item.signed.digest
                ),
            )
            try:
                outcome = await send_envelope(self._transport, peer_id, offer, item.ciphertext)
            except FileNotFoundError:
                return  # so old that it is not retained any more
            except (TransportError, OSError) as error:
                log.info("transfer failed", peer=peer_id, attempt=attempt, reason=str(error))
                if attempt == ATTEMPTS:
                    # A link that carries nothing is none; the next hello starts the repair.
                    await self._links.reconnect(peer_id, "envelopes do not get through")
                    return
                await trio.sleep(pause_seconds)
                pause_seconds *= 2
                continue
            self._on_sent(peer_id, item.signed, outcome)
            return

    def _done(self, peer_id: str, item: Sendable) -> None:
        if item.throw_away:
            self._snapshots[peer_id] -= 1
            item.ciphertext.unlink(missing_ok=True)
