"""The name of a model: one digest over its parameters."""

import sys

import blake3
import numpy as np
from numpy.typing import NDArray

VECTOR_CONTEXT = "p2pfed/1 vector"
DIGEST_BYTES = 32


def vector_hasher() -> blake3.blake3:
    """A hasher for a model that is made piece by piece; feed it ``vector_bytes``.

    Derive-key mode (BLAKE3 specification, section 2.3) separates these digests from every
    other use of BLAKE3.
    """
    return blake3.blake3(derive_key_context=VECTOR_CONTEXT)


def vector_bytes(vector: NDArray[np.float32]) -> memoryview:
    """A contiguous float32 vector as little-endian bytes, without a copy where possible."""
    if sys.byteorder == "big":
        vector = vector.astype("<f4")
    return np.ascontiguousarray(vector).view(np.uint8).data


def vector_digest(vector: NDArray[np.float32]) -> bytes:
    """The BLAKE3-256 digest of a model's flat vector.

    :param vector: shape (d,), float32; hashed as little-endian bytes, on every machine.
    :returns: 32 bytes.
    :raises ValueError: another dtype or shape.
    """
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise ValueError(f"a model is a flat float32 vector, not {vector.dtype} {vector.shape}")
    hasher = vector_hasher()
    hasher.update(vector_bytes(vector))
    return hasher.digest()
