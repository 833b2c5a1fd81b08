"""Between the transfers, which know peer ids, and the round engine, which knows sites."""

import structlog

from p2pfed.daemon.delta_exchange import ExchangeHandler, ReceivedPayload, SendOutcome
from p2pfed.daemon.links import Links
from p2pfed.daemon.membership import Membership
from p2pfed.daemon.runtime import Runtime
from p2pfed.errors import TransportError
from p2pfed.keys import Identity
from p2pfed.protocol import events as on
from p2pfed.protocol.envelope import Offer, unwrap_key
from p2pfed.protocol.header import SignedHeader
from p2pfed.protocol.messages import AnswerCode

log = structlog.get_logger(__name__)


class Correspondence:
    """What one daemon answers to offers, and makes of payloads.

    :ivar handler: of its receiver.
    """

    def __init__(
        self, runtime: Runtime, membership: Membership, links: Links, identity: Identity
    ) -> None:
        self._runtime = runtime
        self._membership = membership
        self._links = links
        self._identity = identity
        self.handler = ExchangeHandler(self._decide, self._unwrap, self._deliver, self._aborted)

    def _decide(self, peer_id: str, offer: Offer) -> tuple[AnswerCode, str]:
        answer = self._runtime.answer_offer(self._membership.name_of(peer_id), offer.signed)
        return answer.code, answer.detail

    def _unwrap(self, peer_id: str, offer: Offer) -> bytes:
        sender = self._links.encryption_key(peer_id)
        if sender is None:
            raise TransportError("its link went down")
        return unwrap_key(self._identity, sender, offer.wrapped_key, offer.signed.digest)

    def _deliver(self, peer_id: str, received: ReceivedPayload) -> None:
        self._runtime.payload_received(self._membership.name_of(peer_id), received)

    def _aborted(self, peer_id: str, signed: SignedHeader) -> None:
        self._runtime.dispatch(on.TransferAborted(self._membership.name_of(peer_id), signed))

    def sent(self, peer_id: str, signed: SignedHeader, outcome: SendOutcome) -> None:
        """A transfer ended."""
        log.debug(
            "envelope sent",
            site=self._membership.name_of(peer_id),
            round=signed.header.round_number,
            outcome=str(outcome),
        )
