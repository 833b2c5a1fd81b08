"""What a peer knows of itself: where it stands, and what it can send again."""

from dataclasses import dataclass, field

from p2pfed.protocol import limits
from p2pfed.protocol.header import SignedHeader


@dataclass(frozen=True, slots=True)
class OwnState:
    """What a peer knows of itself when its daemon starts; rebuilt from the store.

    ``published`` is the last own delta header. Where it belongs to ``round_number`` the round
    was published before the daemon ended, and goes on from there with the same bytes.
    ``restored``: the state is older than what the peer has signed, or may be. ``since_round``:
    in which it joined; 0 for a founder.
    """

    round_number: int
    replica: bytes
    published: SignedHeader | None
    restored: bool = False
    since_round: int = 0


@dataclass(slots=True)
class RetainedDeltas:
    """The own envelopes that can still be sent again, oldest first."""

    headers: list[SignedHeader] = field(default_factory=list)

    def add(self, signed: SignedHeader) -> None:
        self.headers.append(signed)
        del self.headers[: -limits.RETAINED_DELTAS]

    def keep_only(self, topology_digest: bytes) -> None:
        """Drop those that were signed under another topology file."""
        self.headers = [s for s in self.headers if s.header.topology_digest == topology_digest]

    def after(self, replica_held: bytes) -> list[SignedHeader]:
        """The chain from ``replica_held`` to the newest, or nothing where it is broken."""
        for index, signed in enumerate(self.headers):
            if signed.header.replica_before == replica_held:
                return self.headers[index:]
        return []
