"""FedNova: a site that takes fewer steps counts as if it had taken as many as the others."""

from collections.abc import Sequence

import torch

from p2pfed.training.corrections.correction import RoundStart, Tensors
from p2pfed.training.regions import Vector


def accumulated_steps(steps: int, shrinkage: float) -> float:
    """||a||_1: the weight with which a round's gradients stand in its change, in steps.

    Under a proximal term each step shrinks what came before by 1 - shrinkage, shrinkage being
    learning rate times mu; then it is (1 - (1 - shrinkage)^steps) / shrinkage, and without, the
    number of steps. Momentum that is carried from round to round, as here, gives every gradient
    the same 1 / (1 - momentum) in the end, and cancels in the ratio.
    """
    if shrinkage == 0.0:
        return float(steps)
    return (1.0 - (1.0 - shrinkage) ** steps) / shrinkage


class NormalisedSteps:
    """The round's change is multiplied by ||a_K||_1 / ||a_k||_1.

    K is the federation's number of local steps and k this site's. Without it the federation
    minimises an objective in which fast sites weigh more than their share. Wang et al., Tackling
    the Objective Inconsistency Problem in Heterogeneous Federated Optimization, NeurIPS 2020,
    arXiv:2007.07481, equations 6 to 8.

    :param proximal_strength: mu of a proximal term in use, else 0.
    """

    def __init__(self, proximal_strength: float) -> None:
        self.proximal_strength = proximal_strength
        self._start: Tensors = ()
        self._factor = 1.0

    def state_floats(self, floats: int) -> int:  # noqa: ARG002 - nothing is kept
        return 0

    def begin(self, given: RoundStart, state: Vector) -> None:  # noqa: ARG002
        shrinkage = given.learning_rate * self.proximal_strength
        self._start = given.start
        self._factor = accumulated_steps(given.local_steps, shrinkage) / accumulated_steps(
            given.steps, shrinkage
        )

    def correct(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Gradients stay as they are."""

    @torch.no_grad()
    def finish(self, parameters: Sequence[torch.nn.Parameter], state: Vector) -> None:  # noqa: ARG002
        if self._factor == 1.0:
            return
        for parameter, start in zip(parameters, self._start, strict=True):
            parameter.copy_(start + self._factor * (parameter - start))
