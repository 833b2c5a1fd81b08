"""The control API: HTTP on a unix socket that only the daemon's user can open.

Paths start with /v1; bodies are JSON. An error is ``{"error": text, "exit_code": n}`` with the
exit code that the command line then ends with.
"""

import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from p2pfed.daemon import metrics
from p2pfed.daemon.durable_files import make_private_directory
from p2pfed.daemon.logs import RecentLines
from p2pfed.daemon.netcheck import Report
from p2pfed.daemon.status import Status
from p2pfed.errors import ControlError, ExitCode, P2pfedError

MAX_BODY_BYTES = 64 * 1024
FOLLOWED_LINES = 256  # unread by a follower; a slower one is dropped
EVENT_INTERVAL_SECONDS = 0.5  # at most so often are followers of the status told
SHUTDOWN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class PingResult:
    site: str
    seconds: float
    address: str | None
    direction: str | None
    relay: str | None = None


@dataclass(frozen=True, slots=True)
class ReloadResult:
    digest: str
    changes: list[str]


@dataclass(frozen=True, slots=True)
class ExportResult:
    path: str
    bytes: int
    round: int
    model: str


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    metrics: dict[str, float]
    records: int
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    calibration: dict[str, float] = field(default_factory=dict)


class Operations(Protocol):
    """What an operator can ask of a running daemon."""

    recent: RecentLines

    def status(self) -> Status: ...

    def stop(self) -> None: ...

    async def changed(self) -> None:
        """Return when the status may have changed."""

    async def ping(self, site: str) -> PingResult: ...

    async def netcheck(self) -> Report: ...

    async def reload(self) -> ReloadResult: ...

    async def export(self, path: Path) -> ExportResult: ...

    async def evaluate(self, data: Path) -> EvaluateResult: ...


def control_app(operations: Operations) -> Starlette:
    """The application behind the control socket."""

    async def status(_: Request) -> Response:
        return JSONResponse(operations.status().to_json())

    async def ping(request: Request) -> Response:
        return JSONResponse(asdict(await operations.ping(request.path_params["site"])))

    async def netcheck(_: Request) -> Response:
        return JSONResponse((await operations.netcheck()).to_json())

    async def reload(_: Request) -> Response:
        return JSONResponse(asdict(await operations.reload()))

    async def stop(_: Request) -> Response:
        operations.stop()
        return JSONResponse({})

    async def export(request: Request) -> Response:
        path = Path(await _field(request, "path"))
        return JSONResponse(asdict(await operations.export(path)))

    async def evaluate(request: Request) -> Response:
        path = Path(await _field(request, "data"))
        return JSONResponse(asdict(await operations.evaluate(path)))

    async def log(request: Request) -> Response:
        follow = request.query_params.get("follow") == "1"
        lines = _follow_log(operations.recent) if follow else _recent(operations.recent)
        return _Lines(lines, media_type="application/x-ndjson")

    async def events(_: Request) -> Response:
        return _Lines(_follow_status(operations), media_type="application/x-ndjson")

    async def scrape(_: Request) -> Response:
        return Response(metrics.render(operations.status), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/v1/status", status),
            Route("/v1/ping/{site}", ping, methods=["POST"]),
            Route("/v1/netcheck", netcheck, methods=["POST"]),
            Route("/v1/reload", reload, methods=["POST"]),
            Route("/v1/stop", stop, methods=["POST"]),
            Route("/v1/export", export, methods=["POST"]),
            Route("/v1/evaluate", evaluate, methods=["POST"]),
            Route("/v1/log", log),
            Route("/v1/events", events),
            Route("/metrics", scrape),
        ],
        exception_handlers={P2pfedError: _failed},
    )


class _Lines(StreamingResponse):
    """A stream whose source is closed when its reader goes, not whenever it is collected."""

    async def stream_response(self, send: Send) -> None:
        source = self.body_iterator
        assert isinstance(source, AsyncGenerator)  # noqa: S101 - all of ours are
        async with aclosing(source):
            await super().stream_response(send)


async def _failed(_: Request, error: Exception) -> Response:
    code = error.exit_code if isinstance(error, P2pfedError) else ExitCode.FAILED
    return JSONResponse({"error": str(error), "exit_code": int(code)}, status_code=409)


async def _field(request: Request, name: str) -> str:
    body = bytearray()
    async with aclosing(request.stream()) as parts:
        async for part in parts:
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise ControlError(f"the request is longer than {MAX_BODY_BYTES} bytes")
    try:
        value = json.loads(body)[name]
    except (ValueError, KeyError, TypeError):
        raise ControlError(f"the request lacks {name!r}") from None
    return str(value)


async def _recent(recent: RecentLines) -> AsyncIterator[bytes]:
    for line in list(recent.lines):
        yield line.encode() + b"\n"


async def _follow_log(recent: RecentLines) -> AsyncIterator[bytes]:
    """The recent lines and every later one, until the follower goes or falls behind."""
    sender, receiver = trio.open_memory_channel[str](FOLLOWED_LINES)

    def take(line: str) -> None:
        try:
            sender.send_nowait(line)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            sender.close()

    for line in list(recent.lines):
        yield line.encode() + b"\n"
    recent.followers.add(take)
    try:
        async for line in receiver:
            yield line.encode() + b"\n"
    finally:
        recent.followers.discard(take)


async def _follow_status(operations: Operations) -> AsyncIterator[bytes]:
    while True:
        yield json.dumps(operations.status().to_json()).encode() + b"\n"
        await trio.sleep(EVENT_INTERVAL_SECONDS)
        await operations.changed()


def bind_socket(path: Path) -> socket.socket:
    """A listening unix socket, 0600 in a private directory; a dead one in its place is removed.

    :raises ControlError: a daemon answers on it already, or it cannot be made.
    """
    make_private_directory(path.parent)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink(missing_ok=True)
            else:
                raise ControlError(f"{path}: another daemon answers here; stop it with p2pfed stop")
        old_mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old_mask)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ControlError(f"{path}: {error.strerror}") from error
    except BaseException:
        listener.close()
        raise
    return listener


async def serve_control(
    operations: Operations,
    path: Path,
    metrics_address: str,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the control socket until cancelled, and /metrics over TCP where asked for.

    :raises ControlError: the socket or the metrics address cannot be listened on.
    """
    with ExitStack() as held:
        control = held.enter_context(bind_socket(path))
        held.callback(path.unlink, missing_ok=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve, control_app(operations), control)
            if metrics_address:
                metrics_socket = held.enter_context(_bind_tcp(metrics_address))
                await nursery.start(_serve, _metrics_app(operations), metrics_socket)
            task_status.started()


def _bind_tcp(address: str) -> socket.socket:
    """:raises ControlError: ``host:port`` cannot be listened on."""
    host, _, port = address.rpartition(":")
    try:
        return socket.create_server((host.strip("[]"), int(port)))
    except OSError as error:
        raise ControlError(f"metrics.address {address}: {error.strerror}") from error


def _metrics_app(operations: Operations) -> Starlette:
    async def scrape(_: Request) -> Response:
        return Response(metrics.render(operations.status), media_type="text/plain; version=0.0.4")

    return Starlette(routes=[Route("/metrics", scrape)])


class _GivenSocket(Config):  # type: ignore[misc]
    """Serves a socket that was made, and is closed, by its owner; a trainer process inherits
    none of it."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self._listener = listener
        self.accesslog = None
        self.errorlog = None
        self.graceful_timeout = SHUTDOWN_SECONDS

    def create_sockets(self) -> Sockets:
        return Sockets([], [self._listener], [])


async def _serve(
    app: Starlette,
    listener: socket.socket,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    listener.setblocking(False)
    forever: Callable[[], Awaitable[Any]] = trio.sleep_forever
    await serve(app, _GivenSocket(listener), shutdown_trigger=forever, task_status=task_status)
