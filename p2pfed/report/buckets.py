"""Numbers of records as a reader of a report may see them: a range of the 1-2-5 series.

An exact count that leaves a site says when one patient more or less was in it. Ranges are what
statistics offices publish instead; a count below ``SMALLEST`` is not told at all, as the rule of
thumb of statistical disclosure control has it (A. Hundepool et al., Statistical Disclosure
Control, 2012, section 5.2). A share of records and its confidence interval still let a reader
estimate how many there are.
"""

SMALLEST = 10
_STEPS = (1, 2, 5)

Bucket = tuple[int, int]
"""At least the first, less than the second."""


def bucket(count: int) -> Bucket:
    """The range that ``count`` lies in: 0 to 10, 10 to 20, 20 to 50, 50 to 100, 100 to 200 ...

    :raises ValueError: it is negative.
    """
    if count < 0:
        raise ValueError(f"{count} records")
    low, high = 0, SMALLEST
    power, place = SMALLEST, 0
    while count >= high:
        place += 1
        if place == len(_STEPS):
            power, place = 10 * power, 0
        low, high = high, power * _STEPS[place]
    return low, high


def words(given: Bucket) -> str:
    """As a person reads it: ``fewer than 10``, ``200 to 499``."""
    low, high = given
    return f"fewer than {high}" if low == 0 else f"{low} to {high - 1}"
