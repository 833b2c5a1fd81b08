"""Which records a private step draws: each by itself, with the same probability.

The accountant's bound holds for this (Poisson) sampling and not for shuffled passes, and only
while nobody knows who was drawn: hence the round's secret and not the federation's seed.
"""

from p2pfed.training.privacy.randomness import SecretDraws

MIN_EXPECTED_BATCH = 2.0


def sampling_rate(batch_size: int, records: int) -> float:
    """The probability with which a step draws a record, so that ``batch_size`` are expected."""
    return min(1.0, batch_size / records)


def poisson_batches(draws: SecretDraws, records: int, rate: float, steps: int) -> list[list[int]]:
    """Record indices of each local step; a step may well draw none, and is taken all the same.

    :param rate: probability with which each record is drawn, 0 to 1.
    """
    return [
        (draws.uniforms("sampling", step, records) < rate).nonzero()[0].tolist()
        for step in range(steps)
    ]
