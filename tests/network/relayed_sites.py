"""Three transports on loopback: two that nobody can dial, and a member that relays."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from transport_doubles import DIAL_SECONDS, Recorder, Site, running

from p2pfed.daemon.transport import RelayTerms, Stream
from p2pfed.topology.file import circuit_address

ECHO = "/test/echo/1"
SWALLOW = "/test/swallow/1"
GENEROUS = RelayTerms(
    circuits=8, circuit_bytes=10**9, circuit_seconds=3600, bytes_per_second=1_000_000_000.0
)


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)
    await stream.close()


async def swallow(stream: Stream) -> None:
    while await stream.receive_some():
        pass


class Triple:
    """``alpha`` and ``beta`` listen nowhere; ``gamma`` relays, on ``terms``."""

    def __init__(self, terms: RelayTerms | None = GENEROUS, *, idle_seconds: float = 20.0) -> None:
        self.alpha = Site(1, listen=(), idle_timeout_seconds=idle_seconds)
        self.beta = Site(2, listen=(), idle_timeout_seconds=idle_seconds)
        self.gamma = Site(3, idle_timeout_seconds=idle_seconds)
        self.sites = (self.alpha, self.beta, self.gamma)
        if terms is not None:
            self.gamma.transport.relay_for_others(terms)
        for site in self.sites:
            site.transport.set_handler(ECHO, echo)
            site.transport.set_handler(SWALLOW, swallow)

    @property
    def address(self) -> str:
        return circuit_address(self.gamma.peer_id)

    async def reserve(self, site: Site) -> None:
        await site.dial(self.gamma)
        await site.transport.reserve(self.gamma.peer_id, DIAL_SECONDS)

    async def dial(self, site: Site, other: Site) -> None:
        await site.transport.dial(other.peer_id, self.address, DIAL_SECONDS)

    async def connect(self) -> None:
        """Alpha reaches beta through gamma."""
        await self.reserve(self.beta)
        await self.alpha.dial(self.gamma)
        await self.dial(self.alpha, self.beta)
        await self.beta.recorder.wait("connected", self.alpha.peer_id)


@asynccontextmanager
async def relayed(terms: RelayTerms = GENEROUS, **settings: float) -> AsyncIterator[Triple]:
    """Alpha and beta, connected through gamma."""
    triple = Triple(terms, **settings)
    async with running(*triple.sites):
        await triple.connect()
        yield triple


async def assert_echoes(site: Site, other: Site, count: int = 4) -> None:
    stream = await site.transport.open_stream(other.peer_id, ECHO)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(count))
        assert await stream.receive_exactly(count) == bytes(count)
    await stream.close()


def last_reason(recorder: Recorder, peer_id: str) -> str:
    return [event[2] for event in recorder.events if event[:2] == ("disconnected", peer_id)][-1]
