"""Write the test vectors of SPEC.md: ``python tests/protocol/make_vectors.py``.

Everything follows from fixed secrets, so the files change only when the wire format does.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import MappingProxyType

import nacl.public
import numpy as np
from wire_samples import (
    ALICE,
    BOB,
    CAROL,
    FEDERATION,
    PAYLOAD_KEY,
    Vector,
    sealed_payload,
    signed_header,
)

from p2pfed.keys import Identity, format_public_key
from p2pfed.protocol.certificates import issue_address_record, issue_certificate
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.digests import vector_digest
from p2pfed.protocol.envelope import WRAP_DOMAIN, Offer, PayloadContext
from p2pfed.protocol.federation import federation_id
from p2pfed.protocol.header import Kind, SignedHeader, sign_header
from p2pfed.protocol.messages import (
    NEVER_HEARD,
    AddressRecordNotice,
    Answer,
    AnswerCode,
    EquivocationProof,
    Goodbye,
    HeaderNotice,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Message,
    ProbeReport,
    ProbeRequest,
    Receipt,
    Refusal,
    RefusalCode,
    Want,
    encode_message,
)

DIRECTORY = Path(__file__).parent / "vectors"
WRAP_NONCE = bytes(range(100, 124))
DIMENSION = 4100  # two int8 blocks
ROUNDING_SEED = 0x0123456789ABCDEF

Json = dict[str, object]


def plain(value: object) -> object:
    """Bytes as hexadecimal, dataclasses and enumerations as what they hold."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


def keys() -> Json:
    return {
        "identities": [
            {
                "seed": identity.seed.hex(),
                "public_key": identity.public_key.hex(),
                "public_key_text": format_public_key(identity.public_key),
                "peer_id": identity.peer_id,
                "encryption_secret": bytes(identity.encryption_key).hex(),
                "encryption_public_key": identity.encryption_public_key.hex(),
                "certificate": issue_certificate(identity).hex(),
            }
            for identity in (ALICE, BOB, CAROL)
        ],
        "address_record": {
            "owner": ALICE.public_key.hex(),
            "sequence": 5,
            "addresses": ["/ip4/192.0.2.1/tcp/7400"],
            "encoded": issue_address_record(ALICE, 5, ("/ip4/192.0.2.1/tcp/7400",)).hex(),
        },
        "federation": {
            "name": "hearts",
            "schema_digest": (b"\x22" * 32).hex(),
            "genesis_digest": (b"\x88" * 32).hex(),
            "federation_id": federation_id("hearts", b"\x22" * 32, b"\x88" * 32).hex(),
        },
    }


def headers() -> Json:
    return {
        "headers": [
            plain(signed)
            for signed in (
                signed_header(),
                signed_header(BOB, round_number=0, sequence=1, previous=bytes(32), codec="int8"),
                signed_header(
                    kind=Kind.SNAPSHOT, replica_before=bytes(32), since_round=6, privacy_spend=0.125
                ),
            )
        ]
    }


def wrapped_key(sender: Identity, recipient: Identity, signed: SignedHeader) -> bytes:
    """As ``wrap_key`` does, with a fixed nonce."""
    binding = hashlib.blake2b(WRAP_DOMAIN + signed.digest, digest_size=32).digest()
    public_key = nacl.public.PublicKey(recipient.encryption_public_key)
    box = nacl.public.Box(sender.encryption_key, public_key)
    return bytes(box.encrypt(binding + PAYLOAD_KEY, WRAP_NONCE))


def models() -> tuple[Vector, Vector]:
    """(model, base), float32: multiples of 1/64, which any language can write exactly."""
    index = np.arange(DIMENSION)
    model = ((index * 37 % 1009) - 504).astype(np.float32) / np.float32(64)
    base = ((index * 11 % 257) - 128).astype(np.float32) / np.float32(64)
    return model, base


def envelopes() -> Json:
    model, base = models()
    cases = []
    for codec in ("float32", "int8"):
        header, sealed, chunks, after = sealed_payload(model, base, codec, seed=ROUNDING_SEED)
        signed = sign_header(ALICE, header)
        wrapped = wrapped_key(ALICE, BOB, signed)
        cases.append(
            {
                "codec": codec,
                "payload_key": PAYLOAD_KEY.hex(),
                "context_digest": PayloadContext.of(header).digest().hex(),
                "key_commitment": sealed.key_commitment.hex(),
                "chunks": [chunk.hex() for chunk in chunks],
                "chunk_digests": sealed.chunk_digests.hex(),
                "chunks_root": sealed.chunks_root.hex(),
                "replica_after": vector_digest(after).hex(),
                "header": plain(signed),
                "wrapped_key": wrapped.hex(),
                "offer": Offer(signed, sealed.chunk_digests, wrapped).encode().hex(),
            }
        )
    return {
        "model": "((i * 37 mod 1009) - 504) / 64 for i = 0..4099",
        "base": "((i * 11 mod 257) - 128) / 64 for i = 0..4099",
        "model_digest": vector_digest(model).hex(),
        "base_digest": vector_digest(base).hex(),
        "sender": "identity 0 of keys.json",
        "recipient": "identity 1 of keys.json",
        "envelopes": cases,
    }


def codecs() -> Json:
    model, base = models()
    cases = []
    for codec, first_index in (("float32", 0), ("int8", 0), ("int8", 1_044_480)):
        encoded, _ = get_codec(codec).encode(model, base, ROUNDING_SEED, first_index)
        out = np.empty_like(base)
        get_codec(codec).decode_add(encoded, base, out)
        cases.append(
            {
                "codec": codec,
                "seed": f"{ROUNDING_SEED:016x}",
                "first_index": first_index,
                "encoded": encoded.hex(),
                "decoded": out.astype("<f4").tobytes().hex(),
            }
        )
    return {"model_and_base": "as in envelopes.json", "cases": cases}


def sample_messages() -> list[Message]:
    first, second = signed_header(), signed_header(replica_after=b"\x99" * 32)
    record = issue_address_record(ALICE, 5, ("/ip4/192.0.2.1/tcp/7400",))
    return [
        Hello(
            version=1,
            software="p2pfed 0.1.0",
            federation_name="hearts",
            federation_id=FEDERATION,
            topology_digest=b"\x11" * 32,
            schema_digest=b"\x22" * 32,
            genesis_digest=b"\x88" * 32,
            certificate=issue_certificate(ALICE),
            address_record=record,
            round_number=7,
            phase="training",
            published_round=-1,
            published_replica=b"\x88" * 32,
        ),
        Heartbeat(4_294_967_295, 7, "collecting"),
        HeartbeatReply(1, 8, "training"),
        Want(b"\x44" * 32),
        HeaderNotice(first.encoded, first.signature),
        EquivocationProof(first.encoded, first.signature, second.encoded, second.signature),
        AddressRecordNotice(record),
        *[Refusal(code, "why") for code in RefusalCode],
        Goodbye("stopping"),
        *[Answer(code, 3, "détail") for code in AnswerCode],
        Receipt(True, ""),
        Receipt(False, "chunk 2 is not the one that was announced"),
        ProbeRequest(CAROL.public_key, 3),
        ProbeReport(CAROL.public_key, 3, 250),
        ProbeReport(CAROL.public_key, 4, NEVER_HEARD),
    ]


def messages() -> Json:
    return {
        "messages": [
            {
                "kind": type(message).__name__,
                "fields": plain(message),
                "frame": encode_message(message).hex(),
            }
            for message in sample_messages()
        ]
    }


VECTORS: Mapping[str, Callable[[], Json]] = MappingProxyType(
    {
        "keys.json": keys,
        "headers.json": headers,
        "envelopes.json": envelopes,
        "codecs.json": codecs,
        "messages.json": messages,
    }
)

if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    for name, build in VECTORS.items():
        text = json.dumps(build(), indent=1, ensure_ascii=False) + "\n"
        (DIRECTORY / name).write_text(text, encoding="utf-8")
