"""What a trainer process usually takes for what it is asked, and from when on it stands still."""

import statistics
from collections import defaultdict, deque
from typing import Literal

from p2pfed.training import frames

LEAST_PATIENCE_SECONDS = 30.0  # a garbage collection or a busy disk is no standstill
PATIENCE_FACTOR = 20.0  # times what it usually takes
# Where nothing is known: the first step of a process reads all data and compiles its kernels.
FIRST_PATIENCE_SECONDS = 3600.0
REMEMBERED_STRETCHES = 32

Stretch = Literal["first step", "step", "evaluation"]


class TrainerPace:
    """The pace of one trainer process; all times on the caller's clock, in seconds.

    A request is a row of stretches, each of which ends with a frame: the first step of a round
    (it begins by reading the model and the first batch), a further step, an evaluation.

    :ivar heard_at_seconds: when the process last gave a sign of life under a request, or the
        request began; None where it is asked for nothing that has a usual length.
    """

    def __init__(self) -> None:
        self.heard_at_seconds: float | None = None
        self._stretch: Stretch = "first step"
        self._step = 0
        self._taken: defaultdict[Stretch, deque[float]] = defaultdict(
            lambda: deque(maxlen=REMEMBERED_STRETCHES)
        )

    @property
    def patience_seconds(self) -> float:
        """For how long the process may be silent in the stretch under way."""
        taken = self._taken[self._stretch]
        if not taken:
            return FIRST_PATIENCE_SECONDS
        return max(LEAST_PATIENCE_SECONDS, PATIENCE_FACTOR * statistics.median(taken))

    def asked(self, request: frames.Request, now: float) -> None:
        match request:
            case frames.Train():
                self._stretch, self._step = "first step", 0
            case frames.Evaluate():
                self._stretch = "evaluation"
            case _:  # of a file of any length, or to a disk of any speed
                return
        self.heard_at_seconds = now

    def progressed(self, progress: frames.Progress, now: float) -> None:
        if self.heard_at_seconds is None:
            return
        steps = max(1, progress.step - self._step)
        self._taken[self._stretch].append((now - self.heard_at_seconds) / steps)
        self._stretch, self._step, self.heard_at_seconds = "step", progress.step, now

    def answered(self, now: float) -> None:
        if self._stretch == "evaluation" and self.heard_at_seconds is not None:
            self._taken[self._stretch].append(now - self.heard_at_seconds)

    def over(self) -> None:
        """The request has ended, well or not."""
        self.heard_at_seconds = None
