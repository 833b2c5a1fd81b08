"""Attacks on data: which records and which labels change, and what a trigger does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfed.attacks import ATTACKS, DataAttack, make
from p2pfed.attacks.poisoning import Backdoor, LabelFlip

DATA_ATTACKS = [name for name, attack in ATTACKS.items() if issubclass(attack, DataAttack)]


def records(count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    features = generator.normal(size=(count, 5)).astype(np.float32)
    return features, generator.integers(0, classes, count).astype(np.int64)


@pytest.mark.parametrize("name", DATA_ATTACKS)
@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 60), classes=st.integers(2, 6), seed=st.integers(0, 2**32))
def test_poison_repeats_for_a_seed_and_leaves_the_input_alone(
    name: str, count: int, classes: int, seed: int
) -> None:
    attack = make(name)
    assert isinstance(attack, DataAttack)
    features, labels = records(count, classes)
    before = features.copy(), labels.copy()
    first = attack.poison(features, labels, classes, np.random.default_rng(seed))
    second = attack.poison(features, labels, classes, np.random.default_rng(seed))
    for one, other, original, copy in zip(first, second, (features, labels), before, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(original, copy)
        assert one.shape == original.shape
        assert one.dtype == original.dtype
        assert not np.shares_memory(one, original)
    assert first[1].min() >= 0
    assert first[1].max() < classes


def test_label_flip_mirrors_every_label() -> None:
    labels = np.array([0, 1, 2, 9])
    features = np.zeros((4, 2), np.float32)
    flipped = LabelFlip().poison(features, labels, 10, np.random.default_rng(0))[1]
    np.testing.assert_array_equal(flipped, [9, 8, 7, 0])


def test_label_flip_of_a_share_flips_that_many() -> None:
    features, labels = records(40, 2)
    flipped = LabelFlip(share=0.25).poison(features, labels, 2, np.random.default_rng(0))[1]
    assert (flipped != labels).sum() == 10


def test_a_trigger_writes_its_value_into_its_columns_alone() -> None:
    features, _ = records(6, 2)
    marked = Backdoor(columns=(0, -1), value=9.0).trigger(features)
    assert not (features == 9.0).any()
    assert (marked[:, [0, 4]] == 9.0).all()
    np.testing.assert_array_equal(marked[:, 1:4], features[:, 1:4])


def test_a_backdoor_marks_a_share_of_the_records_and_gives_them_its_class() -> None:
    features, labels = records(40, 4)
    attack = Backdoor(target=2, share=0.5, columns=(1,), value=9.0)
    poisoned, wrong = attack.poison(features, labels, 4, np.random.default_rng(0))
    marked = poisoned[:, 1] == 9.0
    assert marked.sum() == 20
    assert (wrong[marked] == 2).all()
    np.testing.assert_array_equal(wrong[~marked], labels[~marked])
    np.testing.assert_array_equal(poisoned[~marked], features[~marked])


def test_a_backdoor_to_a_class_that_there_is_not_is_refused() -> None:
    features, labels = records(4, 2)
    with pytest.raises(ValueError, match="target 5 of 2 classes"):
        Backdoor(target=5).poison(features, labels, 2, np.random.default_rng(0))


def test_a_poisoned_site_learns_the_backdoor_and_an_honest_one_does_not() -> None:
    """Least squares on one-hot labels: the trigger turns records of other classes."""
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 2, 400).astype(np.int64)
    features = generator.normal(size=(400, 6)).astype(np.float32)
    features[:, 0] += 3.0 * labels
    attack = Backdoor(target=0, share=0.5, columns=(-1,), value=4.0)

    def turned(given: tuple[np.ndarray, np.ndarray]) -> float:
        table = np.c_[given[0], np.ones(400)]
        weights = np.linalg.lstsq(table, np.eye(2)[given[1]], rcond=None)[0]
        others = attack.trigger(features[labels == 1])
        answers = np.c_[others, np.ones(len(others))] @ weights
        return float((answers.argmax(1) == 0).mean())

    assert turned(attack.poison(features, labels, 2, generator)) > 0.8
    assert turned((features, labels)) < 0.2
