"""The daemon's hold on its trainer process: requests, shared memory, restarts. Imports no torch."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import trio

from p2pfed.daemon.trainer_pace import TrainerPace
from p2pfed.daemon.trainer_process import ReplyT, TrainerProcess, start_trainer_process
from p2pfed.errors import ConfigurationError, P2pfedError, TrainerDiedError, TrainingError
from p2pfed.protocol.digests import vector_digest
from p2pfed.training import frames
from p2pfed.training.regions import RegionLayout, Regions, Vector, create_memory

OPEN_TIMEOUT_SECONDS = 900.0
FIRST_RESTART_DELAY_SECONDS = 0.5
MAX_RESTART_DELAY_SECONDS = 60.0
MAX_DOUBLINGS = 10
MAX_FIRST_STARTS = 3

TrainerState = Literal["starting", "idle", "training", "restarting", "failed"]


@dataclass(frozen=True)
class TrainerStatus:
    """The trainer as ``p2pfed status`` shows it.

    :ivar state: ``failed`` means that the last start failed; another is tried after a delay.
    :ivar restarts: how often it has been started again since the daemon began.
    :ivar last_error: why it last ended or failed to answer; None while all is well.
    :ivar progress: of the round under way, None between rounds.
    :ivar heard_at_seconds: last sign of life under the request under way, on trio's clock; None
        while it is asked for nothing.
    :ivar patience_seconds: for how long it may be silent now before it counts as standing still.
    """

    state: TrainerState = "starting"
    restarts: int = 0
    last_error: str | None = None
    pid: int | None = None
    device: str | None = None
    progress: frames.Progress | None = None
    heard_at_seconds: float | None = None
    patience_seconds: float | None = None


@dataclass(frozen=True)
class _Opened:
    """What the first start found, and every later start must find again."""

    ready: frames.Ready
    layout: RegionLayout
    genesis_digest: bytes
    genesis: Vector
    regions: Regions


class Trainer:
    """One trainer process, replaced whenever it dies.

    Put a round's model and what this site keeps of it into ``parameters_in`` and ``state_in``, call
    :meth:`train`, and read ``parameters_out`` and ``state_out`` before training again. The
    process cannot write to the inputs: after a :class:`TrainerDiedError` the same call gives the
    same bytes.

    Every request waits for its turn and, where the process has just died, for the next one to
    be ready. Each raises

    - :class:`TrainerDiedError`: the process ended before it answered, or could not be started;
    - :class:`DataError`, :class:`ConfigurationError`: the site's data or settings do not fit;
    - :class:`TrainingError`: the task or the training failed; the process is fit for more.

    A request that is cancelled costs the process its life: no answer can then arrive late.

    :param request: what to open.
    :param on_progress: gets the steps of a round under way; must not block.
    :param on_log: gets each line that the process prints, bounded; must not block.
    """

    def __init__(
        self,
        request: frames.Open,
        *,
        on_progress: Callable[[frames.Progress], None],
        on_log: Callable[[str], None],
    ) -> None:
        self.status = TrainerStatus()
        self._request = request
        self._on_progress = on_progress
        self._on_log = on_log
        self._lock = trio.Lock()
        self._opened: _Opened | None = None
        self._process: TrainerProcess | None = None
        self._start_decided = trio.Event()
        self._start_error: P2pfedError | None = None
        self._stopped = False
        self._failures_in_a_row = 0
        self._pace = TrainerPace()

    async def run(
        self, *, task_status: trio.TaskStatus[frames.Ready] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep a trainer process running until cancelled; started once the first is ready.

        :raises DataError, ConfigurationError, TrainingError: the *first* start failed, which
            nothing but an operator can mend. A later one is tried again with back-off.
        """
        descriptor = create_memory()
        try:
            await self._supervise(descriptor, task_status)
        finally:
            os.close(descriptor)
            self._stopped = True
            self._process = None
            self._show(pid=None, progress=None)
            self._start_decided.set()

    @property
    def ready(self) -> frames.Ready:
        """What the process said of the task; alike after every restart."""
        return self._after_start().ready

    @property
    def genesis(self) -> Vector:
        """The model that all sites start from, shape (d,); the daemon's own copy."""
        return self._after_start().genesis

    @property
    def genesis_digest(self) -> bytes:
        """``vector_digest`` of :attr:`genesis`."""
        return self._after_start().genesis_digest

    @property
    def parameters_in(self) -> Vector:
        """The model to train or evaluate, shape (d,), in shared memory; the caller writes it."""
        return self._after_start().regions.parameters_in

    @property
    def state_in(self) -> Vector:
        """What this site keeps for itself, shape (s,), in shared memory; zeros at first."""
        return self._after_start().regions.state_in

    @property
    def parameters_out(self) -> Vector:
        """The trained model, shape (d,), in shared memory, until the next :meth:`train`."""
        return self._after_start().regions.parameters_out

    @property
    def state_out(self) -> Vector:
        """What this site keeps after training, shape (s,), in shared memory."""
        return self._after_start().regions.state_out

    async def train(
        self, round_number: int, local_steps: int, noise_secret: bytes | None = None
    ) -> frames.Trained:
        """Train ``parameters_in`` for some local steps; see the class for what it raises.

        :param noise_secret: of a private round, 32 bytes.
        """
        request = frames.Train(
            round_number=round_number, local_steps=local_steps, noise_secret=noise_secret
        )
        return await self._ask(request, frames.Trained)

    async def price(self, request: frames.Price) -> frames.Priced:
        """Account for private training."""
        return await self._ask(request, frames.Priced)

    async def evaluate(self, side: frames.Side) -> frames.Evaluated:
        """Evaluate ``parameters_in`` or ``parameters_out`` on the site's hold-out."""
        return await self._ask(frames.Evaluate(side=side), frames.Evaluated)

    async def evaluate_file(self, path: Path) -> frames.Evaluated:
        """Evaluate ``parameters_in`` on another data file."""
        return await self._ask(frames.EvaluateFile(path=str(path)), frames.Evaluated)

    async def export(self, path: Path, metadata: Mapping[str, str]) -> frames.Exported:
        """Write ``parameters_in`` as a safetensors file, with its lineage as metadata."""
        request = frames.Export(path=str(path), metadata=dict(metadata))
        return await self._ask(request, frames.Exported)

    def _after_start(self) -> _Opened:
        if self._opened is None:
            raise TrainerDiedError("the trainer has not started yet")
        return self._opened

    async def _ask(self, request: frames.Request, counterpart: type[ReplyT]) -> ReplyT:
        async with self._lock:
            process = await self._running_process()
            if isinstance(request, frames.Train):
                self._show(state="training")
            self._pace.asked(request, trio.current_time())
            self._show_pace()
            try:
                reply = await process.request(request, counterpart, self._note_progress)
                self._pace.answered(trio.current_time())
            except trio.Cancelled:
                process.kill("its request was called off")
                self._lose(process)
                raise
            except TrainerDiedError as error:
                process.kill("it did not answer as it must")
                self._lose(process)
                self._show(last_error=str(error))
                raise
            except (ConfigurationError, TrainingError) as error:
                self._show(state="idle", last_error=str(error), progress=None)
                raise
            finally:
                self._pace.over()
                self._show_pace()
            self._failures_in_a_row = 0
            self._show(state="idle", last_error=None, progress=None)
            return reply

    async def _running_process(self) -> TrainerProcess:
        """The process, waiting for a start under way; a start that fails is the caller's error."""
        while self._process is None:
            if self._stopped:
                raise TrainerDiedError("the trainer is stopped")
            await self._start_decided.wait()
            if self._process is None and self._start_error is not None:
                raise self._start_error
        return self._process

    async def _supervise(self, descriptor: int, task_status: trio.TaskStatus[frames.Ready]) -> None:
        while True:
            error = await self._one_life(descriptor, task_status)
            if self._opened is None and (
                not isinstance(error, TrainerDiedError)
                or self._failures_in_a_row + 1 >= MAX_FIRST_STARTS
            ):
                raise error
            delay_seconds = min(
                FIRST_RESTART_DELAY_SECONDS * 2 ** min(self._failures_in_a_row, MAX_DOUBLINGS),
                MAX_RESTART_DELAY_SECONDS,
            )
            self._failures_in_a_row += 1
            self._on_log(f"{error}; another is started in {delay_seconds:g} s")
            await trio.sleep(delay_seconds)
            self._show(restarts=self.status.restarts + 1)

    async def _one_life(
        self, descriptor: int, task_status: trio.TaskStatus[frames.Ready]
    ) -> P2pfedError:
        """Run one process from its start to its end; returns why it ended."""
        self._show(state="starting" if self._opened is None else "restarting")
        try:
            process = await start_trainer_process(descriptor, self._on_log)
        except TrainerDiedError as error:
            self._start_failed(error)
            return error
        async with process:
            self._show(pid=process.pid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._start, process, descriptor, task_status)
                end = await process.wait()
        if self._start_error is not None:
            self._start_failed(self._start_error)
            return self._start_error
        self._lose(process)
        self._show(last_error=end)
        return TrainerDiedError(end)

    async def _start(
        self,
        process: TrainerProcess,
        descriptor: int,
        task_status: trio.TaskStatus[frames.Ready],
    ) -> None:
        """Open the task in a new process and make it available, or note why not and kill it."""
        try:
            with trio.fail_after(OPEN_TIMEOUT_SECONDS):
                opened = await self._open(process, descriptor)
        except trio.TooSlowError:
            self._start_error = TrainerDiedError(
                f"the task was not open after {OPEN_TIMEOUT_SECONDS:g} s"
            )
        except P2pfedError as error:
            self._start_error = error
        else:
            self._start_error = None
            self._process, self._pace = process, TrainerPace()
            self._show(state="idle", last_error=None, device=opened.ready.device)
            self._start_decided.set()
            first, self._opened = self._opened is None, opened
            if first:
                task_status.started(opened.ready)
            return
        process.kill("its task could not be opened")

    async def _open(self, process: TrainerProcess, descriptor: int) -> _Opened:
        """The first conversation with a new process, which must go as it did before."""
        ready = await process.request(self._request, frames.Ready, self._note_progress)
        layout = RegionLayout(ready.dimension, ready.state_floats)
        before = self._opened
        if before is None:
            try:
                os.ftruncate(descriptor, layout.size_bytes)
            except OSError as error:
                raise TrainingError(
                    f"{layout.size_bytes} bytes of memory cannot be shared: {error.strerror}"
                ) from error
        elif (ready.schema_digest, layout) != (before.ready.schema_digest, before.layout):
            raise TrainingError("the task's model changed while the daemon ran; restart the daemon")
        request = frames.Map(size_bytes=layout.size_bytes, write_genesis=before is None)
        mapped = await process.request(request, frames.Genesis, self._note_progress)
        if before is None:
            regions = Regions.map(descriptor, layout, inputs_writable=True)
            genesis = await trio.to_thread.run_sync(regions.parameters_out.copy)
            digest = await trio.to_thread.run_sync(vector_digest, genesis)
            before = _Opened(ready, layout, digest, genesis, regions)
        if mapped.digest != before.genesis_digest:
            raise TrainingError(
                "the genesis model is not the one of the first start: build_model draws from "
                "something else than the seeded generators"
            )
        return replace(before, ready=ready)

    def _start_failed(self, error: P2pfedError) -> None:
        self._start_error = error
        self._show(state="failed", pid=None, last_error=str(error))
        self._start_decided.set()
        self._start_decided = trio.Event()

    def _lose(self, process: TrainerProcess) -> None:
        """Let requests wait for the next process, if it was this one that they were to go to."""
        if self._process is process:
            self._process = None
            self._start_decided = trio.Event()
            self._show(state="restarting", pid=None, progress=None)

    def _note_progress(self, progress: frames.Progress) -> None:
        self._pace.progressed(progress, trio.current_time())
        self._show(progress=progress)
        self._show_pace()
        self._on_progress(progress)

    def _show_pace(self) -> None:
        heard_at_seconds = self._pace.heard_at_seconds
        patience_seconds = self._pace.patience_seconds if heard_at_seconds is not None else None
        self._show(heard_at_seconds=heard_at_seconds, patience_seconds=patience_seconds)

    def _show(self, **changes: Any) -> None:
        self.status = replace(self.status, **changes)
