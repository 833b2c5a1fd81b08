"""How long a run with canaries has to be to tell whether its noise is there."""

from collections.abc import Callable

from p2pfed.training.audit.one_run import GUESSINGS, epsilon_lower_bound
from p2pfed.training.audit.statistics import CONFIDENCE

MARGIN = 0.9  # of what can be shown; a guess or two may be wrong


def longest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` for which ``holds``; 0 where it is none.

    :param holds: true up to some number and false from there on.
    """
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def reachable(canaries: int, drawn: float, delta: float) -> float:
    """The epsilon shown where every canary that was drawn is told and nothing else is known.

    :param drawn: the share of those taking part that some step has drawn.
    """
    each = 1.0 - (1.0 - CONFIDENCE) / len(GUESSINGS)
    bounds = [0.0]
    for guessing in GUESSINGS:
        if not guessing.lowest and guessing.highest <= MARGIN * drawn / 2.0:
            told = int(canaries * guessing.highest)
            bounds.append(epsilon_lower_bound(canaries, told, told, delta, each))
    return max(bounds)


def control_steps(
    most: int,
    steps_a_round: int,
    canaries: int,
    sampling_rate: float,
    delta: float,
    accounted: Callable[[int], float],
) -> int | None:
    """The most local steps, whole rounds where they can be, after which a run without noise must
    show more than is accounted for one with it; None where no number does.

    More steps are accounted higher, and no more than :func:`reachable` can be shown.
    """
    lengths = [steps_a_round * count for count in range(most // steps_a_round, 0, -1)]
    lengths += range(min(most, steps_a_round) - 1, 0, -1)  # less than a round
    for steps in lengths:
        drawn = 1.0 - (1.0 - sampling_rate) ** steps
        if accounted(steps) <= MARGIN * reachable(canaries, drawn, delta):
            return steps
    return None
