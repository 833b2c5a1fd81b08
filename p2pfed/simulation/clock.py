"""A site's own clock, which may be wrong."""

from dataclasses import dataclass

ROUNDING_SECONDS = 1e-6  # more than what is lost by turning one clock's time into another's


@dataclass(slots=True)
class Clock:
    """A site's own clock: ``rate`` of its seconds pass in one of the world's."""

    offset_seconds: float = 0.0
    rate: float = 1.0

    def local(self, world_seconds: float) -> float:
        return self.offset_seconds + self.rate * world_seconds

    def wait_until(self, local_seconds: float, world_seconds: float) -> float:
        """For how many of the world's seconds to wait from now; never a moment too short, for a
        timer that fires too soon is set again, for ever."""
        wait = (local_seconds - self.offset_seconds) / self.rate - world_seconds
        exact = self.offset_seconds == 0.0 and self.rate == 1.0
        return wait if exact else wait + ROUNDING_SECONDS
