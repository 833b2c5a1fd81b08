"""A model as one flat float32 vector, and the schema that says what stands where.

The vector holds the travelling tensors (:mod:`p2pfed.training.partition`) one after the other.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import msgpack
import numpy as np
import torch

from p2pfed.errors import TrainingError
from p2pfed.training.partition import Partition
from p2pfed.training.regions import Vector

SCHEMA_CONTEXT = b"p2pfed/1 schema"


@dataclass(frozen=True)
class Schema:
    """Name and shape of each tensor, in the order of the flat vector.

    :ivar frozen_digest: BLAKE2b-256 over the values of the tensors that all sites have alike and
        never send, in their order; empty where there are none.
    """

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    frozen_digest: bytes = b""

    @property
    def dimension(self) -> int:
        return sum(prod(shape) for _, shape in self.tensors)

    @cached_property
    def digest(self) -> bytes:
        """BLAKE2b-256 over ``SCHEMA_CONTEXT``, the canonical msgpack of ``tensors``, and
        ``frozen_digest``."""
        encoded: bytes = msgpack.packb([[name, list(shape)] for name, shape in self.tensors])
        whole = SCHEMA_CONTEXT + encoded + self.frozen_digest
        return hashlib.blake2b(whole, digest_size=32).digest()


def prepare(model: torch.nn.Module) -> None:
    """Make every floating-point tensor float32, in place.

    :raises TrainingError: the model has complex tensors, or nothing to train.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_complex():
            raise TrainingError(f"the model's {name!r} is complex; only real tensors can travel")
    model.float()
    if not any(p.is_floating_point() and p.requires_grad for p in model.parameters()):
        raise TrainingError("the model has no floating-point parameter: there is nothing to train")


def schema_of(model: torch.nn.Module, parts: Partition) -> Schema:
    tensors = zip(parts.travelling, parts.travelling_tensors(model), strict=True)
    frozen = parts.frozen_tensors(model)
    digest = hashlib.blake2b(digest_size=32)
    for tensor in frozen:
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return Schema(
        tuple((name, tuple(tensor.shape)) for name, tensor in tensors),
        digest.digest() if frozen else b"",
    )


def floats_of(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def copy_out(tensors: Sequence[torch.Tensor], vector: Vector) -> None:
    """Lay the tensors one after the other into ``vector``, which they fill exactly."""
    _check_length(tensors, vector)
    offset = 0
    for tensor in tensors:
        vector[offset : offset + tensor.numel()] = tensor.detach().cpu().numpy().reshape(-1)
        offset += tensor.numel()


@torch.no_grad()
def copy_in(vector: Vector, tensors: Sequence[torch.Tensor]) -> None:
    """Fill the tensors, one after the other, from ``vector``."""
    _check_length(tensors, vector)
    offset = 0
    for tensor in tensors:
        # A copy, because torch has no read-only tensors and the trainer's inputs are read-only.
        part = np.array(vector[offset : offset + tensor.numel()])
        tensor.copy_(torch.from_numpy(part).view(tensor.shape))
        offset += tensor.numel()


def filled_like(tensors: Sequence[torch.Tensor], vector: Vector) -> list[torch.Tensor]:
    """Tensors of the same shapes on the same device, filled from ``vector``."""
    filled = [torch.empty_like(tensor) for tensor in tensors]
    copy_in(vector, filled)
    return filled


def _check_length(tensors: Sequence[torch.Tensor], vector: Vector) -> None:
    wanted = floats_of(tensors)
    if vector.shape != (wanted,):
        raise ValueError(f"a vector of {vector.size} floats for {wanted} of the model's")
