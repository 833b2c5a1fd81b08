"""The optimiser, with its state as one flat float32 vector.

The vector is all that is carried from round to round: the momentum of each trained parameter
(sgd), or both moments and a count of steps for each (adamw), zeros before the first round. What
stands in it is installed before every round, so a round is a function of its inputs alone.
"""

from itertools import chain

import torch

from p2pfed.training.regions import Vector
from p2pfed.training.schema import copy_in, copy_out, floats_of
from p2pfed.training.settings import LoopSettings


def build_optimiser(model: torch.nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    parameters = _trained(model)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.momentum, settings.second_moment),
        weight_decay=settings.weight_decay,
    )


def optimiser_floats(model: torch.nn.Module, settings: LoopSettings) -> int:
    """How many floats of state travel from round to round."""
    parameters = _trained(model)
    scalars = floats_of(parameters)
    if settings.optimiser == "adamw":
        return 2 * scalars + len(parameters)
    return scalars if settings.momentum else 0


def install_state(optimiser: torch.optim.Optimizer, settings: LoopSettings, vector: Vector) -> None:
    """Give the optimiser the state in ``vector``, shape (s,)."""
    for parameter in _parameters(optimiser):
        state: dict[str, torch.Tensor] = optimiser.state[parameter]
        if settings.optimiser == "adamw":
            # torch keeps the count on the CPU, wherever the parameter is.
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        elif settings.momentum:
            # Equal to torch's own start: momentum * 0 + gradient.
            state["momentum_buffer"] = torch.zeros_like(parameter)
    copy_in(vector, _tensors(optimiser))


def read_state(optimiser: torch.optim.Optimizer, vector: Vector) -> None:
    """Lay the optimiser's state into ``vector``, shape (s,)."""
    copy_out(_tensors(optimiser), vector)


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _parameters(optimiser: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return list(chain.from_iterable(group["params"] for group in optimiser.param_groups))


def _tensors(optimiser: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [
        tensor
        for parameter in _parameters(optimiser)
        for tensor in optimiser.state[parameter].values()
        if isinstance(tensor, torch.Tensor)
    ]
