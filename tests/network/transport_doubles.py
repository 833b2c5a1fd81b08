"""What the transport's tests have in common: sites with fixed keys, and an observer to wait on."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from p2pfed.daemon.libp2p_transport import Libp2pTransport
from p2pfed.daemon.transport import Direction
from p2pfed.keys import Identity

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
GUARD_SECONDS = 30.0  # a test that waits longer has failed; none waits for time to pass
DIAL_SECONDS = 10.0


def identity(number: int) -> Identity:
    return Identity(bytes([number]) * 32, bytes([number]) * 32)


class Recorder:
    """An observer that keeps what it hears and wakes who waits for it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self._changed = trio.Event()

    def _note(self, *event: str) -> None:
        self.events.append(event)
        self._changed.set()
        self._changed = trio.Event()

    def connected(self, peer_id: str, address: str, direction: Direction) -> None:
        self._note("connected", peer_id, direction, address)

    def disconnected(self, peer_id: str, reason: str) -> None:
        self._note("disconnected", peer_id, reason)

    def refused(self, peer_id: str | None, address: str | None, reason: str) -> None:
        self._note("refused", peer_id or "", reason, address or "")

    def count(self, kind: str, peer_id: str) -> int:
        return sum(event[:2] == (kind, peer_id) for event in self.events)

    async def wait(self, kind: str, peer_id: str, count: int = 1) -> None:
        await self.wait_until(lambda: self.count(kind, peer_id) >= count)

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()


class Site:
    """A peer of a test: its identity, transport and recorder."""

    def __init__(
        self,
        number: int,
        *,
        listen: Sequence[str] = LOOPBACK,
        idle_timeout_seconds: float = 20.0,
        seed: bytes | None = None,
    ) -> None:
        self.identity = identity(number)
        self.peer_id = self.identity.peer_id
        self.recorder = Recorder()
        self.transport = Libp2pTransport(
            seed or self.identity.seed,
            listen,
            self.recorder,
            idle_timeout_seconds=idle_timeout_seconds,
        )

    @property
    def address(self) -> str:
        return self.transport.listen_addresses[0]

    async def dial(self, other: "Site") -> None:
        await self.transport.dial(other.peer_id, other.address, DIAL_SECONDS)


@asynccontextmanager
async def running(*sites: Site) -> AsyncIterator[None]:
    """Run transports that all have one another on their rosters."""
    with trio.fail_after(GUARD_SECONDS):
        async with trio.open_nursery() as nursery:
            for site in sites:
                site.transport.set_roster([each.peer_id for each in sites if each is not site])
                await nursery.start(site.transport.run)
            yield
            nursery.cancel_scope.cancel()
