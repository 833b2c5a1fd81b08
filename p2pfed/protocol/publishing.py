"""From a trained vector to a sealed payload, in one pass over its chunks."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pfed.errors import AggregationError
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.digests import vector_bytes, vector_hasher
from p2pfed.protocol.envelope import ChunkSealer, PayloadContext, chunk_digest, chunks_root

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the header needs to know of a payload that was just sealed."""

    chunk_digests: bytes
    chunks_root: bytes
    key_commitment: bytes
    replica_after: bytes
    norm: float  # of the change, or of the whole model for a snapshot


class Publication:
    """The change of a model against what its neighbours hold, encoded and sealed by chunks.

    ``encode`` and ``seal`` are called for each chunk in order. They share no state, so that a
    chunk can be sealed in one thread while the next is encoded in another.

    :param model: shape (d,), float32.
    :param replica_before: shape (d,), float32; zeros for a snapshot.
    :param seed: 64 bits for the codec's rounding, which nobody else can tell beforehand.
    """

    def __init__(
        self,
        model: Vector,
        replica_before: Vector,
        *,
        context: PayloadContext,
        key: bytes,
        seed: int,
    ) -> None:
        self._model = model
        self._before = replica_before
        self._codec = get_codec(context.codec)
        self._seed = seed
        self._sealer = ChunkSealer(key, context)
        self._replica_hash = vector_hasher()
        self._digests: list[bytes] = []
        self._squared_norm = 0.0
        self.chunk_count = context.chunk_count

    def encode(self, index: int) -> tuple[bytes, Vector]:
        """Chunk ``index`` as plaintext, and the part of the replica that it leads to.

        The replica is what every neighbour will decode, which differs from the model by what
        the codec lost.

        :raises AggregationError: the model is not finite; nothing of it may leave.
        """
        size = self._codec.chunk_parameters
        start = index * size
        part = slice(start, start + size)
        before = self._before[part]
        encoded, squares = self._codec.encode(self._model[part], before, self._seed, start)
        after = np.empty(before.shape, np.float32)
        if not math.isfinite(squares) or not math.isfinite(
            self._codec.decode_add(encoded, before, after)
        ):
            raise AggregationError(
                f"the trained model is not finite between parameters {start} and "
                f"{start + size}; nothing was published"
            )
        self._squared_norm += squares
        self._replica_hash.update(vector_bytes(after))
        return encoded, after

    def seal(self, index: int, encoded: bytes) -> bytes:
        """The ciphertext of an encoded chunk."""
        ciphertext = self._sealer.seal(index, encoded)
        self._digests.append(chunk_digest(ciphertext))
        return ciphertext

    def finish(self) -> Sealed:
        """Sum up, after the last chunk."""
        joined = b"".join(self._digests)
        return Sealed(
            joined,
            chunks_root(joined),
            self._sealer.key_commitment,
            self._replica_hash.digest(),
            math.sqrt(self._squared_norm),
        )


def publish(
    publication: Publication, write: Callable[[bytes], object], keep: Callable[[Vector], object]
) -> Sealed:
    """Encode and seal all chunks, one after the other.

    :param write: takes the ciphertext, chunk by chunk.
    :param keep: takes the published replica, part by part.
    :raises AggregationError: the model is not finite.
    """
    for index in range(publication.chunk_count):
        encoded, after = publication.encode(index)
        keep(after)
        write(publication.seal(index, encoded))
    return publication.finish()
