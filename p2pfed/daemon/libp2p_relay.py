"""Relaying for other members: the hop side of circuit relay v2.

Where neither end of an edge can dial the other, both dial a member whose operator consented, and
it carries the bytes between them. What it carries is their Noise session: it can drop or delay
them, and learns who talks to whom and how much, but not what. Only members get here at all, and
a circuit leads only to a member that is connected directly and has asked for it.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from p2pfed.daemon import libp2p_relay_messages as wire
from p2pfed.daemon.libp2p_relay_messages import Status
from p2pfed.daemon.transport import ConnectionPath, RelayedTraffic, RelayTerms, Stream
from p2pfed.errors import MalformedMessageError, TransportError

log = structlog.get_logger(__name__)

CIRCUITS_PER_PEER = 6  # at the same time, to and from one member
RESERVATION_SECONDS = 600.0  # for which a member may be reached; it asks anew long before
REQUEST_TIMEOUT_SECONDS = 15.0  # for a message of the protocol, each
PIECE_BYTES = 65_507  # one frame of the connection below
BURST_SECONDS = 0.25  # of traffic that may pass at once before the rate holds it up


class Carrier(Protocol):
    """What the relay needs of the transport."""

    def path(self, peer_id: str) -> ConnectionPath | None: ...

    async def open_stream(self, peer_id: str, protocol: str) -> Stream: ...


class Pace:
    """A rate that many share: each waits until what was spent before has passed."""

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._paid_until_seconds = 0.0  # on trio's clock

    async def spend(self, count: int) -> None:
        now = trio.current_time()
        self._paid_until_seconds = max(now, self._paid_until_seconds)
        self._paid_until_seconds += count / self._bytes_per_second
        if self._paid_until_seconds > now + BURST_SECONDS:
            await trio.sleep_until(self._paid_until_seconds - BURST_SECONDS)


class _RefusedError(Exception):
    """The request is answered with ``status``."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass
class _Circuit:
    """Two streams that are joined; ``carried_bytes`` in both directions."""

    ends: tuple[Stream, Stream]
    carried_bytes: int = 0
    reason: str | None = None
    in_order: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def end(self, reason: str, *, in_order: bool = False) -> None:
        if self.reason is None:
            self.reason, self.in_order = reason, in_order
        self.scope.cancel()

    async def close(self) -> None:
        """After an end in order, what was written still arrives; a reset would overtake it."""
        near, far = self.ends
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for stream in (near, far):
                    nursery.start_soon(stream.close if self.in_order else stream.abort)


class CircuitRelay:
    """The circuits and reservations of one relaying site.

    :param is_member: whether a peer id is in the topology file now.
    :param stall_seconds: for which one end may take nothing; shorter than the time after which
        the transport gives up the whole connection to that end.
    """

    def __init__(
        self,
        carrier: Carrier,
        terms: RelayTerms,
        is_member: Callable[[str], bool],
        stall_seconds: float,
    ) -> None:
        self._carrier = carrier
        self._terms = terms
        self._is_member = is_member
        self._stall_seconds = stall_seconds
        self._pace = Pace(terms.bytes_per_second)
        self._limit = wire.limit_of(terms.circuit_seconds, terms.circuit_bytes)
        self._reserved_until_seconds: dict[str, float] = {}
        self._circuits_of: Counter[str] = Counter()
        self._circuits_opened = 0
        self._carried_bytes = 0

    @property
    def circuits(self) -> int:
        """How many are open."""
        return self._circuits_of.total() // 2

    def traffic(self) -> RelayedTraffic:
        return RelayedTraffic(self.circuits, self._circuits_opened, self._carried_bytes)

    async def handle(self, stream: Stream) -> None:
        """The handler of the hop protocol.

        :raises TransportError: the stream failed before the request was understood.
        """
        try:
            with trio.fail_after(REQUEST_TIMEOUT_SECONDS):
                request = await wire.read_hop(stream)
            await self._serve(stream, request)
        except MalformedMessageError:
            await self._answer(stream, Status.MALFORMED_MESSAGE)
        except _RefusedError as refusal:
            log.info("circuit refused", peer=stream.peer_id, status=refusal.status.name)
            await self._answer(stream, refusal.status)
        except trio.TooSlowError:
            await stream.abort()

    async def _serve(self, stream: Stream, request: wire.HopMessage) -> None:
        if not self._is_direct(stream.peer_id):
            raise _RefusedError(Status.PERMISSION_DENIED)
        if request.type == wire.HopMessage.RESERVE:
            await self._reserve(stream)
        elif request.type == wire.HopMessage.CONNECT:
            await self._connect(stream, wire.peer_of(request))
        else:
            raise _RefusedError(Status.UNEXPECTED_MESSAGE)

    async def _answer(self, stream: Stream, status: Status) -> None:
        await stream.send_all(wire.encode(wire.hop_status(status)))
        await stream.close()

    def _is_direct(self, peer_id: str) -> bool:
        path = self._carrier.path(peer_id)
        return path is not None and path.relay is None

    async def _reserve(self, stream: Stream) -> None:
        now = trio.current_time()
        self._reserved_until_seconds = {
            peer_id: until
            for peer_id, until in self._reserved_until_seconds.items()
            if until > now and self._is_member(peer_id)
        }
        if stream.peer_id not in self._reserved_until_seconds:
            log.info("relaying for a member", peer=stream.peer_id)
        self._reserved_until_seconds[stream.peer_id] = now + RESERVATION_SECONDS
        answer = wire.hop_status(Status.OK)
        expires_at = int(time.time() + RESERVATION_SECONDS)
        answer.reservation.CopyFrom(wire.reservation_until(expires_at))
        answer.limit.CopyFrom(self._limit)
        await stream.send_all(wire.encode(answer))
        await stream.close()

    async def _connect(self, near: Stream, target: str) -> None:
        source = near.peer_id
        self._check(source, target)
        for peer_id in (source, target):
            self._circuits_of[peer_id] += 1
        try:
            circuit = _Circuit((near, await self._open_far_end(source, target)))
            try:
                answer = wire.hop_status(Status.OK)
                answer.limit.CopyFrom(self._limit)
                await near.send_all(wire.encode(answer))
                await self._carry(circuit)
            finally:
                await circuit.close()
        finally:
            for peer_id in (source, target):
                self._circuits_of[peer_id] -= 1

    def _check(self, source: str, target: str) -> None:
        if target == source or not self._is_member(target):
            raise _RefusedError(Status.PERMISSION_DENIED)
        if self._reserved_until_seconds.get(target, 0.0) <= trio.current_time():
            raise _RefusedError(Status.NO_RESERVATION)
        if not self._is_direct(target):
            raise _RefusedError(Status.CONNECTION_FAILED)
        if (
            self.circuits >= self._terms.circuits
            or max(self._circuits_of[source], self._circuits_of[target]) >= CIRCUITS_PER_PEER
        ):
            raise _RefusedError(Status.RESOURCE_LIMIT_EXCEEDED)

    async def _open_far_end(self, source: str, target: str) -> Stream:
        """Ask the far end to take the circuit; it may refuse."""
        try:
            with trio.fail_after(REQUEST_TIMEOUT_SECONDS):
                far = await self._carrier.open_stream(target, wire.STOP_PROTOCOL)
                taken = False
                try:
                    await far.send_all(wire.encode(wire.stop_connect(source, self._limit)))
                    answer = await wire.read_stop(far)
                    taken = answer.type == wire.StopMessage.STATUS and wire.is_ok(answer)
                finally:
                    if not taken:
                        with trio.CancelScope(shield=True):
                            await far.abort()
        except (TransportError, MalformedMessageError, trio.TooSlowError):
            taken = False
        if not taken:
            raise _RefusedError(Status.CONNECTION_FAILED)
        return far

    async def _carry(self, circuit: _Circuit) -> None:
        near, far = circuit.ends
        self._circuits_opened += 1
        log.info("circuit opened", source=near.peer_id, target=far.peer_id)
        with circuit.scope:
            circuit.scope.deadline = trio.current_time() + self._terms.circuit_seconds
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, circuit, near, far)
                nursery.start_soon(self._pump, circuit, far, near)
        circuit.end("it lasted as long as this site allows")  # unless it ended before
        log.info(
            "circuit closed",
            source=near.peer_id,
            target=far.peer_id,
            bytes=circuit.carried_bytes,
            reason=circuit.reason,
        )

    async def _pump(self, circuit: _Circuit, source: Stream, sink: Stream) -> None:
        """Carry one direction until either end is through; then the circuit is over."""
        left_bytes = self._terms.circuit_bytes
        try:
            while piece := await source.receive_some(min(PIECE_BYTES, left_bytes)):
                left_bytes -= len(piece)
                await self._pace.spend(len(piece))
                with trio.fail_after(self._stall_seconds):
                    await sink.send_all(piece)
                circuit.carried_bytes += len(piece)
                self._carried_bytes += len(piece)
                if not left_bytes:
                    circuit.end("it carried as much as this site allows")
                    return
            circuit.end("one end closed it", in_order=True)
        except trio.TooSlowError:
            circuit.end("one end took nothing for too long")
        except TransportError as error:
            circuit.end(str(error))
