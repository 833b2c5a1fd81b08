"""The signed header of an envelope: who says what about which change of which model.

A header is small, canonical and self-contained. It is flooded through the federation, so that
a site which signs two different ones for a round convicts itself.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from p2pfed.errors import MalformedMessageError
from p2pfed.keys import Identity, verify
from p2pfed.protocol import limits
from p2pfed.protocol.canonical import pack, unpack
from p2pfed.protocol.fields import FieldReader

DIGEST_DOMAIN = b"p2pfed/1 header digest\x00"
MAX_EPSILON = 1e6
MAX_CODEC_CHARACTERS = 16
_FIELD_COUNT = 19


class Kind(StrEnum):
    DELTA = "delta"  # the change from replica_before to replica_after
    SNAPSHOT = "snapshot"  # the whole of replica_after, for one who lost track

    @property
    def signing_domain(self) -> bytes:
        return f"p2pfed/1 {self.value} header".encode() + b"\x00"


@dataclass(frozen=True, slots=True)
class Header:
    """The fields in the order in which they are encoded. Digests are 32 bytes."""

    version: int
    federation_id: bytes
    kind: Kind
    sender: bytes  # Ed25519 public key
    topology_digest: bytes
    schema_digest: bytes
    round_number: int
    sequence: int  # grows with every delta of the sender; a snapshot repeats its delta's
    since_round: int  # in which the sender joined from far behind; 0: it was there all along
    previous: bytes  # digest of the sender's previous delta header; zeros for the first
    replica_before: bytes  # what the delta applies to; zeros for a snapshot
    replica_after: bytes
    codec: str
    key_commitment: bytes
    chunks_root: bytes
    chunk_count: int
    payload_bytes: int  # of the encoded payload before sealing
    privacy_spend: float  # epsilon spent up to this round; 0.0 where none is accounted
    time_seconds: int  # wall clock of the sender, advisory only


@dataclass(frozen=True, slots=True)
class SignedHeader:
    """A header whose signature was made or verified here. ``digest`` names it."""

    header: Header
    encoded: bytes
    signature: bytes
    digest: bytes


def header_digest(encoded: bytes) -> bytes:
    return hashlib.blake2b(DIGEST_DOMAIN + encoded, digest_size=limits.DIGEST_BYTES).digest()


def sign_header(identity: Identity, header: Header) -> SignedHeader:
    """Encode and sign. The caller has made sure that it signs one delta a round, ever."""
    encoded = pack(
        [
            header.version,
            header.federation_id,
            header.kind.value,
            header.sender,
            header.topology_digest,
            header.schema_digest,
            header.round_number,
            header.sequence,
            header.since_round,
            header.previous,
            header.replica_before,
            header.replica_after,
            header.codec,
            header.key_commitment,
            header.chunks_root,
            header.chunk_count,
            header.payload_bytes,
            header.privacy_spend,
            header.time_seconds,
        ]
    )
    signature = identity.sign(header.kind.signing_domain, encoded)
    return SignedHeader(header, encoded, signature, header_digest(encoded))


def parse_signed_header(encoded: bytes, signature: bytes) -> SignedHeader:
    """Decode and verify.

    :raises MalformedMessageError: not a canonical header of this version, or out of range.
    :raises AuthenticationError: not signed by the sender that it names.
    """
    fields = FieldReader("header", unpack(encoded, max_bytes=limits.MAX_HEADER_BYTES), _FIELD_COUNT)
    header = Header(
        version=fields.integer(limits.PROTOCOL_VERSION, limits.PROTOCOL_VERSION),
        federation_id=fields.digest(),
        kind=_kind(fields.text(limits.MAX_NAME_CHARACTERS)),
        sender=fields.exact_bytes(limits.PUBLIC_KEY_BYTES),
        topology_digest=fields.digest(),
        schema_digest=fields.digest(),
        round_number=fields.integer(0, limits.MAX_ROUND_NUMBER),
        sequence=fields.integer(1, limits.MAX_SEQUENCE),
        since_round=fields.integer(0, limits.MAX_ROUND_NUMBER),
        previous=fields.digest(),
        replica_before=fields.digest(),
        replica_after=fields.digest(),
        codec=fields.text(MAX_CODEC_CHARACTERS),
        key_commitment=fields.digest(),
        chunks_root=fields.digest(),
        chunk_count=fields.integer(1, limits.MAX_CHUNKS),
        payload_bytes=fields.integer(1, limits.MAX_PAYLOAD_BYTES),
        privacy_spend=fields.number(0.0, MAX_EPSILON),
        time_seconds=fields.integer(0, limits.MAX_TIME_SECONDS),
    )
    if header.since_round > header.round_number:
        raise MalformedMessageError("header: its sender joins in a later round than its own")
    verify(header.sender, header.kind.signing_domain, encoded, signature)
    return SignedHeader(header, encoded, signature, header_digest(encoded))


def _kind(text: str) -> Kind:
    try:
        return Kind(text)
    except ValueError:
        raise MalformedMessageError(f"header: unknown kind {text!r}") from None
