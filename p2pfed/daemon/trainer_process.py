"""One life of the trainer process, from its start to its end. Imports no torch."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

import trio

from p2pfed.errors import (
    ConfigurationError,
    DataError,
    TrainerDiedError,
    TrainingError,
)
from p2pfed.training import frames

CLOSE_GRACE_SECONDS = 2.0
LOG_DRAIN_SECONDS = 0.5
MAX_LOG_LINE_CHARACTERS = 500
MAX_LOG_LINES_PER_REQUEST = 200

ENVIRONMENT = {
    # Without it cuBLAS sums in another order from run to run (cuBLAS documentation, 2.1.4).
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONUNBUFFERED": "1",
}

ReplyT = TypeVar(
    "ReplyT",
    frames.Ready,
    frames.Genesis,
    frames.Priced,
    frames.Trained,
    frames.Evaluated,
    frames.Exported,
)


class TrainerProcess:
    """A running trainer process: requests to it, its log lines, its end.

    Use :func:`start_trainer_process`. As an async context it ends the process on leaving.
    """

    def __init__(
        self, process: trio.Process, stream: trio.SocketStream, on_log: Callable[[str], None]
    ) -> None:
        self._process = process
        self._stream = stream
        self._on_log = on_log
        self._log_lines_left = MAX_LOG_LINES_PER_REQUEST
        self._last_line = ""
        self._killed_for: str | None = None
        self._ended = trio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close our end, which is the order to end; kill what is left after a grace period."""
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)
            with trio.move_on_after(CLOSE_GRACE_SECONDS):
                await self._process.wait()
            self._kill_group()
            await self._process.wait()
            if self._process.stdout is not None:
                await trio.aclose_forcefully(self._process.stdout)

    async def request(
        self,
        request: frames.Request,
        counterpart: type[ReplyT],
        on_progress: Callable[[frames.Progress], None],
    ) -> ReplyT:
        """Send one request and wait for its answer, a ``counterpart``. One at a time.

        If this does not return, the conversation is out of step: :meth:`kill` the process.

        :raises TrainerDiedError: the process ended, or answered with something else.
        :raises DataError, ConfigurationError, TrainingError: it answered with a failure.
        """
        self._log_lines_left = MAX_LOG_LINES_PER_REQUEST
        encoded = frames.encode(request)
        try:
            await self._stream.send_all(encoded)
            while isinstance(reply := await self._receive(), frames.Progress):
                on_progress(reply)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TrainerDiedError(await self._end_after_hang_up()) from error
        except frames.FrameError as error:
            raise TrainerDiedError(
                f"the trainer process answered with nonsense: {error}"
            ) from error
        if isinstance(reply, frames.Failed):
            raise failure(reply)
        if not isinstance(reply, counterpart):
            raise TrainerDiedError(
                f"the trainer process answered {type(request).__name__} with {type(reply).__name__}"
            )
        return reply

    async def _receive(self) -> frames.Reply:
        prefix = await self._receive_exactly(frames.LENGTH.size)
        message = frames.decode(await self._receive_exactly(frames.body_length(prefix)))
        if not isinstance(message, frames.Reply):
            raise frames.FrameError(f"{type(message).__name__} is no reply")
        return message

    async def _receive_exactly(self, size_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < size_bytes:
            part = await self._stream.receive_some(size_bytes - len(data))
            if not part:
                raise trio.BrokenResourceError("the trainer process closed its end")
            data += part
        return bytes(data)

    async def wait(self) -> str:
        """Pass the process's output on, line by line, until it has ended; says how it ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_log_on)
            await self._process.wait()
            # A worker process of a task's own may hold the pipe open for ever.
            nursery.cancel_scope.deadline = trio.current_time() + LOG_DRAIN_SECONDS
        self._ended.set()
        # The same worker may hold the socket open, and then no end of stream would come.
        await trio.aclose_forcefully(self._stream)
        return self._end_in_words()

    def kill(self, reason: str) -> None:
        """Kill the process and whatever it started, at once; nothing if it has ended already."""
        if self._process.poll() is None:
            self._killed_for = reason
            self._kill_group()

    def _kill_group(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _end_after_hang_up(self) -> str:
        """How the process ended, once :meth:`wait` has heard its last line."""
        with trio.move_on_after(CLOSE_GRACE_SECONDS) as grace:
            await self._ended.wait()
        if grace.cancelled_caught:
            self.kill("it closed its end of the conversation and stayed")
            await self._ended.wait()
        return self._end_in_words()

    def _end_in_words(self) -> str:
        code = self._process.returncode
        if self._killed_for is not None:
            return f"the trainer process was killed: {self._killed_for}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = "; out of memory? see dmesg" if -code == signal.SIGKILL else ""
            return f"the trainer process was ended by {name}{hint}"
        last_words = f", saying {self._last_line!r}" if self._last_line else ""
        return f"the trainer process ended by itself with exit status {code}{last_words}"

    async def _pass_log_on(self) -> None:
        output = self._process.stdout
        if output is None:
            raise RuntimeError("the trainer process was started without a pipe")
        line = bytearray()
        async for part in output:
            for piece in part.splitlines(keepends=True):
                line += piece[: MAX_LOG_LINE_CHARACTERS - len(line)]
                if piece.endswith((b"\n", b"\r")):
                    self._log(line)
                    line.clear()
        self._log(line)

    def _log(self, line: bytearray) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        self._last_line = text or self._last_line
        if not text or self._log_lines_left < 0:
            return
        self._on_log(text if self._log_lines_left else "further output of this request left out")
        self._log_lines_left -= 1


async def start_trainer_process(
    memory_descriptor: int, on_log: Callable[[str], None]
) -> TrainerProcess:
    """Start a trainer process (spawned, never forked) that shares ``memory_descriptor``.

    It leads a session of its own, so that a terminal's Ctrl-C does not reach it and that
    whatever it starts can be ended with it.

    :param on_log: gets each line that it prints, at most ``MAX_LOG_LINE_CHARACTERS`` long and
        ``MAX_LOG_LINES_PER_REQUEST`` a request.
    :raises TrainerDiedError: it cannot be started.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        control = theirs.fileno()
        try:
            process = await trio.lowlevel.open_process(
                [
                    sys.executable,
                    "-P",  # what lies in the working directory must not pass for a library
                    "-m",
                    "p2pfed.training",
                    f"--control-fd={control}",
                    f"--memory-fd={memory_descriptor}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(control, memory_descriptor),
                start_new_session=True,
                env=os.environ | ENVIRONMENT,
            )
        except OSError as error:
            ours.close()
            raise TrainerDiedError(
                f"the trainer process cannot be started: {error.strerror}"
            ) from error
    ours.setblocking(False)
    return TrainerProcess(process, trio.SocketStream(trio.socket.from_stdlib_socket(ours)), on_log)


def failure(reply: frames.Failed) -> TrainingError | ConfigurationError:
    """The error that the trainer process met, as this process raises it."""
    problems = [entry.problem() for entry in reply.problems]
    if reply.kind == "data" and problems:
        return DataError(problems)
    if reply.kind == "configuration" and problems:
        return ConfigurationError(problems)
    return TrainingError(reply.message)
