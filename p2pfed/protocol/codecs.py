"""Codecs: how the change of a model becomes bytes. A payload has exactly the length that the
codec and the local schema say; nothing about its shape comes from the wire.
"""

import abc
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from p2pfed.errors import MalformedMessageError
from p2pfed.protocol import limits

Vector = npt.NDArray[np.float32]


class Codec(abc.ABC):
    """One way to write ``model - base``, chunk by chunk.

    ``chunk_parameters`` is how many parameters one sealed chunk holds.
    """

    name: str
    chunk_parameters: int

    @abc.abstractmethod
    def encoded_bytes(self, parameters: int) -> int:
        """Length of the encoding of that many parameters of one chunk."""

    @abc.abstractmethod
    def encode(
        self, model: Vector, base: Vector, seed: int, first_index: int
    ) -> tuple[bytes, float]:
        """Encode a chunk of the change, shape (n,).

        :param seed: 64 bits; the rounding of parameter ``first_index + i`` depends on both.
        :returns: the bytes, and the squared norm of the change in float64, which is NaN where
            an input is not finite.
        """

    @abc.abstractmethod
    def decode_add(self, encoded: bytes, base: Vector, out: Vector) -> float:
        """out = base + change, bit for bit the same on every machine.

        :returns: the squared norm of the change in float64; NaN where ``out`` is not finite.
        :raises MalformedMessageError: the length does not fit ``out``.
        """

    def payload_bytes(self, dimension: int) -> int:
        """Length of the whole encoding of a model of ``dimension`` parameters."""
        whole, rest = divmod(dimension, self.chunk_parameters)
        return whole * self.encoded_bytes(self.chunk_parameters) + (
            self.encoded_bytes(rest) if rest else 0
        )

    def chunk_count(self, dimension: int) -> int:
        return math.ceil(dimension / self.chunk_parameters)

    def _check_length(self, encoded: bytes, parameters: int) -> None:
        expected = self.encoded_bytes(parameters)
        if len(encoded) != expected:
            raise MalformedMessageError(
                f"{len(encoded)} bytes of {self.name} for {parameters} parameters, "
                f"expected {expected}"
            )


class Float32Codec(Codec):
    """The change as little-endian float32: no loss but that of one subtraction."""

    name = "float32"
    chunk_parameters = limits.CHUNK_BYTES // 4

    def encoded_bytes(self, parameters: int) -> int:
        return 4 * parameters

    def encode(
        self,
        model: Vector,
        base: Vector,
        seed: int,  # noqa: ARG002
        first_index: int,  # noqa: ARG002
    ) -> tuple[bytes, float]:
        with np.errstate(over="ignore", invalid="ignore"):
            change = model - base
        return change.astype("<f4", copy=False).tobytes(), _squared_norm(change)

    def decode_add(self, encoded: bytes, base: Vector, out: Vector) -> float:
        self._check_length(encoded, out.shape[0])
        change = np.frombuffer(encoded, dtype="<f4").astype(np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(base, change, out=out)
        return _squared_norm(change) if np.isfinite(out).all() else math.nan


class Int8Codec(Codec):
    """Stochastically rounded int8 with one float32 scale for each block of 4096 parameters.

    A chunk is its scales followed by its codes. Four times smaller than float32; what rounding
    loses stays in ``model - replica`` and goes out with the next delta (error feedback).
    """

    name = "int8"
    block = limits.CODEC_BLOCK_PARAMETERS
    chunk_parameters = (limits.CHUNK_BYTES // (block + 4)) * block

    def encoded_bytes(self, parameters: int) -> int:
        return 4 * math.ceil(parameters / self.block) + parameters

    def encode(
        self, model: Vector, base: Vector, seed: int, first_index: int
    ) -> tuple[bytes, float]:
        from p2pfed.protocol import codec_kernels  # noqa: PLC0415 - loads numba

        count = model.shape[0]
        encoded = np.empty(self.encoded_bytes(count), dtype=np.uint8)
        scales, codes = self._parts(encoded, count)
        squared_norm = codec_kernels.quantise(
            model, base, np.uint64(seed), first_index, self.block, scales, codes
        )
        return encoded.tobytes(), float(squared_norm)

    def decode_add(self, encoded: bytes, base: Vector, out: Vector) -> float:
        from p2pfed.protocol import codec_kernels  # noqa: PLC0415 - loads numba

        self._check_length(encoded, out.shape[0])
        # The scales may be unaligned in a buffer that came from elsewhere.
        scales, codes = self._parts(np.frombuffer(encoded, dtype=np.uint8), out.shape[0])
        return float(codec_kernels.dequantise_add(scales.copy(), codes, self.block, base, out))

    def _parts(
        self, encoded: npt.NDArray[np.uint8], count: int
    ) -> tuple[Vector, npt.NDArray[np.int8]]:
        scale_bytes = 4 * math.ceil(count / self.block)
        return encoded[:scale_bytes].view(np.float32), encoded[scale_bytes:].view(np.int8)


def _squared_norm(change: Vector) -> float:
    from p2pfed.protocol import codec_kernels  # noqa: PLC0415 - loads numba

    squares = float(codec_kernels.squared_norm(change))
    return squares if math.isfinite(squares) else math.nan


CODECS: Mapping[str, Codec] = MappingProxyType(
    {codec.name: codec for codec in (Float32Codec(), Int8Codec())}
)


def get_codec(name: str) -> Codec:
    """:raises MalformedMessageError: no such codec (the name may come from a header)."""
    codec = CODECS.get(name)
    if codec is None:
        raise MalformedMessageError(f"unknown codec {name!r}; known: {', '.join(CODECS)}")
    return codec
