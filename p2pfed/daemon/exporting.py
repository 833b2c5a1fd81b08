"""Hands each round's figures to the exporter process; what goes wrong with it costs no round."""

import re
import subprocess
import sys
from collections import deque
from dataclasses import dataclass

import structlog
import trio

from p2pfed.config import Site
from p2pfed.protocol.texts import printable
from p2pfed.report.exporters.messages import MAX_LINE_BYTES, Begin, Figures, Message, Written
from p2pfed.report.exporters.scalars import scalars_of
from p2pfed.report.records import RoundRecord
from p2pfed.topology import Topology

log = structlog.get_logger(__name__)

MODULE = "p2pfed.report.exporters"
WAITING_ROUNDS = 1_000  # for an exporter that does not keep up, the newest of them
ANSWER_TIMEOUT_SECONDS = 120.0
CLOSE_TIMEOUT_SECONDS = 5.0
RESTART_DELAY_SECONDS = 30.0
MAX_REASON_CHARACTERS = 300
READ_BYTES = 65_536
_USER_INFORMATION = re.compile(r"://[^/\s@]+@")  # of a tracking URI; MLflow repeats it in errors
PROCESS = "exporter"  # under which the process's own failures are shown


class _ProcessFailedError(Exception):
    """The exporter process ended, or does not answer as it must."""


def begin_of(site: Site, topology: Topology, federation_id: str) -> Begin | None:
    """What to tell the exporter; None where the site file asks for no export."""
    directory, uri = site.tensorboard_directory, site.mlflow_uri
    if directory is None and uri is None:
        return None
    file = topology.file
    return Begin(
        tensorboard=str(directory) if directory else None,
        mlflow=uri,
        site=site.file.name,
        federation=file.federation.name,
        federation_id=federation_id,
        parameters={
            "task": file.task.kind,
            "seed": str(file.task.seed),
            "rule": file.aggregation.rule,
            "codec": file.codec.name,
            "graph": file.graph.kind,
            "sites": str(len(topology.names)),
            "local_steps": str(file.round.local_steps),
        },
    )


@dataclass(slots=True)
class _Conversation:
    """One exporter process. ``owed``: it has been told something and has not answered."""

    process: trio.Process
    unread: bytes = b""
    owed: bool = False

    async def say(self, message: Message) -> Written:
        """:raises _ProcessFailedError: no answer."""
        source, sink = self.process.stdout, self.process.stdin
        assert source is not None  # noqa: S101 - both are pipes
        assert sink is not None  # noqa: S101
        try:
            with trio.fail_after(ANSWER_TIMEOUT_SECONDS):
                await sink.send_all(message.line())
                self.owed = True
                while b"\n" not in self.unread:
                    part = await source.receive_some(READ_BYTES)
                    if not part or len(self.unread) > MAX_LINE_BYTES:
                        raise _ProcessFailedError("the exporter process ended")
                    self.unread += part
        except trio.TooSlowError:
            raise _ProcessFailedError(f"no answer within {ANSWER_TIMEOUT_SECONDS:g} s") from None
        except (trio.BrokenResourceError, OSError) as error:
            raise _ProcessFailedError("the exporter process ended") from error
        line, _, self.unread = self.unread.partition(b"\n")
        self.owed = False
        try:
            return Written.model_validate_json(line)
        except ValueError as error:
            raise _ProcessFailedError(f"it said {line[:80]!r}") from error


class Exporting:
    """The exporter process of a daemon, replaced when it dies.

    :ivar errors: why figures do not reach a target, by target; empty while all is well.
    """

    def __init__(self, begin: Begin) -> None:
        self.errors: dict[str, str] = {}
        self._begin = begin
        self._waiting: deque[Figures] = deque(maxlen=WAITING_ROUNDS)
        self._news = trio.Event()

    def offer(self, record: RoundRecord) -> None:
        """Have a finished round exported; never waits."""
        self._waiting.append(
            Figures(round=record.round, at_seconds=record.at_seconds, scalars=scalars_of(record))
        )
        self._news.set()

    async def run(self) -> None:
        """Export until cancelled; what is waiting then has a few seconds to go out."""
        while True:
            try:
                await self._one_life()
            except (_ProcessFailedError, OSError) as error:
                self._show({PROCESS: str(error)})
            await trio.sleep(RESTART_DELAY_SECONDS)

    async def _one_life(self) -> None:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt in the terminal is for the daemon alone
        )
        conversation = _Conversation(process)
        try:
            self._show((await conversation.say(self._begin)).errors)
            while True:
                await self._deliver(conversation)
                self._news = trio.Event()
                await self._news.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_TIMEOUT_SECONDS):
                await self._finish(conversation)
            raise
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()

    async def _deliver(self, conversation: _Conversation) -> None:
        while self._waiting:
            figures = self._waiting[0]
            self._show((await conversation.say(figures)).errors)
            if self._waiting[0] is figures:
                self._waiting.popleft()

    async def _finish(self, conversation: _Conversation) -> None:
        assert conversation.process.stdin is not None  # noqa: S101 - a pipe
        if not conversation.owed:  # else it would get the same figures twice
            try:
                await self._deliver(conversation)
            except _ProcessFailedError:
                return
        await conversation.process.stdin.aclose()
        await conversation.process.wait()

    def _show(self, errors: dict[str, str]) -> None:
        """Take what fails now; each failure is logged when it begins and no more."""
        shown = {
            name: printable(_USER_INFORMATION.sub("://", text), MAX_REASON_CHARACTERS)
            for name, text in errors.items()
        }
        for name in sorted(shown.keys() - self.errors.keys()):
            log.warning("metrics are not exported; rounds go on", target=name, reason=shown[name])
        for name in sorted(self.errors.keys() - shown.keys()):
            log.info("metrics are exported again", target=name)
        self.errors = shown
