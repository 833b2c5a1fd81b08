"""How far this process can trust what it hears, and what it does not hear.

A process that stood still hears nobody, and would take its own pause for everybody else's. It
finds out by its event loop's lag: a shell that calls ``tick`` every ``TICK_SECONDS`` and is late
did not listen for as long. What follows is twofold. Silence is measured in *awake time*, which
stands still while the process does, so that nobody is ever suspected for a silence that was
slept through. And a score from 0 (well) to ``HIGHEST_SCORE`` lengthens every timeout by a factor
of 1 + score: the local health multiplier of Lifeguard (Dadgar, Phillips, Currey 2018, section
IV.A), raised by lag and by probes that even those who were asked for help did not answer.
"""

TICK_SECONDS = 0.25
HIGHEST_SCORE = 8  # S of the paper
LAG_OF_A_POINT_SECONDS = 0.5  # the score grows by one for each of these in one lag
RECOVERY_SECONDS = 1.0  # of awake time without trouble, after which the score falls by one


class LocalHealth:
    """The state of this process itself; times are seconds on the caller's clock.

    :param tick_seconds: the time between two ticks that come in time.
    :ivar score: 0 to ``HIGHEST_SCORE``.
    :ivar lag_seconds: the longest lag since the score was last 0.
    """

    def __init__(self, now: float, tick_seconds: float = TICK_SECONDS) -> None:
        self.score = 0
        self.lag_seconds = 0.0
        self._tick_seconds = tick_seconds
        self._ticking = False
        self._ticked_at = now
        self._slept_seconds = 0.0
        self._changed_at = self.awake(now)

    @property
    def multiplier(self) -> int:
        return 1 + self.score

    def awake(self, now: float) -> float:
        """Seconds of awake time at ``now``. Between two ticks it goes no further than one tick:
        what happens first after a pause is not dated by it."""
        awake_seconds = min(now - self._ticked_at, self._tick_seconds)
        return self._ticked_at - self._slept_seconds + awake_seconds

    def tick(self, now: float) -> None:
        """Take note of the time that has passed since the last call; what passes before the first
        is no lag, for the shell is still being started."""
        lag = max(0.0, now - self._ticked_at - self._tick_seconds)
        self._ticked_at = now
        self._slept_seconds += lag
        points = int(lag / LAG_OF_A_POINT_SECONDS) if self._ticking else 0
        self._ticking = True
        if points:
            self._raise(points)
            self.lag_seconds = max(self.lag_seconds, lag)
        elif self.score and self.awake(now) - self._changed_at >= RECOVERY_SECONDS:
            self.score -= 1
            self._changed_at = self.awake(now)
        if not self.score:
            self.lag_seconds = 0.0

    def probe_failed(self) -> None:
        """Not one of those who were asked about a neighbour answered at all."""
        self._raise(1)

    def _raise(self, points: int) -> None:
        self.score = min(HIGHEST_SCORE, self.score + points)
        self._changed_at = self.awake(self._ticked_at)
