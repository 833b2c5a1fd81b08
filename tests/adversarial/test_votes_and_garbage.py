"""Two attacks that broke systems like this one, against real daemons."""

from pathlib import Path

import numpy as np
import pytest
from federation import Federation, Hospital
from hostile_member import PARAMETERS, envelope, hostile_link, waiting

from p2pfed.daemon.delta_exchange import send_envelope
from p2pfed.daemon.status import Status
from p2pfed.errors import TransportError
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.canonical import pack, unpack
from p2pfed.protocol.header import SignedHeader, header_digest
from p2pfed.protocol.messages import LENGTH_PREFIX

pytestmark = pytest.mark.daemons


def signed_as_is(identity: Identity, signed: SignedHeader, encoded: bytes) -> SignedHeader:
    """Other bytes, with a signature of them that is good."""
    signature = identity.sign(signed.header.kind.signing_domain, encoded)
    return SignedHeader(signed.header, encoded, signature, header_digest(encoded))


def contributors_listed(mallory: Identity, others: list[Hospital], s: SignedHeader) -> SignedHeader:
    fields = unpack(s.encoded, max_bytes=limits.MAX_HEADER_BYTES)
    claimed = [site.identity.public_key for site in others]
    return signed_as_is(mallory, s, pack([*fields, claimed]))


def contributors_as_sender(
    mallory: Identity, others: list[Hospital], s: SignedHeader
) -> SignedHeader:
    fields = unpack(s.encoded, max_bytes=limits.MAX_HEADER_BYTES)
    fields[3] = b"".join(site.identity.public_key for site in others)
    return signed_as_is(mallory, s, pack(fields))


def another_as_sender(mallory: Identity, others: list[Hospital], s: SignedHeader) -> SignedHeader:
    fields = unpack(s.encoded, max_bytes=limits.MAX_HEADER_BYTES)
    fields[3] = others[0].identity.public_key
    return signed_as_is(mallory, s, pack(fields))


async def started(first: Hospital, *others: Hospital) -> Status:
    """The first site's status in round 0, which names the genesis model, once all have gone on."""
    first.start()
    status = await waiting(first, "collecting", lambda s: s.round.phase == "collecting")
    for site in others:
        site.start()
    await waiting(first, "a round", lambda s: s.round.number >= 1)
    return status


async def two_more_rounds(*sites: Hospital) -> None:
    for site in sites:
        now = site.status()
        assert now is not None
        done = now.round.number
        await waiting(site, "two more rounds", lambda s, done=done: s.round.number >= done + 2)


@pytest.mark.slow
async def test_a_delta_counts_for_the_one_key_that_signed_it(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "beta", "gamma", "mallory"]) as federation:
        alpha, beta, gamma, other = federation.hospitals
        status = await started(alpha, beta, gamma)
        async with hostile_link(alpha, other.identity, status) as (_, transport, _, hello):
            model = np.full(PARAMETERS, 1e3, np.float32)
            recipient = alpha.identity.encryption_public_key
            signed, ciphertext, offer = envelope(
                other.identity, hello, model, hello.round_number, recipient
            )
            path = short_tmp / "sealed"
            path.write_bytes(ciphertext)
            for claim in (contributors_listed, contributors_as_sender, another_as_sender):
                lie = offer(claim(other.identity, [beta, gamma], signed))
                with pytest.raises(TransportError):
                    await send_envelope(transport, alpha.identity.peer_id, lie, path)
            await two_more_rounds(alpha, beta, gamma)
        status = alpha.status()
        assert status is not None
        weights = {n.name: n.weight for n in status.neighbours}
        assert weights["mallory"] == 0.0
        assert 0.0 < weights["beta"] <= 0.25
        assert 0.0 < weights["gamma"] <= 0.25
        of_mallory = next(n for n in status.neighbours if n.name == "mallory")
        assert of_mallory.last_delta_age_seconds is None
        assert not any(n.quarantined for n in status.neighbours)
        assert all("Traceback" not in site.log.read_text() for site in (alpha, beta, gamma))


@pytest.mark.parametrize(
    "protocol",
    [limits.CONTROL_PROTOCOL, pytest.param(limits.DELTA_PROTOCOL, marks=pytest.mark.slow)],
)
async def test_one_undecodable_message_costs_its_sender_and_nobody_else(
    protocol: str, short_tmp: Path
) -> None:
    with Federation(short_tmp, ["alpha", "beta", "mallory"]) as federation:
        alpha, beta, other = federation.hospitals
        status = await started(alpha, beta)
        async with hostile_link(alpha, other.identity, status) as (_, transport, _, _):
            stream = await transport.open_stream(alpha.identity.peer_id, protocol)
            await stream.send_all(LENGTH_PREFIX.pack(1) + b"\xc1")
            with pytest.raises(TransportError):
                while await stream.receive_some(limits.MAX_HEADER_BYTES):
                    pass
                raise TransportError("the end of the stream")
            await two_more_rounds(alpha, beta)
        for site in (alpha, beta):
            assert {event["site"] for event in site.events("link down")} <= {"mallory"}
            assert "Traceback" not in site.log.read_text()
