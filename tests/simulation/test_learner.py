"""Batched training: what a site learns is its own, and follows from seed, site and round."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfed.attacks import make
from p2pfed.attacks.attack import DataAttack
from p2pfed.errors import UsageError
from p2pfed.simulation.learner import BatchedLearner, LearnerSettings
from p2pfed.simulation.tasks import LEAST_RECORDS, digits, dirichlet_parts, heart, synthetic


@pytest.fixture(scope="module")
def learner() -> BatchedLearner:
    return BatchedLearner(synthetic(6, 0.3, 0), LearnerSettings(), seed=0)


def start(learner: BatchedLearner, count: int) -> tuple[np.ndarray, np.ndarray]:
    models = np.repeat(learner.genesis()[None], count, axis=0)
    return models, np.zeros_like(models)


def test_a_site_learns_the_same_whoever_else_is_in_the_batch(learner: BatchedLearner) -> None:
    together, _ = learner.train(range(6), *start(learner, 6), [3, 3, 4, 5, 3, 3], 3)
    alone, _ = learner.train([2], *start(learner, 1), [4], 3)
    np.testing.assert_allclose(together[2], alone[0], atol=1e-6)


def test_a_round_that_is_trained_again_gives_the_same_model(learner: BatchedLearner) -> None:
    first, again = (learner.train([1], *start(learner, 1), [9], 3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other, _ = learner.train([1], *start(learner, 1), [10], 3)
    assert np.abs(first - other).max() > 1e-4


def test_steps_and_momentum_go_on_from_where_they_were(learner: BatchedLearner) -> None:
    models, momentum = start(learner, 1)
    kept = models.copy()
    trained, moving = learner.train([0], models, momentum, [0], 1)
    np.testing.assert_array_equal(models, kept)
    assert np.abs(moving).max() > 0
    settings_ = LearnerSettings()
    expected = kept - settings_.learning_rate * moving
    np.testing.assert_allclose(trained, expected, atol=1e-6)


def test_one_step_is_that_of_an_ordinary_training_loop() -> None:
    task = synthetic(3, 0.3, 1)
    settings_ = LearnerSettings(batch_size=4)
    learner = BatchedLearner(task, settings_, seed=2)
    trained, _ = learner.train([1], *start(learner, 1), [5], 1)
    drawn = np.random.default_rng([2, 1, 5]).integers(0, task.labels[1].size, (1, 4))[0]
    network = torch.nn.Sequential(
        torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, task.classes)
    )
    torch.nn.utils.vector_to_parameters(torch.from_numpy(learner.genesis()), network.parameters())
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=settings_.learning_rate * (1 - settings_.momentum),
        weight_decay=settings_.weight_decay,
    )
    scores = network(torch.from_numpy(task.features[1][drawn]))
    torch.nn.functional.cross_entropy(scores, torch.from_numpy(task.labels[1][drawn])).backward()
    optimiser.step()
    expected = torch.nn.utils.parameters_to_vector(network.parameters()).detach().numpy()
    np.testing.assert_allclose(trained[0], expected, atol=1e-6)


def test_training_on_all_records_beats_a_guess(learner: BatchedLearner) -> None:
    models, momentum = start(learner, 6)
    before = learner.accuracy(models)
    for number in range(30):
        models, momentum = learner.train(range(6), models, momentum, [number] * 6, 3)
        models[:] = models.mean(axis=0)
    after = learner.accuracy(models)
    assert after.min() > 0.85 > before.max()


def test_poisoned_records_are_those_of_the_poisoned_sites_alone() -> None:
    task = synthetic(4, 0.3, 0)
    attack = make("label_flip")
    assert isinstance(attack, DataAttack)
    poisoned = task.poisoned({2: attack}, seed=0)
    assert (poisoned.labels[2] != task.labels[2]).any()
    for place in (0, 1, 3):
        np.testing.assert_array_equal(poisoned.labels[place], task.labels[place])


@settings(max_examples=30)
@given(st.integers(2, 12), st.floats(0.05, 50.0), st.integers(0, 1000))
def test_records_are_dealt_out_whole(sites: int, concentration: float, seed: int) -> None:
    labels = np.random.default_rng(0).integers(0, 5, 300)
    parts = dirichlet_parts(labels, sites, concentration, np.random.default_rng(seed))
    dealt = np.sort(np.concatenate(parts))
    np.testing.assert_array_equal(dealt, np.arange(300))
    assert min(map(len, parts)) >= LEAST_RECORDS


def test_too_few_records_are_refused() -> None:
    with pytest.raises(UsageError, match="too few for 500 sites"):
        digits(500, 0.3, 0)


def test_the_four_hospitals_become_as_many_sites_as_are_asked_for() -> None:
    task = heart(12, 0.3, 0)
    assert task.sites == 12
    assert sum(labels.size for labels in task.labels) + task.test_labels.size == 920
    with pytest.raises(UsageError, match="4 hospitals"):
        heart(3, 0.3, 0)


def test_strangers_stand_at_their_places() -> None:
    task = synthetic(3, 0.3, 0)
    longer = task.with_strangers([0, 2], seed=1)
    assert longer.sites == 5
    for place, original in ((1, 0), (3, 1), (4, 2)):
        np.testing.assert_array_equal(longer.labels[place], task.labels[original])
