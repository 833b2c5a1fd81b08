"""Whose envelopes a neighbour may offer: its own, and nobody else's."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from exchanging_sites import exchanging, make_envelope
from linked_sites import HIGH

from p2pfed.errors import TransportError
from p2pfed.keys import Identity
from p2pfed.protocol.envelope import Offer
from p2pfed.protocol.header import sign_header

ANOTHER = Identity(b"\x51" * 32, b"\x52" * 32)


@pytest.mark.parametrize("signer", [ANOTHER, HIGH], ids=["another key", "the receiver itself"])
async def test_an_envelope_that_somebody_else_signed_is_refused_before_anything_is_decided(
    signer: Identity, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with exchanging(tmp_path, 100) as exchange:
        own = make_envelope(tmp_path, 100)
        header = replace(own.offer.signed.header, sender=signer.public_key)
        borrowed = Offer(
            sign_header(signer, header), own.offer.chunk_digests, own.offer.wrapped_key
        )
        with pytest.raises(TransportError):
            await exchange.send(replace(own, offer=borrowed))
        assert exchange.decided == []
        assert exchange.delivered == []
        # The stream is all that it costs.
        assert (await exchange.send(own)).delivered
