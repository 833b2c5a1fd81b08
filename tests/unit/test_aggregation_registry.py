"""The catalogue, which topology files are checked by, and the code behind its names."""

import subprocess
import sys

import numpy as np
import pytest
from aggregation_references import cloud, neighbours, run, scattered
from hypothesis import given
from hypothesis import strategies as st

from p2pfed.aggregation import aggregate
from p2pfed.aggregation.rules import IMPLEMENTATIONS, PRE_AGGREGATORS
from p2pfed.errors import AggregationError
from p2pfed.rules_catalogue import (
    DEFAULT_RULE,
    PRE_AGGREGATIONS,
    RULES,
    asks_for_b,
    precondition,
    tolerates,
)


def test_every_name_of_the_catalogue_has_code_and_the_reverse() -> None:
    assert set(IMPLEMENTATIONS) == set(RULES)
    assert set(PRE_AGGREGATORS) == set(PRE_AGGREGATIONS)
    assert all(rule.description is RULES[name] for name, rule in IMPLEMENTATIONS.items())
    assert all(rule.name == name for name, rule in RULES.items())
    assert all(step.name == name for name, step in PRE_AGGREGATIONS.items())


@pytest.mark.parametrize("before", list(PRE_AGGREGATIONS))
@pytest.mark.parametrize("rule", list(RULES))
def test_b_matters_exactly_where_the_catalogue_says_that_it_is_asked_for(
    rule: str, before: str
) -> None:
    differs = False
    for seed in range(20):
        own, others = scattered(10, 9, seed)
        results = {run(rule, own, others, b, before=before)[0].tobytes() for b in (0, 1, 2)}
        differs |= len(results) > 1
    assert differs is asks_for_b(rule, before)


@pytest.mark.parametrize("before", list(PRE_AGGREGATIONS))
@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.tolerates(20)])
@given(k=st.integers(3, 15))
def test_b_is_clamped_to_what_the_catalogue_says_is_tolerated(
    rule: str, before: str, k: int
) -> None:
    own, others = cloud(dimension=20, k=k)
    most = tolerates(rule, k, before)
    if before == "nearest_neighbour_mixing":
        most = k // 2  # mixing has a limit of its own, and the rule the tighter one
    clamped, _ = run(rule, own, others, most, before=before)
    asked, outcome = run(rule, own, others, most + 3, before=before)
    if outcome.local_only:
        assert RULES[rule].asks_for_b
        assert tolerates(rule, k, before) == 0
        return
    assert asked.tobytes() == clamped.tobytes()


@pytest.mark.parametrize(
    ("rule", "option"), [(rule, option) for rule in RULES for option in RULES[rule].options]
)
def test_every_option_changes_something_and_has_bounds(rule: str, option: str) -> None:
    own, others = cloud()
    description = RULES[rule].options[option]
    given_value = {"iterations": 1.0, "floor": 100.0, "gamma": 0.05, "kappa": 9.0}.get(option, 0.5)
    plain, _ = run(rule, own, others, progress=0.5)
    changed, _ = run(rule, own, others, progress=0.5, options={option: given_value})
    assert changed.tobytes() != plain.tobytes()
    same, _ = run(rule, own, others, progress=0.5, options={option: description.default})
    assert same.tobytes() == plain.tobytes()
    for bad in (description.least - 1e-9, float("nan"), float("inf")):
        with pytest.raises(AggregationError, match=option):
            run(rule, own, others, options={option: bad})


def test_unknown_names_and_impossible_values_are_refused() -> None:
    own, others = cloud()
    with pytest.raises(AggregationError, match="unknown rule 'median'; known: mean, "):
        run("median", own, others)
    with pytest.raises(AggregationError, match="unknown pre-aggregation 'nnm'; known: none, "):
        run("mean", own, others, before="nnm")
    with pytest.raises(AggregationError, match="mean has no option 'gamma'; known: none"):
        run("mean", own, others, options={"gamma": 1.0})
    for progress in (-0.1, 1.1, float("nan")):
        with pytest.raises(AggregationError, match="progress"):
            run("balance", own, others, progress=progress)
    with pytest.raises(AggregationError, match="seed"):
        aggregate("mean", own, neighbours(others), np.empty_like(own), pre_aggregation="bucketing")


def test_the_catalogue_says_what_a_rule_bears() -> None:
    assert DEFAULT_RULE == "median_clipping"
    assert precondition("median_clipping", 3, 1) is None
    assert "at most 0" in (precondition("median_clipping", 2, 1) or "")
    assert precondition("trimmed_mean", 2, 1) is None
    assert precondition("mean", 100, 0) is None
    assert precondition("mean", 100, 1) is not None
    assert [tolerates("krum", k) for k in (1, 3, 4, 5, 6)] == [0, 0, 1, 1, 2]
    assert tolerates("balance", 100) == 0


def test_the_catalogue_counts_what_a_pre_aggregation_leaves() -> None:
    # Six neighbours make three groups, of which one may be spoilt.
    assert tolerates("median_clipping", 6) == 2
    assert tolerates("median_clipping", 6, "bucketing") == 1
    assert tolerates("median_clipping", 6, "nearest_neighbour_mixing") == 2
    reason = precondition("median_clipping", 6, 2, "bucketing")
    assert reason == (
        "median_clipping after bucketing with 6 neighbours tolerates at most 1 Byzantine among "
        "them, byzantine_neighbours is 2"
    )
    assert asks_for_b("coordinate_median", "nearest_neighbour_mixing")
    assert not asks_for_b("coordinate_median", "bucketing")


def test_a_topology_file_is_checked_without_loading_the_rules() -> None:
    code = (
        "import sys, p2pfed.topology, p2pfed.rules_catalogue\n"
        "assert not [m for m in sys.modules if m == 'numba' or m.startswith('p2pfed.aggregation')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
