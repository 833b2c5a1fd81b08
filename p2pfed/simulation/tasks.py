"""Small learning tasks, with their records spread over many unlike sites."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from p2pfed.attacks import DataAttack
from p2pfed.errors import UsageError
from p2pfed.settings import read_toml, validate
from p2pfed.shipped import shipped

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

LEAST_RECORDS = 8  # of a site
TEST_FRACTION = 0.25
IMAGE_PIXELS = 28 * 28
IMAGES_A_SITE = 60
BRIGHTNESS = (0.6, 1.4)
SYNTHETIC_FEATURES = 16
SYNTHETIC_CLASSES = 5
SYNTHETIC_RECORDS = 2000  # or 20 a site where that is more
SYNTHETIC_SPREAD = 1.5  # of the classes' centres; records scatter by 1 about them


@dataclass(frozen=True)
class SimulatedTask:
    """Records of each site, and those that all models are judged by.

    ``features`` of a site have shape (n_i, m), float32, ``labels`` (n_i,), int64, in
    [0, ``classes``).
    """

    name: str
    features: tuple[Features, ...]
    labels: tuple[Labels, ...]
    test_features: Features
    test_labels: Labels
    classes: int

    @property
    def sites(self) -> int:
        return len(self.features)

    def with_strangers(self, places: Sequence[int], seed: int) -> "SimulatedTask":
        """The same task with further sites put in at ``places`` of the longer row, ascending.

        Their records are drawn at random from all: they know as much as any, and nothing is
        lost to the others by their having them.
        """
        generator = np.random.default_rng([seed, 3])
        all_features, all_labels = np.concatenate(self.features), np.concatenate(self.labels)
        features, labels = list(self.features), list(self.labels)
        for place in places:
            drawn = generator.choice(all_labels.size, all_labels.size // self.sites)
            features.insert(place, all_features[drawn])
            labels.insert(place, all_labels[drawn])
        return replace(self, features=tuple(features), labels=tuple(labels))

    def poisoned(self, attacks: Mapping[int, DataAttack], seed: int) -> "SimulatedTask":
        """The same task where some sites' training records are not what they were."""
        features, labels = list(self.features), list(self.labels)
        for site, attack in attacks.items():
            generator = np.random.default_rng([seed, site])
            features[site], labels[site] = attack.poison(
                features[site], labels[site], self.classes, generator
            )
        return replace(self, features=tuple(features), labels=tuple(labels))


def digits(sites: int, concentration: float, seed: int) -> SimulatedTask:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - not needed by a daemon

    bundle = load_digits()
    features = (bundle.data / 16.0).astype(np.float32)
    labels = bundle.target.astype(np.int64)
    return _spread("digits", features, labels, 10, sites, concentration, seed)


def synthetic(sites: int, concentration: float, seed: int) -> SimulatedTask:
    """Records that scatter about a centre for each class; generated, so nothing is needed."""
    generator = np.random.default_rng([seed, 1])
    count = max(SYNTHETIC_RECORDS, 20 * sites)
    centres = generator.normal(0.0, SYNTHETIC_SPREAD, (SYNTHETIC_CLASSES, SYNTHETIC_FEATURES))
    labels = generator.integers(0, SYNTHETIC_CLASSES, count)
    features = centres[labels] + generator.normal(size=(count, SYNTHETIC_FEATURES))
    return _spread(
        "synthetic",
        features.astype(np.float32),
        labels.astype(np.int64),
        SYNTHETIC_CLASSES,
        sites,
        concentration,
        seed,
    )


def heart(sites: int, concentration: float, seed: int) -> SimulatedTask:  # noqa: ARG001
    """The four hospitals of the heart demo, each divided among some of the sites.

    They are unlike by themselves, so the concentration means nothing here.

    :raises UsageError: fewer sites than hospitals.
    """
    from p2pfed.training.tasks.tabular.options import TabularOptions  # noqa: PLC0415 - loads torch
    from p2pfed.training.tasks.tabular.table import read_table  # noqa: PLC0415 - loads pandas
    from p2pfed.training.tasks.tabular.task import target_of  # noqa: PLC0415 - loads torch

    folder = shipped("demos") / "heart"
    document = read_toml(folder / "heart.toml")
    options = validate(TabularOptions, document["task"]["options"], folder / "heart.toml")
    files = sorted(folder.glob("*.csv"))
    if sites < len(files):
        raise UsageError(f"the heart task has {len(files)} hospitals; give it as many sites")
    generator = np.random.default_rng([seed, 2])
    split = np.random.default_rng(0)
    parts: list[tuple[Features, Labels]] = []
    tests: list[tuple[Features, Labels]] = []
    for place, file in enumerate(files):
        table = read_table(file, options.columns, target_of(options), "refuse")
        labels = table.labels.astype(np.int64)
        order = split.permutation(labels.size)
        held = round(TEST_FRACTION * labels.size)
        tests.append((table.features[order[:held]], labels[order[:held]]))
        share = sites // len(files) + (place < sites % len(files))
        for records in np.array_split(generator.permutation(order[held:]), share):
            parts.append((table.features[records], labels[records]))
    return SimulatedTask(
        "heart",
        tuple(features for features, _ in parts),
        tuple(labels for _, labels in parts),
        np.concatenate([features for features, _ in tests]),
        np.concatenate([labels for _, labels in tests]),
        2,
    )


def pneumonia(path: Path, sites: int, concentration: float, seed: int) -> SimulatedTask:
    """PneumoniaMNIST, 60 images a site, whose sites differ in how common the disease is and in
    the brightness of their images.

    :param path: of ``pneumoniamnist.npz`` (Yang and others, MedMNIST v2, 2023).
    """
    with np.load(path, allow_pickle=False) as bundle:
        images = bundle["train_images"].reshape(-1, IMAGE_PIXELS).astype(np.float32) / 255.0
        labels = bundle["train_labels"].reshape(-1).astype(np.int64)
        test_images = bundle["test_images"].reshape(-1, IMAGE_PIXELS).astype(np.float32) / 255.0
        test_labels = bundle["test_labels"].reshape(-1).astype(np.int64)
    generator = np.random.default_rng([seed, 2])
    chosen = generator.choice(labels.size, IMAGES_A_SITE * sites, replace=False)
    parts = dirichlet_parts(labels[chosen], sites, concentration, generator)
    gains = generator.uniform(*BRIGHTNESS, sites)
    return SimulatedTask(
        "pneumonia",
        tuple(
            (np.clip(images[chosen[part]] * gain, 0.0, 1.0) - 0.5).astype(np.float32)
            for part, gain in zip(parts, gains, strict=True)
        ),
        tuple(labels[chosen[part]] for part in parts),
        test_images - np.float32(0.5),
        test_labels,
        2,
    )


TASKS: Mapping[str, Callable[[int, float, int], SimulatedTask]] = MappingProxyType(
    {"digits": digits, "synthetic": synthetic, "heart": heart}
)


def _spread(
    name: str,
    features: Features,
    labels: Labels,
    classes: int,
    sites: int,
    concentration: float,
    seed: int,
) -> SimulatedTask:
    """Keep a part for the test, the same for every seed, and deal the rest out."""
    generator = np.random.default_rng([seed, 2])
    order = np.random.default_rng(0).permutation(labels.size)
    held = round(TEST_FRACTION * labels.size)
    test, kept = order[:held], order[held:]
    parts = dirichlet_parts(labels[kept], sites, concentration, generator)
    return SimulatedTask(
        name,
        tuple(features[kept[part]] for part in parts),
        tuple(labels[kept[part]] for part in parts),
        features[test],
        labels[test],
        classes,
    )


def dirichlet_parts(
    labels: Labels, sites: int, concentration: float, generator: np.random.Generator
) -> Sequence[npt.NDArray[np.int64]]:
    """Deal records out so that sites differ in which classes they see.

    Each class is divided by shares drawn from a Dirichlet distribution (Hsu, Qi, Brown,
    "Measuring the Effects of Non-Identical Data Distribution", 2019); the smaller the
    concentration, the more unlike the sites. A site that is left with fewer than
    ``LEAST_RECORDS`` is given some of the largest.

    :returns: the indices of each site's records.
    :raises UsageError: there are not enough records.
    """
    if labels.size < sites * LEAST_RECORDS:
        raise UsageError(
            f"{labels.size} records are too few for {sites} sites with {LEAST_RECORDS} each; "
            "take the synthetic task"
        )
    parts: list[list[int]] = [[] for _ in range(sites)]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet([concentration] * sites)
        cuts = (np.cumsum(shares)[:-1] * members.size).astype(np.int64)
        for part, dealt in zip(parts, np.split(members, cuts), strict=True):
            part.extend(dealt.tolist())
    for part in parts:
        while len(part) < LEAST_RECORDS:
            largest = max(parts, key=len)
            part.append(largest.pop(int(generator.integers(len(largest)))))
    return [np.array(part, np.int64) for part in parts]
