"""Agreement with ByzFL (byzfl on PyPI; EPFL and INRIA), an independent implementation.

Its aggregators see one list of vectors with no owner and no mixing weights. So a neighbour here
has the weight 1 / (k + 1) of a regular graph, and only rules that mean the same are compared:
median_clipping, clipped_gossip and balance are centred at the own model in ways that ByzFL has
nothing for; centred_clipping and MoNNA take the own model as ByzFL's centre and pivot.

ByzFL's package loads its benchmark, and with it torchvision, which does not load beside a CPU
build of torch; the aggregators need neither, and are imported without it.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from aggregation_references import cloud, groups_of, neighbours, run, scattered

from p2pfed.aggregation import aggregate, krum

CASES = [(k, b, d) for k, b in ((4, 1), (7, 2), (11, 3), (12, 5)) for d in (1, 10, 3000)]


@pytest.fixture(scope="module")
def byzfl() -> Iterator[Any]:
    found = importlib.util.find_spec("byzfl")
    if found is None:
        pytest.skip("byzfl is not installed: pip install --no-deps byzfl scipy")
    package = types.ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["byzfl"] = package
    pytest.importorskip("scipy", reason="byzfl needs scipy: pip install scipy")
    try:
        yield importlib.import_module("byzfl.aggregators")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "byzfl"]:
            del sys.modules[name]


def inputs(k: int, d: int) -> tuple[Any, Any, Any]:
    own, others = scattered(d, k, seed=100 * k + d)
    return own, others, np.stack([own, *others]).astype(np.float64)


def agree(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * (1 + float(np.abs(theirs).max())))


@pytest.mark.parametrize(("k", "b", "d"), CASES)
@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        ("mean", lambda byzfl, _: byzfl.Average()),
        ("coordinate_median", lambda byzfl, _: byzfl.Median()),
        ("trimmed_mean", lambda byzfl, b: byzfl.TrMean(b)),
        ("nearest_neighbour_averaging", lambda byzfl, b: byzfl.MoNNA(b, idx=0)),
        # ByzFL sums the n - f - 1 nearest others' distances, Blanchard et al. n - b - 2.
        ("krum", lambda byzfl, b: byzfl.Krum(b + 1)),
    ],
)
def test_rules_without_parameters_of_their_own(
    byzfl: Any, rule: str, theirs: Any, k: int, b: int, d: int
) -> None:
    if rule == "krum" and 2 * b + 3 > k + 1:
        b = (k - 2) // 2
    own, others, everyone = inputs(k, d)
    ours, _ = run(rule, own, others, b)
    agree(ours, theirs(byzfl, b)(everyone))


@pytest.mark.parametrize(("k", "b", "d"), CASES)
def test_the_models_that_multi_krum_keeps(byzfl: Any, k: int, b: int, d: int) -> None:
    """ByzFL's keeps n - f, as ours n - b, but its score has one model more (see above), so the
    number of models that are summed over is given here."""
    _, _, everyone = inputs(k, d)
    squares = ((everyone[:, None] - everyone[None]) ** 2).sum(axis=2)
    kept = krum.ranking(squares, nearest=k - b)[: k + 1 - b]
    agree(everyone[kept].mean(axis=0), byzfl.MultiKrum(b)(everyone))


@pytest.mark.parametrize(("k", "b", "d"), CASES)
def test_the_geometric_median(byzfl: Any, k: int, b: int, d: int) -> None:
    """ByzFL's starts from zero, ours from the coordinate median: compared where both arrive."""
    own, others = cloud(d + 1, k, seed=b)
    everyone = np.stack([own, *others]).astype(np.float64)
    ours, _ = run("geometric_median", own, others, options={"iterations": 3000, "floor": 1e-3})
    agree(ours, byzfl.GeometricMedian(nu=1e-3, T=3000)(everyone))


@pytest.mark.parametrize("threshold", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("k", "b", "d"), CASES)
def test_centred_clipping(byzfl: Any, threshold: float, k: int, b: int, d: int) -> None:
    own, others, everyone = inputs(k, d)
    ours, _ = run("centred_clipping", own, others, b, options={"threshold": threshold})
    theirs = byzfl.CenteredClipping(L=1, tau=threshold)
    theirs.m = everyone[0]  # its constructor refuses every centre
    with np.errstate(divide="ignore"):  # it divides by the centre's distance to itself
        clipped = theirs(everyone)
    agree(ours, clipped)


@pytest.mark.parametrize(("k", "b", "d"), CASES)
@pytest.mark.parametrize("rule", ["mean", "coordinate_median", "trimmed_mean", "krum"])
def test_rules_after_nearest_neighbour_mixing(
    byzfl: Any, rule: str, k: int, b: int, d: int
) -> None:
    own, others, everyone = inputs(k, d)
    b = min(b, (k - 2) // 2) if rule == "krum" else b
    ours, _ = run(rule, own, others, b, before="nearest_neighbour_mixing")
    after = {
        "mean": byzfl.Average(),
        "coordinate_median": byzfl.Median(),
        "trimmed_mean": byzfl.TrMean(b),
        "krum": byzfl.Krum(b + 1),
    }[rule]
    agree(ours, after(byzfl.NNM(b)(everyone)))


@pytest.mark.parametrize(("k", "b", "d"), CASES)
def test_the_median_after_bucketing(
    byzfl: Any, monkeypatch: pytest.MonkeyPatch, k: int, b: int, d: int
) -> None:
    """Ours keeps the own model out of the groups, so ByzFL is given the neighbours'; and it
    draws its own order, so it is given ours."""
    own, others, everyone = inputs(k, d)
    seed = b"a round"
    out = np.empty_like(own)
    aggregate(
        "coordinate_median", own, neighbours(others), out, pre_aggregation="bucketing", seed=seed
    )
    order = [index for group in groups_of(k, seed) for index in group]
    monkeypatch.setattr(np.random, "permutation", lambda vectors: vectors[order])
    means = byzfl.Bucketing(s=2)(everyone[1:])
    agree(out, np.median(np.stack([everyone[0], *means]), axis=0))
