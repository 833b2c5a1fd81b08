"""Random numbers that nobody can tell from chance who does not hold a round's secret.

Whoever could draw the noise again would subtract it, so it never comes from the federation's
seed, which all sites know, and not from a generator such as Mersenne Twister, whose state
follows from its output. It is the ChaCha20 key stream of libsodium under keys derived from the
secret: a round that is trained again after a crash draws the same numbers, and nobody else can.
"""

import hashlib

import nacl.utils
import numpy as np
from numpy.typing import NDArray

SECRET_BYTES = 32
NORMALS_AT_ONCE = 1 << 16  # 2 MiB of key stream; bounds what is held beside the result
_MANTISSA_BITS = 53
_DOMAIN = b"p2pfed/1 private draws\x00"


class SecretDraws:
    """The draws of one private round.

    :param secret: 32 bytes, of this round and this site alone.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a round's secret has {SECRET_BYTES} bytes, not {len(secret)}")
        self._secret = secret

    def uniforms(self, purpose: str, number: int, count: int) -> NDArray[np.float64]:
        """``count`` draws, shape (count,), uniform over the multiples of 2**-53 in [0, 1).

        :param purpose: with ``number`` the name of this series; the same name, the same series.
        """
        name = f"{purpose}/{number}".encode()
        key = hashlib.blake2b(_DOMAIN + name, key=self._secret, digest_size=32).digest()
        stream = nacl.utils.randombytes_deterministic(8 * count, key)
        bits = np.frombuffer(stream, "<u8") >> (64 - _MANTISSA_BITS)
        return np.ldexp(bits.astype(np.float64), -_MANTISSA_BITS)

    def normals(self, purpose: str, number: int, count: int) -> NDArray[np.float64]:
        """``count`` draws of the standard normal distribution, shape (count,).

        Each is half the sum of four by Box and Muller, so that the gaps which floating point
        leaves between the values of one are closed (Holohan and Braghin, *Secure Random Sampling
        in Differential Privacy*, ESORICS 2021, section 5).
        """
        result = np.empty(count)
        for part, first in enumerate(range(0, count, NORMALS_AT_ONCE)):
            size = min(NORMALS_AT_ONCE, count - first)
            uniforms = self.uniforms(f"{purpose}/{number}/normals", part, 4 * size)
            # 1 - u is in (0, 1]: its logarithm is finite.
            radii = np.sqrt(-2.0 * np.log1p(-uniforms[: 2 * size]))
            angles = 2.0 * np.pi * uniforms[2 * size :]
            sums = radii * (np.cos(angles) + np.sin(angles))
            result[first : first + size] = (sums[:size] + sums[size:]) / 2.0
        return result
