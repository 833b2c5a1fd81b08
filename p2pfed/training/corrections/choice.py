"""The corrections that a federation's settings ask for."""

from p2pfed.training.corrections.correction import Correction
from p2pfed.training.corrections.gradient_tracking import GradientTracking
from p2pfed.training.corrections.normalised_steps import NormalisedSteps
from p2pfed.training.corrections.proximal import Proximal
from p2pfed.training.corrections.quasi_global_momentum import QuasiGlobalMomentum
from p2pfed.training.settings import LoopSettings


def corrections_for(settings: LoopSettings) -> tuple[Correction, ...]:
    """In the order in which they are applied.

    What looks at the published model comes after what changes it.
    """
    corrections: list[Correction] = []
    if settings.proximal:
        corrections.append(Proximal(settings.proximal))
    if settings.quasi_global_momentum:
        corrections.append(QuasiGlobalMomentum(settings.quasi_global_momentum))
    if settings.normalised_steps:
        corrections.append(NormalisedSteps(settings.proximal))
    if settings.gradient_tracking:
        # Where the momentum is quasi-global, a step moves as far in the end as with the other.
        momentum = settings.quasi_global_momentum or settings.momentum
        corrections.append(GradientTracking(momentum))
    return tuple(corrections)
