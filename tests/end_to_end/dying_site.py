"""A site's daemon that dies at a chosen point of a round, by SIGKILL and from within.

    python dying_site.py SITE_FILE POINT ROUND

An ordinary daemon in all else; from outside, what lies between two writes cannot be hit.
"""

import os
import signal
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from p2pfed.daemon.main import run_daemon
from p2pfed.daemon.round_work import Mixed, RoundWork
from p2pfed.daemon.sendable import Sendable
from p2pfed.protocol import commands as do
from p2pfed.protocol.envelope import PayloadContext
from p2pfed.protocol.header import SignedHeader
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.publishing import Publication, Sealed

POINTS = {
    "trained": "before anything of the trained model is stored",
    "sealed": "the ciphertext and the replica are durable, no row names them",
    "published": "the own delta is durable, and nobody has seen a byte of it",
    "received": "a neighbour's replica has moved on, and no row says so",
    "mixed": "the aggregated model is durable, no row names it",
    "committed": "the round is durable, and the engine has not heard of it",
}


class DyingWork(RoundWork):
    """The other parameters are those of :class:`RoundWork`."""

    def __init__(self, *parts: Any, point: str, round_number: int, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self._last = (point, round_number)

    def _live_through(self, point: str, round_number: int) -> None:
        if (point, round_number) == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def publish(
        self,
        command: do.Publish,
        plan: FederationPlan,
        trained: Any,
        site_state: Any,
        privacy_spend: float = 0.0,
    ) -> Sendable:
        self._live_through("trained", command.round_number)
        item = super().publish(command, plan, trained, site_state, privacy_spend)
        self._live_through("published", command.round_number)
        return item

    def _seal(self, publication: Publication, context: PayloadContext) -> Sealed:
        sealed = super()._seal(publication, context)
        self._live_through("sealed", context.round_number)
        return sealed

    def apply(self, site: str, signed: SignedHeader, chunks: Iterable[bytes]) -> None:
        super().apply(site, signed, chunks)
        self._live_through("received", signed.header.round_number)

    def mix(self, command: do.Aggregate, plan: FederationPlan) -> Mixed:
        mixed = super().mix(command, plan)
        self._live_through("mixed", command.round_number)
        return mixed

    def commit(self, command: do.CommitRound, *parts: Any) -> None:
        super().commit(command, *parts)
        self._live_through("committed", command.round_number)


if __name__ == "__main__":
    _, config, last_point, last_round = sys.argv
    if last_point not in POINTS:
        raise SystemExit(f"{last_point!r} is none of {', '.join(POINTS)}")
    run_daemon(Path(config), partial(DyingWork, point=last_point, round_number=int(last_round)))
