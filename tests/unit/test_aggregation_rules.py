"""The aggregation rules against plain float64 references, and what each must never do."""

import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfed.aggregation import NeighbourModel, Outcome, aggregate, rules, specialised
from p2pfed.aggregation.rules import WEISZFELD_FLOOR, WEISZFELD_STEPS
from p2pfed.aggregation.sorting_network import batcher, selection_network
from p2pfed.errors import AggregationError
from p2pfed.rules_catalogue import DEFAULT_RULE, RULES, precondition

Vector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
ROBUST = [rule for rule in RULES if rule != "mean"]


def run(
    rule: str, own: Vector, others: list[Vector], b: int = 1, weight: float | None = None
) -> tuple[Vector, Outcome]:
    share = 1.0 / (len(others) + 1) if weight is None else weight
    out = np.empty_like(own)
    models = [NeighbourModel(f"n{i:02}", other, share) for i, other in enumerate(others)]
    return out, aggregate(rule, own, models, out, byzantine_neighbours=b)


def clip_reference(own: Wide, others: list[Wide], threshold: float) -> Wide:
    weight, total = 1.0 / (len(others) + 1), own.copy()
    for other in others:
        distance = float(np.linalg.norm(other - own))
        if distance <= threshold:
            total += weight * (other - own)
        elif len(others) < 3 or distance <= 3 * threshold:
            total += weight * threshold / distance * (other - own)
    return total


def reference(rule: str, own: Wide, others: list[Wide], b: int) -> Wide:
    everyone, k = np.stack([own, *others]), len(others)
    distances = sorted(float(np.linalg.norm(other - own)) for other in others)
    b_neighbours = min(b, (k - 1) // 2)
    if rule == "mean":
        return everyone.mean(axis=0)
    if rule == "median_clipping":
        return clip_reference(own, others, distances[(k - 1) // 2])
    if rule == "clipped_gossip":
        return clip_reference(own, others, distances[k - 2 * b_neighbours - 1])
    if rule == "coordinate_median":
        return np.median(everyone, axis=0)
    if rule == "trimmed_mean":
        trimmed = min(b, k // 2)
        return np.sort(everyone, axis=0)[trimmed : k + 1 - trimmed].mean(axis=0)
    assert rule == "geometric_median"
    centre = np.median(everyone, axis=0)
    for _ in range(WEISZFELD_STEPS):
        inverse = 1 / np.maximum(np.linalg.norm(everyone - centre, axis=1), WEISZFELD_FLOOR)
        centre = (inverse[:, None] * everyone).sum(axis=0) / inverse.sum()
    return centre


sizes = st.sampled_from([1, 2, 7, 8, 9, 1000, 2048, 2049, 50_000])


@pytest.mark.parametrize("rule", list(RULES))
@given(dimension=sizes, k=st.integers(1, 12), b=st.integers(0, 3), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_every_rule_agrees_with_its_formula(
    rule: str, dimension: int, k: int, b: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    own = generator.normal(size=dimension).astype(np.float32)
    others = [
        (own + generator.normal(scale=generator.exponential(), size=dimension)).astype(np.float32)
        for _ in range(k)
    ]
    result, _ = run(rule, own, others, b)
    expected = reference(rule, own.astype(float), [o.astype(float) for o in others], b)
    scale = float(np.abs(expected).max()) + 1.0
    np.testing.assert_allclose(result, expected, atol=1e-5 * scale)


def cloud(dimension: int = 3000, k: int = 5, seed: int = 0) -> tuple[Vector, list[Vector]]:
    generator = np.random.default_rng(seed)
    centre = generator.normal(size=dimension)
    drawn = [
        (centre + generator.normal(scale=0.1, size=dimension)).astype(np.float32)
        for _ in range(k + 1)
    ]
    return drawn[0], drawn[1:]


@pytest.mark.parametrize("rule", list(RULES))
def test_the_order_of_neighbours_changes_not_a_bit(rule: str) -> None:
    own, others = cloud()
    models = [NeighbourModel(f"n{i}", other, 1 / 6) for i, other in enumerate(others)]
    results = set()
    for order in (models, models[::-1], models[2:] + models[:2]):
        out = np.empty_like(own)
        aggregate(rule, own, order, out, byzantine_neighbours=1)
        results.add(out.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("rule", list(RULES))
def test_equal_models_are_a_fixed_point(rule: str) -> None:
    own, _ = cloud()
    result, _ = run(rule, own, [own.copy() for _ in range(5)])
    assert result.tobytes() == own.tobytes()


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("size", [1e2, 1e10, 1e37])
def test_a_minority_of_outliers_moves_the_result_boundedly(rule: str, size: float) -> None:
    own, others = cloud()
    honest, _ = run(rule, own, others, b=2)
    spread = max(float(np.linalg.norm(other - own)) for other in others)
    hostile = [np.full_like(own, size), np.full_like(own, -size / 2)]
    result, _ = run(rule, own, others[:3] + hostile, b=2)
    assert float(np.linalg.norm(result - honest)) < 4 * spread


def test_the_mean_has_no_such_bound() -> None:
    own, others = cloud()
    result, _ = run("mean", own, [*others[:4], np.full_like(own, 1e10)])
    assert float(np.abs(result).max()) > 1e9


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 2999])
def test_values_that_are_not_finite_are_refused_by_name(
    rule: str, bad: float, position: int
) -> None:
    own, others = cloud()
    others[3][position] = bad
    with pytest.raises(AggregationError, match="n03") as caught:
        run(rule, own, others)
    assert caught.value.site == "n03"
    others[3][position] = 0
    own[position] = bad
    with pytest.raises(AggregationError, match="own model") as caught:
        run(rule, own, others)
    assert caught.value.site is None


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
    plain, _ = run(rule, own, others)
    monkeypatch.setattr(specialised, "WORTHWHILE_PARAMETERS", 1)
    special, _ = run(rule, own, others)
    assert special.tobytes() == plain.tobytes()
    others[0][17] = np.inf
    with pytest.raises(AggregationError, match="n00"):
        run(rule, own, others)


@pytest.mark.parametrize("rule", list(RULES))
def test_the_number_of_threads_changes_not_a_bit(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "PART_PARAMETERS", 4096)
    own, others = cloud(dimension=30_000)
    models = [NeighbourModel(f"n{i}", other, 1 / 6) for i, other in enumerate(others)]
    results = set()
    for threads in (1, 2, 3):
        out = np.empty_like(own)
        aggregate(rule, own, models, out, byzantine_neighbours=1, threads=threads)
        results.add(out.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("rule", list(RULES))
def test_alone_a_peer_keeps_its_model(rule: str) -> None:
    own, _ = cloud()
    result, outcome = run(rule, own, [])
    assert outcome.local_only
    assert result.tobytes() == own.tobytes()


@pytest.mark.parametrize("rule", list(RULES))
def test_moving_every_model_moves_the_result_alike(rule: str) -> None:
    own, others = cloud()
    shift = np.float32(2.0)
    plain, _ = run(rule, own, others)
    shifted, _ = run(rule, own + shift, [other + shift for other in others])
    np.testing.assert_allclose(shifted, plain + shift, atol=1e-5)


def test_median_clipping_says_what_it_did() -> None:
    own = np.zeros(4, np.float32)
    near = [np.eye(4, dtype=np.float32)[i] * (i + 1) for i in range(4)]
    _, outcome = run("median_clipping", own, [*near, np.full(4, 100, np.float32)])
    assert outcome.threshold == pytest.approx(3.0)
    assert outcome.dropped == ("n04",)
    assert outcome.weights == pytest.approx(
        {"n00": 1 / 6, "n01": 1 / 6, "n02": 1 / 6, "n03": 1 / 6 * 3 / 4, "n04": 0.0}
    )


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


def test_the_catalogue_says_what_a_rule_bears() -> None:
    assert DEFAULT_RULE == "median_clipping"
    assert precondition("median_clipping", 3, 1) is None
    assert "at most 0" in (precondition("median_clipping", 2, 1) or "")
    assert precondition("trimmed_mean", 2, 1) is None
    assert precondition("mean", 100, 0) is None
    assert precondition("mean", 100, 1) is not None
