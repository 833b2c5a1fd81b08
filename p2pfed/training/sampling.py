"""Which records each local step sees, from round to round and across restarts."""

import hashlib
from dataclasses import dataclass

import msgpack
import numpy as np
import torch

from p2pfed.training.regions import Vector

SAMPLER_CONTEXT = b"p2pfed/1 sampler"
POSITION_FLOATS = 3
_EXACT = 1 << 24  # whole numbers below it are exact as float32


@dataclass(frozen=True)
class Position:
    """How far a site is through its records: whole passes, and records of the one under way."""

    passes: int = 0
    drawn: int = 0

    def write(self, vector: Vector) -> None:
        """Lay it into ``vector``, shape (POSITION_FLOATS,), float32, exactly."""
        vector[:] = (self.passes % _EXACT, self.drawn // _EXACT, self.drawn % _EXACT)

    @classmethod
    def read(cls, vector: Vector) -> "Position":
        passes, high, low = (int(value) for value in vector)
        return cls(passes, high * _EXACT + low)


@dataclass(frozen=True)
class Sampler:
    """Shuffled passes over the records, joined end to end.

    Every batch is full (batch norm cannot take a batch of one), and no record is drawn twice
    before all have been drawn once, also across rounds: a site with more records than a round
    draws goes on where the last round ended. Each pass has an order of its own, which follows
    from the seed and the pass's number alone, so that a position is all that has to be kept.

    :param seed: of this site's draws, from :func:`sampler_seed`.
    """

    records: int
    batch_size: int
    seed: int

    def draw(self, position: Position, steps: int) -> tuple[list[list[int]], Position]:
        """Record indices of each of the next ``steps`` steps, and the position after them."""
        size = min(self.batch_size, self.records)
        passes, drawn = position.passes, position.drawn
        if drawn >= self.records:  # the site has fewer records than when it stopped
            passes, drawn = passes + 1, 0
        order = self._pass(passes)[drawn:]
        wanted = size * steps
        while order.size < wanted:
            passes += 1
            order = np.concatenate([order, self._pass(passes)])
        left = order.size - wanted
        batches = order[:wanted].reshape(steps, size).tolist()
        return batches, Position(passes, self.records - left)

    def _pass(self, number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        encoded: bytes = msgpack.packb([self.seed, number])
        digest = hashlib.blake2b(SAMPLER_CONTEXT + encoded, digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        return torch.randperm(self.records, generator=generator).numpy()


def sampler_seed(seed: int, site: str) -> int:
    """The 63-bit seed of a site's order of records: BLAKE2b over canonical msgpack."""
    encoded: bytes = msgpack.packb([seed, site])
    digest = hashlib.blake2b(SAMPLER_CONTEXT + encoded, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
