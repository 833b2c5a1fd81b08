"""Several engines under a virtual clock and a shuffled network, with faults drawn by a seed.

No vectors, no sockets: each shell here only reports back what the engine asks for. What must
hold in every run: rounds only go up, nothing is aggregated that was not delivered or held,
weights stay below one, queues stay bounded, and everybody finishes.
"""

import heapq
import itertools
import random
from collections.abc import Callable

import pytest
from test_rounds_playbook import GENESIS, plan

from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.header import Header, Kind, SignedHeader
from p2pfed.protocol.messages import AnswerCode
from p2pfed.protocol.neighbours import NEVER_PUBLISHED
from p2pfed.protocol.own_state import OwnState
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.rounds import RoundEngine

ROUNDS = 12
EVENT_LIMIT = 60_000


class Site:
    """One engine, its simple shell, and what survives a crash."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.up = False
        self.links: set[str] = set()
        self.envelopes: dict[bytes, SignedHeader] = {}
        self.stored = OwnState(0, GENESIS, None)
        self.started = 0
        self.rounds_closed: list[int] = []
        self.timers: dict[on.Timer, int] = {}

    def start(self) -> None:
        self.started += 1
        self.up = True
        own = self.stored
        self.engine = RoundEngine(
            self.world.plan_of(self.name),
            own,
            {},
            list(self.envelopes.values())[-limits.RETAINED_DELTAS :],
            HeaderLog(),
            (),
        )
        self.handle(on.Started())

    def crash(self) -> None:
        self.up = False
        for other in list(self.links):
            self.world.unlink(self.name, other)

    def later(self, seconds: float, event: on.Event) -> None:
        """Deliver an event to this life of the site; a crash forgets it."""
        life = self.started
        self.world.after(
            seconds, lambda: self.handle(event) if self.up and life == self.started else None
        )

    def handle(self, event: on.Event) -> list[do.Command]:
        before = self.engine.round_number
        commands = self.engine.handle(event, self.world.now)
        assert self.engine.round_number >= before
        for neighbour in self.engine.neighbours.values():
            assert len(neighbour.kept) <= limits.MAX_PENDING_PER_NEIGHBOUR
        for command in commands:
            self.execute(command)
        return commands

    def execute(self, command: do.Command) -> None:  # noqa: PLR0912 - one line a command
        draw = self.world.draw
        match command:
            case do.SetTimer(timer, at_seconds):
                self.timers[timer] = token = self.timers.get(timer, 0) + 1
                life = self.started

                def fire() -> None:
                    if self.up and life == self.started and self.timers.get(timer) == token:
                        self.handle(on.TimerFired(timer))

                self.world.after(at_seconds - self.world.now, fire)
            case do.CancelTimer(timer):
                self.timers[timer] = self.timers.get(timer, 0) + 1
            case do.Train(number, _):
                self.later(draw.uniform(0.1, 3.0), on.TrainingFinished(number))
            case do.Publish():
                self.publish(command)
            case do.SendDelta(site, digest):
                self.world.send(self, site, self.envelopes[digest])
            case do.SendSnapshot(site):
                self.world.send(self, site, self.snapshot())
            case do.ApplyPayload(site, signed):
                self.later(draw.uniform(0.0, 0.2), on.ReplicaUpdated(site, signed))
            case do.RequestRepair(site, held):
                self.world.tell(self, site, lambda: on.WantArrived(self.name, held))
            case do.Aggregate(number, inputs, left_out):
                held = self.engine.neighbours
                assert sum(i.weight for i in inputs) < 1
                assert {i.site for i in inputs}.isdisjoint(left_out)
                for one in inputs:
                    assert held[one.site].held.round_number >= number - 1
                self.later(draw.uniform(0.0, 0.2), on.AggregationFinished(number))
            case do.CommitRound(number):
                self.rounds_closed.append(number)
                self.stored = OwnState(number + 1, self.stored.replica, self.stored.published)
                self.later(draw.uniform(0.0, 0.1), on.RoundCommitted(number))
            case do.Quarantine():
                raise AssertionError("an honest site was taken for a liar")
            case _:
                pass

    def header(self, number: int, **fields: object) -> SignedHeader:
        values: dict[str, object] = {
            "version": 1,
            "federation_id": b"F" * 32,
            "kind": Kind.DELTA,
            "sender": self.name.encode().ljust(32, b"-"),
            "topology_digest": b"T" * 32,
            "schema_digest": b"S" * 32,
            "round_number": number,
            "sequence": number + 1,
            "since_round": 0,
            "previous": bytes(32),
            "replica_before": bytes(32),
            "replica_after": f"{self.name}{number}".encode().ljust(32, b"."),
            "codec": "int8",
            "key_commitment": bytes(32),
            "chunks_root": bytes(32),
            "chunk_count": 1,
            "payload_bytes": 1,
            "privacy_spend": 0.0,
            "time_seconds": 0,
            **fields,
        }
        header = Header(**values)  # type: ignore[arg-type]
        digest = f"{header.kind}{self.name}{number}".encode().ljust(32, b"#")
        return SignedHeader(header, digest, bytes(64), digest)

    def publish(self, command: do.Publish) -> None:
        assert command.sequence - 1 not in {
            s.header.round_number for s in self.envelopes.values()
        }, "one round was published twice"
        signed = self.header(
            command.round_number,
            replica_before=command.replica_before,
            previous=command.previous,
        )
        self.envelopes[signed.digest] = signed
        self.stored = OwnState(command.round_number, signed.header.replica_after, signed)
        self.later(self.world.draw.uniform(0.0, 0.2), on.Published(signed))

    def snapshot(self) -> SignedHeader:
        assert self.engine.published is not None
        return self.header(self.engine.published.header.round_number, kind=Kind.SNAPSHOT)


class World:
    def __init__(self, seed: int, names: str, rounds: int = ROUNDS) -> None:
        self.draw = random.Random(seed)
        self.names = names
        self.rounds = rounds
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], object]]] = []
        self.order = itertools.count()
        self.loss = 0.0
        self.sites = {name: Site(self, name) for name in names}

    def plan_of(self, name: str) -> FederationPlan:
        others = "".join(other for other in self.names if other != name)
        return plan(others, total_rounds=self.rounds, deadline_seconds=10.0)

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        heapq.heappush(self.queue, (self.now + max(0.0, seconds), next(self.order), action))

    def link(self, one: str, other: str) -> None:
        a, b = self.sites[one], self.sites[other]
        if not a.up or not b.up or other in a.links:
            return
        a.links.add(other)
        b.links.add(one)
        for here, there in ((a, b), (b, a)):
            published = there.engine.published
            here.handle(
                on.LinkUp(
                    there.name,
                    there.engine.round_number,
                    published.header.replica_after if published else GENESIS,
                    published.header.round_number if published else NEVER_PUBLISHED,
                )
            )

    def unlink(self, one: str, other: str) -> None:
        for here, there in ((self.sites[one], other), (self.sites[other], one)):
            here.links.discard(there)
            if here.up:
                here.handle(on.LinkDown(there))

    def tell(self, sender: Site, site: str, event: Callable[[], on.Event]) -> None:
        def arrive() -> None:
            receiver = self.sites[site]
            if receiver.up and sender.name in receiver.links:
                receiver.handle(event())

        self.after(self.draw.uniform(0.01, 0.3), arrive)

    def send(self, sender: Site, site: str, signed: SignedHeader) -> None:
        lost = self.draw.random() < self.loss

        def offer() -> None:
            receiver = self.sites[site]
            if not receiver.up or sender.name not in receiver.links:
                return
            commands = receiver.handle(on.OfferArrived(sender.name, signed))
            [answer] = [c for c in commands if isinstance(c, do.AnswerOffer)]
            if answer.code is AnswerCode.SEND:
                ended = on.TransferAborted if lost else on.PayloadReceived
                receiver.later(self.draw.uniform(0.01, 1.0), ended(sender.name, signed))
                if lost:
                    # The sender of a transfer that broke off makes the link anew.
                    self.after(1.5, lambda: self.relink(sender.name, site))

        self.after(self.draw.uniform(0.01, 0.3), offer)

    def relink(self, one: str, other: str) -> None:
        if other in self.sites[one].links:
            self.unlink(one, other)
        self.after(self.draw.uniform(0.1, 1.0), lambda: self.link(one, other))

    def heartbeats(self) -> None:
        for site in self.sites.values():
            for other in sorted(site.links):
                number = site.engine.round_number
                self.tell(site, other, lambda n=site.name, r=number: on.NeighbourProgress(n, r))
        self.after(1.0, self.heartbeats)

    def begin(self) -> None:
        for name in self.names:
            self.after(self.draw.uniform(0, 2), self.sites[name].start)
        for one, other in itertools.combinations(self.names, 2):
            self.after(self.draw.uniform(2, 4), lambda a=one, b=other: self.link(a, b))
        self.heartbeats()

    def run(self) -> None:
        """Until every site that is up has finished."""
        for _ in range(EVENT_LIMIT):
            self.now, _, action = heapq.heappop(self.queue)
            action()
            if self.now > 5 and all(
                not s.up or s.engine.phase is Phase.FINISHED for s in self.sites.values()
            ):
                return
        waiting = {
            name: (site.engine.phase, site.engine.round_number, site.engine.waited_for(self.now))
            for name, site in self.sites.items()
        }
        raise AssertionError(f"not finished at {self.now:.0f} s: {waiting}")


@pytest.mark.parametrize("seed", range(20))
def test_a_quiet_federation_goes_through_every_round_together(seed: int) -> None:
    world = World(seed, "abcd")
    world.begin()
    world.run()
    for site in world.sites.values():
        assert site.rounds_closed[-1] == ROUNDS - 1
        assert site.rounds_closed == sorted(set(site.rounds_closed))


@pytest.mark.parametrize("seed", range(40))
def test_broken_transfers_lost_links_and_a_restart_stop_nobody(seed: int) -> None:
    world = World(seed, "abcde")
    world.loss = 0.1
    world.begin()
    victim = world.sites[world.draw.choice("abcde")]
    down_at = world.draw.uniform(6, 20)

    def restart() -> None:
        victim.start()
        for other in world.names:
            if other != victim.name:
                world.after(world.draw.uniform(0.1, 3), lambda o=other: world.link(victim.name, o))

    world.after(down_at, lambda: victim.crash() if victim.up else None)
    world.after(down_at + world.draw.uniform(0.5, 30), restart)
    for _ in range(4):
        one, other = world.draw.sample(world.names, 2)
        world.after(world.draw.uniform(5, 25), lambda a=one, b=other: world.relink(a, b))
    world.run()
    for site in world.sites.values():
        assert site.rounds_closed[-1] == ROUNDS - 1


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        world = World(7, "abcd")
        world.loss = 0.2
        world.begin()
        world.run()
        runs.append((world.now, {name: site.rounds_closed for name, site in world.sites.items()}))
    assert runs[0] == runs[1]
