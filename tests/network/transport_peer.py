"""A peer in a process of its own, for tests that stop or kill it.

    python transport_peer.py NUMBER OF_NUMBER

Site NUMBER with OF_NUMBER on its roster: prints its address, swallows what comes on SWALLOW,
and sends without end on POUR.
"""

import sys

import trio
from transport_doubles import Site, identity

from p2pfed.daemon.transport import Stream
from p2pfed.errors import TransportError

SWALLOW = "/test/swallow/1"
POUR = "/test/pour/1"


async def swallow(stream: Stream) -> None:
    while await stream.receive_some():
        pass


async def pour(stream: Stream) -> None:
    while True:
        await stream.send_all(bytes(1_000_000))


async def main(number: int, of_number: int) -> None:
    site = Site(number)
    site.transport.set_roster([identity(of_number).peer_id])
    site.transport.set_handler(SWALLOW, swallow)
    site.transport.set_handler(POUR, pour)
    async with trio.open_nursery() as nursery:
        await nursery.start(site.transport.run)
        print(site.address, flush=True)  # noqa: T201


if __name__ == "__main__":
    try:
        trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
    except TransportError as error:
        sys.exit(str(error))
