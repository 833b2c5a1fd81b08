"""Sending own envelopes: one queue and one transfer at a time for each neighbour.

A slow neighbour delays nobody else. What cannot be delivered is dropped after a few tries:
the neighbour sees at the next hello or the next offer that it misses something, and asks.
"""

from collections import Counter
from collections.abc import Callable

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
        self._queues: dict[str, trio.MemorySendChannel[Sendable]] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def send(self, peer_id: str, item: Sendable) -> None:
        """Queue ``item`` for a linked neighbour; a full queue drops it and says so."""
        queue = self._queues.get(peer_id)
        if queue is None:
            assert self._nursery is not None  # noqa: S101 - run() has started
            queue, source = trio.open_memory_channel[Sendable](QUEUED_ENVELOPES)
            self._queues[peer_id] = queue
            self._nursery.start_soon(self._serve, peer_id, source)
        self._snapshots[peer_id] += item.throw_away
        try:
            queue.send_nowait(item)
        except trio.WouldBlock:
            log.warning("outbox full", peer=peer_id, round=item.signed.header.round_number)
            self._done(peer_id, item)

    def has_snapshot(self, peer_id: str) -> bool:
        """Whether a snapshot for this peer is still to be sent."""
        return self._snapshots[peer_id] > 0

    def forget(self, peer_id: str) -> None:
        """Stop sending to a peer that is no neighbour any more."""
        queue = self._queues.pop(peer_id, None)
        if queue is not None:
            queue.close()

    async def _serve(self, peer_id: str, source: trio.MemoryReceiveChannel[Sendable]) -> None:
        async with source:
            async for item in source:
                try:
                    await self._send_with_retries(peer_id, item)
                finally:
                    self._done(peer_id, item)

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
