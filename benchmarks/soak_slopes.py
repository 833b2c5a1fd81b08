"""Whether what a long run measured grows: samples, their course, and the slope of each."""

import math
import statistics
from dataclasses import dataclass

from p2pfed.daemon.store import KEPT_HISTORY_ROUNDS

FLAT_SHARE_AN_HOUR = 0.02
FLAT_COUNT_AN_HOUR = 1.0
FLAT_KIB_AN_HOUR = 32.0  # of the state directory: eight vectors of the 4 kB model
JOURNAL_BYTES_A_ROUND = 2048.0
LEAST_SAMPLES = 8
LEAST_ROUNDS = 100  # below, what the first headers and histories take hides the rest
WARM_UP_SECONDS = 120.0

MEMORY = ("rss_kib", "pss_kib", "trainer_pss_kib")
COUNTS = ("tasks", "descriptors", "threads")
SIZES = ("state_kib",)
BOUNDS = {**dict.fromkeys(COUNTS, FLAT_COUNT_AN_HOUR), "state_kib": FLAT_KIB_AN_HOUR}


@dataclass(frozen=True)
class Sample:
    """What one daemon used at one moment. ``life`` counts its processes."""

    at_seconds: float
    site: str
    life: int
    round: int
    rss_kib: float
    pss_kib: float
    trainer_pss_kib: float
    tasks: int
    descriptors: int
    threads: int
    journal_kib: float
    log_kib: float  # the journal's write-ahead log: to about 4 MB, then it is written over
    state_kib: float  # without both


@dataclass(frozen=True)
class Slope:
    """Growth of one quantity of one site over the second half: an hour, for the journal a round.

    ``error`` is the standard error of ``slope``.
    """

    site: str
    quantity: str
    start: float  # of the run
    midway: float
    end: float
    slope: float
    error: float
    bound: float
    rise: float  # over the whole second half
    scatter: float  # standard deviation about the line

    @property
    def flat(self) -> bool:
        return self.slope - 2 * self.error <= self.bound or self.rise <= 2 * self.scatter


def slope_of(
    site: str, quantity: str, times: list[float], values: list[float], bound: float, start: float
) -> Slope:
    """The least-squares line of ``values`` over ``times``, which ascend.

    :param start: the value when the whole run began.
    """
    middle, mean = statistics.fmean(times), statistics.fmean(values)
    spread = math.fsum((t - middle) ** 2 for t in times)
    slope = (
        math.fsum((t - middle) * (v - mean) for t, v in zip(times, values, strict=True)) / spread
    )
    squares = math.fsum(
        (v - mean - slope * (t - middle)) ** 2 for t, v in zip(times, values, strict=True)
    )
    scatter = math.sqrt(squares / (len(times) - 2))
    return Slope(
        site=site,
        quantity=quantity,
        start=start,
        midway=values[0],
        end=values[-1],
        slope=slope,
        error=scatter / math.sqrt(spread),
        bound=bound,
        rise=slope * (times[-1] - times[0]),
        scatter=scatter,
    )


def slopes(samples: list[Sample], minutes: float) -> list[Slope]:
    """The growth of everything over the second half."""
    found: list[Slope] = []
    for name in sorted({sample.site for sample in samples}):
        own = [sample for sample in samples if sample.site == name]
        late = [sample for sample in own if sample.at_seconds >= 30 * minutes]
        if len(late) < LEAST_SAMPLES:
            continue
        hours = [sample.at_seconds / 3600 for sample in late]
        # A young process still loads what it needs.
        grown = next(s for s in own if s.life == late[-1].life).at_seconds <= (
            30 * minutes - min(WARM_UP_SECONDS, 15 * minutes)
        )
        for quantity in (*MEMORY, *COUNTS, *SIZES):
            if quantity in SIZES or grown:
                start, *values = (float(getattr(each, quantity)) for each in (own[0], *late))
                share = FLAT_SHARE_AN_HOUR * statistics.fmean(values)
                bound = share if quantity in MEMORY else BOUNDS[quantity]
                found.append(slope_of(name, quantity, hours, values, bound, start))
        if late[-1].round - late[0].round >= LEAST_ROUNDS:
            found.append(journal_slope(own[0], late))
    return found


def journal_slope(first: Sample, late: list[Sample]) -> Slope:
    """The journal's growth in bytes a round; once it is full, it must not grow at all."""
    start, *sizes = (1024 * sample.journal_kib for sample in (first, *late))
    bound = JOURNAL_BYTES_A_ROUND if late[0].round < KEPT_HISTORY_ROUNDS else 0.0
    rounds = [float(sample.round) for sample in late]
    return slope_of(first.site, "journal_bytes", rounds, sizes, bound, start)


def print_slopes(found: list[Slope]) -> None:
    print(
        "\nat the start, midway and at the end; slopes over the second half, an hour "
        "(the journal's: a round)"
    )
    print(
        f"{'site':10}{'':17}{'start':>12}{'midway':>12}{'end':>12}{'slope':>10}{'+-':>9}{'bound':>9}"
    )
    for one in found:
        print(
            f"{one.site:10}{one.quantity:17}{one.start:>12.0f}{one.midway:>12.0f}{one.end:>12.0f}"
            f"{one.slope:>10.2f}{2 * one.error:>9.2f}{one.bound:>9.2f}"
            f"  {'flat' if one.flat else 'NOT FLAT'}"
        )
