"""Hospitals with few chest X-rays each, other patients and other machines.

The images are PneumoniaMNIST where its file is given, and drawn phantoms where it is not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pfed.daemon.status import Status
from p2pfed.demo.layout import DemoOptions, DemoSite
from p2pfed.demo.phantoms import SIDE, Images, Labels, draw_chests
from p2pfed.demo.runner import run_demo
from p2pfed.errors import DataError, UsageError
from p2pfed.training.tasks.arrays import read_arrays

XRAY = "xray"
TRAINING_IMAGES = 60  # of each hospital
HOLDOUT_IMAGES = 200
CLASSES = 2
SPLITS = {False: "train", True: "test"}  # of the file, by whether they are for the hold-outs
Draw = Callable[[int, float, bool], tuple[Images, Labels]]
"""Of a count, the share that is ill, and whether they are for a hold-out."""
REAL, DRAWN = "PneumoniaMNIST", "drawn phantoms, not real X-rays"


@dataclass(frozen=True)
class Hospital:
    """How common pneumonia is among a hospital's images, and how its machine renders them."""

    name: str
    share_ill: float
    exponent: float
    gain: float
    offset: float

    def render(self, images: Images) -> Images:
        """Pixels as this machine shows them."""
        shown = self.gain * (images / 255.0) ** self.exponent + self.offset
        return np.round(255 * np.clip(shown, 0.0, 1.0)).astype(np.uint8)


HOSPITALS = (
    Hospital("north", 0.2, 0.5, 1.0, 0.0),
    Hospital("east", 0.4, 1.0, 0.6, 0.3),
    Hospital("south", 0.6, 2.0, 1.0, 0.0),
    Hospital("west", 0.8, 1.0, 0.5, 0.0),
)


def run_xray(
    directory: Path,
    options: DemoOptions,
    images: Path | None,
    say: Callable[[str], None],
    progress: Callable[[dict[str, Status | None]], None],
) -> dict[str, Any]:
    """Run the hospitals below ``directory`` and return the report.

    :param images: ``pneumoniamnist.npz``; phantoms are drawn where there is none.
    :raises UsageError: the file is not that.
    :raises P2pfedError: a file is not sound, or a daemon failed; with its own words.
    """
    source = REAL if images is not None else DRAWN
    say(f"images:        {source}")
    generator = np.random.default_rng([options.seed, 7])
    draw: Draw = (
        (lambda count, share_ill, _: draw_chests(count, share_ill, generator))
        if images is None
        else _Dealt(images, generator)
    )
    sites = tuple(_site(directory / "images", hospital, draw) for hospital in HOSPITALS)
    return {**run_demo(XRAY, directory, options, say, progress, sites), "images": source}


def _site(directory: Path, hospital: Hospital, draw: Draw) -> DemoSite:
    files = {}
    for kind, count in (("training", TRAINING_IMAGES), ("holdout", HOLDOUT_IMAGES)):
        images, labels = draw(count, hospital.share_ill, kind == "holdout")
        file = directory / hospital.name / f"{kind}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, images=hospital.render(images), labels=labels)
        files[file.name] = file
    data = {"path": "training.npz", "holdout_path": "holdout.npz"}
    return DemoSite(hospital.name, data, files)


class _Dealt:
    """Deals out the images of a file, those to train on each once.

    :raises UsageError: it is not PneumoniaMNIST.
    """

    def __init__(self, path: Path, generator: np.random.Generator) -> None:
        self._path = path
        self._piles: dict[tuple[bool, int], list[npt.NDArray[np.uint8]]] = {}
        names = [f"{split}_{what}" for split in SPLITS.values() for what in ("images", "labels")]
        try:
            arrays = read_arrays(path, names)
        except DataError as error:
            raise self._unfit(str(error)) from error
        for holdout, split in SPLITS.items():
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
            if images.shape != (labels.size, SIDE, SIDE):
                raise self._unfit(f"{split}_images are {images.shape}")
            order = generator.permutation(labels.size)
            for label in range(CLASSES):
                self._piles[holdout, label] = list(images[order[labels[order] == label]])

    def __call__(self, count: int, share_ill: float, holdout: bool) -> tuple[Images, Labels]:
        wanted = {1: round(share_ill * count), 0: count - round(share_ill * count)}
        images, labels = [], []
        for label, number in wanted.items():
            pile = self._piles[holdout, label]
            if len(pile) < number:
                raise self._unfit(f"too few images of class {label}")
            # The test images are fewer than all hospitals want: each has its own selection.
            taken = pile[:number] if holdout else [pile.pop() for _ in range(number)]
            images += taken
            labels += [label] * len(taken)
        return np.stack(images), np.array(labels, np.int64)

    def _unfit(self, reason: str) -> UsageError:
        return UsageError(
            f"{self._path}: not pneumoniamnist.npz: {reason}; it is at "
            "https://zenodo.org/records/10519652, or leave --images out for drawn phantoms"
        )
