import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as reference_log_loss
from sklearn.metrics import roc_auc_score

from p2pfed.errors import ConfigurationError, DataError
from p2pfed.training.baseline import predict, train_baseline
from p2pfed.training.evaluation.binary import accuracy, auc, binary_metrics, log_loss
from p2pfed.training.tasks.tabular import table as table_module
from p2pfed.training.tasks.tabular.table import Table
from p2pfed.training.tasks.tabular.task import Tabular, split

COLUMNS: list[dict[str, Any]] = [
    {
        "name": "age",
        "kind": "numeric",
        "centre": 50.0,
        "scale": 10.0,
        "missing": "centre_indicator",
    },
    {"name": "pressure", "kind": "numeric", "centre": 130, "scale": 20.0, "missing": "centre"},
    {"name": "pain", "kind": "categorical", "categories": [1, 2], "missing": "own_category"},
    {"name": "ward", "kind": "categorical", "categories": ["east", "west"], "missing": "zeros"},
    {"name": "weight", "kind": "numeric"},
]

HEADER = "age,pressure,pain,ward,weight,sick"
GOOD_ROWS = [
    "60,150,1,east,1.5,1",
    "?,,2, west ,2,0",
    "40,110,NA,,-1e3,1",
    "50,130,2.0,west,0,0",
]


def options(**changes: Any) -> dict[str, Any]:
    return {"label": "sick", "columns": COLUMNS, **changes}


def write(path: Path, rows: list[str], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def task_for(path: Path, task_options: dict[str, Any] | None = None, **data: Any) -> Tabular:
    return Tabular(task_options or options(), {"path": str(path), **data})


def problems_of(path: Path, **data: Any) -> dict[str, str]:
    with pytest.raises(DataError) as caught:
        task_for(path, **data).datasets()
    assert all(problem.file == path for problem in caught.value.problems)
    return {problem.key: f"{problem.reason}; {problem.remedy}" for problem in caught.value.problems}


def test_cells_become_features_as_the_columns_say(tmp_path: Path) -> None:
    dataset = task_for(tmp_path).file_dataset(write(tmp_path / "a.csv", GOOD_ROWS))
    features, labels = dataset.tensors
    assert features.dtype == labels.dtype == torch.float32
    assert labels.tolist() == [1, 0, 1, 0]
    # age, age missing | pressure | pain 1, 2, missing | ward east, west | weight
    assert features.tolist() == [
        [1, 0, 1, 1, 0, 0, 1, 0, 1.5],
        [0, 1, 0, 0, 1, 0, 0, 1, 2],
        [-1, 0, -1, 0, 0, 1, 0, 0, -1000],
        [0, 0, 0, 0, 1, 0, 0, 1, 0],
    ]


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    csv = write(tmp_path / "a.csv", GOOD_ROWS)
    pd.DataFrame(
        {
            "sick": [1, 0, 1, 0],
            "ward": ["east", "west", None, "west"],
            "age": [60.0, None, 40.0, 50.0],
            "pressure": pd.array([150, None, 110, 130], dtype="Int64"),
            "pain": ["1", "2", None, "2"],
            "weight": [1.5, 2, -1000, 0],
        }
    ).to_parquet(tmp_path / "a.parquet")
    task = task_for(csv)
    expected = task.file_dataset(csv).tensors
    found = task.file_dataset(tmp_path / "a.parquet").tensors
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_date_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = pd.DataFrame([row.split(",") for row in GOOD_ROWS], columns=HEADER.split(","))
    frame["weight"] = pd.Timestamp("2024-01-01")
    frame.to_parquet(path)
    assert problems_of(path).keys() == {"weight"}
    assert "is not a number" in problems_of(path)["weight"]


def test_a_table_is_read_alike_in_one_chunk_and_in_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.csv", GOOD_ROWS * 5)
    whole = task_for(path).file_dataset(path).tensors[0]
    monkeypatch.setattr(table_module, "ROWS_A_CHUNK", 3)
    assert torch.equal(task_for(path).file_dataset(path).tensors[0], whole)


def test_every_bad_cell_is_found_in_one_go_and_none_is_shown(tmp_path: Path) -> None:
    rows = [*GOOD_ROWS * 2, "old,inf,3,north,?,yes", "41,1e300,x,east,NaN,", "42,1,1,east,1,2"]
    path = write(tmp_path / "a.csv", rows)
    with pytest.raises(DataError) as caught:
        task_for(path).datasets()
    found = {(problem.key, problem.reason) for problem in caught.value.problems}
    assert found == {
        ("age", "in data row 9 the value is not a number"),
        ("pressure", "in data row 9 (and in 1 more) the value is infinite or too large"),
        ("pain", "in data row 9 (and in 1 more) the value is in no declared category"),
        ("ward", "in data row 9 the value is in no declared category"),
        ("weight", "in data row 9 (and in 1 more) the value is missing"),
        ("sick", "in data row 10 the value is missing"),
        ("sick", "in data row 9 (and in 1 more) the value is neither 0 nor 1"),
    }
    assert {problem.value for problem in caught.value.problems} == {None}
    assert "north" not in str(caught.value)
    assert "yes" not in str(caught.value)


def test_a_table_from_a_spreadsheet_keeps_its_first_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD_ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert task_for(path).file_dataset(path).tensors[0].shape == (4, 9)


def test_a_row_is_counted_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "ROWS_A_CHUNK", 3)
    path = write(tmp_path / "a.csv", [*GOOD_ROWS * 2, "old,1,1,east,1,1", "old,1,1,east,1,1"])
    assert "row 9 (and in 1 more)" in problems_of(path)["age"]


def test_columns_that_are_missing_or_undeclared_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ["1,2,3,4,5,6,7"], "age,presure,pain,ward,weight,sick,patient")
    problems = problems_of(path)
    assert problems.keys() == {"pressure", "presure", "patient"}
    assert "is it the file's 'presure'?" in problems["pressure"]
    assert "extra_columns" in problems["patient"]
    assert problems_of(path, extra_columns="ignore").keys() == {"pressure"}


def test_undeclared_columns_can_be_left_unread(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        [f"{row},Smith" for row in GOOD_ROWS],
        "age,pressure,pain,ward,weight,sick,name",
    )
    dataset = task_for(path, extra_columns="ignore").file_dataset(path)
    assert dataset.tensors[0].shape == (4, 9)


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ["1,2,3,4,5,6,7"], "age,age,pressure,pain,ward,weight,sick")
    assert "twice" in problems_of(path)["age"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"age,pressure,pain,ward,weight,sick\n", "no rows"),
        (b"age,pressure\n\xff\xfe\xff,1\n", "UTF-8"),
        (b"age;pressure;pain;ward;weight;sick\n1;2;1;east;1;1\n", "semicolons"),
        (
            b"age,pressure,pain,ward,weight,sick\n1,2,1,east,1,1\n\n1,2,1,east,1,5,1\n",
            "data row 2 has 7 fields, the header 6",
        ),
        (b'age,pressure,pain,ward,weight,sick\n1,2,1,"east,1,1\n', "not valid CSV"),
    ],
    ids=["empty", "no rows", "binary", "semicolons", "decimal comma", "open quote"],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert reason in " ".join(problems_of(path).values())


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and then nothing of the kind PAR1")
    assert "not valid Parquet" in problems_of(path)[""]


def test_a_file_that_is_missing_or_a_directory_is_refused(tmp_path: Path) -> None:
    assert "No such file" in problems_of(tmp_path / "none.csv")[""]
    assert "is a directory" in problems_of(tmp_path)[""]


def test_a_file_over_the_limit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.csv", GOOD_ROWS)
    monkeypatch.setattr(table_module, "MAX_FILE_BYTES", 10)
    assert "larger than 10 bytes" in problems_of(path)[""]
    monkeypatch.setattr(table_module, "MAX_FILE_BYTES", 1_000)
    monkeypatch.setattr(table_module, "MAX_FEATURE_BYTES", 10)
    assert "over 10 bytes of features" in problems_of(path)[""]


def test_labels_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [GOOD_ROWS[0]] * 12)
    assert "all 12 labels are alike" in problems_of(path)[""]


def test_one_record_of_each_class_leaves_nothing_to_evaluate_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD_ROWS[:2])
    assert "too few records" in problems_of(path)[""]


def test_a_constant_column_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{20 + n},130,{1 + n % 2},east,{n},{n % 2}" for n in range(20)]
    with caplog.at_level(logging.WARNING):
        task_for(write(tmp_path / "a.csv", rows)).datasets()
    assert [record.args[1] for record in caplog.records] == ["pressure", "ward"]  # type: ignore[index]


def test_a_holdout_file_of_its_own_leaves_every_row_to_training(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD_ROWS)
    holdout = write(tmp_path / "b.csv", GOOD_ROWS[:3])
    datasets = task_for(path, holdout_path=str(holdout)).datasets()
    assert (len(datasets.training), len(datasets.holdout)) == (4, 3)  # type: ignore[arg-type]


@given(
    positives=st.integers(1, 60),
    negatives=st.integers(1, 60),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
def test_the_split_keeps_every_record_once_and_the_classes_in_proportion(
    positives: int, negatives: int, fraction: float, seed: int
) -> None:
    labels = np.array([1.0] * positives + [0.0] * negatives, np.float32)
    table = Table(np.arange(labels.size, dtype=np.float32)[:, None], labels)
    training, holdout = split(table, fraction, seed)
    both = np.concatenate([training.features, holdout.features])[:, 0]
    assert sorted(both.tolist()) == list(range(labels.size))
    for label, count in ((1.0, positives), (0.0, negatives)):
        held = int((holdout.labels == label).sum())
        assert held == min(round(count * fraction), count - 1)
    assert np.array_equal(split(table, fraction, seed)[1].features, holdout.features)


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"label": None}, "task.options.label", "string"),
        ({"modle": "mlp"}, "task.options.modle", "did you mean 'model'"),
        ({"model": "forest"}, "task.options.model", "logistic_regression"),
        ({"hidden": [0]}, "task.options", "at least 1 unit"),
        ({"learning_rate": -1.0}, "task.options.learning_rate", "greater than 0"),
        ({"columns": []}, "task.options.columns", "at least 1"),
        ({"columns": [COLUMNS[0], COLUMNS[0]]}, "task.options", "'age' is declared twice"),
        ({"label": "age"}, "task.options", "'age' is among the columns"),
        ({"model": "logistic_regression", "hidden": [3]}, "task.options", "for model = 'mlp'"),
    ],
    ids=str,
)
def test_bad_options_are_named_by_their_key(
    tmp_path: Path, changes: dict[str, Any], key: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Tabular(options(**changes), {"path": "a.csv"}, topology_file=tmp_path / "t.toml")
    (problem,) = caught.value.problems
    assert (problem.file, problem.key) == (tmp_path / "t.toml", key)
    assert reason in f"{problem.reason}; {problem.remedy}"


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ({"kind": "numeric", "missing": "zeros"}, "centre_indicator"),
        ({"kind": "numeric", "categories": [1]}, "for a categorical column"),
        ({"kind": "categorical", "missing": "centre", "categories": [1]}, "own_category"),
        ({"kind": "categorical"}, "lists its categories"),
        ({"kind": "categorical", "categories": [1, "two"]}, "all whole numbers or all text"),
        ({"kind": "categorical", "categories": [1, 1]}, "listed twice"),
        ({"kind": "categorical", "categories": [1], "scale": 2.0}, "for a numeric column"),
    ],
    ids=str,
)
def test_bad_columns_are_named_by_their_place(column: dict[str, Any], reason: str) -> None:
    columns = [*COLUMNS[:2], {"name": "third", **column}]
    with pytest.raises(ConfigurationError) as caught:
        Tabular(options(columns=columns), {"path": "a.csv"})
    (problem,) = caught.value.problems
    assert problem.key == "task.options.columns[2]"
    assert reason in problem.reason


def test_bad_site_data_are_named_by_key_and_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Tabular(options(), {"holdout_fraction": 1.5, "sep": ";"}, site_file=tmp_path / "s.toml")
    assert {str(problem.key) for problem in caught.value.problems} == {
        "data.path",
        "data.holdout_fraction",
        "data.sep",
    }


def test_models_have_the_declared_shape() -> None:
    mlp = Tabular(options(hidden=[4, 3], batch_norm=True), {"path": "a.csv"}).build_model()
    linear = Tabular(options(model="logistic_regression"), {"path": "a.csv"}).build_model()
    assert mlp(torch.zeros(2, 9)).shape == linear(torch.zeros(2, 9)).shape == (2, 1)
    assert sum(isinstance(layer, torch.nn.BatchNorm1d) for layer in mlp) == 2
    assert sum(parameter.numel() for parameter in linear.parameters()) == 10


def test_balanced_classes_weigh_the_same_in_the_loss() -> None:
    labels = torch.tensor([1.0, 0, 0, 0])
    model = torch.nn.Linear(9, 1)
    batch = (torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), labels)
    dataset = torch.utils.data.TensorDataset(*batch)
    plain = Tabular(options(), {"path": "a.csv"})
    balanced = Tabular(options(class_weights="balanced"), {"path": "a.csv"})
    for task in (plain, balanced):
        task.weigh_classes([dataset])
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        model(batch[0])[:, 0], labels, reduction="none"
    )
    torch.testing.assert_close(plain.loss(model, batch), each.mean())
    torch.testing.assert_close(balanced.loss(model, batch), (each[0] + each[1:].mean()) / 2)


scores_and_labels = st.lists(
    st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=60
).filter(lambda rows: len({label for _, label in rows}) == 2)


@given(scores_and_labels)
def test_figures_agree_with_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 2 for score, _ in rows])
    labels = np.array([float(label) for _, label in rows])
    assert math.isclose(auc(labels, scores), roc_auc_score(labels, scores), abs_tol=1e-12)
    probabilities = 1 / (1 + np.exp(-scores))
    assert math.isclose(log_loss(labels, scores), reference_log_loss(labels, probabilities))
    assert accuracy(labels, scores) == np.mean((probabilities > 0.5) == labels)


def test_one_class_has_no_auc() -> None:
    labels, scores = np.ones(3), np.arange(3.0)
    assert binary_metrics(labels, scores).keys() == {"accuracy", "loss"}
    with pytest.raises(ValueError, match="both classes"):
        auc(labels, scores)


def sites(tmp_path: Path, count: int = 3) -> list[Tabular]:
    tasks = []
    for site in range(count):
        generator = np.random.Generator(np.random.PCG64(site))
        age = generator.normal(45 + 5 * site, 8, 80)
        weight = generator.normal(0, 1, 80)
        sick = (age / 10 + weight + generator.normal(0, 0.3, 80) > 5).astype(int)
        rows = [f"{a},130,1,east,{w},{s}" for a, w, s in zip(age, weight, sick, strict=True)]
        path = write(tmp_path / f"{site}.csv", rows)
        tasks.append(task_for(path, options(model="logistic_regression", batch_size=16)))
    return tasks


def test_a_pooled_baseline_learns_from_every_site_and_is_repeatable(tmp_path: Path) -> None:
    tasks = sites(tmp_path)
    datasets = [task.datasets() for task in tasks]
    training: list[Any] = [part.training for part in datasets]
    pooled = train_baseline(tasks[0], training, total_steps=200, seed=1, name="pooled")
    again = train_baseline(tasks[0], training, total_steps=200, seed=1, name="pooled")
    other = train_baseline(tasks[0], training, total_steps=200, seed=2, name="pooled")
    assert pooled.parameters.tobytes() == again.parameters.tobytes()
    assert pooled.parameters.tobytes() != other.parameters.tobytes()

    features = torch.cat([part.tensors[0] for part in training]).numpy()
    labels = torch.cat([part.tensors[1] for part in training]).numpy()
    reference = LogisticRegression(C=1e4, max_iter=5000).fit(features, labels)
    for part in datasets:
        holdout: Any = part.holdout
        predictions = predict(tasks[0], pooled, holdout)
        expected = reference.decision_function(holdout.tensors[0].numpy())
        assert np.array_equal(predictions.labels, holdout.tensors[1].numpy())
        assert auc(*predictions) > 0.9
        assert np.corrcoef(predictions.scores, expected)[0, 1] > 0.98


HEART = Path(__file__).parents[2] / "demos" / "heart"
HEART_COLUMNS: list[dict[str, Any]] = [
    {"name": "age", "kind": "numeric", "centre": 54.0, "scale": 9.0},
    {"name": "sex", "kind": "categorical", "categories": [0, 1]},
    {"name": "cp", "kind": "categorical", "categories": [1, 2, 3, 4]},
    {
        "name": "chol",
        "kind": "numeric",
        "centre": 245.0,
        "scale": 55.0,
        "missing": "centre_indicator",
    },
    {"name": "exang", "kind": "categorical", "categories": [0, 1], "missing": "own_category"},
    {"name": "oldpeak", "kind": "numeric", "centre": 0.9, "scale": 1.1, "missing": "centre"},
]


def test_four_hospitals_real_tables_together_tell_heart_disease() -> None:
    heart = {
        "label": "disease",
        "columns": HEART_COLUMNS,
        "model": "logistic_regression",
        "learning_rate": 0.1,
    }
    tasks = [task_for(path, heart, extra_columns="ignore") for path in sorted(HEART.glob("*.csv"))]
    datasets = [task.datasets() for task in tasks]
    assert len(datasets) == 4
    training: list[Any] = [part.training for part in datasets]
    model = train_baseline(tasks[0], training, total_steps=120, seed=0, name="pooled")
    holdouts: list[Any] = [part.holdout for part in datasets]
    assert sum(len(part) for part in training + holdouts) == 920
    predictions = [predict(tasks[0], model, part) for part in holdouts]
    labels, scores = (np.concatenate(parts) for parts in zip(*predictions, strict=True))
    assert auc(labels, scores) > 0.85
