"""A site's identity: one Ed25519 key for signatures and the libp2p peer id, and one X25519
key, certified by the first, that payload keys are wrapped for.

Key files are created once, private to their owner, and refused when they are not.
"""

import base64
import binascii
import hashlib
import os
import stat
from pathlib import Path

import base58
import nacl.exceptions
import nacl.public
import nacl.signing
import nacl.utils

from p2pfed.errors import AuthenticationError, KeyFileError, Problem

PUBLIC_KEY_PREFIX = "ed25519:"
KEY_BYTES = 32
IDENTITY_FILE_NAME = "identity.key"
ENCRYPTION_FILE_NAME = "encryption.key"
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

# libp2p peer id specification: an identity multihash (0x00, length 36) of the protobuf
# PublicKey{Type: Ed25519 (0x08 0x01), Data: 32 bytes (0x12 0x20)}, in base58btc.
_PEER_ID_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])


def format_public_key(key: bytes) -> str:
    """The text form of a public key in files: ``ed25519:`` and 43 base64url characters."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a public key has {KEY_BYTES} bytes, not {len(key)}")
    return PUBLIC_KEY_PREFIX + base64.urlsafe_b64encode(key).decode().rstrip("=")


def parse_public_key(text: str) -> bytes:
    """Read what ``format_public_key`` wrote.

    :returns: 32 bytes.
    :raises ValueError: with what is wrong with ``text``.
    """
    if not text.startswith(PUBLIC_KEY_PREFIX):
        raise ValueError(f"a public key starts with {PUBLIC_KEY_PREFIX!r}")
    encoded = text.removeprefix(PUBLIC_KEY_PREFIX)
    try:
        key = base64.b64decode(encoded + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the key is not 43 characters of base64url") from None
    if len(key) != KEY_BYTES or format_public_key(key) != text:
        raise ValueError("the key is not 43 characters of base64url")
    return key


def peer_id_from_public_key(key: bytes) -> str:
    """The libp2p peer id (``12D3Koo...``) of an Ed25519 public key (peer id spec)."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a public key has {KEY_BYTES} bytes, not {len(key)}")
    return base58.b58encode(_PEER_ID_PREFIX + key).decode()


def public_key_from_peer_id(text: str) -> bytes:
    """The Ed25519 public key inside a peer id.

    :raises ValueError: not base58, or the id of another kind of key.
    """
    try:
        raw = base58.b58decode(text)
    except ValueError:
        raise ValueError("a peer id is base58 text that starts with 12D3Koo") from None
    if len(raw) != len(_PEER_ID_PREFIX) + KEY_BYTES or not raw.startswith(_PEER_ID_PREFIX):
        raise ValueError("not the peer id of an Ed25519 key; those start with 12D3Koo")
    return raw[len(_PEER_ID_PREFIX) :]


def verify(public_key: bytes, domain: bytes, message: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature (RFC 8032) over ``domain`` followed by ``message``.

    :raises AuthenticationError: it does not hold.
    """
    try:
        nacl.signing.VerifyKey(public_key).verify(domain + message, signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        raise AuthenticationError("the signature does not hold") from None


class Identity:
    """A site's secret keys; made by ``load_identity`` or from known secrets in tests.

    :param seed: the 32-byte Ed25519 seed, which the libp2p key pair is made from as well.
    :param encryption_secret: the 32-byte X25519 secret key.
    """

    def __init__(self, seed: bytes, encryption_secret: bytes) -> None:
        self.seed = seed
        self._signing_key = nacl.signing.SigningKey(seed)
        self.encryption_key = nacl.public.PrivateKey(encryption_secret)
        self.public_key: bytes = bytes(self._signing_key.verify_key)
        self.encryption_public_key: bytes = bytes(self.encryption_key.public_key)
        self.peer_id = peer_id_from_public_key(self.public_key)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    def sign(self, domain: bytes, message: bytes) -> bytes:
        """A 64-byte Ed25519 signature (RFC 8032) over ``domain`` followed by ``message``.

        Every kind of object signs under a domain of its own, so that a signature for one
        cannot be shown as a signature for another.
        """
        return self._signing_key.sign(domain + message).signature

    def derive(self, domain: bytes, message: bytes, size_bytes: int) -> bytes:
        """Bytes that this identity alone can compute, and computes alike each time: BLAKE2b
        (RFC 7693) over ``domain`` followed by ``message``, keyed with the Ed25519 seed.

        Not for keys that encrypt: what is encrypted under such a key must never differ.

        :param size_bytes: 1 to 64.
        """
        return hashlib.blake2b(domain + message, key=self.seed, digest_size=size_bytes).digest()


def create_identity(directory: Path) -> Identity:
    """Make a new identity in ``directory``; existing key files are never overwritten.

    :raises KeyFileError: a key file is there already, or the directory is not private.
    """
    directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    _check_private(directory, DIRECTORY_MODE)
    for name in (IDENTITY_FILE_NAME, ENCRYPTION_FILE_NAME):
        if os.path.lexists(directory / name):
            raise _key_error(
                directory / name,
                "exists already and is never overwritten",
                "use it, or choose another directory",
            )
    seed = nacl.utils.random(KEY_BYTES)
    encryption_secret = nacl.utils.random(KEY_BYTES)
    _write_key(directory / IDENTITY_FILE_NAME, seed)
    _write_key(directory / ENCRYPTION_FILE_NAME, encryption_secret)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Identity(seed, encryption_secret)


def load_identity(directory: Path) -> Identity:
    """Read the identity in ``directory``.

    :raises KeyFileError: a file is missing, a link, of the wrong length, or not private.
    """
    if not directory.is_dir():
        raise _key_error(directory, "no such directory", "run p2pfed init")
    _check_private(directory, DIRECTORY_MODE)
    return Identity(
        _read_key(directory / IDENTITY_FILE_NAME), _read_key(directory / ENCRYPTION_FILE_NAME)
    )


def _key_error(path: Path, reason: str, remedy: str) -> KeyFileError:
    return KeyFileError([Problem(path, "", None, reason, remedy)])


def _check_private(path: Path, mode: int) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise _key_error(path, "is a symbolic link", "put the real one in its place")
    if status.st_uid != os.geteuid():
        raise _key_error(
            path,
            f"belongs to user {status.st_uid}, the daemon runs as user {os.geteuid()}",
            f"run: chown {os.geteuid()} {path}",
        )
    if stat.S_IMODE(status.st_mode) & ~mode:
        raise _key_error(
            path,
            f"mode {stat.S_IMODE(status.st_mode):04o} lets others in",
            f"run: chmod {mode:o} {path}",
        )


def _write_key(path: Path, secret: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())


def _read_key(path: Path) -> bytes:
    if not os.path.lexists(path):
        raise _key_error(path, "no such key file", "run p2pfed init, or restore it from a backup")
    _check_private(path, FILE_MODE)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            secret = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise _key_error(path, f"cannot be read: {error.strerror}", "check the path") from error
    if len(secret) != KEY_BYTES:
        raise _key_error(
            path, f"is not a key file of {KEY_BYTES} bytes", "restore it from a backup"
        )
    return secret
