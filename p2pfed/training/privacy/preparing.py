"""Tasks that settle something between sites before they train, and say what that costs."""

from typing import Protocol, runtime_checkable

from p2pfed.training.task import PreparingTask


@runtime_checkable
class PricedPreparation(PreparingTask, Protocol):
    """A preparing task that a site may take part in under a privacy budget."""

    @property
    def preparation_rounds(self) -> int:
        """Rounds at the start of the federation in which no local step is taken."""

    def preparation_spend(self) -> tuple[float, float] | None:
        """Noise multiplier and sampling rate of the one mechanism by which a site gives its part.

        :returns: None where no record is looked at; a noise multiplier of 0 where nothing hides
            them.
        """
