"""The control API over a real unix socket."""

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from status_samples import status

from p2pfed.daemon.control import (
    FOLLOWED_LINES,
    EvaluateResult,
    ExportResult,
    PingResult,
    ReloadResult,
    serve_control,
)
from p2pfed.daemon.control_link import DaemonLink
from p2pfed.daemon.logs import RecentLines
from p2pfed.daemon.status import Status
from p2pfed.errors import ConfigurationError, ControlError, NotRunningError, Problem


class Operations:
    """A daemon that does nothing but answer."""

    def __init__(self) -> None:
        self.recent = RecentLines()
        self.stopped = False

    def status(self) -> Status:
        return status()

    def stop(self) -> None:
        self.stopped = True

    async def changed(self) -> None:
        await trio.sleep_forever()

    async def ping(self, site: str) -> PingResult:
        if site != "beta":
            raise ControlError(f"{site!r} is no neighbour")
        return PingResult(site, 0.001, None, None)

    async def reload(self) -> ReloadResult:
        raise ConfigurationError([Problem(Path("t.toml"), "graph", None, "not connected")])

    async def export(self, path: Path) -> ExportResult:
        return ExportResult(str(path), 1, 2, "ab")

    async def evaluate(self, data: Path) -> EvaluateResult:
        return EvaluateResult({"auc": 0.5}, len(str(data)))


async def blocking(work: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(work)


async def test_every_operation_is_reached_and_errors_keep_their_exit_code(
    short_tmp: Path,
) -> None:
    path, operations = short_tmp / "state" / "control.sock", Operations()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, operations, path, "")
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        link = DaemonLink(path)
        assert Status.from_json(await blocking(partial(link.get, "/v1/status"))) == status()
        assert (await blocking(partial(link.post, "/v1/ping/beta")))["seconds"] == 0.001
        with pytest.raises(ControlError, match="'nobody' is no neighbour") as failed:
            await blocking(partial(link.post, "/v1/ping/nobody"))
        assert failed.value.exit_code == 1
        with pytest.raises(ControlError, match="not connected") as failed:
            await blocking(partial(link.post, "/v1/reload"))
        assert failed.value.exit_code == 78
        with pytest.raises(ControlError, match="lacks 'path'"):
            await blocking(partial(link.post, "/v1/export"))
        with pytest.raises(ControlError, match="longer than"):
            await blocking(partial(link.post, "/v1/export", {"path": "x" * 70_000}))
        exported = await blocking(partial(link.post, "/v1/export", {"path": "/m"}))
        assert exported == {"path": "/m", "bytes": 1, "round": 2, "model": "ab"}
        evaluated = await blocking(partial(link.post, "/v1/evaluate", {"data": "/d"}))
        assert evaluated["metrics"] == {"auc": 0.5}
        with pytest.raises(ControlError, match="404"):
            await blocking(partial(link.get, "/v1/nothing"))
        await blocking(partial(link.post, "/v1/stop"))
        assert operations.stopped
        nursery.cancel_scope.cancel()
    assert not path.exists()
    with pytest.raises(NotRunningError):
        link.get("/v1/status")


async def test_a_follower_gets_the_lines_and_may_leave(short_tmp: Path) -> None:
    path, operations = short_tmp / "state" / "control.sock", Operations()
    operations.recent.add("before")
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, operations, path, "")
        lines = DaemonLink(path).lines("/v1/log?follow=1")
        assert await blocking(partial(next, lines)) == "before"
        while not operations.recent.followers:
            await trio.testing.wait_all_tasks_blocked()
        operations.recent.add("after")
        assert await blocking(partial(next, lines)) == "after"
        await blocking(lines.close)  # type: ignore[attr-defined]
        nursery.cancel_scope.cancel()


async def test_a_follower_that_does_not_read_is_let_go(short_tmp: Path) -> None:
    path, operations = short_tmp / "state" / "control.sock", Operations()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, operations, path, "")
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(b"GET /v1/log?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        while not operations.recent.followers:
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(FOLLOWED_LINES + 2):
            operations.recent.add("x" * 4000)
        # Once its queue is full it is dropped, and the rest of the daemon does not notice.
        assert (await blocking(partial(DaemonLink(path).get, "/v1/status")))["schema_version"] == 1
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_dead_socket_is_replaced_and_a_living_one_is_not(short_tmp: Path) -> None:
    path = short_tmp / "state" / "control.sock"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, Operations(), path, "")
        with pytest.raises(ControlError, match="another daemon answers here"):
            await serve_control(Operations(), path, "")
        assert (await blocking(partial(DaemonLink(path).get, "/v1/status")))["site"]
        nursery.cancel_scope.cancel()


async def test_metrics_are_served_over_tcp_where_asked_for(short_tmp: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = short_tmp / "state" / "control.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, Operations(), path, f"127.0.0.1:{port}")
        for target, expected in (("/metrics", b"p2pfed_round 7.0"), ("/v1/status", b" 404 ")):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                request = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                await stream.send_all(request.encode())
                assert expected in b"".join([part async for part in stream])
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_directory_that_cannot_be_made_is_named() -> None:
    with pytest.raises(ControlError, match="/proc/none"):
        await serve_control(Operations(), Path("/proc/none/control.sock"), "")
