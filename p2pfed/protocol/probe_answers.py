"""The requests of neighbours that want to know whether this site hears another, while it finds
out: bounded by the number of pairs of neighbours, and by a pause between two of one pair."""

from dataclasses import dataclass

ANSWER_WAIT_SECONDS = 0.5  # for a target to answer a heartbeat; then what is known is reported
REQUEST_PAUSE_SECONDS = 0.5  # of one asker about one target; what comes sooner is ignored


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that is not answered yet; ``until`` is awake time."""

    asker: str
    target: str
    token: int
    until: float


class ProbeAnswers:
    """Requests by (asker, target); all times are awake time."""

    def __init__(self) -> None:
        self._taken_at: dict[tuple[str, str], float] = {}
        self._waiting: dict[tuple[str, str], Waiting] = {}

    def takes(self, asker: str, target: str, awake: float) -> bool:
        """Whether a request may be answered: an asker that sends too many gets fewer answers."""
        last = self._taken_at.get((asker, target))
        if last is not None and awake - last < REQUEST_PAUSE_SECONDS:
            return False
        self._taken_at[asker, target] = awake
        return True

    def wait(self, asker: str, target: str, token: int, awake: float) -> None:
        self._waiting[asker, target] = Waiting(asker, target, token, awake + ANSWER_WAIT_SECONDS)

    def about(self, target: str) -> list[Waiting]:
        """Take those about one target: something has become known of it."""
        return self._take([one for one in self._waiting.values() if one.target == target])

    def overdue(self, awake: float) -> list[Waiting]:
        """Take those that wait no longer."""
        return self._take([one for one in self._waiting.values() if awake >= one.until])

    def forget(self, site: str) -> None:
        """The site is gone; it asks nothing any more."""
        for pair in [pair for pair in self._taken_at if site in pair]:
            del self._taken_at[pair]
            self._waiting.pop(pair, None)

    def _take(self, found: list[Waiting]) -> list[Waiting]:
        for one in found:
            del self._waiting[one.asker, one.target]
        return found
