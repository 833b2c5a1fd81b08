"""What a site's private training is made by; its own settings and its number of records."""

from dataclasses import dataclass

from p2pfed.training.privacy.sampling import sampling_rate


@dataclass(frozen=True)
class PrivateSettings:
    """
    :ivar noise_multiplier: sigma, the noise's standard deviation over ``clip_norm``.
    :ivar clip_norm: C, the 2-norm to which a record's gradient is clipped.
    :ivar batch_size: records that a step draws on average, where there are as many.
    :ivar records: training records at this site, n.
    """

    noise_multiplier: float
    clip_norm: float
    batch_size: int
    records: int

    @property
    def sampling_rate(self) -> float:
        """q, the probability with which a step draws a record."""
        return sampling_rate(self.batch_size, self.records)

    @property
    def expected_batch(self) -> float:
        """q n."""
        return self.sampling_rate * self.records
