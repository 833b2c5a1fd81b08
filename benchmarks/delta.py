"""One delta between two processes, from the trained vector to the neighbour's verified replica,
against the same bytes over a bare socket under ChaCha20-Poly1305, in one run.

    python benchmarks/delta.py [--megabytes 1 10 100] [--codec float32] [--repetitions 5]

The delta's way: encode, seal, hash, sign, write and fsync ciphertext and vectors, commit (all
before the first byte leaves); offer, transfer, check and open each chunk; decode, hash and check
the replica. Megabytes are those of the encoded delta. The receiving process says when the replica
is verified.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import trio
from transport import RECEIVER, SENDER, connect, make_transport, transfer

from p2pfed.aggregation import Mixing
from p2pfed.daemon.delta_exchange import (
    DeltaReceiver,
    ExchangeHandler,
    ReceivedPayload,
    send_envelope,
)
from p2pfed.daemon.round_work import RoundWork
from p2pfed.daemon.store import Store
from p2pfed.keys import Identity
from p2pfed.protocol import commands as do
from p2pfed.protocol import limits
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.envelope import Offer, unwrap_key, wrap_key
from p2pfed.protocol.messages import AnswerCode
from p2pfed.protocol.plan import FederationPlan

TARGET_RATIO = 0.25
# The first compiles kernels and widens windows; until the outbox is full, no file is reused.
WARM_UP = limits.RETAINED_DELTAS + 2
DIAL_TIMEOUT_SECONDS = 20.0
T = TypeVar("T")


def parameters_of(megabytes: int, codec: str) -> int:
    return int(megabytes * 1e6 / get_codec(codec).payload_bytes(1 << 20) * (1 << 20))


def make_work(store: Store, identity: Identity, dimension: int, codec: str) -> RoundWork:
    return RoundWork(
        store,
        identity,
        np.zeros(dimension, np.float32),
        codec=codec,
        mixing=Mixing("mean", "benchmark"),
    )


async def in_thread(job: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(job)


async def receive(directory: Path, dimension: int, codec: str) -> None:
    """The receiving process: prints its address, then a line for each verified replica."""
    work = await in_thread(partial(make_work, Store(directory), RECEIVER, dimension, codec))
    transport = make_transport(RECEIVER, SENDER)
    arrived: trio.MemorySendChannel[ReceivedPayload]
    arrived, payloads = trio.open_memory_channel(1)
    receiver = DeltaReceiver(
        work.spool,
        dimension,
        ExchangeHandler(
            decide=lambda *_: (AnswerCode.SEND, ""),
            unwrap=lambda _, offer: unwrap_key(
                RECEIVER, SENDER.encryption_public_key, offer.wrapped_key, offer.signed.digest
            ),
            deliver=lambda _, payload: arrived.send_nowait(payload),
            aborted=lambda *_: None,
        ),
    )
    transport.set_handler(limits.DELTA_PROTOCOL, receiver.handle)
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        print(transport.listen_addresses[0], flush=True)
        async for payload in payloads:
            with payload:
                await in_thread(partial(work.apply, "sender", payload.signed, payload.chunks()))
            print("verified", flush=True)


async def send(
    directory: Path, dimension: int, codec: str, count: int, process: subprocess.Popen[str]
) -> tuple[list[float], list[float]]:
    """Seconds of each delta from vector to verified replica, and of the bare socket."""
    assert process.stdout is not None
    store = Store(directory)
    work = await in_thread(partial(make_work, store, SENDER, dimension, codec))
    genesis = vector_digest(np.zeros(dimension, np.float32))
    plan = FederationPlan(
        bytes(32),
        bytes(32),
        bytes(32),
        genesis,
        lambda _: {},
        False,
        0,
        1,
        1.0,
        0.0,
        0,
        frozenset(),
        frozenset(),
    )
    address = (await in_thread(process.stdout.readline)).strip()
    transport = make_transport(SENDER, RECEIVER)
    deltas: list[float] = []
    sockets: list[float] = []
    command = [sys.executable, str(Path(__file__).with_name("transport.py")), "--receive", "sealed"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bare:  # noqa: ASYNC220
        assert bare.stdout is not None
        port = (await in_thread(bare.stdout.readline)).strip()
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run)
            await transport.dial(RECEIVER.peer_id, address, DIAL_TIMEOUT_SECONDS)
            socket = await connect("sealed", port, nursery)
            payload = os.urandom(get_codec(codec).payload_bytes(dimension))
            before, previous = genesis, bytes(32)
            generator = np.random.default_rng(0)
            for number in range(WARM_UP + count):
                trained = generator.standard_normal(dimension, dtype=np.float32)
                taken = await transfer(socket, payload)
                started = time.perf_counter()
                publish = do.Publish(number, number + 1, previous, before)
                item = await in_thread(
                    partial(work.publish, publish, plan, trained, np.empty(0, np.float32))
                )
                key = wrap_key(
                    SENDER, RECEIVER.encryption_public_key, item.payload_key, item.signed.digest
                )
                offer = Offer(item.signed, item.chunk_digests, key)
                await send_envelope(transport, RECEIVER.peer_id, offer, item.ciphertext)
                answer = (await in_thread(process.stdout.readline)).strip()
                seconds = time.perf_counter() - started
                assert answer == "verified"
                before, previous = item.signed.header.replica_after, item.signed.digest
                if number >= WARM_UP:
                    deltas.append(seconds)
                    sockets.append(taken)
                await in_thread(store.collect_garbage)  # as the commit of a round does
            nursery.cancel_scope.cancel()
        bare.kill()
    return deltas, sockets


def measure(megabytes: int, codec: str, count: int) -> None:
    dimension = parameters_of(megabytes, codec)
    with tempfile.TemporaryDirectory(prefix="p2p-") as temporary:
        command = [
            sys.executable, __file__, "--codec", codec,
            "--receive", str(dimension), "--directory", f"{temporary}/receiver",
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                deltas, sockets = trio.run(
                    send, Path(temporary) / "sender", dimension, codec, count, process
                )
            finally:
                process.kill()
    ratio = statistics.median(bare / full for bare, full in zip(sockets, deltas, strict=True))
    target = f" (target >= {TARGET_RATIO})" if megabytes >= 100 else ""
    print(
        f"{megabytes:6} MB of {codec}: {statistics.median(deltas):7.3f} s from vector to verified "
        f"replica, {statistics.median(sockets):7.3f} s over the sealed socket, "
        f"ratio {ratio:.3f}{target}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--codec", default="float32")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--receive", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.receive:
        trio.run(receive, arguments.directory, arguments.receive, arguments.codec)
        return
    for megabytes in arguments.megabytes:
        measure(megabytes, arguments.codec, arguments.repetitions)


if __name__ == "__main__":
    main()
