"""An evaluation with intervals: of a table, of a personal model, of a task of one's own."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from p2pfed.errors import TrainingError
from p2pfed.training import frames
from p2pfed.training.evaluation.binary import Predictions, binary_metrics
from p2pfed.training.loading import LoadedTask, load
from p2pfed.training.local_only import train_alone
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.round_input import RoundInput
from p2pfed.training.schema import prepare
from p2pfed.training.settings import LoopSettings
from p2pfed.training.task import Datasets

RECORDS = 60


class Sorting:
    """Two classes from two features; offers its predictions, and figures where it is asked to."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        features = torch.randn(RECORDS, 2, generator=generator)
        noise = torch.randn(RECORDS, generator=generator)
        self.data = TensorDataset(features, (features.sum(1) + noise > 0).float())
        self.passes = 0

    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(2, 1)

    def datasets(self) -> Datasets:
        return Datasets(training=self.data, holdout=self.data)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        features, labels = batch
        scores = model(features)[:, 0]
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, Any]:
        return binary_metrics(*self.predictions(model, batches))

    def predictions(self, model: torch.nn.Module, batches: Iterable[Any]) -> Predictions:
        self.passes += 1
        pairs = [(model(x)[:, 0].double().numpy(), y.double().numpy()) for x, y in batches]
        scores, labels = map(np.concatenate, zip(*pairs, strict=True))
        return Predictions(labels, scores)


class Figuring(Sorting):
    def figures(self, predictions: Predictions) -> Mapping[str, float]:
        labels, scores = predictions
        recall = float((scores[labels == 1] > 0).mean())
        return {**binary_metrics(labels, scores), "recall": recall}


class Broken(Sorting):
    def predictions(self, model: torch.nn.Module, batches: Iterable[Any]) -> Predictions:
        raise KeyError("scores")

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, Any]:
        return {"accuracy": 0.5}


def learner_of(task: Any, **settings: Any) -> Learner:
    model = genesis_model(task, seed=0)
    prepare(model)
    return Learner(task, model, LoopSettings(batch_size=8, **settings), torch.device("cpu"))


def start(learner: Learner) -> tuple[Any, Any]:
    return learner.genesis(), np.zeros(learner.layout.floats, np.float32)


def test_an_assessment_has_the_metrics_of_an_evaluation() -> None:
    learner = learner_of(Sorting())
    data = learner.task.datasets().holdout
    assessed = learner.assess(data, *start(learner))
    assert assessed.metrics == learner.evaluate(data, *start(learner))
    assert assessed.records == RECORDS
    assert {"auc", "accuracy", "loss", "brier"} <= set(assessed.intervals)
    assert set(assessed.calibration) >= {"brier", "expected_calibration_error"}
    assert sum(records for *_, records in assessed.bins) == RECORDS
    assert frames.decode(frames.encode(assessed)[frames.LENGTH.size :]) == assessed


def test_a_task_with_figures_is_evaluated_in_one_pass() -> None:
    task = Figuring()
    learner = learner_of(task)
    assessed = learner.assess(task.data, *start(learner))
    assert task.passes == 1
    low, high = assessed.intervals["recall"]  # from the bootstrap
    assert low <= assessed.metrics["recall"] <= high
    assert low < high


def test_a_personal_model_has_intervals_of_its_own() -> None:
    learner = learner_of(Sorting(), ditto=0.1, learning_rate=0.2)
    parameters, state = start(learner)
    trained, kept = np.empty_like(parameters), np.empty_like(state)
    given = RoundInput(parameters, state, 0, 20, seed=1, sampler_seed=2)
    learner.train(learner.task.datasets().training, given, trained, kept, lambda _: None)
    assessed = learner.assess(learner.task.datasets().holdout, parameters, kept)
    low, high = assessed.intervals["personal_auc"]
    assert low <= assessed.metrics["personal_auc"] <= high
    assert assessed.metrics["personal_auc"] != assessed.metrics["auc"]
    # The calibration is that of the federation's model alone.
    assert not any(name.startswith("personal_") for name in assessed.calibration)
    assert "personal_brier" not in assessed.intervals


def test_predictions_that_raise_cost_the_request_alone() -> None:
    learner = learner_of(Broken())
    with pytest.raises(TrainingError, match="KeyError"):
        learner.assess(learner.task.datasets().holdout, *start(learner))
    assert learner.evaluate(learner.task.datasets().holdout, *start(learner)) == {"accuracy": 0.5}


def loaded_table(directory: Path) -> LoadedTask:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(80, 2))
    labels = (features @ [1.0, -1.0] > 0).astype(int)
    rows = [f"{a:.4f},{b:.4f},{y}" for (a, b), y in zip(features, labels, strict=True)]
    path = directory / "data.csv"
    path.write_text("\n".join(["a,b,outcome", *rows]) + "\n")
    columns = [
        {"name": name, "kind": "numeric", "centre": 0.0, "scale": 1.0, "missing": "refuse"}
        for name in ("a", "b")
    ]
    return load(
        frames.Open(
            task_kind="tabular",
            site="a",
            options={
                "label": "outcome",
                "model": "logistic_regression",
                "batch_size": 16,
                "learning_rate": 0.2,
                "columns": columns,
            },
            data={"path": str(path)},
            site_file=str(directory / "site.toml"),
        )
    )


def test_training_alone_is_the_federations_training_without_mixing(tmp_path: Path) -> None:
    first = train_alone(loaded_table(tmp_path), rounds=4, local_steps=5)
    again = train_alone(loaded_table(tmp_path), rounds=4, local_steps=5)
    assert first == again
    assert first.metrics["auc"] > 0.9
    assert set(first.intervals) >= {"auc", "accuracy", "loss"}
    longer = train_alone(loaded_table(tmp_path), rounds=8, local_steps=5)
    assert longer.metrics["loss"] < first.metrics["loss"]
