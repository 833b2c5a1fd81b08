"""Identities, headers and sealed payloads with fixed secrets, for tests of the wire."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.envelope import Offer, PayloadContext, wrap_key
from p2pfed.protocol.header import Header, Kind, SignedHeader, sign_header
from p2pfed.protocol.publishing import Publication, Sealed, publish
from p2pfed.protocol.receiving import Application

FEDERATION = b"\xf0" * 32
PAYLOAD_KEY = bytes(range(32))
ALICE = Identity(b"\x01" * 32, b"\x02" * 32)
BOB = Identity(b"\x03" * 32, b"\x04" * 32)
CAROL = Identity(b"\x05" * 32, b"\x06" * 32)

Vector = npt.NDArray[np.float32]


def sample_header(**changes: object) -> Header:
    header = Header(
        version=limits.PROTOCOL_VERSION,
        federation_id=FEDERATION,
        kind=Kind.DELTA,
        sender=ALICE.public_key,
        topology_digest=b"\x11" * 32,
        schema_digest=b"\x22" * 32,
        round_number=7,
        sequence=8,
        since_round=0,
        previous=b"\x33" * 32,
        replica_before=b"\x44" * 32,
        replica_after=b"\x55" * 32,
        codec="float32",
        key_commitment=b"\x66" * 32,
        chunks_root=b"\x77" * 32,
        chunk_count=1,
        payload_bytes=400,
        privacy_spend=0.0,
        time_seconds=1_767_225_600,
    )
    return replace(header, **changes)  # type: ignore[arg-type]


def signed_header(identity: Identity = ALICE, **changes: object) -> SignedHeader:
    return sign_header(identity, sample_header(sender=identity.public_key, **changes))


def payload_context(dimension: int, codec: str, kind: Kind = Kind.DELTA) -> PayloadContext:
    shape = get_codec(codec)
    return PayloadContext(
        federation_id=FEDERATION,
        sender=ALICE.public_key,
        kind=kind,
        round_number=7,
        sequence=8,
        codec=codec,
        payload_bytes=shape.payload_bytes(dimension),
        chunk_count=shape.chunk_count(dimension),
    )


def header_of(context: PayloadContext, sealed: Sealed) -> Header:
    return sample_header(
        kind=context.kind,
        codec=context.codec,
        payload_bytes=context.payload_bytes,
        chunk_count=context.chunk_count,
        chunks_root=sealed.chunks_root,
        key_commitment=sealed.key_commitment,
        replica_after=sealed.replica_after,
    )


def sealed_payload(
    model: Vector, base: Vector, codec: str = "float32", *, seed: int = 1
) -> tuple[Header, Sealed, list[bytes], Vector]:
    """The header, what sealing found, the ciphertext chunks and the replica that they lead to."""
    context = payload_context(model.shape[0], codec)
    publication = Publication(model, base, context=context, key=PAYLOAD_KEY, seed=seed)
    chunks: list[bytes] = []
    parts: list[Vector] = []
    sealed = publish(publication, write=chunks.append, keep=parts.append)
    return header_of(context, sealed), sealed, chunks, np.concatenate(parts)


def rebuild(
    header: Header, plaintext: Iterable[bytes], base: Vector, max_norm: float | None = None
) -> tuple[Vector, float]:
    """The replica that a payload leads to, and the norm of the change."""
    application = Application(header, base, max_norm=max_norm)
    parts = []
    for chunk in plaintext:
        parts.append(application.decode(chunk))
        application.hash(parts[-1])
    norm = application.finish().norm
    return np.concatenate(parts), norm


def sample_offer(recipient: Identity = BOB) -> Offer:
    model = np.arange(100, dtype=np.float32)
    header, sealed, _, _ = sealed_payload(model, np.zeros_like(model))
    signed = sign_header(ALICE, header)
    wrapped = wrap_key(ALICE, recipient.encryption_public_key, PAYLOAD_KEY, signed.digest)
    return Offer(signed, sealed.chunk_digests, wrapped)
