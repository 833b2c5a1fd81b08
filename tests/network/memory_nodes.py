"""Whole sites in one process: the daemon's own parts, wired by the daemon, over a memory network.

Three things are not the daemon's. The network is scripted; the trainer process is a descent that
can be followed by hand; and vectors are worked on where the caller stands, because a virtual
clock does not wait for threads. Under trio's autojump clock a federation lives hours in seconds.
"""

import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import tomli_w
import topology_documents
import trio
from scripted_network import ScriptedNetwork, ScriptedTransport

from p2pfed.config import load_site
from p2pfed.daemon.daemon import Daemon
from p2pfed.daemon.logs import RecentLines
from p2pfed.daemon.reloading import Reload, read_again
from p2pfed.daemon.runtime import Runtime
from p2pfed.daemon.store import Store
from p2pfed.daemon.trainer import Trainer, TrainerStatus
from p2pfed.daemon.transport import ConnectionObserver
from p2pfed.keys import Identity
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.header import SignedHeader
from p2pfed.protocol.messages import Message
from p2pfed.protocol.phases import Phase
from p2pfed.training import frames
from p2pfed.training.regions import Vector

T = TypeVar("T")

DIMENSION = 300
LEARNING_RATE = 0.2
MOMENTUM = 0.5
TRAINING_SECONDS = 2.0  # of a round, on the virtual clock
GUARD_SECONDS = 3600.0  # virtual; a condition that takes longer never comes


async def run_inline(job: Callable[[], T], /) -> T:
    await trio.lowlevel.checkpoint()
    return job()


def target_of(name: str) -> Vector:
    """The model that a site with a one-letter name would end with on its own."""
    return np.random.default_rng(ord(name)).normal(size=DIMENSION).astype(np.float32)


class DescentTrainer:
    """Descends with momentum towards the site's own target, where the daemon has its process.

    The loss is half the squared distance to the target, so a local step is v = m v + (x - target),
    x = x - rate v; v is the site's state. A round lasts ``TRAINING_SECONDS`` once
    ``may_train`` is set.
    """

    def __init__(self, name: str) -> None:
        self.target = target_of(name)
        self.may_train = trio.Event()
        self.may_train.set()
        self.status = TrainerStatus(state="idle", device="by hand")
        self.ready = frames.Ready(
            dimension=DIMENSION,
            state_floats=DIMENSION,
            kept_state_floats=0,
            schema_digest=b"s" * 32,
            schema=(),
            training_records=100,
            holdout_records=10,
            device="by hand",
            torch_version="none",
        )
        self.genesis = np.zeros(DIMENSION, np.float32)
        self.genesis_digest = vector_digest(self.genesis)
        self.parameters_in, self.parameters_out = self.genesis.copy(), self.genesis.copy()
        self.state_in, self.state_out = self.genesis.copy(), self.genesis.copy()

    async def train(self, round_number: int, local_steps: int) -> frames.Trained:
        await self.may_train.wait()
        await trio.sleep(TRAINING_SECONDS)
        model, velocity = self.parameters_in.copy(), self.state_in.copy()
        for _ in range(local_steps):
            velocity = np.float32(MOMENTUM) * velocity + (model - self.target)
            model -= np.float32(LEARNING_RATE) * velocity
        self.parameters_out[:] = model
        self.state_out[:] = velocity
        return frames.Trained(self._loss(model), TRAINING_SECONDS, local_steps)

    async def evaluate(self, side: frames.Side) -> frames.Evaluated:
        await trio.lowlevel.checkpoint()
        model = self.parameters_in if side == "in" else self.parameters_out
        return frames.Evaluated({"loss": self._loss(model)}, 10)

    def _loss(self, model: Vector) -> float:
        return 0.5 * float(np.sum((model - self.target) ** 2, dtype=np.float64))


@dataclass(frozen=True)
class PhaseChange:
    at_seconds: float
    round_number: int
    phase: Phase


class Node(Daemon):
    """A daemon without processes, sockets and signals; everything else is built by its parent.

    :ivar phases: every change of round or phase, with its time on trio's clock.
    """

    transport: ScriptedTransport

    def __init__(self, federation: "MemoryFederation", name: str) -> None:
        directory = federation.directory / name
        directory.mkdir(exist_ok=True)
        site_file = directory / "site.toml"
        document = {"schema_version": 1, "name": name, "topology": "../topology.toml"}
        site_file.write_text(tomli_w.dumps(document))
        site = load_site(site_file)
        identity = topology_documents.identity(name)
        (address,) = federation.topology.peer(name).addresses

        def make_transport(
            identity: Identity, _listen: tuple[str, ...], observer: ConnectionObserver
        ) -> ScriptedTransport:
            transport = ScriptedTransport(federation.network, identity.peer_id, address, observer)
            self.transport = transport
            return transport

        super().__init__(
            site,
            federation.topology,
            identity,
            Store(site.state_directory),
            RecentLines(),
            make_transport,  # type: ignore[arg-type]
        )
        self.name = name
        self.trainer = DescentTrainer(name)
        self._trainer = cast(Trainer, self.trainer)
        self.phases: list[PhaseChange] = []
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self._federation = federation

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self.scope:
                await self._run_parts(task_status)
        finally:
            self.store.close()
            self.ended.set()
            self._federation.changed()

    async def _run_parts(self, task_status: trio.TaskStatus[None]) -> None:
        plan = self._bind()
        self._recover()  # in no thread: a thread does not stop the virtual clock
        self._build(plan)
        self._runtime.offload = run_inline
        async with trio.open_nursery() as nursery:
            await nursery.start(self._transport.run)
            self._announcing.announce()
            await nursery.start(self._runtime.outbox.run)
            await nursery.start(self._links.run)
            nursery.start_soon(self._probing.run)
            nursery.start_soon(self._run_rounds, nursery.cancel_scope)
            task_status.started()

    async def _read_again(self) -> Reload | None:
        await trio.lowlevel.checkpoint()  # in no thread, as above
        return read_again(self.site, self.identity, self.topology, self._runtime.plan)

    def _changed(self) -> None:
        super()._changed()
        engine = self._runtime.engine
        last = self.phases[-1] if self.phases else None
        if last is None or (last.round_number, last.phase) != (engine.round_number, engine.phase):
            now = trio.current_time()
            self.phases.append(PhaseChange(now, engine.round_number, engine.phase))
        self._federation.changed()

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    @property
    def model(self) -> Vector:
        """What the site would train on, or use, next."""
        return self.trainer.parameters_in

    def is_in(self, phase: Phase, round_number: int) -> bool:
        engine = self._runtime.engine
        return (engine.phase, engine.round_number) == (phase, round_number)

    def entered(self, phase: Phase, round_number: int) -> float:
        """When it entered a phase of a round for the first time."""
        return next(
            change.at_seconds
            for change in self.phases
            if (change.phase, change.round_number) == (phase, round_number)
        )

    def last_error(self, other: "Node") -> str | None:
        """Why its last link to another node ended, or could not be made."""
        state = self._links.state(other.identity.peer_id)
        assert state is not None
        return state.last_error

    def header_heard(self, sender: "Node", round_number: int) -> SignedHeader:
        """The one delta header that it knows of a member for a round."""
        entries = self._runtime.headers.entries()
        return entries[sender.identity.public_key, round_number]

    def post(self, other: "Node", message: Message) -> None:
        assert self._links.post(other.identity.peer_id, message)

    def rounds_done(self) -> list[int]:
        return [record["round"] for record in self.store.history(1000)]

    def degraded_rounds(self) -> list[int]:
        return [r["round"] for r in self.store.history(1000) if r["degraded"]]


class MemoryFederation:
    """Sites with one-letter names that hold one topology file; nodes run while it is open."""

    def __init__(self, directory: Path, nursery: trio.Nursery, names: str, tables: Any) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.write_topology(names, **tables)
        self.network = ScriptedNetwork()
        self.nodes: dict[str, Node] = {}
        self._nursery = nursery
        self._change = trio.Event()

    def write_topology(self, names: str, **tables: Any) -> None:
        """Change the file that all hold; who runs does not know before it reloads."""
        self.topology = topology_documents.load(
            self.directory, topology_documents.document(names, **tables)
        )

    def replace_key(self, name: str, key_of: str) -> None:
        """Give a site of the file the key of another one, as after it was introduced anew."""
        document = tomllib.loads(self.topology.path.read_text())
        [peer] = [peer for peer in document["peer"] if peer["name"] == name]
        peer["key"] = topology_documents.key(key_of)
        self.topology = topology_documents.load(self.directory, document)

    async def reload(self, *names: str) -> None:
        """Have sites reload the file, one after the other; all by default."""
        for name in names or tuple(self.nodes):
            await self.nodes[name].reload()

    async def start(self, name: str) -> Node:
        """Run the node of a site on what its state directory holds."""
        node = self.nodes[name] = Node(self, name)
        await self._nursery.start(node.run)
        return node

    async def kill(self, name: str) -> None:
        """End a node where it stands: nothing is said to anybody, nothing more is stored."""
        node = self.nodes.pop(name)
        node.transport.nursery = None  # nobody can open a stream to it from now on
        node.scope.cancel()
        await node.ended.wait()

    def part(self, one: str, other: str) -> None:
        self.network.partition(*self._peer_ids(one, other))

    def heal(self, one: str, other: str) -> None:
        self.network.heal(*self._peer_ids(one, other))

    def _peer_ids(self, *names: str) -> list[str]:
        return [self.topology.peer(name).peer_id_text for name in names]

    def changed(self) -> None:
        self._change.set()
        self._change = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(GUARD_SECONDS):
            while not condition():
                await self._change.wait()

    async def until_all(self, phase: Phase, round_number: int, *nodes: Node) -> None:
        await self.until(
            lambda: all(node.is_in(phase, round_number) for node in nodes or self.nodes.values())
        )


@asynccontextmanager
async def memory_federation(
    directory: Path, names: str = "abc", **tables: Any
) -> AsyncIterator[MemoryFederation]:
    """A federation with all its nodes started."""
    async with trio.open_nursery() as nursery:
        federation = MemoryFederation(directory, nursery, names, tables)
        for name in names:
            await federation.start(name)
        yield federation
        for name in list(federation.nodes):
            await federation.kill(name)
    assert federation.network.failures == []
