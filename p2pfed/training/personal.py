"""Ditto: a model of the site's own, tied to the federation's."""

from collections.abc import Sequence

import torch

from p2pfed.training.regions import Vector
from p2pfed.training.schema import copy_in, copy_out


class PersonalModel:
    """v, which takes v <- v - learning_rate (grad F(v) + lambda (v - x)) on this site's records.

    x is the model that the round began with; the federation's model does not feel v, and v never
    travels. lambda = 0 would be training alone, a large lambda the federation's model. Li et al.,
    Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021,
    arXiv:2012.04221, algorithm 1.

    :param strength: lambda.
    """

    def __init__(self, strength: float, learning_rate: float) -> None:
        self.strength = strength
        self.learning_rate = learning_rate

    @torch.no_grad()
    def step(
        self,
        parameters: Sequence[torch.nn.Parameter],
        towards: Sequence[torch.Tensor | None],
    ) -> None:
        """Take a step along the gradients in ``parameters``, which hold v.

        :param towards: for each the value in x, or None for one that no other site has.
        """
        for parameter, target in zip(parameters, towards, strict=True):
            if parameter.grad is None:
                continue
            gradient = parameter.grad
            if target is not None:
                gradient = gradient.add(parameter - target, alpha=self.strength)
            parameter.sub_(gradient, alpha=self.learning_rate)

    @staticmethod
    def install(tensors: Sequence[torch.Tensor], state: Vector) -> None:
        """Make the model be v; ``tensors`` are its travelling and then its local ones."""
        copy_in(state, tensors)

    @staticmethod
    def keep(tensors: Sequence[torch.Tensor], state: Vector) -> None:
        copy_out(tensors, state)
