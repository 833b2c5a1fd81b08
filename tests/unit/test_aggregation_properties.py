"""What holds of every rule, after every pre-aggregation, whatever the models."""

import numpy as np
import pytest
from aggregation_references import SEED, cloud, neighbours, run
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfed.aggregation import aggregate, streaming
from p2pfed.errors import AggregationError
from p2pfed.rules_catalogue import PRE_AGGREGATIONS, RULES, tolerates

EVERY_WAY = [(rule, before) for rule in RULES for before in PRE_AGGREGATIONS]
# The radius of BALANCE is a fraction of the own model's norm, so it knows where zero is.
EQUIVARIANT = [(rule, before) for rule, before in EVERY_WAY if rule != "balance"]
RANKS_PER_COORDINATE = {"coordinate_median", "trimmed_mean"}
seeds = st.integers(0, 2**32)
few = settings(max_examples=20, deadline=None)


@pytest.mark.parametrize(("rule", "before"), EVERY_WAY)
@given(k=st.integers(1, 9), b=st.integers(0, 3), seed=seeds, data=st.data())
@few
def test_the_order_of_neighbours_changes_not_a_bit(
    rule: str, before: str, k: int, b: int, seed: int, data: st.DataObject
) -> None:
    own, others = cloud(dimension=50, k=k, seed=seed)
    models = neighbours(others)
    shuffled = data.draw(st.permutations(models))
    results = []
    for order in (models, shuffled):
        out = np.empty_like(own)
        aggregate(rule, own, order, out, byzantine_neighbours=b, pre_aggregation=before, seed=SEED)
        results.append(out.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize(("rule", "before"), EQUIVARIANT)
@given(k=st.integers(1, 9), b=st.integers(0, 3), seed=seeds, shift=st.sampled_from([-8.0, 2.0]))
@few
def test_moving_every_model_moves_the_result_alike(
    rule: str, before: str, k: int, b: int, seed: int, shift: float
) -> None:
    own, others = cloud(dimension=50, k=k, seed=seed)
    # Multiples of 2^-12 stay exact under the shift, so that no rank or choice turns on rounding.
    own, *others = [np.round(model * 4096) / np.float32(4096) for model in (own, *others)]
    move = np.float32(shift)
    plain, _ = run(rule, own, others, b, before=before)
    shifted, _ = run(rule, own + move, [other + move for other in others], b, before=before)
    np.testing.assert_allclose(shifted, plain + move, atol=1e-5)


@st.composite
def attacked(draw: st.DrawFn, rule: str, before: str) -> tuple[int, int, int]:
    """k, b within what the rule tolerates, and a seed."""
    least = next(k for k in range(1, 20) if tolerates(rule, k, before) > 0)
    k = draw(st.integers(least, least + 6))
    return k, draw(st.integers(1, tolerates(rule, k, before))), draw(seeds)


@pytest.mark.parametrize(
    ("rule", "before"), [(rule, before) for rule, before in EVERY_WAY if tolerates(rule, 20)]
)
@given(data=st.data(), size=st.sampled_from([1e2, 1e6]), collude=st.booleans())
@few
def test_outliers_that_a_rule_tolerates_leave_the_result_near_the_honest(
    rule: str, before: str, data: st.DataObject, size: float, collude: bool
) -> None:
    k, b, seed = data.draw(attacked(rule, before))
    own, others = cloud(dimension=200, k=k, seed=seed)
    generator = np.random.default_rng(seed)
    for j in range(b):
        direction = np.ones(200) if collude else generator.normal(size=200)
        others[j] = (size * direction).astype(np.float32)
    result, _ = run(rule, own, others, b, before=before)
    honest = np.stack([own, *others[b:]])
    spread = max(float(np.linalg.norm(model - own)) for model in honest)
    # Ranks per coordinate stay in the honest models' box; its diagonal is longer than a distance.
    box = float(np.linalg.norm(honest.max(axis=0) - honest.min(axis=0)))
    assert float(np.linalg.norm(result - own)) <= 1.5 * max(spread, box)


@pytest.mark.parametrize("before", list(PRE_AGGREGATIONS))
def test_one_outlier_drags_the_mean_anywhere(before: str) -> None:
    own, others = cloud(dimension=200)
    others[0] = np.full_like(own, 1e6)
    # Unlike the others, mixing leaves out what is far, if it is told how many.
    result, _ = run("mean", own, others, 0, before=before)
    assert float(np.abs(result).max()) > 1e5


@pytest.mark.parametrize("before", list(PRE_AGGREGATIONS))
@pytest.mark.parametrize("rule", list(RULES))
@given(
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    position=st.integers(0, 2999),
    site=st.integers(0, 4),
    b=st.integers(0, 2),
)
@settings(max_examples=10, deadline=None)
def test_values_that_are_not_finite_are_refused_by_name(
    rule: str, before: str, bad: float, position: int, site: int, b: int
) -> None:
    own, others = cloud()
    others[site][position] = bad
    with pytest.raises(AggregationError, match=f"n{site:02}") as caught:
        run(rule, own, others, b, before=before)
    assert caught.value.site == f"n{site:02}"
    others[site][position] = 0
    own[position] = bad
    with pytest.raises(AggregationError, match="own model") as caught:
        run(rule, own, others, b, before=before)
    assert caught.value.site is None


@pytest.mark.parametrize(("rule", "before"), EVERY_WAY)
def test_the_number_of_threads_changes_not_a_bit(
    rule: str, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PART_PARAMETERS", 4096)
    own, others = cloud(dimension=30_000)
    results = {run(rule, own, others, before=before, threads=t)[0].tobytes() for t in (1, 2, 3)}
    assert len(results) == 1


@pytest.mark.parametrize(
    ("rule", "before"), [way for way in EVERY_WAY if way[0] not in RANKS_PER_COORDINATE]
)
@given(k=st.integers(1, 9), b=st.integers(0, 3), seed=seeds)
@few
def test_the_weights_that_a_rule_reports_give_its_result(
    rule: str, before: str, k: int, b: int, seed: int
) -> None:
    own, others = cloud(dimension=50, k=k, seed=seed)
    result, outcome = run(rule, own, others, b, before=before)
    shares = np.array([outcome.weights[f"n{i:02}"] for i in range(k)])
    assert (shares >= 0).all()
    assert shares.sum() <= 1 + 1e-12
    assert set(outcome.dropped) <= {f"n{i:02}" for i in np.flatnonzero(shares == 0)}
    wide = own.astype(np.float64)
    np.testing.assert_allclose(result, wide + shares @ (np.stack(others) - wide), atol=1e-6)
