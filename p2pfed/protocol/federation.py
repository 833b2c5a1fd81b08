"""The name of a federation that no two federations share by accident."""

import hashlib

from p2pfed.protocol.canonical import pack

FEDERATION_DOMAIN = b"p2pfed/1 federation"


def federation_id(name: str, schema_digest: bytes, genesis_digest: bytes) -> bytes:
    """BLAKE2b-256 over the name, the model's schema and the model that all peers start from.

    It stays the same when the topology changes, so that peers, edges and deadlines can be
    edited in a running federation; another model or another seed is another federation.
    """
    encoded = pack([name, schema_digest, genesis_digest])
    return hashlib.blake2b(FEDERATION_DOMAIN + encoded, digest_size=32).digest()
