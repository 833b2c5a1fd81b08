"""Records of sites that are unlike, for benchmarks of learning: three real data sets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from p2pfed.settings import read_toml
from p2pfed.shipped import shipped
from p2pfed.simulation.tasks import digits as simulated_digits
from p2pfed.training.evaluation.binary import auc
from p2pfed.training.task import Datasets, Task
from p2pfed.training.tasks.tabular.task import Tabular

HOSPITALS = 6
IMAGES_A_HOSPITAL = 60
PIXELS = 28
# How common pneumonia is among each hospital's images, and how its machine renders them:
# exponent, gain and offset of the pixel values.
SHARES = (0.15, 0.3, 0.5, 0.6, 0.75, 0.9)
RENDERINGS = (
    (0.5, 1.0, 0.0),
    (1.0, 0.6, 0.3),
    (1.0, 1.0, 0.0),
    (2.0, 1.0, 0.0),
    (1.0, 0.5, 0.0),
    (0.7, 0.8, 0.2),
)
DIGIT_SITES = 8


@dataclass(frozen=True)
class Site:
    """One hospital: its task, what it trains on and what its model is judged by."""

    name: str
    task: Task
    training: TensorDataset
    test: TensorDataset


class Images:
    """Two classes of 28 x 28 pixels, told by a small convolutional network with batch norm."""

    metric = "auc"

    def build_model(self) -> torch.nn.Module:
        def block(inputs: int, outputs: int) -> list[torch.nn.Module]:
            return [
                torch.nn.Conv2d(inputs, outputs, 3, padding=1),
                torch.nn.BatchNorm2d(outputs),
                torch.nn.ReLU(),
                torch.nn.MaxPool2d(2),
            ]

        return torch.nn.Sequential(  # (B, 1, 28, 28) -> (B, 1)
            *block(1, 8),  # (B, 8, 14, 14)
            *block(8, 16),  # (B, 16, 7, 7)
            torch.nn.AdaptiveAvgPool2d(2),  # (B, 16, 2, 2)
            torch.nn.Flatten(),
            torch.nn.Linear(64, 1),
        )

    def datasets(self) -> Datasets:
        raise NotImplementedError("the benchmark holds the records")

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        images, labels = batch
        return torch.nn.functional.binary_cross_entropy_with_logits(model(images)[:, 0], labels)

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        pairs = [(model(images)[:, 0], labels) for images, labels in batches]
        scores = torch.cat([scores for scores, _ in pairs]).double().numpy()
        return {"auc": auc(torch.cat([labels for _, labels in pairs]).double().numpy(), scores)}


class Digits:
    """Ten classes of 8 x 8 pixels, told by a network of one hidden layer."""

    metric = "accuracy"

    def __init__(self, shares: torch.Tensor) -> None:
        """:param shares: how common each class is at this site, shape (10,)."""
        self.shares = shares

    def build_model(self) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
        )

    def datasets(self) -> Datasets:
        raise NotImplementedError("the benchmark holds the records")

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """Accuracy where all digits are alike common, and where they are as at this site."""
        pairs = [(model(features).argmax(dim=1), labels) for features, labels in batches]
        labels = torch.cat([labels for _, labels in pairs])
        right = (torch.cat([found for found, _ in pairs]) == labels).double()
        common = torch.bincount(labels, minlength=10) / labels.numel()
        own = (self.shares / common)[labels].double()
        return {"accuracy": float(right.mean()), "own_accuracy": float((right * own).mean())}


def heart(seed: int) -> list[Site]:
    """The four hospitals of the heart demo, a third of each kept for its test."""
    folder = shipped("demos") / "heart"
    options = read_toml(folder / "heart.toml")["task"]["options"]
    sites = []
    for file in sorted(folder.glob("*.csv")):
        task = Tabular(options, {"path": str(file), "split_seed": seed})
        data = task.datasets()
        assert isinstance(data.training, TensorDataset)
        assert isinstance(data.holdout, TensorDataset)
        sites.append(Site(file.stem, task, data.training, data.holdout))
    return sites


def pneumonia(path: Path, seed: int) -> list[Site]:
    """PneumoniaMNIST at six hospitals that differ in patients and machines, 60 images each.

    Each is judged by the data set's own test images, as its machine would render them.

    :param path: of ``pneumoniamnist.npz`` (Yang et al., MedMNIST v2, Scientific Data 2023).
    """
    with np.load(path, allow_pickle=False) as bundle:
        images = bundle["train_images"].astype(np.float32) / 255.0
        labels = bundle["train_labels"].reshape(-1)
        test_images = bundle["test_images"].astype(np.float32) / 255.0
        test_labels = bundle["test_labels"].reshape(-1)
    generator = np.random.default_rng([seed, 5])
    healthy, ill = (list(generator.permutation(np.flatnonzero(labels == kind))) for kind in (0, 1))
    sites = []
    for number, (share, rendering) in enumerate(zip(SHARES, RENDERINGS, strict=True)):
        count = round(share * IMAGES_A_HOSPITAL)
        chosen = [ill.pop() for _ in range(count)]
        chosen += [healthy.pop() for _ in range(IMAGES_A_HOSPITAL - count)]
        sites.append(
            Site(
                f"hospital {number + 1}",
                Images(),
                _rendered(images[chosen], labels[chosen], rendering),
                _rendered(test_images, test_labels, rendering),
            )
        )
    return sites


def digits(concentration: float, seed: int) -> list[Site]:
    """Handwritten digits at eight sites; the smaller the concentration, the more unlike."""
    task = simulated_digits(DIGIT_SITES, concentration, seed)
    test = TensorDataset(torch.from_numpy(task.test_features), torch.from_numpy(task.test_labels))
    return [
        Site(
            f"site {number + 1}",
            Digits(torch.bincount(torch.from_numpy(labels), minlength=10) / labels.size),
            TensorDataset(torch.from_numpy(features), torch.from_numpy(labels)),
            test,
        )
        for number, (features, labels) in enumerate(zip(task.features, task.labels, strict=True))
    ]


def _rendered(
    images: np.ndarray[Any, np.dtype[np.float32]],
    labels: np.ndarray[Any, Any],
    rendering: tuple[float, float, float],
) -> TensorDataset:
    """Images (n, 28, 28) in [0, 1] as one machine shows them: (n, 1, 28, 28), and labels (n,)."""
    exponent, gain, offset = rendering
    shown = np.clip(gain * images**exponent + offset, 0.0, 1.0) - 0.5
    return TensorDataset(
        torch.from_numpy(shown.astype(np.float32))[:, None],
        torch.from_numpy(labels.astype(np.float32)),
    )
