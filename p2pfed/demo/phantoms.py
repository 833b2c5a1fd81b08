"""Chest phantoms: drawn pictures that look a little like X-rays, with and without an opacity.

Synthetic. They stand in where no real images are given, for a demonstration has to run anywhere;
what is learned from them says nothing of medicine.
"""

import numpy as np
import numpy.typing as npt

SIDE = 28  # pixels, as of PneumoniaMNIST
MAX_OPACITIES = 2
NOISE = 0.05  # of the white level, standard deviation

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def draw_chests(
    count: int, share_ill: float, generator: np.random.Generator
) -> tuple[Images, Labels]:
    """``count`` pictures and which of them show an opacity: (n, 28, 28), 0 to 255, and (n,).

    :param share_ill: of the pictures, rounded.
    """
    labels = np.zeros(count, np.int64)
    labels[: round(share_ill * count)] = 1
    labels = generator.permutation(labels)
    drawn = np.stack([_chest(bool(label), generator) for label in labels])
    return np.round(255 * np.clip(drawn, 0.0, 1.0)).astype(np.uint8), labels


def _chest(ill: bool, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """One picture, (28, 28), white at 1."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    turn, size = generator.normal(0, 0.6), generator.normal(1, 0.05)
    lungs = np.zeros((SIDE, SIDE))
    middles = []
    for side in (-1.0, 1.0):
        middle = (13.5 + generator.normal(0, 0.7), 13.5 + turn + side * 6.2 * size)
        middles.append(middle)
        lungs = np.maximum(lungs, _spot(rows, columns, middle, (9.0 * size, 4.2 * size), edge=2))
    body = _spot(rows, columns, (15.0, 13.5 + turn), (16.0, 13.0), edge=4)
    heart = _spot(rows, columns, (17.5, 15.0 + turn), (5.0 * size, 4.0), edge=2)
    ribs = 0.06 * np.sin(2 * np.pi * (rows + 0.15 * (columns - 13.5) ** 2 / 6) / 4.2)
    picture = 0.75 * body - 0.5 * lungs + 0.35 * heart * (1 - 0.5 * lungs) + ribs * lungs
    if ill:
        for _ in range(generator.integers(1, MAX_OPACITIES + 1)):
            row, column = middles[generator.integers(2)]
            place = (row + generator.normal(1.5, 3.0), column + generator.normal(0, 1.2))
            extent = generator.uniform(1.8, 3.2)
            spot = _spot(rows, columns, place, (extent, extent), edge=1)
            picture += generator.uniform(0.18, 0.35) * spot * lungs
    noisy: npt.NDArray[np.float64] = picture + generator.normal(0, NOISE, picture.shape)
    return noisy


def _spot(
    rows: npt.NDArray[np.float64],
    columns: npt.NDArray[np.float64],
    middle: tuple[float, float],
    extent: tuple[float, float],
    edge: int,
) -> npt.NDArray[np.float64]:
    """An ellipse, 1 in its middle and falling to 0, the more steeply the higher ``edge`` is."""
    distance = ((rows - middle[0]) / extent[0]) ** 2 + ((columns - middle[1]) / extent[1]) ** 2
    return np.asarray(np.exp(-(distance**edge)))
