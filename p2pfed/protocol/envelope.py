"""The sealed payload: encrypted once, in chunks, under one key that is wrapped for each
neighbour.

Chunks are ChaCha20-Poly1305 (RFC 8439). The key is fresh for each envelope and the nonce is
the chunk's index, so no nonce repeats under a key. Poly1305 does not commit to its key: the
header carries a commitment, or one ciphertext could open differently for two neighbours.
"""

import hashlib
from dataclasses import dataclass

import blake3
import nacl.exceptions
import nacl.public
import nacl.utils
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from p2pfed.errors import AuthenticationError, MalformedMessageError
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.canonical import pack, unpack
from p2pfed.protocol.codecs import Codec, get_codec
from p2pfed.protocol.fields import FieldReader
from p2pfed.protocol.header import Header, Kind, SignedHeader, parse_signed_header

CONTEXT_DOMAIN = b"p2pfed/1 payload context\x00"
COMMITMENT_DOMAIN = b"p2pfed/1 key commitment\x00"
WRAP_DOMAIN = b"p2pfed/1 wrapped key\x00"
ROOT_CONTEXT = "p2pfed/1 chunks root"
CHUNK_CONTEXT = "p2pfed/1 chunk"
PAYLOAD_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class PayloadContext:
    """The header fields that are known before sealing; every chunk is bound to them."""

    federation_id: bytes
    sender: bytes
    kind: Kind
    round_number: int
    sequence: int
    codec: str
    payload_bytes: int
    chunk_count: int

    @classmethod
    def of(cls, header: Header) -> "PayloadContext":
        return cls(
            header.federation_id,
            header.sender,
            header.kind,
            header.round_number,
            header.sequence,
            header.codec,
            header.payload_bytes,
            header.chunk_count,
        )

    def digest(self) -> bytes:
        encoded = pack(
            [
                self.federation_id,
                self.sender,
                self.kind.value,
                self.round_number,
                self.sequence,
                self.codec,
                self.payload_bytes,
                self.chunk_count,
            ]
        )
        return _hash(CONTEXT_DOMAIN, encoded)


def key_commitment(key: bytes, context_digest: bytes) -> bytes:
    """BLAKE2b-256 of context and key: collision resistant, so it fixes the key."""
    return _hash(COMMITMENT_DOMAIN, context_digest + key)


def chunk_digest(ciphertext: bytes) -> bytes:
    return blake3.blake3(ciphertext, derive_key_context=CHUNK_CONTEXT).digest()


def chunks_root(chunk_digests: bytes) -> bytes:
    """One digest over the digests of all chunks, 32 bytes each, in order."""
    return blake3.blake3(chunk_digests, derive_key_context=ROOT_CONTEXT).digest()


class ChunkSealer:
    """Seals the chunks of one payload.

    :param key: 32 fresh random bytes, never used for another payload.
    """

    def __init__(self, key: bytes, context: PayloadContext) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._context_digest = context.digest()
        self.key_commitment = key_commitment(key, self._context_digest)

    def seal(self, index: int, plaintext: bytes) -> bytes:
        return self._cipher.encrypt(
            _nonce(index), plaintext, _associated_data(self._context_digest, index)
        )


class ChunkOpener:
    """Opens the chunks of a payload one by one, refusing at the first bad one.

    :param chunk_digests: those of an ``Offer``, already checked against the header's root.
    :raises AuthenticationError: the key is not the one that the header commits to.
    """

    def __init__(self, header: Header, chunk_digests: bytes, key: bytes) -> None:
        self._digests = chunk_digests
        self._context_digest = PayloadContext.of(header).digest()
        if key_commitment(key, self._context_digest) != header.key_commitment:
            raise AuthenticationError("the payload key is not the one that the header commits to")
        self._cipher = ChaCha20Poly1305(key)

    def open(self, index: int, ciphertext: bytes) -> bytes:
        """The plaintext of chunk ``index``.

        :raises AuthenticationError: the chunk is not the one that was announced, or its seal
            does not hold.
        """
        digest_bytes = limits.DIGEST_BYTES
        announced = self._digests[index * digest_bytes : (index + 1) * digest_bytes]
        if chunk_digest(ciphertext) != announced:
            raise AuthenticationError(f"chunk {index} is not the one that was announced")
        try:
            return self._cipher.decrypt(
                _nonce(index), ciphertext, _associated_data(self._context_digest, index)
            )
        except InvalidTag:
            raise AuthenticationError(f"the seal of chunk {index} does not hold") from None


def sealed_chunk_bytes(header: Header, index: int) -> int:
    """Length of the ciphertext of chunk ``index``, by the header's own account."""
    plain = _full_chunk_bytes(header)
    if index == header.chunk_count - 1:
        plain = header.payload_bytes - plain * (header.chunk_count - 1)
    return plain + limits.SEAL_BYTES


def _full_chunk_bytes(header: Header) -> int:
    codec = get_codec(header.codec)
    return codec.encoded_bytes(codec.chunk_parameters)


def check_payload_shape(header: Header, dimension: int) -> None:
    """Refuse a header whose payload is not exactly a model of ``dimension`` parameters.

    :raises MalformedMessageError: before anything is allocated for it.
    """
    codec: Codec = get_codec(header.codec)
    expected = (codec.payload_bytes(dimension), codec.chunk_count(dimension))
    if (header.payload_bytes, header.chunk_count) != expected:
        raise MalformedMessageError(
            f"a payload of {header.payload_bytes} bytes in {header.chunk_count} chunks; this "
            f"federation's model has {expected[0]} bytes in {expected[1]} chunks as {codec.name}"
        )
    if header.kind is Kind.SNAPSHOT and header.codec != "float32":
        raise MalformedMessageError("a snapshot is always float32")


def wrap_key(identity: Identity, recipient: bytes, key: bytes, header_digest: bytes) -> bytes:
    """Encrypt a payload key for one neighbour (NaCl crypto_box: X25519, XSalsa20-Poly1305).

    It is bound to the header, so it cannot be moved to another envelope.

    :param recipient: the neighbour's certified X25519 key.
    """
    box = nacl.public.Box(identity.encryption_key, nacl.public.PublicKey(recipient))
    message = _hash(WRAP_DOMAIN, header_digest) + key
    return bytes(box.encrypt(message, nacl.utils.random(nacl.public.Box.NONCE_SIZE)))


def unwrap_key(identity: Identity, sender: bytes, wrapped: bytes, header_digest: bytes) -> bytes:
    """Open what ``wrap_key`` made for this identity.

    :param sender: the neighbour's certified X25519 key.
    :raises AuthenticationError: it was not made by ``sender``, for us, for this header.
    """
    try:
        box = nacl.public.Box(identity.encryption_key, nacl.public.PublicKey(sender))
        message = bytes(box.decrypt(wrapped))
    except (nacl.exceptions.CryptoError, ValueError):
        raise AuthenticationError("the payload key was not wrapped for this site") from None
    binding = _hash(WRAP_DOMAIN, header_digest)
    if len(message) != len(binding) + PAYLOAD_KEY_BYTES or not message.startswith(binding):
        raise AuthenticationError("the payload key belongs to another envelope")
    return message[len(binding) :]


@dataclass(frozen=True, slots=True)
class Offer:
    """What opens a transfer: everything a neighbour needs to decide and to decrypt."""

    signed: SignedHeader
    chunk_digests: bytes
    wrapped_key: bytes

    def encode(self) -> bytes:
        return pack(
            [self.signed.encoded, self.signed.signature, self.chunk_digests, self.wrapped_key]
        )

    @classmethod
    def decode(cls, body: bytes) -> "Offer":
        """:raises RemoteProtocolError: malformed, not signed, or not matching its root."""
        fields = FieldReader("offer", unpack(body, max_bytes=limits.MAX_OFFER_BYTES), 4)
        encoded = fields.some_bytes(limits.MAX_HEADER_BYTES)
        signature = fields.exact_bytes(limits.SIGNATURE_BYTES)
        chunk_digests = fields.some_bytes(limits.MAX_OFFER_BYTES)
        wrapped_key = fields.some_bytes(limits.MAX_WRAPPED_KEY_BYTES)
        signed = parse_signed_header(encoded, signature)
        if len(chunk_digests) != limits.DIGEST_BYTES * signed.header.chunk_count:
            raise MalformedMessageError("offer: not one digest for each chunk")
        if chunks_root(chunk_digests) != signed.header.chunks_root:
            raise AuthenticationError("offer: the chunk digests do not match the signed root")
        return cls(signed, chunk_digests, wrapped_key)


def _hash(domain: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(domain + data, digest_size=limits.DIGEST_BYTES).digest()


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")


def _associated_data(context_digest: bytes, index: int) -> bytes:
    return context_digest + index.to_bytes(8, "big")
