"""The simulated network: links that come up and break, and messages that take their time.

A link is what a connection is to the daemon: made by a handshake of two hellos, noticed as
broken at once where the other end died and only after a silence where packets vanish, and made
again with growing pauses. Messages belong to the link they were sent on, and die with it.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from p2pfed.protocol.liveness import HEARTBEAT_SECONDS
from p2pfed.simulation.scenario import LinkQuality, Partition, Scenario

if TYPE_CHECKING:
    from p2pfed.simulation.peer import SimulatedPeer
    from p2pfed.simulation.world import World

# As the daemon's, which tests compare.
LINK_TIMEOUT_SECONDS = 15.0
FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 15.0

HELLO_BYTES = 1200
HEARTBEAT_BYTES = 40  # and as much for its answer
RETRANSMISSION_SECONDS = 1.0  # of what a transfer sent into a gap that ends before its link does
REORDERED_SECONDS = 0.5  # a message that is overtaken comes up to this much later


@dataclass(slots=True)
class Direction:
    """One way of a link."""

    quality: LinkQuality
    draws: random.Random
    free_at_seconds: float = 0.0  # when the bytes before have gone


@dataclass(slots=True)
class Link:
    """What joins two sites; ``session`` grows with every new connection."""

    ends: tuple[str, str]
    directions: dict[str, Direction]  # by sender
    up: bool = False
    making: bool = False
    session: int = 0
    failures: int = 0

    def other(self, name: str) -> str:
        return self.ends[1] if self.ends[0] == name else self.ends[0]


@dataclass(frozen=True, slots=True)
class _Message:
    """On its way from ``sender``, on the connection of that number."""

    sender: str
    session: int
    deliver: Callable[..., None]
    arguments: tuple[Any, ...]
    reliable: bool


@dataclass(slots=True)
class Traffic:
    """Bytes that a site has sent, by what they were."""

    sent: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.sent.values())


class Network:
    """All links of a federation.

    :param peers: by name; those that are not up answer nothing.
    """

    def __init__(
        self, world: "World", scenario: Scenario, peers: dict[str, "SimulatedPeer"]
    ) -> None:
        self._world = world
        self._scenario = scenario
        self._peers = peers
        self._changes = {
            frozenset(change.between): change.model_dump(exclude={"between"}, exclude_none=True)
            for change in scenario.link
        }
        self._links: dict[frozenset[str], Link] = {}
        self._partitions: list[tuple[frozenset[str], str]] = []
        self.traffic: dict[str, Traffic] = {name: Traffic() for name in peers}
        self.lost = 0

    def link(self, one: str, other: str) -> Link:
        key = frozenset((one, other))
        link = self._links.get(key)
        if link is None:
            quality = self._scenario.links.model_copy(update=self._changes.get(key, {}))
            ends = (min(one, other), max(one, other))
            link = self._links[key] = Link(
                ends,
                {
                    sender: Direction(quality, self._world.draw(f"link {sender} {receiver}"))
                    for sender, receiver in (ends, ends[::-1])
                },
            )
        return link

    def is_up(self, one: str, other: str) -> bool:
        link = self._links.get(frozenset((one, other)))
        return link is not None and link.up

    def keep(self, one: str, other: str) -> None:
        """Make the link, and make it again whenever it breaks, while both ends want it."""
        link = self.link(one, other)
        if link.up or link.making:
            return
        link.making = True
        pause = min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2**link.failures)
        draw = link.directions[link.ends[0]].draws.uniform(0.5, 1.0)
        self._world.after(pause * draw, self._dial, link)

    def _dial(self, link: Link) -> None:
        link.making = False
        one, other = (self._peers[name] for name in link.ends)
        if not one.wants(other.name) and not other.wants(one.name):
            return
        answering = all(peer.up and not peer.frozen for peer in (one, other))
        reachable = answering and self._is_open(link)
        # A hello that is lost takes the connection with it: there is no link of one end.
        lost = self.breaks(*link.ends) or self.breaks(*link.ends[::-1])
        if lost or not (reachable and one.accepts(other) and other.accepts(one)):
            link.failures = min(link.failures + 1, 16)
            self.keep(*link.ends)
            return
        link.failures = 0
        link.up = True
        link.session += 1
        # A hello says how things stood when it was sent.
        hellos = {peer.name: peer.hello() for peer in (one, other)}
        for sender, receiver in ((one, other), (other, one)):
            self.send(
                sender.name,
                receiver.name,
                "hello",
                HELLO_BYTES,
                receiver.linked,
                hellos[sender.name],
                hellos[receiver.name],
                reliable=True,
            )

    def cut(self, one: str, other: str) -> None:
        """Break a link for both ends; they make it again."""
        link = self.link(one, other)
        if not link.up:
            return
        link.up = False
        for name in link.ends:
            peer = self._peers[name]
            if peer.up:
                peer.when_awake(peer.unlinked, link.other(name))
        self.keep(*link.ends)

    def cut_all(self, name: str) -> None:
        """Break every link of a site, as its kernel does when the process ends."""
        for link in list(self._links.values()):
            if name in link.ends and link.up:
                self.cut(*link.ends)

    def part(self, partition: Partition) -> None:
        """Let nothing pass, until ``heal``; both ends notice by the silence."""
        cut = (frozenset(partition.sites), partition.direction)
        self._partitions.append(cut)
        for link in self._links.values():
            if not self._is_open(link):
                self._world.after(LINK_TIMEOUT_SECONDS, self._silent, link, link.session)

    def froze(self, name: str) -> None:
        """A site stands still from now on; its neighbours notice by the silence."""
        for link in self._links.values():
            if name in link.ends:
                self._world.after(LINK_TIMEOUT_SECONDS, self._silent, link, link.session)

    def heal(self, partition: Partition) -> None:
        self._partitions.remove((frozenset(partition.sites), partition.direction))

    def _silent(self, link: Link, session: int) -> None:
        still = not self._is_open(link) or any(self._peers[name].frozen for name in link.ends)
        if link.session == session and still:
            self.cut(*link.ends)

    def _is_open(self, link: Link) -> bool:
        """Whether something may pass, both ways."""
        return self._passes(*link.ends) and self._passes(*link.ends[::-1])

    def _passes(self, sender: str, receiver: str) -> bool:
        for sites, direction in self._partitions:
            leaves = sender in sites and receiver not in sites
            enters = receiver in sites and sender not in sites
            if (leaves and direction != "in") or (enters and direction != "out"):
                return False
        return True

    def send(
        self,
        sender: str,
        receiver: str,
        what: str,
        size_bytes: int,
        deliver: Callable[..., None],
        *arguments: Any,
        reliable: bool = False,
    ) -> bool:
        """Let ``deliver(sender, *arguments)`` happen at the receiver after a while, if the link
        lasts.

        :param reliable: it is part of a transfer, whose losses the caller draws itself.
        :returns: whether there was a link to send it on.
        """
        link = self._links.get(frozenset((sender, receiver)))
        if link is None or not link.up:
            return False
        self.traffic[sender].sent[what] += size_bytes
        direction = link.directions[sender]
        quality, draws = direction.quality, direction.draws
        start = max(self._world.now, direction.free_at_seconds)
        direction.free_at_seconds = start + size_bytes / quality.bytes_per_second
        arrival = (
            direction.free_at_seconds
            + quality.delay_seconds
            + quality.jitter_seconds * draws.random()
        )
        copies = 1
        if not reliable:
            if quality.reordering and draws.random() < quality.reordering:
                arrival += REORDERED_SECONDS * draws.random()
            if quality.loss and draws.random() < quality.loss:
                self.lost += 1
                copies = 0
            elif quality.duplication and draws.random() < quality.duplication:
                copies = 2
        for _ in range(copies):
            message = _Message(sender, link.session, deliver, arguments, reliable)
            self._world.at(arrival, self._arrive, link, message)
            arrival += quality.jitter_seconds
        return True

    def breaks(self, sender: str, receiver: str) -> bool:
        """Draw whether a step of a transfer breaks its stream."""
        direction = self.link(sender, receiver).directions[sender]
        return direction.quality.loss > 0.0 and direction.draws.random() < direction.quality.loss

    def repeats(self, sender: str, receiver: str) -> bool:
        """Draw whether an offer is made twice."""
        direction = self.link(sender, receiver).directions[sender]
        duplication = direction.quality.duplication
        return duplication > 0.0 and direction.draws.random() < duplication

    def _arrive(self, link: Link, message: "_Message") -> None:
        receiver = link.other(message.sender)
        peer = self._peers[receiver]
        if not link.up or link.session != message.session or not peer.up:
            return
        if peer.frozen:
            # Its kernel takes it, and keeps it as long as the link lasts.
            peer.when_awake(self._arrive, link, message)
            return
        if self._passes(message.sender, receiver):
            message.deliver(message.sender, *message.arguments)
        elif message.reliable:
            self._world.after(RETRANSMISSION_SECONDS, self._arrive, link, message)
        else:
            self.lost += 1

    def heartbeats(self) -> None:
        """Each end of every link tells the other its round; the first call keeps it going."""
        for link in self._links.values():
            if not link.up:
                continue
            for name in link.ends:
                receiver = link.other(name)
                peer, sender = self._peers[receiver], self._peers[name]
                if peer.frozen or sender.frozen:
                    continue
                number = sender.engine.round_number
                if self._passes(name, receiver):
                    peer.hears(name)
                    if peer.knows_otherwise(name, number):
                        message = _Message(name, link.session, peer.progress, (number,), False)
                        delay = link.directions[name].quality.delay_seconds
                        self._world.after(delay, self._arrive, link, message)
                self.traffic[name].sent["heartbeat"] += 2 * HEARTBEAT_BYTES
        self._world.after(HEARTBEAT_SECONDS, self.heartbeats)
