"""From a decrypted payload to a neighbour's next replica."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pfed.errors import AuthenticationError, MalformedMessageError
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.digests import vector_bytes, vector_hasher
from p2pfed.protocol.header import Header

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Applied:
    """A payload that kept what its header promised. ``norm`` is that of the change."""

    norm: float


def apply_payload(
    chunks: Iterable[bytes],
    header: Header,
    base: Vector,
    out: Vector,
    *,
    max_norm: float | None = None,
) -> Applied:
    """out = base + the payload, checked against the header.

    :param chunks: the decrypted chunks, in order.
    :param base: shape (d,): the replica before, or zeros for a snapshot; never written.
    :param out: shape (d,): meaningless where this raises.
    :param max_norm: largest norm of the change that is believed.
    :raises MalformedMessageError: not exactly d parameters.
    :raises AuthenticationError: not finite, beyond ``max_norm``, or not the promised replica.
    """
    codec = get_codec(header.codec)
    replica_hash = vector_hasher()
    dimension = out.shape[0]
    squared_norm = 0.0
    start = 0
    for encoded in chunks:
        part = slice(start, min(start + codec.chunk_parameters, dimension))
        squares = codec.decode_add(encoded, base[part], out[part])
        if not math.isfinite(squares):
            raise AuthenticationError("the model it describes is not finite")
        squared_norm += squares
        replica_hash.update(vector_bytes(out[part]))
        start += codec.chunk_parameters
    if start < dimension:
        raise MalformedMessageError(f"the payload ends before parameter {start} of {dimension}")
    norm = math.sqrt(squared_norm)
    if max_norm is not None and norm > max_norm:
        raise AuthenticationError(f"its norm {norm:.3g} is beyond the bound {max_norm:.3g}")
    if replica_hash.digest() != header.replica_after:
        raise AuthenticationError("it does not lead to the replica that its header names")
    return Applied(norm)
