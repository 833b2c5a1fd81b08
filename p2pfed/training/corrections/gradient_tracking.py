"""Gradient tracking: the decentralised SCAFFOLD, without another message."""

from collections.abc import Sequence

import numpy as np
import torch

from p2pfed.training.corrections.correction import RoundStart
from p2pfed.training.regions import Vector
from p2pfed.training.schema import copy_out, filled_like

# s below. With W the mixing matrix, deviations of x and c evolve, gradients apart, by the matrix
# [[l, -l], [s (1 - l), 1 - s (1 - l)]] for each eigenvalue l of W. At s = 1 it does not contract at
# l = -1/3, which an even ring has, and momentum answers late; rules that clip mix less than W does.
DAMPING = 0.25


class GradientTracking:
    """Each gradient gets c added, which learns how this site's gradient differs from the mean.

    After a round, c += s (1 - momentum) (w - x') / (K learning_rate): w is what this site trained,
    x' what the aggregation made of it. Where every site's model is the same optimum, c is minus the
    site's own gradient there, so that local steps stay where they are instead of drifting to the
    site's own optimum. A doubly stochastic rule keeps the sum of all c at zero; a robust rule
    nearly so.

    The control variate of SCAFFOLD (Karimireddy et al., ICML 2020, arXiv:1910.06378) in the form
    that needs no second vector on the wire: Mishchenko et al., ProxSkip, ICML 2022,
    arXiv:2202.09357, algorithm 2 (Scaffnew), and, over a graph, Alghunaim, Local Exact-Diffusion
    for Decentralized Optimization and Learning, arXiv:2302.00620. There s is 1.

    :param momentum: of the optimiser; each step moves by learning_rate / (1 - momentum) in the end.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self._corrections: list[torch.Tensor] = []

    def state_floats(self, floats: int) -> int:
        """A mark that there is a trained model, c, and the model that was trained."""
        return 1 + 2 * floats

    def begin(self, given: RoundStart, state: Vector) -> None:
        floats = (state.size - 1) // 2
        kept, trained = np.split(state[1:], [floats])
        self._corrections = filled_like(given.start, kept)
        if state[0] == 0.0:
            return
        scale = DAMPING * (1.0 - self.momentum) / (given.local_steps * given.learning_rate)
        before = filled_like(given.start, trained)
        for correction, own, mixed in zip(self._corrections, before, given.start, strict=True):
            correction.add_(own - mixed, alpha=scale)

    @torch.no_grad()
    def correct(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        for parameter, correction in zip(parameters, self._corrections, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(correction)

    def finish(self, parameters: Sequence[torch.nn.Parameter], state: Vector) -> None:
        floats = (state.size - 1) // 2
        state[0] = 1.0
        copy_out(self._corrections, state[1 : 1 + floats])
        copy_out(parameters, state[1 + floats :])
