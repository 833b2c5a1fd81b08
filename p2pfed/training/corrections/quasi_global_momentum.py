"""Quasi-global momentum: momentum along the way of the federation, not of the site."""

from collections.abc import Sequence

import torch

from p2pfed.training.corrections.correction import RoundStart
from p2pfed.training.regions import Vector
from p2pfed.training.schema import copy_out, filled_like


class QuasiGlobalMomentum:
    """Each gradient gets beta m added; m <- beta m + (1 - beta) (x - x') / (K learning_rate).

    x and x' are the models that the last round and this one began with, so m follows what the
    federation did and not what this site's own records pull at. It takes the place of the
    optimiser's momentum. Lin et al., Quasi-Global Momentum: Accelerating Decentralized Deep
    Learning on Heterogeneous Data, ICML 2021, arXiv:2102.04761, algorithm 1 with mu = beta; for
    K local steps the way is shared out among them.

    :param beta: as the momentum that it replaces.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self._momentum: list[torch.Tensor] = []
        self._start: Sequence[torch.Tensor] = ()

    def state_floats(self, floats: int) -> int:
        """A mark that a round came before, m, and the model that it began with."""
        return 1 + 2 * floats

    def begin(self, given: RoundStart, state: Vector) -> None:
        floats = (state.size - 1) // 2
        self._start = given.start
        self._momentum = filled_like(given.start, state[1 : 1 + floats])
        if state[0] == 0.0:
            return
        last = filled_like(given.start, state[1 + floats :])
        scale = (1.0 - self.beta) / (given.local_steps * given.learning_rate)
        for momentum, before, now in zip(self._momentum, last, given.start, strict=True):
            momentum.mul_(self.beta).add_(before - now, alpha=scale)

    @torch.no_grad()
    def correct(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        for parameter, momentum in zip(parameters, self._momentum, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(momentum, alpha=self.beta)

    def finish(self, parameters: Sequence[torch.nn.Parameter], state: Vector) -> None:  # noqa: ARG002
        floats = (state.size - 1) // 2
        state[0] = 1.0
        copy_out(self._momentum, state[1 : 1 + floats])
        copy_out(self._start, state[1 + floats :])
