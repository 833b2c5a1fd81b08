"""Sites with links but nothing above them, joined by a memory network."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import trio
from scripted_network import ScriptedNetwork, ScriptedTransport, address_of

from p2pfed.daemon.addresses import AddressBook
from p2pfed.daemon.link_state import LinkState
from p2pfed.daemon.links import Links
from p2pfed.daemon.transport import Stream
from p2pfed.errors import TransportError
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.certificates import issue_address_record, issue_certificate
from p2pfed.protocol.messages import (
    FrameReader,
    Hello,
    Message,
    Refusal,
    RefusalCode,
    decode_message,
    encode_message,
)

# In the order of their peer ids, which decides who dials whom.
LOW, MIDDLE, HIGH = sorted(
    (Identity(bytes([number] * 32), bytes([number + 100] * 32)) for number in (1, 2, 3)),
    key=lambda identity: identity.peer_id,
)


EVERYONE = tuple(identity.peer_id for identity in (LOW, MIDDLE, HIGH))


class LongestPause(random.Random):
    """Jitter that always takes the whole of what it may."""

    def uniform(self, a: float, b: float) -> float:
        return b


def make_hello(identity: Identity, **changes: object) -> Hello:
    hello = Hello(
        version=limits.PROTOCOL_VERSION,
        software="p2pfed test",
        federation_name="hearts",
        federation_id=b"f" * 32,
        topology_digest=b"t" * 32,
        schema_digest=b"s" * 32,
        genesis_digest=b"g" * 32,
        certificate=issue_certificate(identity),
        address_record=issue_address_record(identity, 1, ()),
        round_number=0,
        phase="training",
        published_round=-1,
        published_replica=b"r" * 32,
    )
    return replace(hello, **changes)  # type: ignore[arg-type]


class RecordingHandler:
    """A link handler that compares topology digests and remembers what it was told."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.up: list[tuple[str, Hello]] = []
        self.down: list[tuple[str, str]] = []
        self.messages: list[Message] = []
        self.on_up: Callable[[str], None] = lambda _peer_id: None
        self.on_message: Callable[[Message], None] = lambda _message: None
        self._change = trio.Event()

    def local_hello(self) -> Hello:
        return self.hello

    def check_hello(self, peer_id: str, hello: Hello) -> Refusal | None:
        mine, theirs = self.hello.topology_digest, hello.topology_digest
        if mine == theirs:
            return None
        return Refusal(
            RefusalCode.OTHER_TOPOLOGY, f"topology {mine[:2].hex()} here, {theirs[:2].hex()} there"
        )

    def link_up(self, peer_id: str, hello: Hello, said: Hello) -> None:
        self.up.append((peer_id, hello))
        self.on_up(peer_id)
        self._changed()

    def link_down(self, peer_id: str, reason: str) -> None:
        self.down.append((peer_id, reason))
        self._changed()

    def heard(self, peer_id: str, message: Message) -> None:
        self.messages.append(message)
        self._changed()
        self.on_message(message)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._change.wait()

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()


class Site:
    """One peer's transport, address book and links."""

    def __init__(
        self,
        network: ScriptedNetwork,
        identity: Identity,
        neighbours: tuple[Identity, ...],
        *,
        knows_addresses: bool = True,
        generator: random.Random | None = None,
    ) -> None:
        self.identity = identity
        self.peer_id = identity.peer_id
        self.transport = network.transport(self.peer_id)
        self.transport.set_roster(EVERYONE)
        self.handler = RecordingHandler(make_hello(identity))
        self.book = AddressBook(
            {
                other.peer_id: (address_of(other.peer_id),) if knows_addresses else ()
                for other in (LOW, MIDDLE, HIGH)
            }
        )
        self.links = Links(
            self.transport, self.peer_id, self.book, self.handler, generator or LongestPause()
        )
        self.links.set_neighbours({other.peer_id: other.peer_id[-4:] for other in neighbours})

    def state(self, other: Identity) -> LinkState:
        state = self.links.state(other.peer_id)
        assert state is not None
        return state

    def linked(self, other: Identity) -> bool:
        return self.state(other).phase == "connected"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with running(self.transport.run, self.links.run):
            yield


@asynccontextmanager
async def running(*services: Callable[..., Awaitable[None]]) -> AsyncIterator[None]:
    """Run services one after the other, and end them in the reverse order."""
    async with AsyncExitStack() as stack:
        for service in services:
            nursery = await stack.enter_async_context(trio.open_nursery())
            await nursery.start(service)
            stack.callback(nursery.cancel_scope.cancel)
        yield


@asynccontextmanager
async def running_pair(
    network: ScriptedNetwork | None = None,
) -> AsyncIterator[tuple[Site, Site, ScriptedNetwork]]:
    """Two sites with a link between them."""
    network = network or ScriptedNetwork()
    low, high = Site(network, LOW, (HIGH,)), Site(network, HIGH, (LOW,))
    async with high.running(), low.running():
        await low.handler.until(lambda: bool(low.handler.up))
        await high.handler.until(lambda: bool(high.handler.up))
        yield low, high, network
    assert network.failures == []


class RawPeer:
    """A member that speaks the control protocol by hand, also wrongly."""

    def __init__(self, network: ScriptedNetwork, identity: Identity) -> None:
        self.network = network
        self.identity = identity
        self.transport: ScriptedTransport = network.transport(identity.peer_id)
        self.transport.set_roster(EVERYONE)
        self.streams: list[Stream] = []
        self._accepted = trio.Event()
        self.transport.set_handler(limits.CONTROL_PROTOCOL, self._accept)

    async def _accept(self, stream: Stream) -> None:
        self.streams.append(stream)
        self._accepted.set()
        await trio.sleep_forever()

    async def next_stream(self) -> Stream:
        """The next control stream that a site opens to this peer."""
        while not self.streams:
            await self._accepted.wait()
            self._accepted = trio.Event()
        return self.streams.pop(0)

    async def open(self, site: Site) -> Stream:
        await self.transport.dial(site.peer_id, address_of(site.peer_id), 1.0)
        return await self.transport.open_stream(site.peer_id, limits.CONTROL_PROTOCOL)

    async def greet(self, stream: Stream) -> None:
        await stream.send_all(encode_message(make_hello(self.identity)))
        assert isinstance(await read_message(stream, FrameReader()), Hello)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with running(self.transport.run):
            yield


async def read_message(stream: Stream, reader: FrameReader) -> Message:
    while True:
        for body in reader.feed(await stream.receive_some()):
            return decode_message(body)


async def read_to_end(stream: Stream) -> None:
    """Read until the other end closes or resets the stream."""
    try:
        while await stream.receive_some():
            pass
    except TransportError:
        return
