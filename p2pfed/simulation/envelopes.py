"""Envelopes as the simulator sends them: real headers, signatures, codecs and digests, and a
payload that is not sealed.

The cipher protects against those who read the network, of whom there is none here. What
depends on nothing but bytes, a signature or what a payload leads to, is worked out once and
remembered for all receivers.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

import blake3
import numpy as np
import numpy.typing as npt

from p2pfed.errors import AuthenticationError, RemoteProtocolError
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.header import Header, Kind, SignedHeader, parse_signed_header, sign_header
from p2pfed.protocol.neighbours import NOTHING_HELD
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.receiving import Application

Vector = npt.NDArray[np.float32]

SNAPSHOT_CODEC = "float32"
OFFER_BYTES = 700  # header, signature and wrapped key, as the wire has them
REMEMBERED_SIGNATURES = 1 << 17


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a payload leads to from one base."""

    vector: Vector
    norm: float


@dataclass(slots=True)
class Envelope:
    """A signed header and its encoded payload, chunk by chunk."""

    signed: SignedHeader
    chunks: tuple[bytes, ...]
    _rebuilt: dict[bytes, Rebuilt | str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.chunks)) + limits.SEAL_BYTES * len(self.chunks)

    @property
    def offer_bytes(self) -> int:
        return OFFER_BYTES + limits.DIGEST_BYTES * len(self.chunks)

    def rebuild(self, base_digest: bytes, base: Vector) -> Rebuilt:
        """Apply the payload, as a receiver does.

        :raises AuthenticationError: it is not what its header promises.
        """
        known = self._rebuilt.get(base_digest)
        if known is None:
            try:
                known = self._apply(base)
            except RemoteProtocolError as error:
                known = str(error)
            self._rebuilt = {base_digest: known}
        if isinstance(known, str):
            raise AuthenticationError(known)
        return known

    def _apply(self, base: Vector) -> Rebuilt:
        application = Application(self.signed.header, base)
        parts = []
        for chunk in self.chunks:
            parts.append(application.decode(chunk))
            application.hash(parts[-1])
        norm = application.finish().norm
        return Rebuilt(parts[0] if len(parts) == 1 else np.concatenate(parts), norm)


@dataclass(frozen=True, slots=True)
class Statement:
    """What a delta says beside its payload."""

    round_number: int
    sequence: int
    previous: bytes
    replica_before: bytes
    time_seconds: int
    since_round: int = 0


def encode_delta(
    identity: Identity,
    plan: FederationPlan,
    codec_name: str,
    statement: Statement,
    model: Vector,
    before: Vector,
    seed: int,
) -> tuple[Envelope, Vector]:
    """Sign and encode the change of ``model`` against ``before``, both shape (d,).

    What is not finite is encoded as well: a hostile site would.

    :returns: the envelope, and the replica that it leads to.
    """
    codec = get_codec(codec_name)
    size = codec.chunk_parameters
    after = np.empty_like(model)
    chunks = []
    for index in range(codec.chunk_count(model.shape[0])):
        part = slice(index * size, (index + 1) * size)
        encoded, squares = codec.encode(model[part], before[part], seed, index * size)
        if not math.isfinite(squares):
            # An honest site publishes no such model; for a hostile one, all bits set are a NaN
            # wherever a float32 is read.
            encoded = b"\xff" * len(encoded)
        codec.decode_add(encoded, before[part], after[part])
        chunks.append(encoded)
    signed = _sign(
        identity, plan, Kind.DELTA, codec_name, statement, vector_digest(after), tuple(chunks)
    )
    envelope = Envelope(signed, tuple(chunks))
    return envelope, after


def encode_snapshot(
    identity: Identity, plan: FederationPlan, published: SignedHeader, replica: Vector
) -> Envelope:
    """The whole published replica, under the round and sequence of ``published``."""
    codec = get_codec(SNAPSHOT_CODEC)
    size = codec.chunk_parameters
    zero = np.zeros_like(replica)
    chunks = tuple(
        codec.encode(replica[start : start + size], zero[start : start + size], 0, start)[0]
        for start in range(0, replica.shape[0], size)
    )
    header = published.header
    statement = Statement(
        header.round_number,
        header.sequence,
        published.digest,
        NOTHING_HELD,
        header.time_seconds,
        header.since_round,
    )
    signed = _sign(
        identity, plan, Kind.SNAPSHOT, SNAPSHOT_CODEC, statement, vector_digest(replica), chunks
    )
    return Envelope(signed, chunks)


def _sign(
    identity: Identity,
    plan: FederationPlan,
    kind: Kind,
    codec: str,
    statement: Statement,
    replica_after: bytes,
    chunks: tuple[bytes, ...],
) -> SignedHeader:
    header = Header(
        version=limits.PROTOCOL_VERSION,
        federation_id=plan.federation_id,
        kind=kind,
        sender=identity.public_key,
        topology_digest=plan.topology_digest,
        schema_digest=plan.schema_digest,
        round_number=statement.round_number,
        sequence=statement.sequence,
        since_round=statement.since_round,
        previous=statement.previous,
        replica_before=statement.replica_before,
        replica_after=replica_after,
        codec=codec,
        key_commitment=bytes(limits.DIGEST_BYTES),
        chunks_root=blake3.blake3(b"".join(chunks)).digest(),
        chunk_count=len(chunks),
        payload_bytes=sum(map(len, chunks)),
        privacy_spend=0.0,
        time_seconds=max(0, statement.time_seconds),
    )
    return sign_header(identity, header)


class Signatures:
    """Verifies headers, each once: what holds for one receiver holds for all."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[bytes, bytes], SignedHeader | str] = OrderedDict()

    def verify(self, encoded: bytes, signature: bytes) -> SignedHeader:
        """:raises AuthenticationError: it is not signed by the sender that it names, or is no
        header at all."""
        key = (encoded, signature)
        known = self._known.get(key)
        if known is None:
            try:
                known = parse_signed_header(encoded, signature)
            except RemoteProtocolError as error:
                known = str(error)
            self._known[key] = known
            if len(self._known) > REMEMBERED_SIGNATURES:
                self._known.popitem(last=False)
        if isinstance(known, str):
            raise AuthenticationError(known)
        return known
