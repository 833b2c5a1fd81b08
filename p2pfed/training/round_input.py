"""What a round's training is given, and what it came to."""

import hashlib
from dataclasses import dataclass
from typing import Self

import msgpack

from p2pfed.training.regions import Vector
from p2pfed.training.sampling import sampler_seed
from p2pfed.training.site_state import SiteModel

ROUND_CONTEXT = b"p2pfed/1 round seed"


@dataclass(frozen=True)
class RoundInput:
    """Everything that a round's result depends on, the records apart.

    :ivar parameters: shape (d,), float32.
    :ivar state: shape (s,), float32, what this site keeps for itself; zeros at first.
    :ivar local_steps: the federation's number of local steps.
    :ivar seed: of this round at this site, from :func:`round_seed`.
    :ivar sampler_seed: of this site's order of records, from :func:`~.sampling.sampler_seed`.
    :ivar steps: local steps that this site takes, where they are fewer.
    :ivar noise_secret: 32 bytes, of a private round alone: what it draws its records and its noise
        from, see :mod:`~.privacy.randomness`.
    """

    parameters: Vector
    state: Vector
    round_number: int
    local_steps: int
    seed: int
    sampler_seed: int
    steps: int | None = None
    noise_secret: bytes | None = None

    @classmethod
    def at_site(
        cls,
        model: SiteModel,
        *,
        seed: int,
        site: str,
        round_number: int,
        local_steps: int,
        steps: int | None = None,
        noise_secret: bytes | None = None,
    ) -> Self:
        """The round that ``site`` begins with ``model``; ``seed`` is the federation's."""
        return cls(
            parameters=model.parameters,
            state=model.state,
            round_number=round_number,
            local_steps=local_steps,
            seed=round_seed(seed, site, round_number),
            sampler_seed=sampler_seed(seed, site),
            steps=steps,
            noise_secret=noise_secret,
        )

    @property
    def own_steps(self) -> int:
        return self.local_steps if self.steps is None else min(self.steps, self.local_steps)


@dataclass(frozen=True)
class RoundSummary:
    """What training a round came to; loss is the mean over its steps."""

    loss: float
    seconds: float
    samples: int


def round_seed(seed: int, site: str, round_number: int) -> int:
    """The 63-bit seed of one round at one site: BLAKE2b over the canonical msgpack of all three.

    Derived, not drawn in sequence, so that a round trained again after a crash draws the same.
    """
    encoded: bytes = msgpack.packb([seed, site, round_number])
    digest = hashlib.blake2b(ROUND_CONTEXT + encoded, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
