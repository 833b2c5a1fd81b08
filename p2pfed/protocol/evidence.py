"""Equivocation: two signed delta headers of one sender for one round are proof by themselves."""

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from p2pfed.errors import AuthenticationError
from p2pfed.protocol import limits
from p2pfed.protocol.header import Kind, SignedHeader, parse_signed_header


def verify_equivocation(
    first: tuple[bytes, bytes], second: tuple[bytes, bytes]
) -> tuple[SignedHeader, SignedHeader]:
    """Check a proof that somebody passes on; each half is (encoded header, signature).

    :raises RemoteProtocolError: a half is malformed or not signed, or they do not conflict.
    """
    one, other = parse_signed_header(*first), parse_signed_header(*second)
    if not conflict(one, other):
        raise AuthenticationError("these two headers do not prove an equivocation")
    return one, other


def conflict(one: SignedHeader, other: SignedHeader) -> bool:
    """Whether two verified headers cannot both come from an honest sender."""
    a, b = one.header, other.header
    return (
        a.kind is Kind.DELTA
        and b.kind is Kind.DELTA
        and a.federation_id == b.federation_id
        and a.sender == b.sender
        and a.round_number == b.round_number
        and one.digest != other.digest
    )


class HeaderLog:
    """The delta headers heard of, one a sender and round.

    Of each sender the newest ``HEADER_LOG_ROUNDS`` rounds are kept, and ``HEADER_LOG_ENTRIES``
    of all together. A member that signs headers without end displaces its own alone, and
    cannot make anybody forget a recent round with old ones.
    """

    def __init__(self, headers: Iterable[SignedHeader] = ()) -> None:
        self._entries: OrderedDict[tuple[bytes, int], SignedHeader] = OrderedDict()
        self._rounds: dict[bytes, list[int]] = {}  # of each sender, ascending
        self._digests: set[bytes] = set()
        for signed in headers:
            self.observe(signed)

    def observe(self, signed: SignedHeader) -> SignedHeader | None:
        """Note a verified delta header.

        :returns: ``signed`` itself where it is new, None where it was known already or is too
            old to be kept, and the *other* header where it contradicts one that was known.
        """
        sender, round_number = signed.header.sender, signed.header.round_number
        known = self._entries.get((sender, round_number))
        if known is not None:
            return known if conflict(known, signed) else None
        rounds = self._rounds.setdefault(sender, [])
        if len(rounds) >= limits.HEADER_LOG_ROUNDS:
            if round_number < rounds[0]:
                return None
            self._forget(sender, rounds[0])
        self._entries[sender, round_number] = signed
        self._digests.add(signed.digest)
        insort(rounds, round_number)
        if len(self._entries) > limits.HEADER_LOG_ENTRIES:
            self._forget(*next(iter(self._entries)))
        return signed

    def _forget(self, sender: bytes, round_number: int) -> None:
        self._digests.discard(self._entries.pop((sender, round_number)).digest)
        rounds = self._rounds[sender]
        rounds.remove(round_number)
        if not rounds:
            del self._rounds[sender]

    def knows(self, digest: bytes) -> bool:
        """Whether the header with this digest is among them: then it says nothing new, and
        need not be verified again."""
        return digest in self._digests

    def newest(self, sender: bytes) -> SignedHeader | None:
        """The header of the latest round that is known of a sender's public key."""
        rounds = self._rounds.get(sender)
        return self._entries[sender, rounds[-1]] if rounds else None

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> Mapping[tuple[bytes, int], SignedHeader]:
        """What is known, by sender and round, as a snapshot."""
        return MappingProxyType(dict(self._entries))
