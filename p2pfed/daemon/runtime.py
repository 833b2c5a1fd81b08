"""The shell of the round engine: carries out its commands with disk, trainer and network.

``dispatch`` is synchronous and quick: it hands an event to the engine and starts what the
commands ask for. Whatever takes time runs in a task or a worker thread of its own and ends in
another ``dispatch``. All of it happens on one trio thread, so the engine needs no lock.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import structlog
import trio

from p2pfed.daemon.delta_exchange import ReceivedPayload
from p2pfed.daemon.links import Links
from p2pfed.daemon.outbox import Outbox
from p2pfed.daemon.private_training import PrivateTraining
from p2pfed.daemon.round_records import NOT_EVALUATED, RoundRecords
from p2pfed.daemon.round_times import RoundTimes
from p2pfed.daemon.round_work import Mixed, RoundWork
from p2pfed.daemon.sendable import Sendable
from p2pfed.daemon.store import Store
from p2pfed.daemon.trainer import Trainer
from p2pfed.errors import (
    AggregationError,
    DamagedStateError,
    RemoteProtocolError,
    StoreError,
    TrainingError,
)
from p2pfed.protocol import commands as do
from p2pfed.protocol import events as on
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.header import SignedHeader
from p2pfed.protocol.joining import is_worth_adopting
from p2pfed.protocol.messages import AnswerCode, EquivocationProof, HeaderNotice, Want
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.rounds import RoundEngine
from p2pfed.report.records import DRIFT_ROUNDS, RoundRecord
from p2pfed.training import frames

log = structlog.get_logger(__name__)

HEAVY_THREADS = 2  # vector work at a time; more would only share the same memory bandwidth
KEPT_NOTICES = 64
FIRST_STORAGE_RETRY_SECONDS = 0.5
MAX_STORAGE_RETRY_SECONDS = 10.0
# Sites that have nothing left to train would else do rounds as fast as the network carries them.
UNTRAINED_ROUND_SECONDS = 1.0

_QUIET_NOTICES = (
    do.NoticeKind.FINISHED,
    do.NoticeKind.ROUND_SKIPPED,
    do.NoticeKind.JOINING,
    do.NoticeKind.ADOPTED,
)

T = TypeVar("T")


@dataclass(slots=True)
class NeighbourCounts:
    """What the status table shows of a neighbour beyond its link."""

    last_delta_at_seconds: float | None = None
    weight: float = 0.0


class Offload(Protocol):
    """Runs blocking work for the event loop; a cancelled caller still waits for its end."""

    async def __call__(self, job: Callable[[], T], /) -> T: ...


class WorkerThreads:
    """The daemon's own :class:`Offload`."""

    def __init__(self, most: int) -> None:
        self._limiter = trio.CapacityLimiter(most)

    async def __call__(self, job: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(job, limiter=self._limiter)


class Runtime:
    """One peer's engine at work.

    :param peer_ids: the peer id of every member, by site name.
    :param privacy: the budget that training is held to, where there is one.
    :ivar offload: where vector work runs. Assignable, for a virtual clock does not wait for
        threads: a test under one gives another.
    """

    def __init__(
        self,
        *,
        engine: RoundEngine,
        plan: FederationPlan,
        headers: HeaderLog,
        work: RoundWork,
        store: Store,
        trainer: Trainer,
        peer_ids: dict[str, str],
        privacy: PrivateTraining | None = None,
    ) -> None:
        self.engine = engine
        self.plan = plan
        self.work = work
        self.store = store
        self.trainer = trainer
        self.privacy = privacy
        self.peer_ids = peer_ids
        self.links: Links
        self.outbox: Outbox
        self.times = RoundTimes()
        self.halted = trio.Event()
        self.changed: Callable[[], None] = lambda: None
        self.offload: Offload = WorkerThreads(HEAVY_THREADS)
        self.metrics_before: dict[str, float] = {}
        self.metrics_after: dict[str, float] = {}
        self.evaluated = NOT_EVALUATED  # the aggregated model
        self.trained: frames.Trained | None = None
        self.records = RoundRecords(store.history(DRIFT_ROUNDS))
        self.recorded: Callable[[RoundRecord], None] = lambda _: None
        generation = store.generation()
        self.model_digest = generation.model if generation is not None else work.genesis_digest
        self._left_out: tuple[str, ...] = ()
        self.storage_error: str | None = None
        self.rounds_done = 0
        self.deltas_accepted = 0
        self.deltas_rejected: Counter[str] = Counter()
        self.notices: deque[do.Notice] = deque(maxlen=KEPT_NOTICES)
        self.counts: dict[str, NeighbourCounts] = {}
        self.headers = headers
        self._received: dict[bytes, ReceivedPayload] = {}
        self._mixed: Mixed | None = None
        self._timers: dict[on.Timer, trio.CancelScope] = {}
        self._one_job = trio.Lock()  # the store and the vectors take one caller at a time
        self._answer: do.AnswerOffer | None = None
        self._sealing: set[str] = set()  # sites that a snapshot is being made for
        self._stop_requested = trio.Event()
        self._nursery: trio.Nursery

    @property
    def training_loss(self) -> float | None:
        return self.trained.loss if self.trained is not None else None

    @property
    def degraded(self) -> bool:
        """Whether the last round closed without a neighbour."""
        return bool(self._left_out)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run rounds until the engine halts.

        :raises DamagedStateError: what is stored is not what was stored.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            self.dispatch(on.Started())
            try:
                await self.halted.wait()
            finally:
                # Links that are cut short with everything else still report to this runtime.
                self.halted.set()
            nursery.cancel_scope.cancel()

    def dispatch(self, event: on.Event) -> None:
        """Tell the engine what happened and start what follows from it; nothing once halted."""
        if self.halted.is_set():
            return
        if isinstance(event, on.StopRequested):
            self._stop_requested.set()
        now = trio.current_time()
        commands = self.engine.handle(event, now)
        self.times.entered(self.engine.phase, now)
        for command in commands:
            self._execute(command)
        self.changed()

    def answer_offer(self, site: str, signed: SignedHeader) -> do.AnswerOffer:
        """What the engine answers to a neighbour's offer."""
        self._answer = None
        self.dispatch(on.OfferArrived(site, signed))
        if self._answer is None:
            return do.AnswerOffer(site, AnswerCode.NOT_NOW, "this peer is stopping")
        return self._answer

    def payload_received(self, site: str, received: ReceivedPayload) -> None:
        self._received[received.signed.digest] = received
        self.dispatch(on.PayloadReceived(site, received.signed))

    def change_plan(self, plan: FederationPlan, peer_ids: dict[str, str]) -> None:
        """Take a new topology.

        :param peer_ids: the peer id of every member, by site name.
        """
        self.plan = plan
        # The engine parts with a removed neighbour once no vector is being worked on.
        self.peer_ids = self.peer_ids | peer_ids
        self.dispatch(on.PlanChanged(plan))

    def _execute(self, command: do.Command) -> None:  # noqa: PLR0912 - one line a command
        match command:
            case do.SetTimer(timer, at_seconds):
                self._cancel_timer(timer)
                scope = self._timers[timer] = trio.CancelScope()
                self._nursery.start_soon(self._run_timer, timer, at_seconds, scope)
            case do.CancelTimer(timer):
                self._cancel_timer(timer)
            case do.Train():
                self._nursery.start_soon(self._train, command)
            case do.Publish():
                self._nursery.start_soon(self._publish, command)
            case do.SendDelta(site, header_digest):
                item = self.work.envelope(header_digest)
                if item is not None:
                    self.outbox.send(self.peer_ids[site], item)
            case do.SendSnapshot(site):
                self._nursery.start_soon(self._send_snapshot, site)
            case do.AnswerOffer():
                self._answer = command
            case do.ApplyPayload(site, signed):
                self._nursery.start_soon(self._apply, site, signed)
            case do.DiscardPayload(_, signed):
                self._discard(signed)
            case do.RequestRepair(site, replica_held):
                self.links.post(self.peer_ids[site], Want(replica_held))
            case do.FloodHeader(signed, except_site):
                self._flood(HeaderNotice(signed.encoded, signed.signature), except_site)
            case do.Quarantine(site, first, second):
                self._nursery.start_soon(self._quarantine, site, first, second)
            case do.Aggregate():
                self._nursery.start_soon(self._aggregate, command)
            case do.Adopt():
                self._nursery.start_soon(self._adopt, command)
            case do.CommitRound():
                self._nursery.start_soon(self._commit, command)
            case do.Notice():
                self._take_notice(command)
            case do.Halt():
                self.halted.set()

    def _cancel_timer(self, timer: on.Timer) -> None:
        scope = self._timers.pop(timer, None)
        if scope is not None:
            scope.cancel()

    async def _run_timer(self, timer: on.Timer, at_seconds: float, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep_until(at_seconds)
            if self._timers.get(timer) is scope:
                del self._timers[timer]
                self.dispatch(on.TimerFired(timer))

    async def _in_thread(self, job: Callable[[], T]) -> T:
        """Run vector work off the event loop. It is never abandoned half-way: a cancelled
        daemon waits for it, so that no thread writes to a store that was closed."""
        async with self._one_job:
            return await self.offload(job)

    async def _until_stored(self, job: Callable[[], T]) -> T:
        """Vector work that ends on the disk, tried again until the disk takes it.

        A full or failing disk costs this site rounds and nothing else: what is tried again was
        not committed, so no neighbour has heard of it. Where the operator stops the daemon
        meanwhile, it ends as it would have by a crash, and resumes likewise.

        :raises DamagedStateError: no further attempt would mend it.
        """
        pause_seconds = FIRST_STORAGE_RETRY_SECONDS
        while True:
            try:
                result = await self._in_thread(job)
            except DamagedStateError:
                raise
            except (StoreError, OSError) as error:
                self.storage_error = str(error)
                log.error(  # noqa: TRY400 - the reason says it all
                    "the state cannot be written; it is tried again",
                    reason=str(error),
                    pause_seconds=pause_seconds,
                )
                self.changed()
            else:
                self.storage_error = None
                return result
            with trio.move_on_after(pause_seconds):
                await self._stop_requested.wait()
                self.halted.set()
                await trio.sleep_forever()
            pause_seconds = min(2 * pause_seconds, MAX_STORAGE_RETRY_SECONDS)

    async def _train(self, command: do.Train) -> None:
        try:
            if self.privacy is None:
                self.trained = await self.trainer.train(command.round_number, command.local_steps)
            else:
                await self._train_privately(command, self.privacy)
        except TrainingError as error:
            self.dispatch(on.TrainingFailed(command.round_number, str(error)))
            return
        self.dispatch(on.TrainingFinished(command.round_number))

    async def _train_privately(self, command: do.Train, privacy: PrivateTraining) -> None:
        """Train if the budget allows; else take part with the model as it is."""
        number = command.round_number
        secret = await privacy.grant(
            number,
            command.local_steps,
            self.model_digest,
            self.engine.signed_elsewhere,
            self._until_stored,
        )
        if secret is not None:
            trained = await self.trainer.train(number, command.local_steps, secret)
            if not await privacy.withholds(self.engine.signed_elsewhere, self._until_stored):
                self.trained = trained
                return
        self.trained = None
        await trio.sleep(UNTRAINED_ROUND_SECONDS)
        await self._in_thread(self._leave_untrained)

    def _leave_untrained(self) -> None:
        self.trainer.parameters_out[:] = self.trainer.parameters_in
        self.trainer.state_out[:] = self.trainer.state_in

    async def _publish(self, command: do.Publish) -> None:
        privacy = self.privacy
        job = partial(
            self.work.publish,
            command,
            self.plan,
            self.trainer.parameters_out,
            self.trainer.state_out,
            privacy.declared if privacy is not None else 0.0,
        )
        item = await self._until_stored(job)
        if privacy is not None:
            await privacy.published(self._until_stored)
        self.dispatch(on.Published(item.signed))
        self._nursery.start_soon(self._evaluate_trained)

    async def _evaluate_trained(self) -> None:
        self.metrics_before = dict((await self._evaluate("out")).metrics)
        self.changed()

    async def _evaluate(self, which: frames.Side) -> frames.Evaluated:
        """On this site's hold-out; a failing evaluation never stops a round."""
        try:
            return await self.trainer.evaluate(which)
        except TrainingError as error:
            log.warning("evaluation failed", reason=str(error))
            return NOT_EVALUATED

    async def _send_snapshot(self, site: str) -> None:
        peer_id = self.peer_ids[site]
        if (
            self.engine.published is None
            or site in self._sealing
            or self.outbox.has_snapshot(peer_id)
        ):
            return  # one is on its way; what it lacks, the next offer shows
        self._sealing.add(site)
        try:
            item = await self._until_stored(self._seal_snapshot)
        finally:
            self._sealing.discard(site)
        self.outbox.send(peer_id, item)

    def _seal_snapshot(self) -> Sendable:
        """The own published replica, whole; read when its turn has come, for it may be that a
        delta was being sealed before."""
        published = self.engine.published
        assert published is not None  # noqa: S101 - and what was published stays so
        return self.work.snapshot(published, self.plan, self.store.snapshot_path())

    async def _apply(self, site: str, signed: SignedHeader) -> None:
        received = self._received.pop(signed.digest)
        try:
            with received:
                await self._until_stored(lambda: self.work.apply(site, signed, received.chunks()))
        except RemoteProtocolError as error:
            self.dispatch(on.PayloadRejected(site, signed, str(error)))
            return
        self.deltas_accepted += 1
        counts = self.counts.setdefault(site, NeighbourCounts())
        counts.last_delta_at_seconds = trio.current_time()
        self.dispatch(on.ReplicaUpdated(site, signed))

    def _discard(self, signed: SignedHeader) -> None:
        received = self._received.pop(signed.digest, None)
        if received is not None:
            received.close()

    def _flood(self, message: HeaderNotice | EquivocationProof, except_site: str | None) -> None:
        for site in self.engine.neighbours:
            if site != except_site:
                self.links.post(self.peer_ids[site], message)

    async def _quarantine(self, site: str, first: SignedHeader, second: SignedHeader) -> None:
        log.error(
            "equivocation: a site signed two different deltas for one round; it is quarantined",
            site=site,
            round=first.header.round_number,
        )
        await self._until_stored(partial(self.store.add_equivocation, site, first, second))
        proof = EquivocationProof(first.encoded, first.signature, second.encoded, second.signature)
        self._flood(proof, except_site=site)

    async def _aggregate(self, command: do.Aggregate) -> None:
        try:
            self._mixed = await self._until_stored(partial(self.work.mix, command, self.plan))
        except AggregationError as error:
            self.dispatch(on.AggregationFailed(command.round_number, error.site, str(error)))
            return
        self._left_out = tuple(command.left_out)
        weights = self._mixed.outcome.weights
        for site in (*weights, *command.left_out):
            self.counts.setdefault(site, NeighbourCounts()).weight = weights.get(site, 0.0)
        returned = self._mixed.outcome.returned
        self.dispatch(on.AggregationFinished(command.round_number, returned))

    async def _commit(self, command: do.CommitRound) -> None:
        mixed, round_number = self._mixed, command.round_number
        assert mixed is not None  # noqa: S101 - the engine commits what it aggregated
        await self._in_thread(partial(self._hand_to_trainer, mixed))
        self._take_evaluation(await self._evaluate("in"))
        record, headers = self._record(round_number, mixed), self.headers.entries()
        await self._until_stored(partial(self.work.commit, command, mixed, headers, record))
        self.recorded(self.records.committed(record))
        self._mixed = None
        self.model_digest = mixed.digest
        self.rounds_done += 1
        log.info(
            "round done",
            round=round_number,
            degraded=self.degraded,
            **{name: round(value, 4) for name, value in self.metrics_after.items()},
        )
        self.dispatch(on.RoundCommitted(round_number))

    async def store_export(self, record: Mapping[str, Any]) -> None:
        """Note a model file that was written, for the lineage.

        :raises StoreError: it cannot be stored; the file is there nevertheless.
        """
        await self._in_thread(partial(self.store.add_export, record))

    async def _adopt(self, command: do.Adopt) -> None:
        """Try the donors' model, and take it if it will do."""
        try:
            gathered = await self._until_stored(partial(self.work.gather, command.donors))
        except AggregationError as error:
            self.dispatch(on.AdoptionRefused(command.round_number, str(error)))
            return
        trainer = self.trainer
        try:
            own = dict((await trainer.evaluate("in")).metrics)
            await self._in_thread(partial(np.copyto, trainer.parameters_in, gathered.model))
            evaluated = await trainer.evaluate("in")
            theirs = evaluated.metrics
        except TrainingError as error:
            reason = f"the donors' model could not be tried: {error}"
        else:
            reason = f"on the hold-out its loss is {theirs.get('loss')}, the own {own.get('loss')}"
            if is_worth_adopting(theirs.get("loss"), own.get("loss")):
                self.metrics_before = own
                self._take_evaluation(evaluated)
                await self._take_up(command.round_number, gathered)
                return
        await self._in_thread(lambda: np.copyto(trainer.parameters_in, self.work.start_of_round()))
        self.dispatch(on.AdoptionRefused(command.round_number, reason))

    async def _take_up(self, round_number: int, gathered: Mixed) -> None:
        """Go on from the donors' model: what training kept of the one given up is forgotten, what
        is this site's own stays."""
        kept = self.trainer.ready.kept_state_floats
        await self._in_thread(partial(self.trainer.state_in[kept:].fill, 0.0))
        self._left_out = ()
        record, headers = self._record(round_number - 1, gathered), self.headers.entries()
        await self._until_stored(
            partial(self.work.adopt, round_number, gathered, self.trainer.state_in, headers, record)
        )
        self.recorded(self.records.committed(record))
        self.model_digest = gathered.digest
        self.dispatch(on.Adopted(round_number))

    def _take_evaluation(self, evaluated: frames.Evaluated) -> None:
        self.evaluated = evaluated
        self.metrics_after = dict(evaluated.metrics)

    def _record(self, round_number: int, mixed: Mixed) -> dict[str, Any]:
        """What the history keeps of a round."""
        return self.records.make(
            round_number,
            mixed,
            plan=self.plan,
            ready=self.trainer.ready,
            trained=self.trained,
            before=self.metrics_before,
            after=self.evaluated,
            left_out=self._left_out,
            privacy=self.privacy.spending() if self.privacy is not None else None,
        )

    def _hand_to_trainer(self, mixed: Mixed) -> None:
        self.trainer.parameters_in[:] = mixed.model
        self.trainer.state_in[:] = self.trainer.state_out

    def _take_notice(self, notice: do.Notice) -> None:
        self.notices.append(notice)
        self.records.note(notice)
        if notice.kind in (do.NoticeKind.DELTA_REFUSED, do.NoticeKind.DELTA_REJECTED):
            self.deltas_rejected[notice.kind.value] += 1
        quiet = notice.kind in _QUIET_NOTICES
        (log.info if quiet else log.warning)(
            notice.kind.value.replace("_", " "),
            round=notice.round_number,
            site=notice.site,
            detail=notice.detail,
        )
