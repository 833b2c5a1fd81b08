"""What mixing and bucketing do, beside agreeing with their formulas."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from aggregation_references import PRE_AGGREGATED, cloud, groups_of, neighbours, run, seen
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfed.aggregation import NeighbourModel, aggregate, round_seed
from p2pfed.rules_catalogue import PRE_AGGREGATIONS, RULES


def aggregated(rule: str, own: np.ndarray, models: list[NeighbourModel], seed: bytes) -> bytes:
    out = np.empty_like(own)
    aggregate(rule, own, models, out, pre_aggregation="bucketing", seed=seed)
    return out.tobytes()


@pytest.mark.parametrize("before", PRE_AGGREGATED)
@pytest.mark.parametrize("rule", list(RULES))
def test_equal_models_are_a_fixed_point(rule: str, before: str) -> None:
    own, _ = cloud()
    result, _ = run(rule, own, [own.copy() for _ in range(5)], before=before)
    assert result.tobytes() == own.tobytes()


@given(k=st.integers(1, 8), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_buckets_leave_the_mean_as_it_is_whatever_the_mixing_weights(k: int, seed: int) -> None:
    own, others = cloud(dimension=40, k=k)
    shares = np.random.default_rng(seed).uniform(0.01, 0.9 / k, size=k)
    models = [
        NeighbourModel(f"n{i}", other, float(share))
        for i, (other, share) in enumerate(zip(others, shares, strict=True))
    ]
    plain, grouped = np.empty_like(own), np.empty_like(own)
    aggregate("mean", own, models, plain)
    outcome = aggregate("mean", own, models, grouped, pre_aggregation="bucketing", seed=b"any seed")
    np.testing.assert_allclose(grouped, plain, atol=1e-6)
    assert outcome.weights == pytest.approx({model.name: model.weight for model in models})


def test_groups_change_with_the_round_and_the_federation_and_nothing_else() -> None:
    own, others = cloud(k=8)
    models = neighbours(others)
    seeds = [round_seed("alpha", 1), round_seed("alpha", 2), round_seed("beta", 1)]
    results = [aggregated("krum", own, models, seed) for seed in (*seeds, round_seed("alpha", 1))]
    assert len(set(results)) == 3
    assert results[3] == results[0]


def test_groups_are_the_same_on_every_machine() -> None:
    assert groups_of(5, round_seed("alpha", 1)) == [[0, 3], [1, 4], [2]]


@given(k=st.integers(1, 12), number=st.integers(0, 2**40))
def test_every_neighbour_is_in_one_group_of_two_but_for_an_odd_one(k: int, number: int) -> None:
    groups = groups_of(k, round_seed("alpha", number))
    assert sorted(index for group in groups for index in group) == list(range(k))
    assert sorted(len(group) for group in groups) == [1] * (k % 2) + [2] * (k // 2)


def test_mixing_leaves_out_the_b_farthest_from_each_model() -> None:
    own, others = cloud(k=6)
    others[4] = others[4] + np.float32(50)
    others[5] = others[5] - np.float32(70)
    result, outcome = run("mean", own, others, b=2, before="nearest_neighbour_mixing")
    # Each hostile model is in the mixture of its own row alone: a fifth of a seventh.
    assert outcome.weights["n04"] == pytest.approx(1 / 35)
    assert outcome.distances["n04"] == pytest.approx(50 * np.sqrt(3000), rel=0.01)
    assert float(np.abs(result - own).max()) < 5


def test_mixing_with_b_zero_makes_every_model_the_mean() -> None:
    own, others = cloud()
    mixed, _ = run("krum", own, others, b=0, before="nearest_neighbour_mixing")
    everyone = np.stack([own, *others]).astype(np.float64)
    np.testing.assert_allclose(mixed, everyone.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("before", PRE_AGGREGATED)
@pytest.mark.parametrize("rule", ["coordinate_median", "geometric_median", "balance"])
def test_mixtures_of_mapped_models_are_never_held_whole(
    rule: str, before: str, tmp_path: Path
) -> None:
    dimension, k = 2_000_000, 6
    vectors = [
        np.memmap(tmp_path / str(number), np.float32, "w+", shape=(dimension,))
        for number in range(k + 2)
    ]
    own, out, *others = vectors
    for number, vector in enumerate(others):
        vector[:] = number
    models = neighbours(others)
    peaks = []
    for _ in range(2):  # the first compiles what it needs
        tracemalloc.start()
        aggregate(
            rule,
            own,
            models,
            out,
            byzantine_neighbours=2,
            pre_aggregation=before,
            seed=round_seed("alpha", 1),
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 4 * dimension


@pytest.mark.parametrize("before", list(PRE_AGGREGATIONS))
def test_the_radius_of_balance_is_measured_by_what_the_rule_sees_and_shrinks(before: str) -> None:
    generator = np.random.default_rng(3)
    # Independent models: the norm of a mean is well below the mean of norms.
    own, *others = generator.normal(size=(6, 500)).astype(np.float32)
    norm = float(np.linalg.norm(seen(own, others, 1, before).everyone[0]))
    for progress in (0.0, 0.5, 1.0):
        _, outcome = run("balance", own, others, before=before, progress=progress)
        assert outcome.threshold == pytest.approx(2.0 * np.exp(-progress) * norm)
    _, outcome = run("balance", own, others, before=before, progress=1.0)
    assert len(outcome.dropped) == (0 if before == "nearest_neighbour_mixing" else 5)
