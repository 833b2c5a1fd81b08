"""What the next round of a learner would cost, before it is trained."""

from p2pfed.training.frames import Price, Priced
from p2pfed.training.loop import Learner
from p2pfed.training.privacy.accountant import epsilon_of
from p2pfed.training.privacy.preparing import PricedPreparation
from p2pfed.training.regions import Vector

NOTHING = (0.0, 0.0, 0)


def price(request: Price, learner: Learner, state: Vector, most_steps: int | None) -> Priced:
    """Account for what ``request`` names, and for the round that would begin with ``state``.

    :param state: shape (s,), float32: what the site keeps for itself.
    :param most_steps: that this site takes in a round, where it takes fewer.
    """
    spend = next_spend(request, learner, state, most_steps)
    return Priced(
        epsilon=epsilon_of(request.spent, request.delta),
        next_spend=spend,
        epsilon_with_next=epsilon_of((*request.spent, spend), request.delta),
    )


def next_spend(
    request: Price, learner: Learner, state: Vector, most_steps: int | None
) -> tuple[float, float, int]:
    """Sampling rate, noise multiplier and steps of the round."""
    if learner.privacy is None or not request.local_steps:
        return NOTHING
    task = learner.task
    if isinstance(task, PricedPreparation) and request.round_number < task.preparation_rounds:
        spend = task.preparation_spend()
        if spend is None or learner.layout.over(state).prepared:
            return NOTHING
        noise_multiplier, rate = spend
        return rate, noise_multiplier, 1
    steps = request.local_steps if most_steps is None else min(most_steps, request.local_steps)
    return learner.privacy.sampling_rate, learner.privacy.noise_multiplier, steps
