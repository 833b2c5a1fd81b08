"""Links: one supervised connection to each neighbour, with a control stream on it.

The peer with the lower id dials; the other gives it a head start and then dials as well, since
it may be that only one end can reach the other. Both say hello, then the link carries
heartbeats and the small messages of the protocol until it fails and is made again.
"""

import random
from collections.abc import Awaitable, Mapping
from dataclasses import replace

import structlog
import trio

from p2pfed.daemon.addresses import AddressBook
from p2pfed.daemon.handshake import (
    GOODBYE_TIMEOUT_SECONDS,
    HANDSHAKE_TIMEOUT_SECONDS,
    next_message,
    shake_hands,
)
from p2pfed.daemon.link_state import Link, LinkHandler, LinkState
from p2pfed.daemon.relaying import RelayAccess
from p2pfed.daemon.transport import Stream, Transport
from p2pfed.errors import (
    IncompatiblePeerError,
    P2pfedError,
    RemoteProtocolError,
    TransportError,
)
from p2pfed.protocol import limits
from p2pfed.protocol.liveness import HEARTBEAT_SECONDS
from p2pfed.protocol.messages import (
    AddressRecordNotice,
    FrameReader,
    Goodbye,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Message,
    Refusal,
    RefusalCode,
    encode_message,
)
from p2pfed.topology.file import relay_of

log = structlog.get_logger(__name__)

DIAL_TIMEOUT_SECONDS = 15.0
FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 15.0
DIAL_HEAD_START_SECONDS = 3.0  # of the peer with the lower id
CONTROL_STREAM_TIMEOUT_SECONDS = 20.0  # for a connected dialler to open it
REFUSED_RETRY_SECONDS = 30.0  # after an answer that only an operator can change
LINK_TIMEOUT_SECONDS = 15.0  # without a byte from the neighbour, on any stream
OUTGOING_MESSAGES = 256  # queued for a slow neighbour; more are dropped


class Links:
    """All links of one daemon.

    :param own_peer_id: decides who dials.
    :param generator: of the jitter; a seeded one makes tests repeatable.
    :param reachable: False where nobody can dial this site: it need not wait to be dialled.
    """

    def __init__(
        self,
        transport: Transport,
        own_peer_id: str,
        book: AddressBook,
        handler: LinkHandler,
        generator: random.Random,
        *,
        reachable: bool = True,
    ) -> None:
        self._transport = transport
        self._own_peer_id = own_peer_id
        self._book = book
        self._handler = handler
        self._random = generator
        self._reachable = reachable
        self._links: dict[str, Link] = {}
        self._wanted: dict[str, str] = {}
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        self.relays = RelayAccess(transport, book, own_peer_id)
        transport.set_handler(limits.CONTROL_PROTOCOL, self._accept)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.set_neighbours(self._wanted)
            task_status.started()
            await trio.sleep_forever()

    def set_neighbours(self, names: Mapping[str, str]) -> None:
        """Keep links to exactly these peers (peer id to site name)."""
        self._wanted = dict(names)
        if self._nursery is None:
            return
        for peer_id in set(self._links) - set(names):
            self._links.pop(peer_id).scope.cancel()
        for peer_id in set(names) - set(self._links):
            link = self._links[peer_id] = Link(peer_id, names[peer_id])
            self._nursery.start_soon(self._supervise, link)

    async def part(self, farewells: Mapping[str, Refusal]) -> None:
        """Tell neighbours that they are none any more, and end their links; bounded in time.

        :param farewells: what each is told, by peer id.
        """

        async def end(link: Link) -> None:
            if link.outgoing is not None:
                with trio.move_on_after(GOODBYE_TIMEOUT_SECONDS):
                    await link.ended.wait()
            link.scope.cancel()

        async with trio.open_nursery() as nursery:
            for peer_id, refusal in farewells.items():
                self.post(peer_id, refusal)
                link = self._links.pop(peer_id, None)
                if link is not None:
                    nursery.start_soon(end, link)

    def state(self, peer_id: str) -> LinkState | None:
        link = self._links.get(peer_id)
        return link.state if link else None

    def unlinked(self) -> list[str]:
        """The neighbours to which a connection is still sought."""
        links = self._links.items()
        return [peer for peer, link in links if link.state.phase in ("waiting", "dialling")]

    def encryption_key(self, peer_id: str) -> bytes | None:
        """The certified X25519 key of a linked neighbour."""
        link = self._links.get(peer_id)
        return link.encryption_key if link and link.state.phase == "connected" else None

    def nudge(self, peer_id: str) -> None:
        """Try again at once: an address is new, or the local files changed."""
        link = self._links.get(peer_id)
        if link is not None:
            link.nudge.set()

    def nudge_all(self) -> None:
        for link in self._links.values():
            link.nudge.set()

    def post(self, peer_id: str, message: Message) -> bool:
        """Queue a message for a linked neighbour; False if it is not linked or too slow."""
        link = self._links.get(peer_id)
        if link is None or link.outgoing is None:
            return False
        try:
            link.outgoing.send_nowait(message)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def ping(self, peer_id: str, timeout_seconds: float) -> float:
        """Seconds for a heartbeat there and back.

        :raises TransportError: not linked, or no answer in time.
        """
        link = self._links.get(peer_id)
        if link is None or link.outgoing is None:
            raise TransportError("there is no link to it now")
        answered, sent_at = trio.Event(), trio.current_time()
        if not self.send_heartbeat(peer_id, answered):
            raise TransportError("it takes messages too slowly; too many wait for it")
        with trio.move_on_after(timeout_seconds):
            await answered.wait()
            return trio.current_time() - sent_at
        raise TransportError(f"no answer within {timeout_seconds:g} s")

    def send_heartbeat(self, peer_id: str, answered: trio.Event | None = None) -> bool:
        """Queue a heartbeat for a linked neighbour, as ``post`` does; its answer sets the event."""
        link = self._links.get(peer_id)
        if link is None or link.outgoing is None:
            return False
        hello = self._handler.local_hello()
        token = link.new_token(answered)
        return self.post(peer_id, Heartbeat(token, hello.round_number, hello.phase))

    async def reconnect(self, peer_id: str, reason: str) -> None:
        """Drop the link so that both ends say hello again."""
        link = self._links.get(peer_id)
        if link is not None:
            # The supervisor may still be busy with the link that is dropped here.
            link.retry_at_once = True
            link.nudge.set()
        await self._transport.drop(peer_id, reason)

    async def say_goodbye(self, reason: str) -> None:
        """Tell every neighbour that this daemon stops on purpose; bounded in time.

        No link is made any more afterwards.
        """
        self._stopping = True
        linked = [peer_id for peer_id, link in self._links.items() if link.outgoing is not None]
        for peer_id in linked:
            self.post(peer_id, Goodbye(reason))
        with trio.move_on_after(GOODBYE_TIMEOUT_SECONDS):
            for peer_id in linked:
                await self._links[peer_id].ended.wait()

    async def _supervise(self, link: Link) -> None:
        with link.scope:
            pause_seconds = FIRST_RETRY_SECONDS
            await self._give_head_start(link)
            while not self._stopping:
                if link.control is None and self._transport.path(link.peer_id) is None:
                    await self._dial(link)
                if link.control is None and self._transport.path(link.peer_id) is not None:
                    await self._open_control(link)
                if link.control is not None:
                    await link.ended.wait()
                if link.carried:
                    link.carried = False
                    pause_seconds = FIRST_RETRY_SECONDS
                    if not link.offended and not link.rebuffed:
                        await self._give_head_start(link)
                if link.offended or link.rebuffed:
                    link.offended = link.rebuffed = False
                    if not link.retry_at_once:
                        await self._wait(link, REFUSED_RETRY_SECONDS)
                    # Of one that refuses this site, nothing else is soon to be expected.
                    pause_seconds = FIRST_RETRY_SECONDS if link.retry_at_once else MAX_RETRY_SECONDS
                    link.retry_at_once = False
                else:
                    # Full jitter, so that peers that lost each other do not retry in step.
                    await self._wait(link, self._random.uniform(0, pause_seconds))
                    pause_seconds = min(2 * pause_seconds, MAX_RETRY_SECONDS)
        if not self._stopping:
            await self._transport.drop(link.peer_id, "no longer a neighbour")

    async def _give_head_start(self, link: Link) -> None:
        """Let the peer with the lower id dial first; news of addresses do not cut this short."""
        if self._own_peer_id < link.peer_id:
            return
        if not self._reachable and self._book.direct_addresses(link.peer_id):
            return
        with trio.move_on_after(DIAL_HEAD_START_SECONDS):
            while self._transport.path(link.peer_id) is None:
                await self._wait(link, DIAL_HEAD_START_SECONDS)

    async def _wait(self, link: Link, seconds: float) -> None:
        """Pause, unless a nudge or an incoming link makes it pointless.

        A nudge from before the pause does not count: every connection brings one, and a
        neighbour that refuses each would be dialled without a pause.
        """
        link.nudge = trio.Event()
        with trio.move_on_after(seconds):
            await link.nudge.wait()

    async def _dial(self, link: Link) -> None:
        addresses = self._book.addresses(link.peer_id)
        if not addresses:
            link.change("waiting", last_error="no address is known; waiting to be dialled")
            return
        if link.state.phase != "refused":
            link.change("dialling")
        failure = ""
        for address in addresses:
            if self._transport.path(link.peer_id) is not None:
                break  # it dialled this end meanwhile
            link.state = replace(link.state, attempts=link.state.attempts + 1)
            try:
                await self.relays.dial(link.peer_id, address, DIAL_TIMEOUT_SECONDS)
            except TransportError as error:
                failure = str(error) if relay_of(address) is None else f"{failure}; {error}"
                link.state = replace(link.state, last_error=failure.removeprefix("; "))
                continue
            return
        if link.state.phase == "dialling":
            link.change("waiting")

    async def _open_control(self, link: Link) -> None:
        path = self._transport.path(link.peer_id)
        if path is not None and path.direction == "inbound":
            # The dialler opens the control stream; this end only waits for it.
            with trio.move_on_after(CONTROL_STREAM_TIMEOUT_SECONDS):
                while link.control is None and self._transport.path(link.peer_id) is not None:
                    await self._wait(link, HEARTBEAT_SECONDS)
            if link.control is None:
                await self._transport.drop(link.peer_id, "it opened no control stream")
            return
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT_SECONDS):
                stream = await self._transport.open_stream(link.peer_id, limits.CONTROL_PROTOCOL)
        except (TransportError, trio.TooSlowError) as error:
            link.state = replace(link.state, last_error=str(error) or "no answer")
            await self._transport.drop(link.peer_id, "no control stream")
            return
        if link.control is not None:
            # The neighbour opened one meanwhile.
            await stream.abort()
            return
        link.opened_here = True
        await self._serve(link, stream)

    async def _accept(self, stream: Stream) -> None:
        """The stream handler: a neighbour opened its control stream."""
        link = self._links.get(stream.peer_id)
        if self._stopping:
            await stream.abort()
            return
        if link is None:
            refusal = Refusal(
                RefusalCode.NOT_A_NEIGHBOUR, "this site is no neighbour of yours in its topology"
            )
            await stream.send_all(encode_message(refusal))
            await stream.close()
            return
        while link.control is not None:
            if link.opened_here and self._own_peer_id < link.peer_id:
                # Both ends opened one at the same time: the lower id's is kept at both.
                await stream.abort()
                return
            # The neighbour knows better which of its own streams is alive: the newest wins.
            link.superseded = True
            link.control.cancel()
            await link.ended.wait()
        link.opened_here = False
        await self._serve(link, stream)

    async def _serve(self, link: Link, stream: Stream) -> None:
        """Say hello, then carry messages until the link ends."""
        link.ended = trio.Event()
        link.control = scope = trio.CancelScope()
        link.nudge.set()
        reason = "another control stream took its place"
        path = self._transport.path(link.peer_id)
        up = carrying = unwelcome = False
        try:
            with scope:
                reader = FrameReader()
                said, hello = await shake_hands(stream, reader, link, self._handler)
                up = True
                # What the handler says to the new link must find its queue.
                outgoing = self._establish(link, hello)
                self._handler.link_up(link.peer_id, hello, said)
                carrying = True  # which ends the connection by itself when it fails
                await self._carry(link, stream, reader, outgoing)
        except IncompatiblePeerError as error:
            reason = str(error)
            log.warning("link refused", site=link.name, reason=reason)
            link.change("refused", refusal=reason, last_error=reason)
            link.rebuffed = unwelcome = True
        except RemoteProtocolError as error:
            reason = str(error)
            link.offended = unwelcome = True
            link.state = replace(link.state, last_error=reason, offences=link.state.offences + 1)
            log.warning(
                "neighbour broke the protocol",
                site=link.name,
                reason=reason,
                offences=link.state.offences,
            )
        except (TransportError, trio.TooSlowError) as error:
            reason = str(error) or "no answer in time"
            link.state = replace(link.state, last_error=reason)
        finally:
            link.outgoing = None
            link.carried = link.carried or up
            if link.state.phase == "connected":
                link.change("waiting", last_error=reason)
            with trio.CancelScope(shield=True):
                await stream.abort()
                if (
                    self._links.get(link.peer_id) is link
                    and unwelcome
                    and not carrying
                    and not link.superseded
                    # A new connection may have taken the place of the one that was refused.
                    and self._transport.path(link.peer_id) == path
                ):
                    await self._transport.drop(link.peer_id, reason)
            link.superseded = False
            if up:
                self._handler.link_down(link.peer_id, reason)
            link.control = None
            link.ended.set()

    def _establish(self, link: Link, hello: Hello) -> trio.MemoryReceiveChannel[Message]:
        """Mark the link as up and give it its bounded queue."""
        path = link.path = self._transport.path(link.peer_id)
        link.heard_at_seconds = trio.current_time()
        link.pings.clear()
        sender, receiver = trio.open_memory_channel[Message](OUTGOING_MESSAGES)
        link.outgoing = sender
        link.change(
            "connected",
            address=path.address if path else None,
            direction=path.direction if path else None,
            refusal=None,
            last_error=None,
            attempts=0,
            software=hello.software,
        )
        log.info("link up", site=link.name, address=link.state.address)
        for record in self._book.records():
            self.post(link.peer_id, AddressRecordNotice(record))
        return receiver

    async def _carry(
        self,
        link: Link,
        stream: Stream,
        reader: FrameReader,
        outgoing: trio.MemoryReceiveChannel[Message],
    ) -> None:
        failures: list[P2pfedError] = []
        async with outgoing, trio.open_nursery() as nursery:

            async def until_failure(part: Awaitable[None]) -> None:
                try:
                    await part
                except (TransportError, RemoteProtocolError) as error:
                    failures.append(error)
                    if len(failures) == 1 and self._transport.path(link.peer_id) == link.path:
                        # Before all else: a write that hangs cannot be cancelled, only fail.
                        with trio.CancelScope(shield=True):
                            await self._transport.drop(link.peer_id, str(error))
                    nursery.cancel_scope.cancel()

            nursery.start_soon(until_failure, self._beat(link))
            nursery.start_soon(until_failure, self._write(stream, outgoing))
            nursery.start_soon(until_failure, self._read(link, stream, reader))
            nursery.start_soon(self.relays.seek_direct, link.peer_id, self._random.uniform)
        if failures:
            raise failures[0]

    async def _write(self, stream: Stream, outgoing: trio.MemoryReceiveChannel[Message]) -> None:
        async for message in outgoing:
            await stream.send_all(encode_message(message))
            if isinstance(message, Goodbye):
                # The neighbour closes once it has read this; to reset the stream now would
                # overtake the message.
                await trio.sleep(GOODBYE_TIMEOUT_SECONDS)
                raise TransportError("this daemon stops")

    async def _read(self, link: Link, stream: Stream, reader: FrameReader) -> None:
        while True:
            message = await next_message(stream, reader)
            link.heard_at_seconds = trio.current_time()
            match message:
                case Heartbeat(token, round_number, phase):
                    link.state = replace(link.state, round_number=round_number, remote_phase=phase)
                    hello = self._handler.local_hello()
                    self.post(link.peer_id, HeartbeatReply(token, hello.round_number, hello.phase))
                    self._handler.heard(link.peer_id, message)
                case HeartbeatReply():
                    link.take_reply(message)
                    self._handler.heard(link.peer_id, message)
                case Goodbye(reason):
                    raise TransportError(f"it stopped: {reason}")
                case Refusal():
                    raise IncompatiblePeerError(f"{link.name} refuses: {message.detail}")
                case Hello():
                    raise RemoteProtocolError("a second hello")
                case _:
                    self._handler.heard(link.peer_id, message)

    async def _beat(self, link: Link) -> None:
        """Send heartbeats; end the link when nothing at all comes back.

        Bytes of a bulk transfer count as life: on a slow link they keep heartbeats waiting. A
        silence that this process slept through does not count.
        """
        while True:
            self.send_heartbeat(link.peer_id)
            due = trio.current_time() + HEARTBEAT_SECONDS
            await trio.sleep_until(due)
            link.excuse(trio.current_time() - due)
            received = self._transport.bytes_arrived(link.peer_id)
            if received != link.received_bytes:
                link.received_bytes = received
                link.heard_at_seconds = trio.current_time()
            silent_seconds = trio.current_time() - link.heard_at_seconds
            if silent_seconds > LINK_TIMEOUT_SECONDS:
                raise TransportError(f"nothing was heard of it for {silent_seconds:.0f} s")
