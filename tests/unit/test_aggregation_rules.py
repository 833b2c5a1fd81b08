"""The aggregation rules against plain float64 references, and what each must never do."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from aggregation_references import ROBUST, cloud, reference, run, scattered
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfed.aggregation import NeighbourModel, aggregate, specialised
from p2pfed.aggregation.sorting_network import batcher, selection_network
from p2pfed.errors import AggregationError
from p2pfed.rules_catalogue import PRE_AGGREGATIONS, RULES, tolerates

sizes = st.sampled_from([1, 2, 7, 8, 9, 1000, 2048, 2049, 50_000])


@pytest.mark.parametrize("before", list(PRE_AGGREGATIONS))
@pytest.mark.parametrize("rule", list(RULES))
@given(
    dimension=sizes,
    k=st.integers(1, 12),
    b=st.integers(0, 3),
    seed=st.integers(0, 2**32),
    started=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_every_rule_agrees_with_its_formula(
    rule: str, before: str, dimension: int, k: int, b: int, seed: int, started: bool
) -> None:
    own, others = scattered(dimension, k, seed)
    trained = np.random.default_rng(seed + 1).normal(size=dimension).astype(np.float32)
    start = own - trained if started else None
    result, _ = run(rule, own, others, b, before=before, start=start)
    expected = reference(rule, own, others, b, before, start=start)
    scale = float(np.abs(expected).max()) + 1.0
    np.testing.assert_allclose(result, expected, atol=1e-5 * scale)


@pytest.mark.parametrize("rule", list(RULES))
def test_equal_models_are_a_fixed_point(rule: str) -> None:
    own, _ = cloud()
    result, _ = run(rule, own, [own.copy() for _ in range(5)])
    assert result.tobytes() == own.tobytes()


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("size", [1e2, 1e10, 1e37])
def test_as_many_outliers_as_a_rule_tolerates_move_the_result_boundedly(
    rule: str, size: float
) -> None:
    own, others = cloud()
    honest, _ = run(rule, own, others, b=2)
    spread = max(float(np.linalg.norm(other - own)) for other in others)
    # BALANCE promises no number; what is far beyond its radius it refuses all the same.
    b = 2 if rule == "balance" else tolerates(rule, 5)
    assert b > 0
    hostile = [np.full_like(own, size), np.full_like(own, -size / 2)][:b]
    result, _ = run(rule, own, others[: 5 - b] + hostile, b=b)
    assert float(np.linalg.norm(result - honest)) < 4 * spread


@pytest.mark.parametrize("rule", list(RULES))
def test_the_largest_finite_values_do_not_overflow(rule: str) -> None:
    own = np.full(100, 3e38, np.float32)
    result, outcome = run(rule, own, [own, -own, own], b=1)
    assert np.isfinite(result).all()
    assert all(np.isfinite(value) for value in outcome.distances.values())


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_kernels_made_for_large_models_give_the_same_bits(
    rule: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, others = cloud(dimension=20_001, k=k)
    b = min(1, RULES[rule].tolerates(k))
    plain, _ = run(rule, own, others, b)
    monkeypatch.setattr(specialised, "WORTHWHILE_PARAMETERS", 1)
    special, _ = run(rule, own, others, b)
    assert special.tobytes() == plain.tobytes()
    others[0][17] = np.inf
    with pytest.raises(AggregationError, match="n00"):
        run(rule, own, others, b)


@pytest.mark.parametrize("rule", [name for name, one in RULES.items() if one.asks_for_b])
def test_too_few_neighbours_to_bear_an_assumed_liar_change_nothing(rule: str) -> None:
    own, others = cloud(k=1)
    if RULES[rule].tolerates(1) == 0:
        result, outcome = run(rule, own, others, b=1)
        assert outcome.local_only
        assert outcome.weights == {"n00": 0.0}
        assert result.tobytes() == own.tobytes()
    result, outcome = run(rule, own, others, b=0)
    assert not outcome.local_only


@pytest.mark.parametrize("rule", list(RULES))
def test_alone_a_peer_keeps_its_model(rule: str) -> None:
    own, _ = cloud()
    result, outcome = run(rule, own, [])
    assert outcome.local_only
    assert result.tobytes() == own.tobytes()


def test_median_clipping_says_what_it_did() -> None:
    own = np.zeros(4, np.float32)
    near = [np.eye(4, dtype=np.float32)[i] * (i + 1) for i in range(4)]
    _, outcome = run("median_clipping", own, [*near, np.full(4, 100, np.float32)])
    assert outcome.threshold == pytest.approx(3.0)
    assert outcome.dropped == ("n04",)
    assert outcome.weights == pytest.approx(
        {"n00": 1 / 6, "n01": 1 / 6, "n02": 1 / 6, "n03": 1 / 6 * 3 / 4, "n04": 0.0}
    )


def test_start_clipping_measures_from_where_the_round_began() -> None:
    start = np.zeros(3, np.float32)
    own = np.array([0, 0, 9], np.float32)  # far from the others by its own training alone
    others = [np.array([size, 0, 0], np.float32) for size in (1, 2, 3, 5, 10)]
    _, outcome = run("start_clipping", own, others)
    assert outcome.dropped == ()
    _, outcome = run("start_clipping", own, others, start=start)
    assert outcome.threshold == pytest.approx(3.0)
    assert outcome.dropped == ("n04",)
    assert outcome.distances == pytest.approx(
        dict(zip(outcome.weights, (1, 2, 3, 5, 10), strict=True))
    )
    assert outcome.weights["n03"] == pytest.approx(1 / 6 * 3 / 5)


def test_with_two_neighbours_nobody_is_dropped_and_the_nearer_sets_the_bound() -> None:
    own = np.zeros(2, np.float32)
    result, outcome = run(
        "median_clipping", own, [np.array([1, 0], np.float32), np.array([0, 1000], np.float32)]
    )
    assert outcome.dropped == ()
    np.testing.assert_allclose(result, [1 / 3, 1 / 3], rtol=1e-6)


def test_when_most_neighbours_agree_exactly_the_rest_are_dropped() -> None:
    own, others = cloud()
    result, outcome = run("median_clipping", own, [own, own, own, *others[:2]])
    assert outcome.threshold == 0.0
    assert outcome.dropped == ("n03", "n04")
    assert result.tobytes() == own.tobytes()


def test_b_is_clamped_to_what_those_present_allow() -> None:
    own, others = cloud(k=3)
    few, _ = run("clipped_gossip", own, others, b=5)
    one, _ = run("clipped_gossip", own, others, b=1)
    assert few.tobytes() == one.tobytes()


def test_inputs_that_do_not_fit_are_refused() -> None:
    own, others = cloud()
    for wrong in (others[0][:-1], others[0].astype(np.float64), others[0].reshape(1, -1)):
        with pytest.raises(AggregationError, match="expected float32"):
            run("mean", own, [others[1], wrong])
    with pytest.raises(AggregationError, match="unknown rule"):
        run("median", own, others)
    twins = [NeighbourModel("twin", other, 0.1) for other in others[:2]]
    with pytest.raises(AggregationError, match="one name"):
        aggregate("mean", own, twins, np.empty_like(own))
    with pytest.raises(AggregationError, match="overwrite"):
        aggregate("mean", own, twins[:1], others[0])


@pytest.mark.parametrize("rule", list(RULES))
def test_mapped_models_are_streamed_and_memory_does_not_grow_with_their_number(
    rule: str, tmp_path: Path
) -> None:
    dimension, peaks = 2_000_000, []
    for k in (2, 8):
        vectors = []
        for number in range(k + 2):
            path = tmp_path / f"{k}-{number}"
            vector = np.memmap(path, np.float32, "w+", shape=(dimension,))
            vector[:] = number
            vectors.append(vector)
        own, out, *others = vectors
        models = [NeighbourModel(f"n{i}", other, 0.1) for i, other in enumerate(others)]
        aggregate(rule, own, models, out, byzantine_neighbours=1)  # compiles what it needs
        tracemalloc.start()
        aggregate(rule, own, models, out, byzantine_neighbours=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 4 * dimension


@pytest.mark.parametrize("width", range(1, 10))
def test_the_network_sorts_every_input_of_zeros_and_ones(width: int) -> None:
    """The zero-one principle (Knuth, The Art of Computer Programming 3, 5.3.4, theorem Z)."""
    for number in range(2**width):
        values = [number >> bit & 1 for bit in range(width)]
        for low, high in batcher(width):
            if values[low] > values[high]:
                values[low], values[high] = values[high], values[low]
        assert values == sorted(values)


def test_a_selection_network_is_smaller_and_still_finds_its_ranks() -> None:
    generator = np.random.default_rng(0)
    for width in range(2, 17):
        first, last = (width - 1) // 2, width // 2
        network = selection_network(width, first, last)
        assert len(network) <= len(batcher(width))
        for _ in range(50):
            values = generator.normal(size=width)
            wanted = np.sort(values)[first : last + 1]
            for low, high in network:
                if values[low] > values[high]:
                    values[[low, high]] = values[[high, low]]
            np.testing.assert_array_equal(values[first : last + 1], wanted)


def far_and_near(returning: bool) -> list[NeighbourModel]:
    near = [
        NeighbourModel(name, np.full(4, 0.5 * value, np.float32), 0.2)
        for name, value in (("a", 1.0), ("b", -1.0), ("c", 1.0))
    ]
    return [*near, NeighbourModel("d", np.full(4, 50.0, np.float32), 0.2, returning)]


@pytest.mark.parametrize("rule", ["median_clipping", "clipped_gossip"])
def test_a_returning_neighbour_pulls_by_at_least_the_floor_and_is_not_dropped(rule: str) -> None:
    own, out = np.zeros(4, np.float32), np.empty(4, np.float32)
    start = np.full(4, -2.5, np.float32)  # the own update has length 5, twice that is 10
    settings = {"start": start, "byzantine_neighbours": 1}
    outcome = aggregate(rule, own, far_and_near(returning=False), out, **settings)
    assert outcome.dropped == ("d",)
    np.testing.assert_allclose(out, 0.1)
    outcome = aggregate(rule, own, far_and_near(returning=True), out, **settings)
    assert outcome.dropped == outcome.returned == ()
    # 0.2 of a vector of length 10 along (1, 1, 1, 1)
    np.testing.assert_allclose(out, 0.1 + 0.2 * 5.0, rtol=1e-6)


def test_a_returning_neighbour_within_reach_counts_whole_and_has_returned() -> None:
    own, out = np.zeros(4, np.float32), np.empty(4, np.float32)
    models = [replace(one, returning=one.name == "c") for one in far_and_near(returning=False)]
    outcome = aggregate("median_clipping", own, models, out, start=own)
    assert outcome.returned == ("c",)
    assert outcome.weights["c"] == 0.2
