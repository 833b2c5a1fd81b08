"""A model as one flat float32 vector, and the schema that says what stands where.

The vector holds the travelling tensors (:mod:`p2pfed.training.partition`) one after the other.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import msgpack
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
    target, detached = torch.from_numpy(vector), [tensor.detach() for tensor in tensors]
    if _device_of_all(tensors) in (None, torch.device("cpu")):
        for part, tensor in zip(_split(target, tensors), detached, strict=True):
            part.copy_(tensor)
    else:
        # One transfer instead of one for each tensor, each of which would wait for the device.
        target.copy_(torch.cat([tensor.reshape(-1) for tensor in detached]))


@torch.no_grad()
def copy_in(vector: Vector, tensors: Sequence[torch.Tensor]) -> None:
    """Fill the tensors, one after the other, from ``vector``, which may be read-only."""
    _check_length(tensors, vector)
    source = _readable(vector).to(_device_of_all(tensors))
    for part, tensor in zip(_split(source, tensors), tensors, strict=True):
        tensor.copy_(part)


def _readable(vector: Vector) -> torch.Tensor:
    """``vector`` as a tensor over the same memory, not to be written to.

    Torch has no read-only tensors and warns of it; the trainer's inputs are read-only.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(vector)


def _split(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Views of ``flat``, shape (n,), in the shapes of ``tensors``, which it holds in a row."""
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return (part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))


@torch.no_grad()
def all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether no tensor holds an infinity or a NaN; one pass over them and no copy."""
    # The extremes are finite where all is: a NaN is passed on as both.
    extremes = [torch.stack(torch.aminmax(tensor)) for tensor in tensors if tensor.numel()]
    return all(
        bool(torch.isfinite(torch.stack(on_device)).all())
        for on_device in _by_device(extremes).values()
    )


def _device_of_all(tensors: Sequence[torch.Tensor]) -> torch.device | None:
    """Where they are; None where they are apart, as AdamW's moments and its counts of steps."""
    devices = {tensor.device for tensor in tensors}
    return devices.pop() if len(devices) == 1 else None


def _by_device(tensors: Sequence[torch.Tensor]) -> dict[torch.device, list[torch.Tensor]]:
    found: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device, []).append(tensor)
    return found


def filled_like(tensors: Sequence[torch.Tensor], vector: Vector) -> list[torch.Tensor]:
    """Tensors of the same shapes on the same device, filled from ``vector``."""
    filled = [torch.empty_like(tensor) for tensor in tensors]
    copy_in(vector, filled)
    return filled


def _check_length(tensors: Sequence[torch.Tensor], vector: Vector) -> None:
    wanted = floats_of(tensors)
    if vector.shape != (wanted,):
        raise ValueError(f"a vector of {vector.size} floats for {wanted} of the model's")
