"""What a stopped or killed peer process does to the one that was talking to it."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from transport_doubles import DIAL_SECONDS, GUARD_SECONDS, Site, identity
from transport_peer import POUR, SWALLOW

from p2pfed.errors import TransportError

SCRIPT = Path(__file__).with_name("transport_peer.py")
REMOTE = 2
IDLE_SECONDS = 0.5


@asynccontextmanager
async def remote_peer() -> AsyncIterator[tuple[trio.Process, str]]:
    """The peer's process and its address."""
    async with trio.open_nursery() as nursery:
        run = partial(
            trio.run_process,
            [sys.executable, str(SCRIPT), str(REMOTE), "1"],
            stdout=subprocess.PIPE,
            check=False,
            deliver_cancel=_kill,
        )
        process: trio.Process = await nursery.start(run)
        assert process.stdout is not None
        line = bytearray()
        while not line.endswith(b"\n"):
            line += await process.stdout.receive_some()
        yield process, line.decode().strip()
        nursery.cancel_scope.cancel()


async def _kill(process: trio.Process) -> None:
    process.kill()
    await process.wait()


@asynccontextmanager
async def local_site(idle_timeout_seconds: float) -> AsyncIterator[Site]:
    site = Site(1, idle_timeout_seconds=idle_timeout_seconds)
    site.transport.set_roster([identity(REMOTE).peer_id])
    with trio.fail_after(GUARD_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(site.transport.run)
            yield site
            nursery.cancel_scope.cancel()


async def test_a_stopped_peer_frees_its_sender_after_the_idle_timeout() -> None:
    peer_id = identity(REMOTE).peer_id
    async with local_site(IDLE_SECONDS) as site, remote_peer() as (process, address):
        await site.transport.dial(peer_id, address, DIAL_SECONDS)
        stream = await site.transport.open_stream(peer_id, SWALLOW)
        await stream.send_all(bytes(1000))
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(TransportError):
            while True:
                await stream.send_all(bytes(1_000_000))
        await site.recorder.wait("disconnected", peer_id)
        assert ("disconnected", peer_id, "nothing was taken for too long") in site.recorder.events

        process.send_signal(signal.SIGCONT)
        await site.transport.dial(peer_id, address, DIAL_SECONDS)
        again = await site.transport.open_stream(peer_id, SWALLOW)
        await again.send_all(bytes(1_000_000))


async def test_a_stopped_peer_does_not_hold_up_who_opens_a_stream_to_it() -> None:
    peer_id = identity(REMOTE).peer_id
    async with local_site(IDLE_SECONDS) as site, remote_peer() as (process, address):
        await site.transport.dial(peer_id, address, DIAL_SECONDS)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(TransportError):
            await site.transport.open_stream(peer_id, SWALLOW)


async def test_a_killed_peer_ends_the_transfer_and_can_be_dialled_when_it_is_back() -> None:
    peer_id = identity(REMOTE).peer_id
    async with local_site(20.0) as site:
        for count in (1, 2):
            async with remote_peer() as (process, address):
                await site.transport.dial(peer_id, address, DIAL_SECONDS)
                stream = await site.transport.open_stream(peer_id, POUR)
                await stream.receive_exactly(1_000_000)
                process.send_signal(signal.SIGKILL)
                with pytest.raises(TransportError):
                    await stream.receive_exactly(10**9)
                await site.recorder.wait("disconnected", peer_id, count)


async def test_shutting_down_beside_a_stopped_peer_is_bounded() -> None:
    peer_id = identity(REMOTE).peer_id
    async with remote_peer() as (process, address):
        async with local_site(20.0) as site:
            await site.transport.dial(peer_id, address, DIAL_SECONDS)
            stream = await site.transport.open_stream(peer_id, SWALLOW)
            process.send_signal(signal.SIGSTOP)
            async with trio.open_nursery() as sending:

                async def fill() -> None:
                    with pytest.raises(TransportError):
                        await stream.send_all(bytes(100_000_000))

                sending.start_soon(fill)
                while not site.transport._stamps:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked(0.05)
                # As a daemon that stops does it: the transport goes, the transfer fails.
                await site.transport.drop(peer_id, "this daemon stops")
        process.send_signal(signal.SIGCONT)
