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


def publish(
    model: Vector,
    replica_before: Vector,
    replica_after: Vector,
    *,
    context: PayloadContext,
    key: bytes,
    seed: int,
    write: Callable[[bytes], object],
) -> Sealed:
    """Encode and seal the change of ``model`` against ``replica_before``.

    All three vectors have shape (d,). ``replica_after`` receives what every neighbour will
    decode, which differs from ``model`` by what the codec lost.

    :param seed: 64 random bits for the codec's rounding.
    :param write: takes the ciphertext, chunk by chunk.
    :raises AggregationError: the model is not finite; nothing of it may leave.
    """
    codec = get_codec(context.codec)
    sealer = ChunkSealer(key, context)
    replica_hash = vector_hasher()
    digests: list[bytes] = []
    squared_norm = 0.0
    for index in range(context.chunk_count):
        start = index * codec.chunk_parameters
        part = slice(start, start + codec.chunk_parameters)
        encoded, squares = codec.encode(model[part], replica_before[part], seed, start)
        if not math.isfinite(squares) or not math.isfinite(
            codec.decode_add(encoded, replica_before[part], replica_after[part])
        ):
            raise AggregationError(
                f"the trained model is not finite between parameters {start} and "
                f"{start + codec.chunk_parameters}; nothing was published"
            )
        squared_norm += squares
        replica_hash.update(vector_bytes(replica_after[part]))
        ciphertext = sealer.seal(index, encoded)
        digests.append(chunk_digest(ciphertext))
        write(ciphertext)
    joined = b"".join(digests)
    return Sealed(
        joined,
        chunks_root(joined),
        sealer.key_commitment,
        replica_hash.digest(),
        math.sqrt(squared_norm),
    )


def publish_snapshot(
    replica: Vector,
    scratch: Vector,
    *,
    context: PayloadContext,
    key: bytes,
    write: Callable[[bytes], object],
) -> Sealed:
    """Seal a whole replica, shape (d,), as its change against zero.

    :param scratch: shape (d,), overwritten.
    """
    zero = np.broadcast_to(np.float32(0.0), replica.shape)
    return publish(replica, zero, scratch, context=context, key=key, seed=0, write=write)
