"""A site whose crashes are looked at: the daemon's own store, round work and round engine.

What the daemon does in threads and over the network is done here at once, in a fixed order, so
that two runs make the same operations. Its one neighbour is a script: deltas that another
round work made beforehand. The site promises what a daemon promises, in the recorder's log.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from p2pfed.aggregation import Mixing
from p2pfed.daemon import durable_files, round_work
from p2pfed.daemon.privacy_ledger import Charge, PrivacyLedger
from p2pfed.daemon.round_work import Mixed, RoundWork
from p2pfed.daemon.sendable import Sendable
from p2pfed.daemon.store import Generation, Store
from p2pfed.keys import Identity
from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.collecting import NO_HEADER
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.envelope import ChunkOpener, sealed_chunk_bytes
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.header import Header, Kind, SignedHeader, sign_header
from p2pfed.protocol.messages import AnswerCode
from p2pfed.protocol.neighbours import NOTHING_HELD, Standing
from p2pfed.protocol.own_state import OwnState
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.rounds import RoundEngine

Vector = npt.NDArray[np.float32]

FEDERATION = b"F" * 32
SITE = Identity(b"\x01" * 32, b"\x02" * 32)
NEIGHBOUR = Identity(b"\x03" * 32, b"\x04" * 32)
LIAR = Identity(b"\x05" * 32, b"\x06" * 32)
EDGE = "b"  # the neighbour's name here
ABSENT = "c"
QUIET_ROUND = 2  # in which training changes nothing: the same vectors are stored again
EVIDENCE_ROUND = 1  # in which the liar is convicted
REOPENING_ROUND = 3  # after which the daemon is stopped and started
RETAINED_DELTAS = 2  # so that envelopes are displaced, and their files recycled, in few rounds


def _lie(variant: bytes) -> SignedHeader:
    return sign_header(
        LIAR,
        Header(
            version=1,
            federation_id=FEDERATION,
            kind=Kind.DELTA,
            sender=LIAR.public_key,
            topology_digest=b"T" * 32,
            schema_digest=b"S" * 32,
            round_number=0,
            sequence=1,
            since_round=0,
            previous=NO_HEADER,
            replica_before=bytes(32),
            replica_after=variant * 32,
            codec="int8",
            key_commitment=bytes(32),
            chunks_root=bytes(32),
            chunk_count=1,
            payload_bytes=1,
            privacy_spend=0.0,
            time_seconds=0,
        ),
    )


LIES = (_lie(b"1"), _lie(b"2"))


def standing_after(round_number: int) -> Standing:
    """The standing of a site that nobody ever meets, another after each round."""
    return Standing(ABSENT, absent_rounds=round_number + 1, returning=round_number > 1)


@dataclass(frozen=True, slots=True)
class Bound:
    """The directory belongs to the federation."""


@dataclass(frozen=True, slots=True)
class Charged:
    """``PrivacyLedger.reserve`` returned, and the round may be trained."""

    charge: Charge


@dataclass(frozen=True, slots=True)
class Published:
    """``Store.commit_published`` returned."""

    item: Sendable
    ciphertext: bytes


@dataclass(frozen=True, slots=True)
class Sent:
    """A byte of it left: neighbours may have the header."""

    signed: SignedHeader


@dataclass(frozen=True, slots=True)
class Committed:
    """``Store.commit_round`` returned."""

    generation: Generation
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """``Store.add_equivocation`` returned."""

    site: str


def settings(genesis: Vector, total_rounds: int) -> FederationPlan:
    weights = {EDGE: 0.5}
    return FederationPlan(
        topology_digest=b"T" * 32,
        schema_digest=b"S" * 32,
        federation_id=FEDERATION,
        genesis_replica=vector_digest(genesis),
        weights_of=lambda _round: weights,
        time_varying=False,
        total_rounds=total_rounds,
        local_steps=1,
        deadline_seconds=60.0,
        quorum=1.0,
        max_staleness=1,
        relayed=frozenset({EDGE}),
        neighbours=frozenset(weights),
    )


def genesis_of(dimension: int) -> Vector:
    return np.linspace(-1.0, 1.0, dimension, dtype=np.float32)


def work_on(store: Store, identity: Identity, genesis: Vector) -> RoundWork:
    return RoundWork(store, identity, genesis, codec="int8", mixing=Mixing("mean", "crash tests"))


@dataclass(frozen=True, slots=True)
class Payload:
    """What arrives: a verified header and the decrypted chunks."""

    signed: SignedHeader
    chunks: tuple[bytes, ...]


def received(item: Sendable) -> Payload:
    """What a neighbour gets of an envelope; fails where its ciphertext is not what was sealed."""
    header = item.signed.header
    opener = ChunkOpener(header, item.chunk_digests, item.payload_key)
    chunks = []
    with item.ciphertext.open("rb") as file:
        for index in range(header.chunk_count):
            chunks.append(opener.open(index, file.read(sealed_chunk_bytes(header, index))))
        assert file.read() == b""
    return Payload(item.signed, tuple(chunks))


@dataclass(frozen=True)
class Neighbour:
    """The script: a delta and a snapshot for each round."""

    deltas: tuple[Payload, ...]
    snapshots: tuple[Payload, ...]

    @classmethod
    def make(cls, directory: Path, dimension: int, total_rounds: int) -> "Neighbour":
        genesis = genesis_of(dimension)
        plan = settings(genesis, total_rounds)
        store = Store(directory)
        work = work_on(store, NEIGHBOUR, genesis)
        deltas, snapshots, previous = [], [], NO_HEADER
        for number in range(total_rounds):
            model = genesis + np.float32(number + 1)
            item = work.publish(
                do.Publish(number, number + 1, previous, work.own_digest),
                plan,
                model,
                np.empty(0, np.float32),
            )
            previous = item.signed.digest
            deltas.append(received(item))
            snapshots.append(received(work.snapshot(item.signed, plan, store.snapshot_path())))
        store.close()
        return cls(tuple(deltas), tuple(snapshots))


class CrashingSite:
    """The site, from one start of its daemon to the next.

    :param promise: told what is promised, when it is.
    """

    def __init__(
        self,
        directory: Path,
        neighbour: Neighbour,
        dimension: int,
        promise: Callable[[object], None] = lambda _promise: None,
    ) -> None:
        self._directory = directory
        self._neighbour = neighbour
        self._genesis = genesis_of(dimension)
        self._promise = promise
        self._plan = settings(self._genesis, len(neighbour.deltas))
        self._commands: deque[do.Command] = deque()
        self._received: dict[bytes, Payload] = {}
        self._model: Vector
        self._site_state: Vector
        self._trained: Vector
        self._next_site_state: Vector
        self._mixed: Mixed
        self._work: RoundWork
        self._headers: HeaderLog
        self._ledger: PrivacyLedger
        self._opened: Store | None = None
        self.engine: RoundEngine

    def start(self) -> None:
        """As the daemon does: open, restore, meet the neighbour."""
        self._opened = store = Store(self._directory)
        store.bind(FEDERATION)
        self._promise(Bound())
        store.recover(self._plan.genesis_replica, self._genesis.size)
        self._work = work_on(store, SITE, self._genesis)
        self._ledger = PrivacyLedger(store.journal, SITE)
        self._headers = HeaderLog(store.headers())
        generation = store.generation()
        self.engine = RoundEngine(
            self._plan,
            OwnState(
                generation.round_number if generation else 0,
                self._work.own_digest,
                store.last_published(),
                since_round=generation.since_round if generation else 0,
            ),
            self._work.replica_states(),
            self._work.retained(),
            self._headers,
            store.quarantined(),
            store.standings(),
        )
        size = self._genesis.size
        self._model = store.vector(generation.model, size).copy() if generation else self._genesis
        self._site_state = (
            store.vector(generation.site_state, size).copy()
            if generation
            else np.zeros(size, np.float32)
        )
        self._next_site_state = self._site_state
        self._dispatch(on.Started())
        newest = self._neighbour.deltas[-1].signed.header
        # It claims no round, or the site would skip its own to catch up.
        self._dispatch(on.LinkUp(EDGE, 0, newest.replica_after, newest.round_number))
        self.settle()

    def stop(self) -> None:
        """Close what was opened, whatever it came to."""
        if self._opened is not None:
            self._opened.close()

    @property
    def store(self) -> Store:
        assert self._opened is not None, "not started"
        return self._opened

    def run(self, until_round: int | None = None) -> None:
        """Run rounds to the last one, or until the round given has begun."""
        while self.engine.phase is not Phase.FINISHED:
            number = self.engine.round_number
            if until_round is not None and number >= until_round:
                return
            self._offer(self._neighbour.deltas[number])
            assert self.engine.round_number > number, f"round {number} stands still"

    def _dispatch(self, event: on.Event) -> list[do.Command]:
        commands = self.engine.handle(event, 0.0)
        self._commands.extend(commands)
        return commands

    def settle(self) -> None:
        """Do what the engine asked for, and what follows from it.

        A command that fails is still the first in line: calling this again tries again.
        """
        while self._commands:
            self._execute(self._commands[0])
            self._commands.popleft()

    def _execute(self, command: do.Command) -> None:
        match command:
            case do.Train(number, steps):
                self._charge(number, steps)
                self._train(number)
                self._dispatch(on.TrainingFinished(number))
            case do.Publish():
                spend = float(self._ledger.entries)
                item = self._work.publish(
                    command, self._plan, self._trained, self._next_site_state, spend
                )
                self._promise(Published(item, item.ciphertext.read_bytes()))
                self._dispatch(on.Published(item.signed))
            case do.FloodHeader(signed, _) if signed.header.sender == SITE.public_key:
                self._ledger.mark_published()
                self._promise(Sent(signed))
            case do.SendDelta(_, digest):
                envelope = self._work.envelope(digest)
                if envelope is not None:
                    received(envelope)
                    self._promise(Sent(envelope.signed))
            case do.SendSnapshot(_):
                self._send_snapshot()
            case do.RequestRepair(_, held):
                self._repair(held)
            case do.ApplyPayload(_, signed):
                self._work.apply(EDGE, signed, self._received[signed.digest].chunks)
                self._dispatch(on.ReplicaUpdated(EDGE, signed))
            case do.Aggregate(number):
                self._mixed = self._work.mix(command, self._plan)
                self._dispatch(on.AggregationFinished(number))
            case do.CommitRound():
                self._commit(command)
            case do.Quarantine(site, first, second):
                self.store.add_equivocation(site, first, second)
                self._promise(Quarantined(site))
            case _:
                pass

    def _charge(self, number: int, steps: int) -> None:
        """As the daemon does under a privacy budget: durable before the training begins."""
        charge = Charge(number, vector_digest(self._model), 0.1, 1.0, steps, 1e-5)
        self._ledger.reserve(charge)
        self._promise(Charged(charge))

    def _train(self, number: int) -> None:
        if number == EVIDENCE_ROUND:
            self._dispatch(on.EquivocationHeard(EDGE, "liar", *LIES))
        if number == QUIET_ROUND and self._work.own_digest != self._plan.genesis_replica:
            self._trained = self.store.vector(self._work.own_digest, self._genesis.size).copy()
            return
        rise = np.float32(0.1 * (number + 1))
        wave = np.cos(np.arange(self._genesis.size, dtype=np.float32) * np.float32(number + 1))
        self._trained = self._model + rise * wave
        self._next_site_state = self._site_state + rise

    def _offer(self, payload: Payload) -> None:
        self._offer_payload(payload)
        self.settle()

    def _offer_payload(self, payload: Payload) -> None:
        signed = payload.signed
        self._received[signed.digest] = payload
        answers = self._dispatch(on.OfferArrived(EDGE, signed))
        if any(isinstance(c, do.AnswerOffer) and c.code is AnswerCode.SEND for c in answers):
            self._dispatch(on.PayloadReceived(EDGE, signed))

    def _repair(self, held: bytes) -> None:
        """Let the neighbour send what is missing up to this round, as it would."""
        newest = min(self.engine.round_number, len(self._neighbour.deltas) - 1)
        if held == NOTHING_HELD:
            self._offer_payload(self._neighbour.snapshots[newest])
            return
        deltas = self._neighbour.deltas[: newest + 1]
        befores = [payload.signed.header.replica_before for payload in deltas]
        if held in befores:
            for payload in deltas[befores.index(held) :]:
                self._offer_payload(payload)

    def _send_snapshot(self) -> None:
        published = self.engine.published
        if published is None:
            return
        path = self.store.snapshot_path()
        try:
            received(self._work.snapshot(published, self._plan, path))
        finally:
            path.unlink()

    def _commit(self, command: do.CommitRound) -> None:
        number = command.round_number
        record = {"round": number, "model": self._mixed.digest.hex()}
        command = replace(command, standings=(standing_after(number),))
        self._work.commit(command, self._mixed, self._headers.entries(), record)
        generation = self.store.generation()
        assert generation is not None
        self._promise(Committed(generation, record))
        self._model, self._site_state = self._mixed.model.copy(), self._next_site_state
        self._dispatch(on.RoundCommitted(number))


class _InlineExecutor:
    """Runs what is submitted at once."""

    def __init__(self, _threads: int) -> None:
        pass

    def __enter__(self) -> "_InlineExecutor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(job(*arguments))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future


class _InlineStage(_InlineExecutor):
    """Runs each job at once; what it raises, the caller gets now."""

    def __init__(self) -> None:
        pass

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future = super().submit(job, *arguments)
        future.result()
        return future


@contextmanager
def in_one_thread(worth_keeping_bytes: int) -> Iterator[None]:
    """Let round work do everything in the caller's thread, keep few envelopes, and recycle files
    from the size given on."""
    with (
        patch.object(round_work, "ThreadPoolExecutor", _InlineExecutor),
        patch.object(round_work, "SecondStage", _InlineStage),
        patch.object(durable_files, "WORTH_KEEPING_BYTES", worth_keeping_bytes),
        patch.object(limits, "RETAINED_DELTAS", RETAINED_DELTAS),
    ):
        yield
