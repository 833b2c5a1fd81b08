"""Several classes, a number, and survival: labels, losses and figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from heart_tables import (
    FOLLOWED,
    HEART_RATE,
    LOG_HAZARDS,
    NARROWED_VESSELS,
    heart_options,
    heart_rate_tables,
    raw_tables,
    synthetic_survival_tables,
    task_of,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from real_data import HEART, REASON
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LinearRegression
from sklearn.metrics import log_loss, mean_absolute_error, r2_score, roc_auc_score

from p2pfed.errors import ConfigurationError, DataError
from p2pfed.training.baseline import predict, train_baseline
from p2pfed.training.evaluation.assessment import assess
from p2pfed.training.evaluation.multiclass import multiclass_metrics
from p2pfed.training.privacy.requirements import check_loss
from p2pfed.training.site_state import SiteModel
from p2pfed.training.tasks.tabular.targets.regression import regression_metrics
from p2pfed.training.tasks.tabular.targets.survival import (
    concordance_index,
    partial_likelihood,
    partial_likelihood_loss,
    survival_metrics,
)
from p2pfed.training.tasks.tabular.task import Tabular

Floats = NDArray[np.float64]

AGE: dict[str, Any] = {"name": "age", "kind": "numeric", "centre": 50.0, "scale": 10.0}
STAGES = {"target": "multiclass", "label": "stage", "classes": ["I", "II", "III"]}
SURVIVAL = {"target": "survival", **FOLLOWED}


def options(**changes: Any) -> dict[str, Any]:
    return {"columns": [AGE], "model": "logistic_regression", **changes}


def task_for(path: Path, **changes: Any) -> Tabular:
    return Tabular(options(**changes), {"path": str(path)})


def write(path: Path, header: str, rows: Sequence[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def problems_of(task: Tabular) -> dict[str, str]:
    with pytest.raises(DataError) as caught:
        task.datasets()
    assert {problem.value for problem in caught.value.problems} == {None}
    return {problem.key: f"{problem.reason}; {problem.remedy}" for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({}, "task.options.label", "required with target = 'binary'"),
        ({"target": "regression"}, "task.options.label", "required with target = 'regression'"),
        ({**SURVIVAL, "label": "sick"}, "task.options.label", "not for target = 'survival'"),
        ({**SURVIVAL, "time": ""}, "task.options.time", "required with target = 'survival'"),
        ({"label": "sick", "event": "died"}, "task.options.event", "not for target = 'binary'"),
        ({**SURVIVAL, "event": "days"}, "task.options", "the same column"),
        ({**SURVIVAL, "time": "age"}, "task.options", "'age' is among the columns"),
        ({**STAGES, "classes": ["I"]}, "task.options.classes", "at least two classes"),
        ({**STAGES, "classes": ["I", "I"]}, "task.options.classes", "listed twice"),
        ({**STAGES, "classes": ["I", 2]}, "task.options.classes", "all whole numbers or all text"),
        ({"label": "sick", "classes": [0, 1]}, "task.options.classes", "'multiclass'"),
        ({**STAGES, "label_scale": 2.0}, "task.options", "for target = 'regression'"),
        ({**SURVIVAL, "batch_size": 5000}, "task.options", "at most 4096"),
        ({**SURVIVAL, "micro_batch_size": 8}, "task.options", "each part alone"),
        ({**SURVIVAL, "class_weights": "balanced"}, "task.options", "not for survival"),
    ],
    ids=str,
)
def test_options_that_do_not_go_with_the_target_are_named(
    changes: dict[str, Any], key: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        task_for(Path("a.csv"), **changes)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert reason in problem.reason


# Several classes


def test_classes_are_places_in_the_declared_list(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "age,stage", ["50,III", "60, I ", "70,II"])
    _, labels = task_for(path, **STAGES).file_dataset(path).tensors
    assert labels.tolist() == [2, 0, 1]
    pd.DataFrame({"age": [50, 60], "stage": [4.0, 0.0]}).to_parquet(tmp_path / "a.parquet")
    numbered = task_for(path, target="multiclass", label="stage", classes=[0, 2, 4])
    assert numbered.file_dataset(tmp_path / "a.parquet").tensors[1].tolist() == [2, 0]


def test_a_label_that_the_federation_does_not_know_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "age,stage", ["50,III", "60,IV", "70,", "70,iv"])
    with pytest.raises(DataError) as caught:
        task_for(path, **STAGES).datasets()
    assert [(problem.key, problem.reason) for problem in caught.value.problems] == [
        ("stage", "in data row 3 the value is missing"),
        ("stage", "in data row 2 (and in 1 more) the value is unknown to the federation"),
    ]
    assert "classes of the topology file" in str(caught.value.problems[1].remedy)
    assert "IV" not in str(caught.value)


def test_the_split_keeps_every_class_in_proportion(tmp_path: Path) -> None:
    rows = [f"{20 + n},{'I' if n < 30 else 'II' if n < 50 else 'III'}" for n in range(60)]
    datasets = task_for(write(tmp_path / "a.csv", "age,stage", rows), **STAGES).datasets()
    training: Any = datasets.training
    assert torch.bincount(training.tensors[1].long()).tolist() == [20, 13, 7]


def test_balanced_classes_weigh_the_same_whichever_occur() -> None:
    labels = torch.tensor([0.0, 0, 0, 2])  # none of class 1
    features = torch.randn(4, 1, generator=torch.Generator().manual_seed(0))
    task = task_for(Path("a.csv"), **STAGES, class_weights="balanced")
    task.weigh_classes([torch.utils.data.TensorDataset(features, labels)])
    model = task.build_model()
    each = torch.nn.functional.cross_entropy(model(features), labels.long(), reduction="none")
    loss = task.loss(model, (features, labels))
    torch.testing.assert_close(loss, (each[:3].mean() + each[3]) / 2)
    plain = task_for(Path("a.csv"), **STAGES).loss(model, (features, labels))
    torch.testing.assert_close(plain, each.mean())


@given(st.integers(0, 1000), st.integers(3, 40))
def test_multiclass_figures_agree_with_scikit_learn(seed: int, records: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(records) % 3).astype(np.float64)
    scores = generator.normal(0.0, 3.0, (records, 3))
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    metrics = multiclass_metrics(labels, scores)
    assert metrics["accuracy"] == np.mean(scores.argmax(axis=1) == labels)
    assert math.isclose(metrics["loss"], log_loss(labels, probabilities, labels=[0, 1, 2]))
    areas = [roc_auc_score(labels == place, probabilities[:, place]) for place in range(3)]
    assert math.isclose(metrics["auc"], np.mean(areas))


def test_a_class_without_records_stays_out_of_the_mean_auc() -> None:
    scores = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert multiclass_metrics(np.array([0.0, 1.0, 0.0]), scores)["auc"] == 1.0
    assert "auc" not in multiclass_metrics(np.zeros(3), scores)


@given(st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=30))
def test_two_classes_have_the_usual_auc(rows: list[tuple[bool, int]]) -> None:
    labels = np.array([float(label) for label, _ in rows])
    odds = np.array([float(score) for _, score in rows])
    metrics = multiclass_metrics(labels, np.stack([np.zeros_like(odds), odds], axis=1))
    if 0 < labels.sum() < labels.size:
        assert math.isclose(metrics["auc"], roc_auc_score(labels, odds))
    else:
        assert "auc" not in metrics


# A number


def test_a_number_is_told_in_its_own_unit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "age,rate", ["50,120", "60,160", "70,140"])
    task = task_for(path, target="regression", label="rate", label_centre=140.0, label_scale=20.0)
    features, labels = task.file_dataset(path).tensors
    assert labels.tolist() == [-1, 1, 0]
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.constant_(model.bias, 0.5)  # it says 150 of everybody
    loss = task.loss(model, (features, labels))
    assert math.isclose(loss.item(), (1.5**2 + 0.5**2 + 0.5**2) / 3, rel_tol=1e-6)
    with torch.no_grad():
        metrics = task.metrics(model, [(features, labels)])
    assert math.isclose(metrics["mae"], (30 + 10 + 10) / 3)
    assert math.isclose(metrics["rmse"], math.sqrt((900 + 100 + 100) / 3))
    assert math.isclose(metrics["r2"], 1 - 1100 / 800)


numbers = st.lists(
    st.tuples(st.floats(-100, 100, width=16), st.floats(-100, 100, width=16)),
    min_size=2,
    max_size=40,
)


@given(numbers, st.floats(0.25, 8.0, width=16))
def test_figures_of_numbers_agree_with_scikit_learn(
    rows: list[tuple[float, float]], scale: float
) -> None:
    labels, scores = (np.array(part) for part in zip(*rows, strict=True))
    metrics = regression_metrics(labels, scores, scale)
    assert math.isclose(metrics["mae"], mean_absolute_error(labels, scores) * scale)
    assert math.isclose(metrics["rmse"] ** 2, metrics["loss"] * scale**2, abs_tol=1e-9)
    if np.unique(labels).size > 1:
        expected = r2_score(labels, scores)
        assert math.isclose(metrics["r2"], expected, rel_tol=1e-6, abs_tol=1e-9)
    else:
        assert "r2" not in metrics


def test_bad_numbers_are_refused_by_their_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "age,rate", ["50,120", "60,fast", "70,inf", "70,?"])
    with pytest.raises(DataError) as caught:
        task_for(path, target="regression", label="rate").datasets()
    assert {(problem.key, problem.reason) for problem in caught.value.problems} == {
        ("rate", "in data row 2 the value is not a number"),
        ("rate", "in data row 3 the value is infinite or too large"),
        ("rate", "in data row 4 the value is missing"),
    }
    constant = write(tmp_path / "b.csv", "age,rate", [f"{n},5" for n in range(20)])
    task = task_for(constant, target="regression", label="rate")
    assert "all 20 labels are alike" in problems_of(task)[""]


# Survival


def test_hand_computed_partial_likelihood() -> None:
    # Followed 1, 2, 2, 3 and 4; the third ended at 2 without the event, the last at 4.
    times = np.array([1.0, 2.0, 2.0, 3.0, 4.0])
    events = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    s = np.log([2.0, 3.0, 5.0, 7.0, 11.0])
    expected = -(math.log(2 / 28) + math.log(3 / 26) + math.log(7 / 18)) / 3
    assert math.isclose(partial_likelihood(times, events, s), expected)
    loss = partial_likelihood_loss(*(torch.from_numpy(part) for part in (s, times, events)))
    assert math.isclose(loss.item(), expected)


def test_hand_computed_ties_are_efrons() -> None:
    # Three events at 2 among five records that are followed to 2; Efron's denominators take off
    # none, a third and two thirds of the tied ones' sum, 2 + 3 + 5.
    times = np.array([1.0, 2.0, 2.0, 2.0, 5.0, 6.0])
    events = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    s = np.log([100.0, 2.0, 3.0, 5.0, 7.0, 11.0])
    denominators = [28.0, 28.0 - 10 / 3, 28.0 - 20 / 3]
    expected = (sum(map(math.log, denominators)) - math.log(2 * 3 * 5)) / 3
    assert math.isclose(partial_likelihood(times, events, s), expected)
    loss = partial_likelihood_loss(*(torch.from_numpy(part) for part in (s, times, events)))
    assert math.isclose(loss.item(), expected)


# Weeks in remission of 42 children with leukaemia, on 6-mercaptopurine and on placebo; negative
# where it lasted at the end of the trial. Freireich and others, Blood 21 (1963), as in Cox (1972).
MERCAPTOPURINE = [6, 6, 6, -6, 7, -9, 10, -10, -11, 13, 16, -17, -19, -20, 22, 23, -25, -32, -32]
MERCAPTOPURINE += [-34, -35]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def test_coxs_own_data_give_the_published_coefficient() -> None:
    # coxph of R's survival package, Efron's ties, on these data (gehan of MASS): 1.5721, with
    # log partial likelihoods of -93.184 at 0 and -85.008 at the maximum.
    weeks = np.array(MERCAPTOPURINE + PLACEBO, np.float64)
    times, events = np.abs(weeks), (weeks > 0).astype(np.float64)
    treated = np.repeat([0.0, 1.0], 21)

    def loss(coefficient: float) -> float:
        return partial_likelihood(times, events, coefficient * treated)

    best = minimize_scalar(loss, bounds=(0, 3), method="bounded", options={"xatol": 1e-8})
    assert abs(best.x - 1.5721) < 5e-5
    assert abs(-30 * best.fun + 85.008) < 1e-3
    assert abs(-30 * loss(0.0) + 93.184) < 1e-3


survival_records = st.lists(
    st.tuples(st.integers(0, 8), st.booleans(), st.integers(-6, 6)), min_size=1, max_size=30
)


def arrays(rows: list[tuple[int, bool, int]]) -> tuple[Floats, Floats, Floats]:
    times, events, scores = (np.array(part, np.float64) for part in zip(*rows, strict=True))
    return times, events, scores / 2


@given(survival_records.filter(lambda rows: any(event for _, event, _ in rows)))
def test_the_loss_of_a_batch_is_the_sorted_partial_likelihood(
    rows: list[tuple[int, bool, int]],
) -> None:
    times, events, scores = arrays(rows)
    batch = [torch.from_numpy(part) for part in (scores, times, events)]
    batch[0].requires_grad_(True)
    loss = partial_likelihood_loss(batch[0], batch[1], batch[2])
    assert math.isclose(loss.item(), partial_likelihood(times, events, scores), abs_tol=1e-12)
    # Only differences of scores and the order of times count: the gradient sums to nothing.
    loss.backward()
    assert batch[0].grad is not None
    assert abs(batch[0].grad.sum().item()) < 1e-12
    moved = partial_likelihood(times**2 + 3, events, scores + 100)
    assert math.isclose(moved, loss.item(), abs_tol=1e-10)


@given(survival_records, st.randoms(use_true_random=False))
def test_figures_do_not_depend_on_the_order_of_records(
    rows: list[tuple[int, bool, int]], random: Any
) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    figures, again = survival_metrics(*arrays(rows)), survival_metrics(*arrays(shuffled))
    assert figures.keys() == again.keys()
    for name, value in figures.items():
        assert math.isclose(value, again[name], abs_tol=1e-12)


def brute_force_concordance(times: Floats, events: Floats, scores: Floats) -> float | None:
    pairs = right = 0.0
    for i in range(times.size):
        for j in range(times.size):
            longer = times[j] > times[i] or (times[j] == times[i] and not events[j])
            if events[i] and longer and i != j:
                pairs += 1
                right += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    return right / pairs if pairs else None


@given(survival_records)
def test_the_c_index_counts_every_pair_that_can_be_compared(
    rows: list[tuple[int, bool, int]],
) -> None:
    times, events, scores = arrays(rows)
    expected = brute_force_concordance(times, events, scores)
    found = concordance_index(times, events, scores)
    assert found == expected if expected is None else math.isclose(found or 0.0, expected)
    if expected is not None:
        turned = concordance_index(times, events, -scores)
        stretched = concordance_index(times, events, np.exp(scores))
        assert math.isclose(expected + (turned or 0.0), 1.0)
        assert math.isclose(stretched or 0.0, expected)


@given(st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=30))
def test_with_two_times_the_c_index_is_the_auc(rows: list[tuple[bool, int]]) -> None:
    # Who has the event early against who is followed beyond it without one.
    events = np.array([float(event) for event, _ in rows])
    scores = np.array([float(score) for _, score in rows])
    index = concordance_index(np.where(events > 0, 1.0, 2.0), events, scores)
    if 0 < events.sum() < events.size:
        assert index is not None
        assert math.isclose(index, roc_auc_score(events, scores))
    else:
        assert index is None


def test_without_an_event_there_is_nothing_to_learn_and_no_figure(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    task = task_for(tmp_path / "a.csv", **SURVIVAL)
    loss = task.loss(model, (torch.ones(3, 1), torch.tensor([[1.0, 0], [2, 0], [3, 0]])))
    loss.backward()
    assert loss.item() == 0.0
    assert model.weight.grad is not None
    assert not model.weight.grad.any()
    assert survival_metrics(np.ones(3), np.zeros(3), np.arange(3.0)) == {}
    assert survival_metrics(np.ones(2), np.ones(2), np.zeros(2)).keys() == {"loss"}

    rows = [f"{20 + n},{n},0" for n in range(9)]
    path = write(tmp_path / "a.csv", "age,days,died", rows)
    assert "none of 9 records has the event" in problems_of(task)[""]
    assert path.exists()


def test_survival_cannot_be_private_and_the_other_targets_can(tmp_path: Path) -> None:
    def check(target: Mapping[str, Any], header: str, rows: Sequence[str]) -> None:
        path = write(tmp_path / "a.csv", header, rows)
        task = task_for(path, **target)
        dataset = task.file_dataset(path)
        check_loss(task, task.build_model(), dataset, len(rows), lambda batch: batch, path)

    numbered = range(20, 50)
    check(STAGES, "age,stage", [f"{n},{('I', 'II', 'III')[n % 3]}" for n in numbered])
    rate = {"target": "regression", "label": "rate"}
    check(rate, "age,rate", [f"{n},{60 + n}" for n in numbered])
    with pytest.raises(ConfigurationError, match="not the mean of their own"):
        check(SURVIVAL, "age,days,died", [f"{n},{n},{n % 2}" for n in numbered])


def test_scores_far_apart_leave_loss_and_gradient_finite() -> None:
    scores = torch.tensor([-80.0, 80.0, 80.0, -80.0, 0.0], requires_grad=True)
    times = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0])
    loss = partial_likelihood_loss(scores, times, torch.ones(5))
    loss.backward()
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_bad_times_and_events_are_refused_by_their_row(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        "age,days,died",
        ["50,10,1", "60,-1,0", "70,soon,2", "70,,", "70,1e60,yes"],
    )
    with pytest.raises(DataError) as caught:
        task_for(path, **SURVIVAL).datasets()
    assert {(problem.key, problem.reason) for problem in caught.value.problems} == {
        ("days", "in data row 2 the value is below 0"),
        ("days", "in data row 3 the value is not a number"),
        ("days", "in data row 4 the value is missing"),
        ("days", "in data row 5 the value is infinite or too large"),
        ("died", "in data row 3 (and in 1 more) the value is neither 0 nor 1"),
        ("died", "in data row 4 the value is missing"),
    }


def test_events_of_a_parquet_file_may_be_true_and_false(tmp_path: Path) -> None:
    frame = pd.DataFrame({"age": [50, 60], "days": [10, 20], "died": [True, False]})
    frame.to_parquet(tmp_path / "a.parquet")
    task = task_for(tmp_path / "a.parquet", **SURVIVAL)
    labels = task.file_dataset(tmp_path / "a.parquet").tensors[1]
    assert labels.tolist() == [[10, 1], [20, 0]]


@pytest.mark.parametrize(
    ("target", "header", "cell"),
    [
        (STAGES, "age,stage", lambda n: ("I", "II", "III")[n % 3]),
        ({"target": "regression", "label": "rate"}, "age,rate", lambda n: str(60 + n)),
        (SURVIVAL, "age,days,died", lambda n: f"{n},{n % 2}"),
    ],
    ids=["multiclass", "regression", "survival"],
)
def test_every_figure_of_a_holdout_has_a_confidence_interval(
    target: Mapping[str, Any], header: str, cell: Callable[[int], str], tmp_path: Path
) -> None:
    rows = [f"{20 + n % 50},{cell(n)}" for n in range(90)]
    path = write(tmp_path / "a.csv", header, rows)
    task = task_for(path, **target)
    model = task.build_model().eval()
    with torch.no_grad():
        predictions = task.predictions(model, [task.file_dataset(path).tensors])
        metrics = task.metrics(model, [task.file_dataset(path).tensors])
    intervals = assess(task, predictions, metrics).intervals
    assert intervals.keys() == metrics.keys()
    for name, (low, high) in intervals.items():
        assert low <= metrics[name] <= high, name


def test_a_model_of_survival_has_no_constant() -> None:
    model = task_for(Path("a.csv"), **SURVIVAL).build_model()
    assert [name for name, _ in model.named_parameters()] == ["0.weight"]


# Real tables


def pooled(tasks: list[Tabular], steps: int) -> tuple[SiteModel, list[Any], dict[str, float]]:
    """Train on the records of all hospitals; model, training records, figures on the others."""
    parts = [task.datasets() for task in tasks]
    training: list[Any] = [part.training for part in parts]
    model = train_baseline(tasks[0], training, total_steps=steps, seed=0, name="pooled")
    holdouts: list[Any] = [part.holdout for part in parts]
    told = [predict(tasks[0], model, part) for part in holdouts]
    labels, scores = (np.concatenate(part) for part in zip(*told, strict=True))
    return model, training, dict(tasks[0].target.metrics(labels, scores))


@pytest.mark.skipif(not HEART.is_dir(), reason=REASON)
def test_four_hospitals_tell_how_many_vessels_are_narrow(tmp_path: Path) -> None:
    chosen = {**heart_options(), "target": "multiclass", **NARROWED_VESSELS}
    tasks = [task_of(path, chosen) for path in raw_tables(tmp_path)]
    _, training, figures = pooled(tasks, steps=120)
    labels = torch.cat([part.tensors[1] for part in training])
    commonest = torch.bincount(labels.long()).max().item() / len(labels)
    assert figures["auc"] > 0.74  # 0.5 tells nothing
    assert figures["accuracy"] > commonest + 0.05
    assert figures["loss"] < math.log(5) - 0.4


def test_four_hospitals_tell_the_highest_heart_rate(tmp_path: Path) -> None:
    chosen = {**heart_options(without="thalach"), "target": "regression", **HEART_RATE}
    tasks = [
        task_of(path, chosen | {"learning_rate": 0.05}) for path in heart_rate_tables(tmp_path)
    ]
    _, training, figures = pooled(tasks, steps=200)
    holdouts: list[Any] = [task.datasets().holdout for task in tasks]
    known, asked = (
        [torch.cat([part.tensors[at] for part in parts]).numpy() for at in (0, 1)]
        for parts in (training, holdouts)
    )
    least_squares = LinearRegression().fit(*known).score(*asked)
    assert least_squares > 0.2
    assert figures["r2"] > least_squares - 0.02
    assert figures["mae"] < figures["rmse"] < 25.0


def test_a_known_hazard_of_real_patients_is_found_again(tmp_path: Path) -> None:
    chosen = {**heart_options(), "target": "survival", **FOLLOWED, "batch_size": 256}
    tasks = [task_of(path, chosen) for path in synthetic_survival_tables(tmp_path, seed=0)]
    model, training, figures = pooled(tasks, steps=150)
    labels = torch.cat([part.tensors[1] for part in training])
    assert 0.3 < labels[:, 1].mean() < 0.9
    assert len(torch.unique(labels[:, 0])) < len(labels)  # ties
    # What the model says of a patient at the centre, and of one a scale off it in one column.
    columns = tasks[0].options.columns
    starts = np.cumsum([0, *(column.features for column in columns)])
    place = {column.name: start for column, start in zip(columns, starts, strict=False)}
    patients = torch.zeros(4, int(starts[-1]))
    patients[[0, 1, 2], place["exang"]] = 1.0  # no
    patients[1, place["age"]] = patients[2, place["oldpeak"]] = 1.0
    patients[3, place["exang"] + 1] = 1.0  # yes
    told = torch.utils.data.TensorDataset(patients, torch.zeros(4, 2))
    scores = predict(tasks[0], model, told).scores
    found = dict(zip(("age", "oldpeak", "exang"), scores[1:] - scores[0], strict=True))
    for name, coefficient in LOG_HAZARDS.items():
        assert abs(found[name] - coefficient) < 0.2, found
    assert figures["c_index"] > 0.7
