"""Signals: reading, normalising, and telling rhythms of synthetic electrocardiograms."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from local_training import train
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from p2pfed.errors import ConfigurationError, DataError
from p2pfed.training.evaluation.multiclass import multiclass_metrics, multilabel_metrics
from p2pfed.training.loop import genesis_model
from p2pfed.training.tasks.signal.records import prepare
from p2pfed.training.tasks.signal.synthetic import RHYTHMS, synthetic_electrocardiograms
from p2pfed.training.tasks.signal.task import Signal

OPTIONS: dict[str, Any] = {
    "classes": list(RHYTHMS),
    "leads": ["I", "II"],
    "sampling_hertz": 100.0,
    "samples": 400,
    "widths": [8, 16],
    "batch_size": 16,
    "optimiser": "adamw",
    "learning_rate": 0.005,
}


def signal(path: Path, options: dict[str, Any] | None = None, **data: Any) -> Signal:
    return Signal(
        {**OPTIONS, **(options or {})}, {"path": str(path), "sampling_hertz": 100.0, **data}
    )


def recorded(count: int, **changes: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    form = {"leads": 2, "samples": 400, "sampling_hertz": 100.0, "seed": 1, **changes}
    return synthetic_electrocardiograms(count, **form)


def problems(task: Signal) -> list[str]:
    with pytest.raises(DataError) as caught:
        task.datasets()
    return [str(problem) for problem in caught.value.problems]


def test_rhythms_are_told(tmp_path: Path) -> None:
    """Synthetic records of two recorders, one with four times the gain."""
    parts = [recorded(45, seed=1), recorded(45, seed=2, gain=4.0)]
    records, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    np.savez(tmp_path / "a.npz", records=records, labels=labels)
    task = signal(tmp_path / "a.npz")
    datasets = task.datasets()
    trained = train(task, datasets.training, steps=100)
    found = trained.evaluate(datasets.holdout)
    assert found["auc"] > 0.9
    assert found["accuracy"] > 0.7
    assert trained.losses[-1] < 0.6 < trained.losses[0]


def test_findings_that_come_together_are_told(tmp_path: Path) -> None:
    records, rhythms = recorded(90)
    fast, irregular = rhythms == 1, rhythms == 2
    labels = np.stack([fast, irregular, fast | irregular], axis=1).astype(np.uint8)
    np.savez(tmp_path / "a.npz", records=records, labels=labels)
    names = {"classes": ["fast", "irregular", "abnormal"], "several": True}
    task = signal(tmp_path / "a.npz", names)
    datasets = task.datasets()
    found = train(task, datasets.training, steps=100).evaluate(datasets.holdout)
    assert found["auc"] > 0.9

    np.savez(tmp_path / "b.npz", records=records, labels=labels * 2)
    assert "neither 0 nor 1" in problems(signal(tmp_path / "b.npz", names))[0]
    np.savez(tmp_path / "b.npz", records=records, labels=labels[:, :2])
    assert "0 or 1 for each of 3 findings" in problems(signal(tmp_path / "b.npz", names))[0]


def test_an_archive_and_files_by_record_give_the_same(tmp_path: Path) -> None:
    records, labels = recorded(6)
    np.savez(tmp_path / "a.npz", train_records=records, train_labels=labels)
    lines = ["file,label"]
    for index, (record, label) in enumerate(zip(records, labels, strict=True)):
        frame = pd.DataFrame({"seconds": np.arange(400) / 100, "II": record[1], "I": record[0]})
        name = f"{index}.csv" if index % 2 else f"{index}.parquet"
        if index % 2:
            frame.to_csv(tmp_path / name, index=False)
        else:
            frame.to_parquet(tmp_path / name)
        lines.append(f"{name},{RHYTHMS[label]}")
    (tmp_path / "a.csv").write_text("\n".join(lines))
    archive = signal(tmp_path / "a.npz", split="train").file_dataset(tmp_path / "a.npz")
    files = signal(tmp_path / "a.csv").file_dataset(tmp_path / "a.csv")
    torch.testing.assert_close(archive.tensors[0], files.tensors[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(archive.tensors[1], files.tensors[1])


def test_findings_of_a_manifest_stand_in_one_cell(tmp_path: Path) -> None:
    record = pd.DataFrame(recorded(1)[0][0].T, columns=["I", "II"])
    record.to_csv(tmp_path / "r.csv", index=False)
    (tmp_path / "a.csv").write_text("file,label\nr.csv,a+b\nr.csv,\nr.csv, b \nr.csv,c\n")
    task = signal(tmp_path / "a.csv", {"classes": ["a", "b"], "several": True})
    found = problems(task)
    assert len(found) == 1
    assert "data row 4: has a label that the federation does not know" in found[0]
    (tmp_path / "a.csv").write_text("file,label\nr.csv,a+b\nr.csv,\nr.csv, b \n")
    assert task.file_dataset(tmp_path / "a.csv").tensors[1].tolist() == [[1, 1], [0, 0], [0, 1]]


def test_records_are_normalised_as_the_federation_says() -> None:
    record = np.asarray([[0.0, 2.0] * 10, [5.0, 25.0] * 10])
    options = signal(Path("a"), {"samples": 20}).options

    def prepared(**changes: Any) -> list[list[float]]:
        return prepare(Path("a"), "", record, options.model_copy(update=changes))[:, :2].tolist()

    assert prepared() == [[-1, 1], [-1, 1]]
    both = np.sqrt((1 + 100) / 2)
    np.testing.assert_allclose(
        prepared(normalise="record"), np.asarray([[-1, 1], [-10, 10]]) / both, rtol=1e-6
    )
    assert prepared(normalise="none", scale=2.0) == [[0, 1], [2.5, 12.5]]
    flat = np.stack([np.full(20, 3.0), np.zeros(20)])
    assert not prepare(Path("a"), "", flat, options).any()


def test_records_are_cropped_or_padded_only_when_agreed() -> None:
    options = signal(Path("a"), {"samples": 16, "normalise": "none"}).options
    with pytest.raises(DataError, match="20 samples a lead; the federation's records have 16"):
        prepare(Path("a"), "", np.zeros((2, 20)), options)
    agreed = options.model_copy(update={"length": "crop_or_pad"})
    found = prepare(Path("a"), "", np.tile(np.arange(20.0), (2, 1)), agreed)
    assert found[0].tolist() == list(range(2, 18))
    found = prepare(Path("a"), "", np.ones((2, 13)), agreed)
    assert found[1].tolist() == [0] + [1] * 13 + [0, 0]


def test_everything_wrong_with_the_records_is_said_at_once(tmp_path: Path) -> None:
    records, labels = recorded(6)
    records[1, 0, 7] = np.nan
    records[4, 1, 3] = np.inf
    np.savez(tmp_path / "a.npz", records=records, labels=labels)
    found = problems(signal(tmp_path / "a.npz"))
    assert [text.split(": ")[1] for text in found] == ["records[1]", "records[4]"]

    frame = pd.DataFrame(recorded(1)[0][0].T, columns=["I", "II"])
    frame.to_csv(tmp_path / "good.csv", index=False)
    frame.drop(columns="II").to_csv(tmp_path / "lead.csv", index=False)
    frame.head(300).to_parquet(tmp_path / "short.parquet")
    worded = frame.astype(str)
    worded.loc[5, "I"] = "fast"
    worded.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "short.parquet").read_bytes()[:500])
    names = ["good.csv", "lead.csv", "short.parquet", "t.csv", "cut.parquet"]
    (tmp_path / "a.csv").write_text("file,label\n" + "".join(f"{name},sinus\n" for name in names))
    found = problems(signal(tmp_path / "a.csv"))
    assert "lead.csv: has no lead II" in found[0]
    assert "short.parquet: has 300 samples a lead" in found[1]
    assert "t.csv: has samples that are not finite" in found[2]
    assert "cut.parquet: is damaged, or neither CSV nor Parquet" in found[3]
    assert len(found) == 4


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"records": np.zeros((3, 400)), "labels": np.arange(3)}, "(records, leads, samples)"),
        ({"records": np.zeros((3, 1, 400)), "labels": np.arange(3)}, "has 1 leads"),
        ({"records": np.zeros((3, 2, 400)), "labels": np.arange(4)}, "different records"),
        ({"records": np.zeros((3, 2, 400)), "labels": np.zeros(3)}, "labelled alike"),
        ({"records": np.zeros((3, 2, 400)), "labels": [0, 1, 7]}, "labels[2]: has a label"),
    ],
)
def test_archives_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, Any], text: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert text in "\n".join(problems(signal(tmp_path / "a.npz")))


def test_another_sampling_rate_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"data.sampling_hertz = 250.0: .*; resample"):
        signal(Path("a"), sampling_hertz=250.0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"classes": ["one"]}, "two classes at least"),
        ({"leads": ["I", "I"]}, "leads lists a name twice"),
        ({"widths": [6]}, "multiples of norm_groups"),
        ({"kernel_samples": 4}, "kernel_samples is odd"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        signal(Path("a"), changes)


def test_the_network_is_alike_at_every_site_and_gives_each_record_a_gradient() -> None:
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    task = signal(Path("a"))
    model, again = genesis_model(task, 3), genesis_model(task, 3)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert ModuleValidator.validate(model, strict=False) == []
    records = torch.randn(4, 2, 400, requires_grad=True)
    wrapped = GradSampleModule(model)
    task.loss(wrapped, [records, torch.tensor([0, 1, 2, 1])]).backward()
    for parameter in model.parameters():
        mean = parameter.grad_sample.sum(0) / 4
        torch.testing.assert_close(mean, parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_record_may_end_at_any_sample() -> None:
    for samples in (16, 17, 31, 400):
        task = signal(Path("a"), {"samples": samples})
        assert genesis_model(task, 0)(torch.zeros(2, 2, samples)).shape == (2, 3)


def test_figures_of_several_classes_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 200).astype(float)
    scores = generator.normal(size=(200, 4)) + np.eye(4)[labels.astype(int)]
    found = multiclass_metrics(labels, scores)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))
    marks = (scores + generator.normal(size=scores.shape) > 0.5).astype(float)
    several = multilabel_metrics(marks, scores)
    assert several["auc"] == pytest.approx(roc_auc_score(marks, scores, average="macro"))
    # A class that no record has is left out of the mean.
    fewer = multiclass_metrics(labels[labels < 3], scores[labels < 3])
    assert 0.5 < fewer["auc"] < 1
    assert "auc" not in multiclass_metrics(np.zeros(5), scores[:5])
    # Adding the same to all logits of a record changes nothing.
    shifted = multiclass_metrics(labels, scores + generator.normal(size=(200, 1)) * 50)
    assert shifted == pytest.approx(found)
