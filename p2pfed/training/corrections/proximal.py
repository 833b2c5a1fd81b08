"""FedProx: a spring to the model that the round began with."""

from collections.abc import Sequence

import torch

from p2pfed.training.corrections.correction import RoundStart, Tensors
from p2pfed.training.regions import Vector


class Proximal:
    """Each gradient gets mu (w - x) added, the gradient of mu/2 ||w - x||^2.

    w is the model under way, x the one that the round began with. Li et al., Federated
    Optimization in Heterogeneous Networks, MLSys 2020, arXiv:1812.06127, equation 2.

    :param strength: mu.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._start: Tensors = ()

    def state_floats(self, floats: int) -> int:  # noqa: ARG002 - nothing is kept
        return 0

    def begin(self, given: RoundStart, state: Vector) -> None:  # noqa: ARG002
        self._start = given.start

    @torch.no_grad()
    def correct(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        for parameter, start in zip(parameters, self._start, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=self.strength)

    def finish(self, parameters: Sequence[torch.nn.Parameter], state: Vector) -> None:
        """Nothing is left to do."""
