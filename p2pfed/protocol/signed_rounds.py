"""Which rounds a peer has signed, where its own state may have forgotten some.

A state that was restored from a backup is older than what the peer signed. Its neighbours hold
the newer headers: each shows the newest of them when a link comes up. They are signed with the
peer's own key, so a neighbour can withhold one but not invent one.
"""

from dataclasses import dataclass, field

from p2pfed.protocol import limits
from p2pfed.protocol.header import SignedHeader


@dataclass(slots=True)
class SignedRounds:
    """What a peer learns of its own past.

    :param asking: nothing may be signed until enough neighbours have been heard.
    """

    asking: bool
    newest: SignedHeader | None = None  # the newest own delta header that a neighbour showed
    reported: set[str] = field(default_factory=set)

    @property
    def first_free(self) -> int:
        """The first round for which no signed header is known."""
        return self.newest.header.round_number + 1 if self.newest is not None else 0

    def shown(self, signed: SignedHeader) -> None:
        if signed.header.round_number >= self.first_free:
            self.newest = signed

    def resume_at(self, round_number: int, announced_round: int) -> int:
        """The first round that is safe to sign, and the end of the asking.

        A neighbour that is down may hold a newer header than those that were heard. What was
        signed cannot be ahead of the federation by more than a round, for a round closes with
        a quorum; so the furthest round that neighbours still accept is safe.

        :param round_number: the round of the restored state.
        :param announced_round: the lower median of the neighbours' rounds.
        """
        self.asking = False
        return max(round_number, self.first_free, announced_round + limits.ROUND_WINDOW)
