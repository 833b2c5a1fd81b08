"""Virtual time: a queue of what is to happen, and a record of what did.

Nothing here depends on the machine: times are whole microseconds, draws come from generators
seeded by text, and only sums, products and comparisons are made of them.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import blake3

MICROSECONDS = 1_000_000
SHOWN_EVENTS = 60  # the end of the trace, which a violation prints

Action = Callable[..., None]


class World:
    """A clock that stands still while something happens, and then jumps to what is next.

    :param seed: of everything that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_microseconds = 0
        self.happened = 0
        self._queue: list[tuple[int, int, Action, tuple[Any, ...]]] = []
        self._order = 0
        self._trace = blake3.blake3()
        self._recent: deque[tuple[int, str, str, str, int]] = deque(maxlen=SHOWN_EVENTS)

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return self.now_microseconds / MICROSECONDS

    def draw(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose: what one site draws moves no other's draws."""
        return random.Random(f"{self.seed} {purpose}")  # noqa: S311 - a simulation, no secret

    def after(self, seconds: float, action: Action, *arguments: Any) -> None:
        """Let ``action(*arguments)`` happen ``seconds`` from now; at once where that is past.

        Never a moment before: a timer that fires too soon is set again, for ever.
        """
        when = self.now_microseconds + max(0, math.ceil(seconds * MICROSECONDS))
        self._order += 1
        heapq.heappush(self._queue, (when, self._order, action, arguments))

    def at(self, seconds: float, action: Action, *arguments: Any) -> None:
        self.after(seconds - self.now, action, *arguments)

    def step(self) -> bool:
        """Let the next thing happen; whether there was one."""
        if not self._queue:
            return False
        self.now_microseconds, _, action, arguments = heapq.heappop(self._queue)
        self.happened += 1
        action(*arguments)
        return True

    def record(self, site: str, what: str, other: str = "", number: int = 0) -> None:
        """Add to the trace. Only what is the same on every machine belongs there: no digest of
        a model, whose last bits depend on the processor."""
        entry = (self.now_microseconds, site, what, other, number)
        self._trace.update(f"{entry[0]}|{site}|{what}|{other}|{number}\n".encode())
        self._recent.append(entry)

    def trace_hash(self) -> str:
        return self._trace.hexdigest()

    def recent(self) -> list[str]:
        """The end of the trace, for a person to read."""
        return [
            f"{microseconds / MICROSECONDS:12.6f}  {site:<12} {what:<22} {other:<12} {number}"
            for microseconds, site, what, other, number in self._recent
        ]
