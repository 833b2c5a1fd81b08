"""Identities and their files."""

import os
from pathlib import Path

import nacl.encoding
import nacl.hash
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfed.errors import AuthenticationError, KeyFileError
from p2pfed.keys import (
    Identity,
    create_identity,
    format_public_key,
    load_identity,
    parse_public_key,
    peer_id_from_public_key,
    public_key_from_peer_id,
    verify,
)

keys = st.binary(min_size=32, max_size=32)


@given(keys)
def test_keys_and_peer_ids_survive_their_text_form(key: bytes) -> None:
    assert parse_public_key(format_public_key(key)) == key
    assert public_key_from_peer_id(peer_id_from_public_key(key)) == key


def test_the_peer_id_is_the_one_that_libp2p_computes() -> None:
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    identity = Identity(b"\x07" * 32, b"\x08" * 32)
    assert identity.peer_id == str(ID.from_pubkey(create_new_key_pair(b"\x07" * 32).public_key))


@pytest.mark.parametrize(
    "text",
    ["", "ed25519:", "ed25519:" + "A" * 42, "ed25519:" + "A" * 44, "rsa:" + "A" * 43,
     "ed25519:" + "+" * 43, "ed25519:" + "A" * 42 + "B"],
)  # fmt: skip
def test_a_bad_key_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="key"):
        parse_public_key(text)


@pytest.mark.parametrize("text", ["", "0OIl", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"])
def test_another_kind_of_peer_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="peer id"):
        public_key_from_peer_id(text)


def test_an_identity_is_made_once_and_privately(tmp_path: Path) -> None:
    made = create_identity(tmp_path / "keys")
    for name in ("identity.key", "encryption.key"):
        assert (tmp_path / "keys" / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert load_identity(tmp_path / "keys").peer_id == made.peer_id
    with pytest.raises(KeyFileError, match="never overwritten"):
        create_identity(tmp_path / "keys")


@pytest.mark.parametrize("name", ["identity.key", "encryption.key"])
def test_a_key_that_others_can_read_is_refused_with_the_command_to_run(
    tmp_path: Path, name: str
) -> None:
    create_identity(tmp_path / "keys")
    path = tmp_path / "keys" / name
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match=f"chmod 600 {path}"):
        load_identity(tmp_path / "keys")


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    create_identity(tmp_path / "keys")
    (tmp_path / "keys").chmod(0o755)
    with pytest.raises(KeyFileError, match="chmod 700"):
        load_identity(tmp_path / "keys")


def test_links_and_damaged_files_are_refused(tmp_path: Path) -> None:
    create_identity(tmp_path / "keys")
    path = tmp_path / "keys" / "identity.key"
    path.write_bytes(b"short")
    with pytest.raises(KeyFileError, match="32 bytes"):
        load_identity(tmp_path / "keys")
    path.unlink()
    with pytest.raises(KeyFileError, match="no such key file"):
        load_identity(tmp_path / "keys")
    path.symlink_to("/dev/zero")
    with pytest.raises(KeyFileError, match="symbolic link"):
        load_identity(tmp_path / "keys")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    create_identity(tmp_path / "keys")
    os.chown(tmp_path / "keys" / "identity.key", 12345, 12345)
    with pytest.raises(KeyFileError, match="belongs to user 12345"):
        load_identity(tmp_path / "keys")


def test_a_signature_holds_for_its_domain_and_message_alone() -> None:
    identity = Identity(b"\x01" * 32, b"\x02" * 32)
    signature = identity.sign(b"domain", b"message")
    verify(identity.public_key, b"domain", b"message", signature)
    for domain, message in ((b"domain", b"massage"), (b"domian", b"message")):
        with pytest.raises(AuthenticationError):
            verify(identity.public_key, domain, message, signature)


def test_an_identity_never_shows_its_secrets() -> None:
    identity = Identity(b"\x01" * 32, b"\x02" * 32)
    assert "0101" not in repr(identity)
    assert identity.peer_id in repr(identity)


def test_what_is_derived_is_known_to_the_key_alone_and_alike_each_time() -> None:
    one, other = Identity(b"1" * 32, b"e" * 32), Identity(b"2" * 32, b"e" * 32)
    derived = one.derive(b"domain", b"message", 16)
    assert derived == Identity(b"1" * 32, b"f" * 32).derive(b"domain", b"message", 16)
    # The keyed mode of RFC 7693, as another implementation has it.
    assert derived == nacl.hash.blake2b(
        b"domainmessage", digest_size=16, key=b"1" * 32, encoder=nacl.encoding.RawEncoder
    )
    others = {
        other.derive(b"domain", b"message", 16),
        one.derive(b"another", b"message", 16),
        one.derive(b"domain", b"another", 16),
    }
    assert len(others | {derived}) == 4
