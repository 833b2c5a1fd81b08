"""The name of a model: one digest over its parameters."""

import sys

import blake3
import numpy as np
from numpy.typing import NDArray

VECTOR_CONTEXT = "p2pfed/1 vector"
DIGEST_BYTES = 32


def vector_digest(vector: NDArray[np.float32]) -> bytes:
    """The BLAKE3-256 digest of a model's flat vector, in derive-key mode.

    Derive-key mode (BLAKE3 specification, section 2.3) with the context ``p2pfed/1 vector``
    separates these digests from every other use of BLAKE3.

    :param vector: shape (d,), float32; hashed as little-endian bytes, on every machine.
    :returns: 32 bytes.
    :raises ValueError: another dtype or shape.
    """
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise ValueError(f"a model is a flat float32 vector, not {vector.dtype} {vector.shape}")
    if sys.byteorder == "big":
        vector = vector.astype("<f4")
    hasher = blake3.blake3(derive_key_context=VECTOR_CONTEXT)
    hasher.update(np.ascontiguousarray(vector).view(np.uint8))
    return hasher.digest()
