"""Random changes of a batch of training images, and of their masks alike.

A whole batch at once, on its device, and drawn from torch's generator, which the training loop
seeds for each round: a round that is trained again changes the same images in the same way,
whoever read them.
"""

import math

import torch
from torch.nn.functional import affine_grid, grid_sample

from p2pfed.training.tasks.imaging.options import Augmentation


def augment(
    settings: Augmentation, images: torch.Tensor, masks: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:param images: (B, C, *spatial), float32; 2 or 3 spatial axes.
    :param masks: (B, 1, *spatial), of any type; moved along with the images.
    :returns: both, as new tensors where anything was changed.
    """
    for axis in settings.flip_axes:
        chosen = (torch.rand(len(images)) < 0.5).to(images.device)
        images = _flipped(images, chosen, axis)
        masks = None if masks is None else _flipped(masks, chosen, axis)
    if settings.moves:
        # In mixed precision the grid would be off by up to a 256th of a side.
        with torch.autocast(images.device.type, enabled=False):
            affine = random_affine(settings, len(images), images.ndim - 2).to(images.device)
            grid = affine_grid(affine, list(images.shape), align_corners=False)
            images = grid_sample(images, grid, padding_mode="border", align_corners=False)
            if masks is not None:
                moved = grid_sample(masks.float(), grid, mode="nearest", align_corners=False)
                masks = moved.to(masks.dtype)
    return images, masks


def random_affine(settings: Augmentation, records: int, dimensions: int) -> torch.Tensor:
    """Where each image is sampled from, (B, dimensions, dimensions + 1), in grid coordinates.

    Rotations are drawn about every axis, and scale and shift evenly, within their bounds.
    """

    def drawn(*shape: int) -> torch.Tensor:
        return 2.0 * torch.rand(records, *shape) - 1.0

    planes = [(0, 1)] if dimensions == 2 else [(0, 1), (0, 2), (1, 2)]
    angles = drawn(len(planes)) * math.radians(settings.rotation_degrees)  # (B, planes)
    matrix = torch.eye(dimensions).repeat(records, 1, 1)
    for number, (first, second) in enumerate(planes):
        turn = torch.eye(dimensions).repeat(records, 1, 1)
        cosine, sine = angles[:, number].cos(), angles[:, number].sin()
        turn[:, first, first] = turn[:, second, second] = cosine
        turn[:, first, second], turn[:, second, first] = -sine, sine
        matrix = matrix @ turn
    matrix = matrix * (1.0 + drawn(1, 1) * settings.scaling)
    shift = 2.0 * drawn(dimensions, 1) * settings.translation  # a side is 2 long
    return torch.cat([matrix, shift], dim=2)


def _flipped(tensor: torch.Tensor, chosen: torch.Tensor, axis: int) -> torch.Tensor:
    """``tensor`` (B, C, *spatial) with the records ``chosen`` (B,) turned over along an axis."""
    shape = (-1, *[1] * (tensor.ndim - 1))
    return torch.where(chosen.view(shape), tensor.flip(2 + axis), tensor)
