"""A member of the federation that lies to a real daemon, and sends what no honest daemon sends."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from federation import Federation
from hostile_member import PARAMETERS, envelope, hostile_link, of_mallory, waiting

from p2pfed.daemon.delta_exchange import send_envelope
from p2pfed.errors import TransportError
from p2pfed.protocol.header import sign_header
from p2pfed.protocol.messages import AnswerCode, HeaderNotice

pytestmark = pytest.mark.daemons


async def test_two_headers_for_one_round_quarantine_their_signer(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "mallory"]) as federation:
        alpha, other = federation.hospitals
        alpha.start()
        status = await waiting(alpha, "collecting", lambda s: s.round.phase == "collecting")
        async with hostile_link(alpha, other.identity, status) as (_, _, links, hello):
            recipient = alpha.identity.encryption_public_key
            for size in (1.0, 2.0):
                model = np.full(PARAMETERS, size, np.float32)
                signed, _, _ = envelope(other.identity, hello, model, 0, recipient)
                notice = HeaderNotice(signed.encoded, signed.signature)
                assert links.post(alpha.identity.peer_id, notice)
            status = await waiting(alpha, "the quarantine", of_mallory)
        assert not status.healthy
        assert any("two different deltas" in line.problem for line in status.health)
        [event] = alpha.events(
            "equivocation: a site signed two different deltas for one round; it is quarantined"
        )
        assert event["site"] == "mallory"
        await waiting(alpha, "its life", lambda s: s.round.phase == "collecting")


async def test_a_payload_that_lies_is_rejected_and_the_daemon_goes_on(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "mallory"]) as federation:
        alpha, other = federation.hospitals
        alpha.start()
        status = await waiting(alpha, "collecting", lambda s: s.round.phase == "collecting")
        async with hostile_link(alpha, other.identity, status) as (_, transport, _, hello):
            recipient = alpha.identity.encryption_public_key
            model = np.ones(PARAMETERS, np.float32)
            signed, ciphertext, offer = envelope(other.identity, hello, model, 0, recipient)
            path = short_tmp / "sealed"
            path.write_bytes(ciphertext)
            # The payload itself is sound, but it does not lead where its header says.
            lie = sign_header(
                other.identity, dataclasses.replace(signed.header, replica_after=b"x" * 32)
            )
            await send_envelope(transport, alpha.identity.peer_id, offer(lie), path)
            status = await waiting(alpha, "the rejection", lambda s: s.totals.deltas_rejected == 1)
            assert status.totals.deltas_accepted == 0
            # It is not listened to again before the next round.
            later, _, offer = envelope(other.identity, hello, model, 1, recipient)
            outcome = await send_envelope(transport, alpha.identity.peer_id, offer(later), path)
            assert outcome.code is AnswerCode.NOT_NOW
        await waiting(alpha, "its life", lambda s: s.round.phase == "collecting")
        assert "Traceback" not in alpha.log.read_text()


async def test_a_flipped_bit_is_noticed_while_it_arrives(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "mallory"]) as federation:
        alpha, other = federation.hospitals
        alpha.start()
        status = await waiting(alpha, "collecting", lambda s: s.round.phase == "collecting")
        async with hostile_link(alpha, other.identity, status) as (_, transport, _, hello):
            recipient = alpha.identity.encryption_public_key
            model = np.ones(PARAMETERS, np.float32)
            signed, ciphertext, offer = envelope(other.identity, hello, model, 0, recipient)
            path = short_tmp / "sealed"
            path.write_bytes(bytes([ciphertext[0] ^ 1]) + ciphertext[1:])
            with pytest.raises(TransportError, match="not the one that was announced"):
                await send_envelope(transport, alpha.identity.peer_id, offer(signed), path)
        status = await waiting(alpha, "its life", lambda s: s.round.phase == "collecting")
        assert status.totals.deltas_accepted == 0
        assert "Traceback" not in alpha.log.read_text()


async def test_another_member_cannot_be_spoken_for(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "mallory", "victim"]) as federation:
        alpha, other, victim = federation.hospitals
        alpha.start()
        status = await waiting(alpha, "collecting", lambda s: s.round.phase == "collecting")
        async with hostile_link(alpha, other.identity, status) as (_, transport, _, hello):
            recipient = alpha.identity.encryption_public_key
            model = np.ones(PARAMETERS, np.float32)
            path = short_tmp / "sealed"
            # Signed by the victim (as if its envelope had been caught), offered by Mallory.
            signed, ciphertext, offer = envelope(victim.identity, hello, model, 0, recipient)
            path.write_bytes(ciphertext)
            with pytest.raises(TransportError):
                await send_envelope(transport, alpha.identity.peer_id, offer(signed), path)
        status = await waiting(alpha, "its life", lambda s: s.round.phase == "collecting")
        assert status.totals.deltas_accepted == 0
        assert not any(n.quarantined for n in status.neighbours)
