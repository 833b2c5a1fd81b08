"""A model as one flat float32 vector, and the schema that says what stands where.

Every parameter and every floating-point buffer travels, in the order of ``named_parameters()``
and then ``named_buffers()``; integer buffers (batch norm's counter of batches) and buffers that
``state_dict()`` leaves out stay local.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import msgpack
import numpy as np
import torch

from p2pfed.errors import TrainingError
from p2pfed.training.regions import Vector

SCHEMA_CONTEXT = b"p2pfed/1 schema"


@dataclass(frozen=True)
class Schema:
    """Name and shape of each tensor, in the order of the flat vector."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def dimension(self) -> int:
        return sum(prod(shape) for _, shape in self.tensors)

    @cached_property
    def digest(self) -> bytes:
        """BLAKE2b-256 over ``SCHEMA_CONTEXT`` and the canonical msgpack of ``tensors``."""
        encoded: bytes = msgpack.packb([[name, list(shape)] for name, shape in self.tensors])
        return hashlib.blake2b(SCHEMA_CONTEXT + encoded, digest_size=32).digest()


def prepare(model: torch.nn.Module) -> None:
    """Make every travelling tensor float32, in place.

    :raises TrainingError: the model has complex tensors, or nothing that could travel.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_complex():
            raise TrainingError(f"the model's {name!r} is complex; only real tensors can travel")
    model.float()
    if not travelling(model):
        raise TrainingError("the model has no floating-point parameter: there is nothing to train")


def travelling(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The tensors that make up the flat vector, in its order; tied parameters count once."""
    persistent = model.state_dict(keep_vars=True).keys()
    buffers = [
        (name, tensor)
        for name, tensor in model.named_buffers()
        if tensor.is_floating_point() and name in persistent
    ]
    parameters = [(name, p.data) for name, p in model.named_parameters() if p.is_floating_point()]
    return parameters + buffers


def schema_of(model: torch.nn.Module) -> Schema:
    return Schema(tuple((name, tuple(tensor.shape)) for name, tensor in travelling(model)))


@torch.no_grad()
def read_vector(model: torch.nn.Module, vector: Vector) -> None:
    """Copy the model into ``vector``, shape (d,)."""
    copy_out([tensor for _, tensor in travelling(model)], vector)


@torch.no_grad()
def write_vector(model: torch.nn.Module, vector: Vector) -> None:
    """Copy ``vector``, shape (d,), into the model."""
    copy_in(vector, [tensor for _, tensor in travelling(model)])


def copy_out(tensors: list[torch.Tensor], vector: Vector) -> None:
    """Lay the tensors one after the other into ``vector``, which they fill exactly."""
    _check_length(tensors, vector)
    offset = 0
    for tensor in tensors:
        vector[offset : offset + tensor.numel()] = tensor.detach().cpu().numpy().reshape(-1)
        offset += tensor.numel()


def copy_in(vector: Vector, tensors: list[torch.Tensor]) -> None:
    """Fill the tensors, one after the other, from ``vector``."""
    _check_length(tensors, vector)
    offset = 0
    for tensor in tensors:
        # A copy, because torch has no read-only tensors and the trainer's inputs are read-only.
        part = np.array(vector[offset : offset + tensor.numel()])
        tensor.copy_(torch.from_numpy(part).view(tensor.shape))
        offset += tensor.numel()


def _check_length(tensors: list[torch.Tensor], vector: Vector) -> None:
    wanted = sum(tensor.numel() for tensor in tensors)
    if vector.shape != (wanted,):
        raise ValueError(f"a vector of {vector.size} floats for {wanted} of the model's")


def local_state(model: torch.nn.Module) -> dict[str, Any]:
    """A copy of what never travels, to be put back by :func:`restore_local_state`."""
    names = {name for name, _ in travelling(model)}
    return {
        name: tensor.detach().clone() for name, tensor in model.named_buffers() if name not in names
    }


@torch.no_grad()
def restore_local_state(model: torch.nn.Module, state: dict[str, Any]) -> None:
    for name, tensor in model.named_buffers():
        if name in state:
            tensor.copy_(state[name])
