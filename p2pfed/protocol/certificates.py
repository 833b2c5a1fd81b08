"""What a member states under its identity key outside any round: its encryption key, and the
addresses it can be dialled at."""

from dataclasses import dataclass

from nacl.bindings import crypto_box_beforenm
from nacl.exceptions import CryptoError

from p2pfed.errors import MalformedMessageError
from p2pfed.keys import Identity, verify
from p2pfed.protocol import limits
from p2pfed.protocol.canonical import pack, unpack
from p2pfed.protocol.fields import FieldReader

CERTIFICATE_DOMAIN = b"p2pfed/1 encryption key\x00"
ADDRESS_DOMAIN = b"p2pfed/1 address record\x00"


@dataclass(frozen=True, slots=True)
class EncryptionCertificate:
    """``owner`` (Ed25519) receives payload keys under ``encryption_key`` (X25519)."""

    owner: bytes
    encryption_key: bytes


def issue_certificate(identity: Identity) -> bytes:
    body = pack([identity.public_key, identity.encryption_public_key])
    return pack([body, identity.sign(CERTIFICATE_DOMAIN, body)])


def parse_certificate(data: bytes) -> EncryptionCertificate:
    """:raises RemoteProtocolError: malformed, not signed by the owner it names, or for a key
    that nothing can be encrypted to.
    """
    fields = _signed_fields("encryption certificate", data, CERTIFICATE_DOMAIN, 2)
    owner = fields.exact_bytes(limits.PUBLIC_KEY_BYTES)
    encryption_key = fields.exact_bytes(limits.PUBLIC_KEY_BYTES)
    try:
        # RFC 7748, section 6.1: with a point of small order every shared secret is zero, so
        # any secret key shows it. Encrypting to such a key fails, which no sender expects.
        crypto_box_beforenm(encryption_key, bytes(limits.PUBLIC_KEY_BYTES))
    except CryptoError:
        raise MalformedMessageError("encryption certificate: not an X25519 key") from None
    return EncryptionCertificate(owner, encryption_key)


@dataclass(frozen=True, slots=True)
class AddressRecord:
    """Where ``owner`` says it can be dialled; a higher ``sequence`` replaces a lower one."""

    owner: bytes
    sequence: int
    addresses: tuple[str, ...]


def issue_address_record(identity: Identity, sequence: int, addresses: tuple[str, ...]) -> bytes:
    """:param sequence: grows over restarts; seconds of the wall clock will do."""
    body = pack([identity.public_key, sequence, list(addresses[: limits.MAX_ADDRESSES])])
    return pack([body, identity.sign(ADDRESS_DOMAIN, body)])


def parse_address_record(data: bytes) -> AddressRecord:
    """:raises RemoteProtocolError: malformed, or not signed by the owner it names."""
    fields = _signed_fields("address record", data, ADDRESS_DOMAIN, 3)
    return AddressRecord(
        fields.exact_bytes(limits.PUBLIC_KEY_BYTES),
        fields.integer(0, limits.MAX_SEQUENCE),
        fields.texts(limits.MAX_ADDRESSES, limits.MAX_ADDRESS_CHARACTERS),
    )


def _signed_fields(what: str, data: bytes, domain: bytes, count: int) -> FieldReader:
    """The fields of a signed statement whose first field is its owner."""
    outer = FieldReader(what, unpack(data, max_bytes=limits.MAX_RECORD_BYTES), 2)
    body = outer.some_bytes(limits.MAX_RECORD_BYTES)
    signature = outer.exact_bytes(limits.SIGNATURE_BYTES)
    decoded = unpack(body, max_bytes=limits.MAX_RECORD_BYTES)
    owner = FieldReader(what, decoded, count).exact_bytes(limits.PUBLIC_KEY_BYTES)
    verify(owner, domain, body, signature)
    return FieldReader(what, decoded, count)
