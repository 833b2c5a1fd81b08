"""A hostile site's daemon: an ordinary one in all but the model that it publishes.

    python -m p2pfed.demo.hostile SITE_FILE ATTACK SEED

It keeps the protocol and signs what it sends, so its neighbours cannot tell it from an honest
site by anything but the content of its model. For its own use it trains and aggregates as an
honest site does: the attacker stays well informed.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from p2pfed.attacks import ModelAttack, View, make
from p2pfed.attacks.attack import Vector, as_model
from p2pfed.daemon.main import run_daemon
from p2pfed.daemon.round_work import Mixed, RoundWork
from p2pfed.daemon.sendable import Sendable
from p2pfed.errors import UsageError
from p2pfed.protocol import commands as do
from p2pfed.protocol.envelope import PayloadContext
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.publishing import Publication, Sealed

log = structlog.get_logger(__name__)


class HostileRoundWork(RoundWork):
    """Publishes what the attack makes of the round, and mixes with what honest training gave.

    What it believes of the honest sites' new models before they arrive: their last replicas,
    moved on as its own training moved. It remembers nothing over a restart, after which it goes
    on from its last lie.

    The other parameters are those of :class:`RoundWork`.
    """

    def __init__(
        self, *parts: Any, attack: ModelAttack, generator: np.random.Generator, **settings: Any
    ) -> None:
        super().__init__(*parts, **settings)
        self._attack = attack
        self._generator = generator
        self._start: Vector = self._genesis
        self._honest: Vector | None = None  # while a round is published but not yet mixed
        self._is_mixing = False
        self._spoilt_by: np.float32 | None = None

    def publish(
        self,
        command: do.Publish,
        plan: FederationPlan,
        trained: Vector,
        optimiser: Vector,
        privacy_spend: float = 0.0,
    ) -> Sendable:
        honest = trained.copy()
        lie = self._attack.model(self._view(command.round_number, honest), self._generator)
        bad = lie[~np.isfinite(lie)]
        self._spoilt_by = bad[0] if bad.size else None
        model = as_model(lie) if bad.size else lie
        item = super().publish(command, plan, model, optimiser, privacy_spend)
        self._honest = honest
        self._trained_digest = self._store.put_vector(honest)
        log.info(
            "published a lie",
            attack=self._attack.name,
            round=command.round_number,
            distance=float(np.linalg.norm(lie.astype(np.float64) - honest)),
        )
        return item

    def mix(self, *inputs: Any, **settings: Any) -> Mixed:
        self._is_mixing = True
        try:
            mixed = super().mix(*inputs, **settings)
        finally:
            self._is_mixing = False
        self._start = mixed.model.copy()
        return mixed

    def _own_replica(self) -> Vector:
        if self._is_mixing and self._honest is not None:
            return self._honest
        return super()._own_replica()

    def _seal(self, publication: Publication, context: PayloadContext) -> Sealed:
        if self._spoilt_by is not None:
            publication = _SpoiltPublication(publication, self._spoilt_by)
        return super()._seal(publication, context)

    def _view(self, round_number: int, own: Vector) -> View:
        update = own - self._start
        return View(
            round_number=round_number,
            own=own,
            start=self._start,
            published=self._own_replica(),
            honest=[
                self._replica(site) + (update if stored.round_number < round_number else 0)
                for site, stored in self.replica_states().items()
            ],
        )


class _SpoiltPublication(Publication):
    """A publication whose first number on the wire, a scale or a parameter, is not finite; an
    ordinary one refuses to encode that."""

    def __init__(self, finite: Publication, bad: np.float32) -> None:
        self._finite = finite
        self._bad = bad
        self.chunk_count = finite.chunk_count

    def encode(self, index: int) -> tuple[bytes, Vector]:
        encoded, after = self._finite.encode(index)
        if index == 0:
            encoded = self._bad.astype("<f4").tobytes() + encoded[4:]
        return encoded, after

    def seal(self, index: int, encoded: bytes) -> bytes:
        return self._finite.seal(index, encoded)

    def finish(self) -> Sealed:
        return self._finite.finish()


def model_attack(name: str) -> ModelAttack:
    """The attack of that name, made with its defaults.

    :raises UsageError: no such attack, or one that is not on the published model.
    """
    attack = make(name)
    if not isinstance(attack, ModelAttack):
        raise UsageError(f"{name} is no attack on the published model")
    return attack


def run_hostile(config: Path, attack: str, seed: int) -> None:
    """Run the site of ``config`` as a hostile one until it is stopped.

    :raises P2pfedError: as ``p2pfed run`` does.
    """
    make_work = partial(
        HostileRoundWork, attack=model_attack(attack), generator=np.random.default_rng(seed)
    )
    run_daemon(config, make_work)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("attack")
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    run_hostile(arguments.config, arguments.attack, arguments.seed)
