"""The published test vectors: reproduced by this code, and by other primitives where there are
any, so that the files are more than this code's own echo."""

import json
from pathlib import Path
from typing import Any

import blake3
import make_vectors
import nacl.bindings
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from test_codecs import reference_int8, reference_int8_decode
from wire_samples import ALICE, BOB, rebuild

from p2pfed.keys import Identity
from p2pfed.protocol.certificates import parse_certificate
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.envelope import ChunkOpener, Offer, unwrap_key
from p2pfed.protocol.header import parse_signed_header
from p2pfed.protocol.messages import FrameReader, decode_message


def stored(name: str) -> Any:
    return json.loads((make_vectors.DIRECTORY / name).read_text(encoding="utf-8"))


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.mark.parametrize("name", make_vectors.VECTORS)
def test_this_code_still_makes_the_published_vectors(name: str) -> None:
    built = json.loads(json.dumps(make_vectors.VECTORS[name]()))
    assert built == stored(name), "the wire format changed: a new protocol version is due"


def test_no_vector_file_is_left_without_a_check() -> None:
    files = {path.name for path in Path(make_vectors.DIRECTORY).iterdir()}
    assert files == set(make_vectors.VECTORS)


@pytest.mark.parametrize("case", stored("keys.json")["identities"])
def test_identities_follow_from_their_secrets(case: dict[str, str]) -> None:
    identity = Identity(unhex(case["seed"]), unhex(case["encryption_secret"]))
    assert identity.peer_id == case["peer_id"]
    secret = X25519PrivateKey.from_private_bytes(unhex(case["encryption_secret"]))
    assert secret.public_key().public_bytes_raw() == unhex(case["encryption_public_key"])
    certificate = parse_certificate(unhex(case["certificate"]))
    assert certificate.owner == unhex(case["public_key"])
    assert certificate.encryption_key == unhex(case["encryption_public_key"])


@pytest.mark.parametrize("case", stored("headers.json")["headers"])
def test_header_vectors_are_accepted(case: dict[str, Any]) -> None:
    encoded, signature = unhex(case["encoded"]), unhex(case["signature"])
    signed = parse_signed_header(encoded, signature)
    assert make_vectors.plain(signed) == case
    domain = f"p2pfed/1 {case['header']['kind']} header\0".encode()
    sender = Ed25519PublicKey.from_public_bytes(unhex(case["header"]["sender"]))
    sender.verify(signature, domain + encoded)


@pytest.mark.parametrize("case", stored("envelopes.json")["envelopes"], ids=["float32", "int8"])
def test_envelope_vectors_lead_to_their_replica(case: dict[str, Any]) -> None:
    offer = Offer.decode(unhex(case["offer"]))
    key = unwrap_key(
        BOB, ALICE.encryption_public_key, unhex(case["wrapped_key"]), offer.signed.digest
    )
    assert key == unhex(case["payload_key"])
    opener = ChunkOpener(offer.signed.header, offer.chunk_digests, key)
    plaintext = [opener.open(index, unhex(chunk)) for index, chunk in enumerate(case["chunks"])]
    _, base = make_vectors.models()
    out, _ = rebuild(offer.signed.header, plaintext, base)
    assert vector_digest(out).hex() == case["replica_after"]


@pytest.mark.parametrize("case", stored("envelopes.json")["envelopes"], ids=["float32", "int8"])
def test_sealed_chunks_open_with_another_implementation(case: dict[str, Any]) -> None:
    digests = b""
    for index, text in enumerate(case["chunks"]):
        sealed = unhex(text)
        nacl.bindings.crypto_aead_chacha20poly1305_ietf_decrypt(
            sealed,
            unhex(case["context_digest"]) + index.to_bytes(8, "big"),
            index.to_bytes(12, "big"),
            unhex(case["payload_key"]),
        )
        digests += blake3.blake3(sealed, derive_key_context="p2pfed/1 chunk").digest()
    assert digests.hex() == case["chunk_digests"]
    root = blake3.blake3(digests, derive_key_context="p2pfed/1 chunks root").hexdigest()
    assert root == case["chunks_root"]


@pytest.mark.parametrize("case", stored("codecs.json")["cases"], ids=lambda case: case["codec"])
def test_codec_vectors_follow_from_plain_arithmetic(case: dict[str, Any]) -> None:
    model, base = make_vectors.models()
    encoded, decoded = unhex(case["encoded"]), unhex(case["decoded"])
    if case["codec"] == "float32":
        assert encoded == (model - base).astype("<f4").tobytes()
        assert decoded == (base + (model - base)).astype("<f4").tobytes()
    else:
        seed = int(case["seed"], 16)
        assert encoded == reference_int8(model, base, seed, case["first_index"])
        assert decoded == reference_int8_decode(encoded, base).astype("<f4").tobytes()


@pytest.mark.parametrize("case", stored("messages.json")["messages"], ids=lambda case: case["kind"])
def test_message_vectors_are_decoded(case: dict[str, Any]) -> None:
    [body] = FrameReader().feed(unhex(case["frame"]))
    message = decode_message(body)
    assert type(message).__name__ == case["kind"]
    assert make_vectors.plain(message) == case["fields"]
