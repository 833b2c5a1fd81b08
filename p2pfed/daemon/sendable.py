"""An own envelope on its way out."""

from dataclasses import dataclass
from pathlib import Path

from p2pfed.protocol.header import SignedHeader


@dataclass(frozen=True, slots=True)
class Sendable:
    """An envelope that is sealed, signed and on disk: enough to offer it to any neighbour,
    any number of times, with the very same bytes.

    ``throw_away`` marks one that is deleted once it was sent.
    """

    signed: SignedHeader
    chunk_digests: bytes
    payload_key: bytes
    ciphertext: Path
    throw_away: bool = False
