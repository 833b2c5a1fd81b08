"""Synthetic scans with known masks, for tests and examples: nobody's anatomy.

Each scan is tissue of slowly varying intensity and noise, with brighter ellipsoid lesions of
random place, size and contrast. A scanner adds a bias field, a gain and an offset of its own, as
scanners of different hospitals do.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TISSUE = 100.0  # arbitrary units
NOISE = 8.0
LESION_CONTRAST = (45.0, 80.0)
RADIUS_SHARE = (0.12, 0.25)  # of a side


@dataclass(frozen=True)
class Scanner:
    """How one site's scanner bends the intensities.

    :ivar bias: largest change across the image, as a share.
    """

    gain: float = 1.0
    offset: float = 0.0
    bias: float = 0.2


def synthetic_scans(
    count: int, size: tuple[int, ...], scanner: Scanner, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scans (count, *size), float32, and masks (count, *size), uint8: 1 in a lesion, else 0.

    :param size: two or three sides, in pixels.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    axes = np.meshgrid(*(np.linspace(-1.0, 1.0, side) for side in size), indexing="ij")
    grid = np.stack(axes)  # (dimensions, *size)
    images = np.empty((count, *size), np.float32)
    masks = np.zeros((count, *size), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        tissue = np.full(size, TISSUE)
        for _ in range(generator.integers(1, 3)):
            lesion = _ellipsoid(grid, generator)
            tissue[lesion] = TISSUE + generator.uniform(*LESION_CONTRAST)
            mask[lesion] = 1
        direction = generator.normal(size=len(size))
        direction /= np.linalg.norm(direction)
        field = 1.0 + scanner.bias * np.tensordot(direction, grid, axes=1)
        measured = tissue * field + generator.normal(scale=NOISE, size=size)
        image[...] = scanner.gain * measured + scanner.offset
    return images, masks


def _ellipsoid(grid: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.bool_]:
    """The inside of an ellipsoid along the axes, shape (*size)."""
    dimensions = len(grid)
    shape = (dimensions, *[1] * dimensions)
    centre = generator.uniform(-0.55, 0.55, size=dimensions).reshape(shape)
    radii = 2.0 * generator.uniform(*RADIUS_SHARE, size=dimensions).reshape(shape)
    inside: NDArray[np.bool_] = (((grid - centre) / radii) ** 2).sum(axis=0) <= 1.0
    return inside
