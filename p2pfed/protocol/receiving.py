"""From a decrypted payload to a neighbour's next replica."""

import math
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


class Application:
    """The next replica, rebuilt from a payload chunk by chunk and checked against the header.

    ``decode`` is called with each decrypted chunk in order and ``hash`` with what it returned;
    they share no state, so that two threads can work on neighbouring chunks.

    :param base: shape (d,): the replica before, or zeros for a snapshot; never written.
    :param max_norm: largest norm of the change that is believed.
    """

    def __init__(self, header: Header, base: Vector, *, max_norm: float | None = None) -> None:
        self._header = header
        self._base = base
        self._codec = get_codec(header.codec)
        self._max_norm = max_norm
        self._replica_hash = vector_hasher()
        self._decoded = 0  # parameters
        self._squared_norm = 0.0

    def decode(self, encoded: bytes) -> Vector:
        """The next part of the replica.

        :raises MalformedMessageError: not exactly the parameters of that part.
        :raises AuthenticationError: it is not finite.
        """
        start = self._decoded
        base = self._base[start : start + self._codec.chunk_parameters]
        part = np.empty(base.shape, np.float32)
        squares = self._codec.decode_add(encoded, base, part)
        if not math.isfinite(squares):
            raise AuthenticationError("the model it describes is not finite")
        self._squared_norm += squares
        self._decoded += part.size
        return part

    def hash(self, part: Vector) -> None:
        self._replica_hash.update(vector_bytes(part))

    def finish(self) -> Applied:
        """Judge the whole, after the last chunk.

        :raises MalformedMessageError: it ended too soon.
        :raises AuthenticationError: beyond ``max_norm``, or not the promised replica.
        """
        dimension = self._base.shape[0]
        if self._decoded < dimension:
            raise MalformedMessageError(
                f"the payload ends before parameter {self._decoded} of {dimension}"
            )
        norm = math.sqrt(self._squared_norm)
        if self._max_norm is not None and norm > self._max_norm:
            raise AuthenticationError(
                f"its norm {norm:.3g} is beyond the bound {self._max_norm:.3g}"
            )
        if self._replica_hash.digest() != self._header.replica_after:
            raise AuthenticationError("it does not lead to the replica that its header names")
        return Applied(norm)
