"""Centre and scale agreed by the federation: the layer, a site's statistics, and four hospitals."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from p2pfed.aggregation.rules import aggregate
from p2pfed.aggregation.streaming import NeighbourModel
from p2pfed.errors import ConfigurationError
from p2pfed.training.baseline import predict, train_baseline
from p2pfed.training.evaluation.binary import auc
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.privacy.requirements import check_preparation
from p2pfed.training.round_input import RoundInput
from p2pfed.training.schema import prepare
from p2pfed.training.site_state import SiteModel
from p2pfed.training.task import PreparingTask
from p2pfed.training.tasks.tabular import standardise
from p2pfed.training.tasks.tabular.standardise import (
    MIN_KNOWN_CELLS,
    Standardise,
    Statistics,
    exact_statistics,
    private_statistics,
)
from p2pfed.training.tasks.tabular.task import Tabular

Vector = NDArray[np.float32]
CPU = torch.device("cpu")
HEART = Path(__file__).parents[2] / "demos" / "heart"
PREPARATION_ROUNDS = 8
NUMERIC = ("age", "trestbps", "chol", "thalach", "oldpeak")
DECLARED = {  # rough clinical values
    "age": (54.0, 9.0),
    "trestbps": (132.0, 18.0),
    "chol": (245.0, 55.0),
    "thalach": (138.0, 25.0),
    "oldpeak": (0.9, 1.1),
}


def columns(centres: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    numeric = [
        {
            "name": name,
            "kind": "numeric",
            "missing": "centre_indicator",
            "centre": centres[name][0],
            "scale": centres[name][1],
        }
        for name in NUMERIC
    ]
    return [
        *numeric,
        {"name": "sex", "kind": "categorical", "categories": [0, 1]},
        {"name": "cp", "kind": "categorical", "categories": [1, 2, 3, 4]},
        {"name": "exang", "kind": "categorical", "categories": [0, 1], "missing": "own_category"},
    ]


def heart_options(centres: dict[str, tuple[float, float]] = DECLARED, **changes: Any) -> Any:
    return {
        "label": "disease",
        "columns": columns(centres),
        "model": "logistic_regression",
        "batch_size": 64,
        "weight_decay": 1e-3,
        **changes,
    }


def federated(**changes: Any) -> dict[str, Any]:
    return {"standardise": "federated", "standardise_rounds": PREPARATION_ROUNDS, **changes}


def dataset_of(features: Any) -> TensorDataset:
    values = torch.tensor(np.asarray(features), dtype=torch.float32)
    return TensorDataset(values, torch.zeros(len(values)))


# The layer


def contribution(means: Sequence[float], variances: Sequence[float]) -> Statistics:
    count = len(means)
    return Statistics(
        np.full(count, 50.0), np.array(means), np.array(variances), np.ones(count, np.bool_)
    )


def test_the_layer_scales_numeric_columns_and_puts_the_mean_for_what_is_missing() -> None:
    layer = Standardise([0, 2])
    layer.contribute(contribution([3.0, -1.0], [4.0, 0.25]))
    features = torch.tensor([[5.0, 1.0, -1.0], [math.nan, 0.0, 0.0]])
    expected = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    torch.testing.assert_close(layer(features), expected)
    assert features[1, 0].isnan()  # the records stay as they are


def test_a_column_that_nobody_knows_says_nothing() -> None:
    layer = Standardise([0])
    features = torch.tensor([[245.0, 1.0], [245.0, 0.0]])
    torch.testing.assert_close(layer(features), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))


def test_statistics_travel_and_the_places_of_columns_do_not() -> None:
    task = Tabular(heart_options(**federated()), {"path": "a.csv"})
    assert isinstance(task, PreparingTask)
    learner = learner_for(task)
    names = [name for name, _ in learner.schema.tensors]
    assert {"0.shares", "0.means", "0.log_variances"} <= set(names)
    assert "0.places" not in names
    declared = learner_for(Tabular(heart_options(), {"path": "a.csv"}))
    assert [name for name, _ in declared.schema.tensors] == ["0.weight", "0.bias"]


sites = st.lists(
    st.tuples(st.booleans(), st.floats(-3, 3), st.floats(0.01, 9)), min_size=1, max_size=8
).filter(lambda rows: any(known for known, _, _ in rows))


@given(sites)
def test_sites_that_know_nothing_dilute_nothing(rows: list[tuple[bool, float, float]]) -> None:
    layers = []
    for known, mean, variance in rows:
        layer = Standardise([0])
        if known:
            layer.contribute(contribution([mean], [variance]))
        layers.append(layer)
    agreed = Standardise([0])
    for name in ("shares", "means", "log_variances"):
        average = torch.stack([getattr(layer, name) for layer in layers]).mean(dim=0)
        getattr(agreed, name).copy_(average)
    mean, variance, known = agreed.agreed()
    told = [(m, v) for is_known, m, v in rows if is_known]
    assert known.item()
    assert math.isclose(mean.item(), np.mean([m for m, _ in told]), abs_tol=1e-5)
    expected = math.exp(np.mean([math.log(v) for _, v in told]))
    assert math.isclose(variance.item(), expected, rel_tol=1e-4)


tables = st.lists(
    st.lists(st.floats(-4, 4, width=16), min_size=20, max_size=25), min_size=1, max_size=4
)


@given(tables, st.floats(0.125, 8, width=16), st.floats(-50, 50, width=16))
def test_the_unit_in_which_all_sites_measure_does_not_matter(
    sites_cells: list[list[float]], factor: float, shift: float
) -> None:
    def standardised(factor: float, shift: float) -> torch.Tensor | None:
        cells = [np.array(part)[:, None] * factor + shift for part in sites_cells]
        statistics = [exact_statistics(dataset_of(part), [0]) for part in cells]
        if not all(one.known.all() for one in statistics):
            return None
        layers = [Standardise([0]) for _ in cells]
        for layer, one in zip(layers, statistics, strict=True):
            layer.contribute(one)
        agreed = Standardise([0])
        for name in ("shares", "means", "log_variances"):
            average = torch.stack([getattr(layer, name) for layer in layers]).mean(dim=0)
            getattr(agreed, name).copy_(average)
        return agreed(torch.tensor(np.concatenate(cells), dtype=torch.float32))

    before = standardised(1.0, 0.0)
    after = standardised(factor, shift)
    spread = min(np.std(part) for part in sites_cells)
    if spread > 0.1:  # else float32 has lost some of it beside the shift
        assert before is not None
        assert after is not None
        torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-2)


# A site's statistics


@given(
    st.lists(st.floats(-1000, 1000, width=32), min_size=MIN_KNOWN_CELLS, max_size=90),
    st.sets(st.integers(0, 89)),
    st.integers(1, 100),
)
def test_statistics_are_those_of_the_cells_that_are_there(
    values: list[float], missing: set[int], batch: int
) -> None:
    cells = np.array([math.nan if n in missing else v for n, v in enumerate(values)])
    read_batch_size = standardise.READ_BATCH_SIZE
    standardise.READ_BATCH_SIZE = batch
    try:
        found = exact_statistics(dataset_of(np.stack([cells, np.ones(cells.size)], axis=1)), [0])
    finally:
        standardise.READ_BATCH_SIZE = read_batch_size
    present = cells[~np.isnan(cells)]
    assert found.counts[0] == present.size
    if found.known[0]:
        assert math.isclose(found.means[0], present.mean(), rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(found.variances[0], present.var(), rel_tol=1e-6)
    else:
        few = present.size < MIN_KNOWN_CELLS
        assert few or present.std() <= 1e-5 * (1 + abs(present.mean()))


@pytest.mark.parametrize("value", [0.0, 245.1, 1e6, -3e-4])
def test_a_constant_column_is_not_contributed(value: float) -> None:
    cells = np.full((1000, 1), value)
    assert not exact_statistics(dataset_of(cells), [0]).known.any()
    cells[:500] *= 1.001
    cells[:500] += 0.001
    assert exact_statistics(dataset_of(cells), [0]).known.all()


def test_few_records_are_not_given_away() -> None:
    cells = np.arange(MIN_KNOWN_CELLS, dtype=np.float64)[:, None]
    assert exact_statistics(dataset_of(cells), [0]).known.all()
    assert not exact_statistics(dataset_of(cells[1:]), [0]).known.any()


def test_noise_is_that_of_the_gaussian_mechanism() -> None:
    generator = np.random.default_rng(7)
    cells = generator.normal(0.4, 1.0, (400, 4))
    dataset, places = dataset_of(cells), [0, 1, 2, 3]
    multiplier = 1.5
    counts = np.concatenate(
        [private_statistics(dataset, places, 3.0, multiplier, generator).counts for _ in range(500)]
    )
    # One record changes the sums by at most 1.5 a column in 2-norm.
    deviation = multiplier * 1.5 * math.sqrt(4)
    assert abs(counts.mean() - 400) < 4 * deviation / math.sqrt(counts.size)
    assert abs(counts.std() / deviation - 1) < 0.05


@given(
    st.lists(
        st.lists(
            st.one_of(st.floats(-50, 50, width=32), st.just(math.nan)), min_size=3, max_size=3
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(0, 29),
)
def test_one_record_changes_the_sums_by_no_more_than_the_noise_is_made_for(
    rows: list[list[float]], left_out: int
) -> None:
    sums = [private_sums(rows), private_sums([r for n, r in enumerate(rows) if n != left_out])]
    assert np.linalg.norm(sums[0] - sums[1]) <= 1.5 * math.sqrt(3) + 1e-6


class Recorded(np.random.Generator):
    """No noise."""

    def standard_normal(self, size: Any = None, *_: Any, **__: Any) -> Any:
        return np.zeros(size)


def private_sums(rows: list[list[float]]) -> NDArray[np.float64]:
    """The three sums of each column, recovered from statistics without noise."""
    if not rows:
        return np.zeros(9)
    cells = np.array(rows)
    kept = standardise.MIN_KNOWN_CELLS
    standardise.MIN_KNOWN_CELLS = 0
    try:
        generator = Recorded(np.random.PCG64(0))
        found = private_statistics(dataset_of(cells), [0, 1, 2], 2.0, 1e-12, generator)
    finally:
        standardise.MIN_KNOWN_CELLS = kept
    present = found.counts
    first = found.means / 2.0 * present
    second = ((found.variances + found.means**2) / 4.0 - 0.5) * present
    return np.concatenate([present, first, second])


def test_private_statistics_are_near_the_exact_ones_where_records_are_many() -> None:
    generator = np.random.default_rng(3)
    cells = generator.normal([0.3, -0.5], [1.0, 0.7], (5000, 2))
    cells[generator.random((5000, 2)) < 0.2] = math.nan
    dataset = dataset_of(cells)
    exact = exact_statistics(dataset, [0, 1])
    private = private_statistics(dataset, [0, 1], 4.0, 2.0, generator)
    assert private.known.all()
    np.testing.assert_allclose(private.means, exact.means, atol=0.03)
    np.testing.assert_allclose(private.variances, exact.variances, atol=0.1)
    # Among few records the noise would be all there is to see.
    assert not private_statistics(dataset_of(cells[:30]), [0, 1], 4.0, 20.0, generator).known.any()


def test_a_cell_far_off_hardly_moves_private_statistics() -> None:
    cells = np.random.default_rng(3).normal(0.0, 1.0, (2000, 1))
    spoilt = cells.copy()
    spoilt[0] = 1e9
    found = [
        private_statistics(dataset_of(each), [0], 3.0, 0.5, np.random.default_rng(5))
        for each in (cells, spoilt)
    ]
    assert abs(found[0].means[0] - found[1].means[0]) < 0.005
    assert exact_statistics(dataset_of(spoilt), [0]).means[0] > 1e5


# The task


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"standardise_rounds": 3}, "standardise_rounds is for standardise = 'federated'"),
        ({"standardise_noise_multiplier": 1.0}, "is for standardise = 'federated'"),
        (federated(standardise_clip=2.0), "goes with standardise_noise_multiplier"),
        (
            federated(columns=[{"name": "sex", "kind": "categorical", "categories": [0, 1]}]),
            "no numeric column",
        ),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Tabular(heart_options(**changes), {"path": "a.csv"})
    (problem,) = caught.value.problems
    assert reason in problem.reason


def test_what_a_contribution_costs_is_known() -> None:
    def spend(**changes: Any) -> tuple[float, float] | None:
        return Tabular(heart_options(**changes), {"path": "a.csv"}).preparation_spend()

    assert spend() is None
    assert spend(**federated()) == (0.0, 1.0)
    assert spend(**federated(standardise_noise_multiplier=3.0)) == (3.0, 1.0)


def test_a_private_federation_refuses_exact_statistics() -> None:
    file = Path("topology.toml")
    with pytest.raises(ConfigurationError, match="standardise_noise_multiplier"):
        check_preparation(Tabular(heart_options(**federated()), {"path": "a.csv"}), file)
    for hidden in ({}, federated(standardise_noise_multiplier=3.0)):
        check_preparation(Tabular(heart_options(**hidden), {"path": "a.csv"}), file)


def test_a_site_contributes_once_and_then_only_gossips() -> None:
    task = hospital("cleveland", **federated())
    dataset: Any = task.datasets().training
    model = genesis_model(task, 0)
    assert task.prepare(model, dataset, 0, 5, prepared=False)
    own = model[0].means.clone()
    assert own.any()
    model[0].means += 1.0
    assert task.prepare(model, dataset, 1, 5, prepared=True)
    assert torch.equal(model[0].means, own + 1.0)
    # Who comes when the others train takes what they agreed on.
    assert not task.prepare(model, dataset, PREPARATION_ROUNDS, 5, prepared=False)
    assert torch.equal(model[0].means, own + 1.0)
    plain = hospital("cleveland")
    assert not plain.prepare(genesis_model(plain, 0), dataset, 0, 5, prepared=False)


def test_a_column_that_became_constant_or_empty_is_named_and_spoils_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.read_csv(HEART / "cleveland.csv")
    frame["chol"], frame["thalach"] = 245, np.nan
    frame.to_csv(tmp_path / "a.csv", index=False)
    task = Tabular(
        heart_options(**federated()),
        {"path": str(tmp_path / "a.csv"), "extra_columns": "ignore"},
    )
    with caplog.at_level(logging.WARNING):
        training: Any = task.datasets().training
        model = genesis_model(task, 0)
        task.prepare(model, training, 0, 5, prepared=False)
    said = [record.getMessage() for record in caplog.records]
    assert sum("'chol' has the same value in every training record" in text for text in said) == 1
    assert sum("'thalach' has the same value" in text for text in said) == 1
    assert sum("'chol' does not vary enough" in text for text in said) == 1
    assert sum("'thalach' has under 20 values" in text for text in said) == 1
    assert model[0].shares.tolist() == [1, 1, 0, 0, 1]
    inputs = model[0](training.tensors[0])
    assert inputs.isfinite().all()
    assert not inputs[:, [4, 6]].any()


def test_private_contributions_differ_from_run_to_run() -> None:
    task = hospital("cleveland", **federated(standardise_noise_multiplier=2.0))
    dataset: Any = task.datasets().training
    drawn = []
    for _ in range(2):
        model = genesis_model(task, 0)
        task.prepare(model, dataset, 0, 5, prepared=False)
        drawn.append(model[0].means.clone())
    assert not torch.equal(*drawn)


# Four hospitals


def hospital(
    name: str, centres: dict[str, tuple[float, float]] = DECLARED, **changes: Any
) -> Tabular:
    data = {"path": str(HEART / f"{name}.csv"), "extra_columns": "ignore"}
    return Tabular(heart_options(centres, **changes), data)


def learner_for(task: Tabular) -> Learner:
    model = genesis_model(task, seed=0)
    prepare(model)
    return Learner(task, model, task.options, CPU)


def untouched(_: int, model: Vector) -> Vector:
    return model


@dataclass
class Site:
    """A hospital's learner, with what it keeps, and what it says of its model."""

    name: str
    task: Tabular
    says: Callable[[int, Vector], Vector] = untouched
    learner: Learner = field(init=False)
    model: Vector = field(init=False)
    state: Vector = field(init=False)

    def __post_init__(self) -> None:
        self.learner = learner_for(self.task)
        self.datasets = self.task.datasets()
        self.model = self.learner.genesis()
        self.state = np.zeros(self.learner.layout.floats, np.float32)

    def train(self, round_number: int, local_steps: int = 3) -> float:
        given_ = RoundInput.at_site(
            SiteModel(self.model, self.state),
            seed=0,
            site=self.name,
            round_number=round_number,
            local_steps=local_steps,
        )
        after, summary = self.learner.train_new(self.datasets.training, given_)
        self.model, self.state = after.parameters, after.state
        return summary.samples

    def layer(self) -> Standardise:
        self.learner.load(self.model, self.state)
        layer = self.learner.model[0]
        assert isinstance(layer, Standardise)
        return layer

    def own_statistics(self) -> Statistics:
        places = [2 * place for place in range(len(NUMERIC))]
        return exact_statistics(self.datasets.training, places)


def gossip(
    sites: list[Site], rounds: Sequence[int], rule: str = "median_clipping", ring: bool = False
) -> None:
    """Rounds over the complete graph, or the ring in the sites' order."""
    for round_number in rounds:
        for site in sites:
            site.train(round_number)
        said = [site.says(round_number, site.model) for site in sites]
        folded = []
        for own, site in enumerate(sites):
            ends = {own - 1, (own + 1) % len(sites)} if ring else set(range(len(sites))) - {own}
            weight = 1 / (1 + len(ends))
            others = [NeighbourModel(sites[at].name, said[at], weight) for at in ends]
            out = np.empty_like(site.model)
            aggregate(rule, site.model, others, out)
            folded.append(out)
        for site, model in zip(sites, folded, strict=True):
            site.model = model


NAMES = ("cleveland", "hungary", "long-beach", "switzerland")


def hospitals(centres: dict[str, tuple[float, float]] = DECLARED, **changes: Any) -> list[Site]:
    return [Site(name, hospital(name, centres, **changes)) for name in NAMES]


def area(sites: list[Site]) -> float:
    """AUC over all hold-outs, mean over the sites' models."""
    areas = []
    for site in sites:
        told = [
            predict(site.task, SiteModel(site.model, site.state), other.datasets.holdout)  # type: ignore[arg-type]
            for other in sites
        ]
        areas.append(
            auc(
                np.concatenate([part.labels for part in told]),
                np.concatenate([part.scores for part in told]),
            )
        )
    return float(np.mean(areas))


@pytest.mark.parametrize(
    ("rule", "ring", "tolerance"),
    [("mean", False, 1e-6), ("mean", True, 1e-3), ("median_clipping", False, 0.05)],
)
def test_hospitals_agree_on_the_mean_of_their_means(
    rule: str, ring: bool, tolerance: float
) -> None:
    federation = hospitals(**federated())
    gossip(federation, range(PREPARATION_ROUNDS), rule, ring)
    each = [site.own_statistics() for site in federation]
    known = np.array([one.known for one in each])
    assert known[:, 2].tolist() == [True, True, True, False]  # Switzerland measured no cholesterol
    shares = known.sum(axis=0)
    expected_means = np.where(known, [one.means for one in each], 0).sum(axis=0) / shares
    logs = np.log([np.where(one.known, one.variances, 1.0) for one in each])
    expected_variances = np.exp(logs.sum(axis=0) / shares)
    for site in federation:
        mean, variance, is_known = site.layer().agreed()
        assert is_known.all()
        np.testing.assert_allclose(mean, expected_means, atol=tolerance)
        np.testing.assert_allclose(variance.log(), np.log(expected_variances), atol=tolerance)


def test_no_step_is_taken_before_and_no_statistic_changed_after() -> None:
    federation = hospitals(**federated())
    site = federation[0]
    genesis = site.model.copy()
    names = [name for name, _ in site.learner.schema.tensors]
    weights = names.index("1.weight")
    assert weights == 0  # parameters come first
    floats = sum(p.numel() for p in site.learner.model.parameters())
    assert site.train(0) == 0
    assert np.array_equal(site.model[:floats], genesis[:floats])
    said = site.model[floats:].copy()
    assert said.any()
    assert site.train(1) == 0
    assert np.array_equal(site.model[floats:], said)
    assert site.train(PREPARATION_ROUNDS) > 0
    assert not np.array_equal(site.model[:floats], genesis[:floats])
    assert np.array_equal(site.model[floats:], said)


def test_a_hospital_that_comes_later_adopts_what_is_agreed() -> None:
    *early, late = hospitals(**federated())
    gossip(early, range(PREPARATION_ROUNDS + 1))
    agreed = [part.clone() for part in early[0].layer().agreed()]
    late.model = early[0].model.copy()
    late.train(PREPARATION_ROUNDS + 1)
    for now, before in zip(late.layer().agreed(), agreed, strict=True):
        assert torch.equal(now, before)


def test_agreed_scales_are_as_good_as_declared_ones() -> None:
    training_rounds = 25
    declared = hospitals()
    gossip(declared, range(training_rounds))
    reference = area(declared)
    assert reference > 0.84
    rounds = range(PREPARATION_ROUNDS + training_rounds)
    agreed = hospitals(**federated())
    gossip(agreed, rounds)
    assert area(agreed) > reference - 0.01
    # Without a centre or scale in the topology file the declared way cannot even start.
    nothing = dict.fromkeys(NUMERIC, (0.0, 1.0))
    found = hospitals(nothing, **federated())
    gossip(found, rounds)
    assert area(found) > reference - 0.01


def shouting(_: int, model: Vector) -> Vector:
    said = model.copy()
    said[-3 * len(NUMERIC) :] = 1000.0  # shares, means and logarithms of variances
    return said


def misleading(_: int, model: Vector) -> Vector:
    """A lie that could be true: each mean one scale too high."""
    said = model.copy()
    shares, means, _ = np.split(said[-3 * len(NUMERIC) :], 3)
    means += shares
    return said


@pytest.mark.parametrize(("lie", "tolerance"), [(shouting, 0.05), (misleading, 0.3)])
def test_one_hostile_hospital_moves_little_of_what_the_others_agree_on(
    lie: Callable[[int, Vector], Vector], tolerance: float
) -> None:
    honest = hospitals(**federated())[:3]
    gossip(honest, range(PREPARATION_ROUNDS))
    mean, variance, _ = (part.clone() for part in honest[0].layer().agreed())
    disturbed = hospitals(**federated())
    disturbed[3].says = lie
    gossip(disturbed, range(PREPARATION_ROUNDS))
    for site in disturbed[:3]:
        now = site.layer().agreed()
        assert now[2].all()
        np.testing.assert_allclose(now[0], mean, atol=tolerance)
        np.testing.assert_allclose(now[1].log(), variance.log(), atol=tolerance)
    # The positive control: under the plain mean, who says it again each round has his way.
    averaged = hospitals(**federated())
    averaged[3].says = lie
    gossip(averaged, range(PREPARATION_ROUNDS), "mean")
    moved = (averaged[0].layer().agreed()[0] - mean).abs().max()
    assert moved > 2 * tolerance


def test_a_pooled_baseline_standardises_by_all_records(tmp_path: Path) -> None:
    tasks = [hospital(name, **federated()) for name in NAMES]
    parts: list[Any] = [task.datasets() for task in tasks]
    training = [part.training for part in parts]
    model = train_baseline(tasks[0], training, total_steps=75, seed=0, name="pooled")
    told = [predict(tasks[0], model, part.holdout) for part in parts]
    labels, scores = (np.concatenate(part) for part in zip(*told, strict=True))
    assert auc(labels, scores) > 0.84
