"""Adapters: what is trained, what travels, and which backbone is refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_backbones import perceptron, vision_transformer
from local_training import learner_for, train
from real_data import PNEUMONIA, REASON
from safetensors.torch import save_file

from p2pfed.errors import ConfigurationError, DataError
from p2pfed.training.loop import genesis_model
from p2pfed.training.task import TaskError
from p2pfed.training.tasks.adapter.task import Adapter
from p2pfed.training.tasks.signal.synthetic import RHYTHMS, synthetic_electrocardiograms

FEATURES = 5
TABLE: dict[str, Any] = {
    "base": "adapter_backbones:perceptron",
    "base_options": {"features": FEATURES},
    "rank": 2,
    "target_modules": ["3"],
    "head": ["5"],
    "of": "tabular",
    "of_options": {
        "label": "sick",
        "columns": [{"name": f"x{index}", "kind": "numeric"} for index in range(FEATURES)],
    },
}


def adapter(options: dict[str, Any], **data: Any) -> Adapter:
    return Adapter(options, {"path": "none", **data})


def backbone_file(path: Path, model: torch.nn.Module, without: str = "none") -> str:
    """Write a model's weights; returns the file's SHA-256."""
    state = {name: t for name, t in model.state_dict().items() if not name.startswith(without)}
    save_file(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refusals(options: dict[str, Any], **data: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        adapter(options, **data).build_model()
    return str(caught.value)


def test_only_adapters_and_the_head_are_trained_and_travel() -> None:
    learner = learner_for(adapter(TABLE))
    trained = {
        "backbone.3.lora_A.default.weight": (2, 8),
        "backbone.3.lora_B.default.weight": (8, 2),
        "backbone.5.weight": (1, 8),
        "backbone.5.bias": (1,),
    }
    assert dict(learner.schema.tensors) == trained
    assert learner.layout.local == 0
    assert learner.schema.dimension == 16 + 16 + 9
    assert {"backbone.0.weight", "backbone.1.running_mean"} <= set(learner.parts.frozen)


def test_the_change_is_the_low_rank_product_and_nothing_at_first() -> None:
    torch.manual_seed(0)
    model = genesis_model(adapter({**TABLE, "alpha": 6}), 4).eval()
    plain = genesis_model_of_perceptron(4).eval()
    features = torch.randn(7, FEATURES)
    assert torch.equal(model(features), plain(features))
    layer = model.backbone[3]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        plain[3].weight += 6 / 2 * product
    torch.testing.assert_close(model(features), plain(features))


def genesis_model_of_perceptron(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return perceptron(FEATURES)


def table(path: Path, rows: int = 60) -> Path:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(rows, FEATURES))
    sick = (features[:, 0] > 0).astype(int)
    lines = [",".join([*(f"x{index}" for index in range(FEATURES)), "sick"])]
    lines += [
        ",".join([*map(str, row), str(label)]) for row, label in zip(features, sick, strict=True)
    ]
    path.write_text("\n".join(lines))
    return path


def test_training_leaves_the_backbone_and_its_batch_norm_as_they_were(tmp_path: Path) -> None:
    task = adapter(TABLE, path=str(table(tmp_path / "a.csv")))
    datasets = task.datasets()
    before = genesis_model(task, 0).state_dict()
    trained = train(task, datasets.training, steps=10)
    after = trained.learner.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, _ in trained.learner.schema.tensors}
    assert trained.evaluate(datasets.holdout)["loss"] > 0
    again = train(task, datasets.training, steps=10)
    assert again.parameters.tobytes() == trained.parameters.tobytes()


@pytest.mark.skipif(not PNEUMONIA.exists(), reason=REASON)
def test_a_vision_transformer_is_adapted_to_real_x_rays(tmp_path: Path) -> None:
    """A small ViT with random weights, of which a file travels beforehand and no round after."""
    torch.manual_seed(1)
    path = tmp_path / "vit.safetensors"
    digest = backbone_file(path, vision_transformer(), without="head")
    (tmp_path / "rows.txt").write_text("\n".join(map(str, range(200))))
    options = {
        "base": "adapter_backbones:vision_transformer",
        "backbone_sha256": digest,
        "rank": 4,
        "target_modules": ["q_proj", "v_proj", "fc1", "fc2"],
        "head": ["head"],
        "of": "image_classification",
        "of_options": {
            "classes": ["well", "pneumonia"],
            "spatial_size": [28, 28],
            "intensity": {"kind": "range", "low": 0, "high": 255},
        },
        "optimiser": "adamw",
        "learning_rate": 0.01,
    }
    task = adapter(
        options, path=str(PNEUMONIA), backbone_path=str(path),
        split="train", rows_path=str(tmp_path / "rows.txt"),
    )  # fmt: skip
    datasets = task.datasets()
    learner = learner_for(task)
    total = sum(p.numel() for p in learner.model.parameters())
    assert learner.schema.dimension < total / 4
    assert all(
        "lora_" in name or name.startswith("backbone.head.") for name, _ in learner.schema.tensors
    )
    trained = train(task, datasets.training, steps=40)
    assert trained.evaluate(datasets.holdout)["auc"] > 0.8


def test_a_convolution_is_adapted_to_signals(tmp_path: Path) -> None:
    records, labels = synthetic_electrocardiograms(
        60, leads=2, samples=200, sampling_hertz=100.0, seed=0
    )
    np.savez(tmp_path / "a.npz", records=records, labels=labels)
    options = {
        "base": "adapter_backbones:convolutions",
        "target_modules": ["0"],
        "head": ["4"],
        "of": "signal",
        "of_options": {
            "classes": list(RHYTHMS), "leads": ["I", "II"], "samples": 200, "sampling_hertz": 100,
        },
        "learning_rate": 0.05,
    }  # fmt: skip
    task = adapter(options, path=str(tmp_path / "a.npz"), sampling_hertz=100)
    datasets = task.datasets()
    trained = train(task, datasets.training, steps=30)
    assert np.mean(trained.losses[-5:]) < np.mean(trained.losses[:5])


def test_another_backbone_than_the_federations_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    digest = backbone_file(path, perceptron(FEATURES))
    model = adapter({**TABLE, "backbone_sha256": digest}, backbone_path=str(path)).build_model()
    from safetensors.torch import load_file

    assert torch.equal(model.backbone[0].weight, load_file(path)["0.weight"])

    with pytest.raises(DataError, match="the federation's backbone has " + "0" * 64):
        adapter({**TABLE, "backbone_sha256": "0" * 64}, backbone_path=str(path))
    assert "backbone_path: the federation names" in refusals({**TABLE, "backbone_sha256": digest})
    assert "backbone_sha256: a site names" in refusals(TABLE, backbone_path=str(path))


def test_a_file_that_does_not_fit_the_backbone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"

    def said(model: torch.nn.Module, without: str = "none") -> str:
        digest = backbone_file(path, model, without)
        return refusals({**TABLE, "backbone_sha256": digest}, backbone_path=str(path))

    assert "does not fit the backbone: shapes 0.weight" in said(perceptron(FEATURES + 1))
    assert "lacks 0.weight, 0.bias" in said(perceptron(FEATURES), without="0")
    extra = torch.nn.Sequential(*perceptron(FEATURES), torch.nn.Linear(1, 1))
    assert "has, and the model has not, 6.bias, 6.weight" in said(extra)
    path.write_bytes(b"no tensors")
    digest = hashlib.sha256(b"no tensors").hexdigest()
    found = refusals({**TABLE, "backbone_sha256": digest}, backbone_path=str(path))
    assert "is damaged, or no safetensors file" in found


@pytest.mark.parametrize(
    ("changes", "key", "text"),
    [
        ({"base": "adapter_backbones:none"}, "base", "has no function none"),
        ({"base": "no_such_module:f"}, "base", "cannot be imported at this site"),
        ({"base_options": {"width": 3}}, "base_options", "adapter_backbones:perceptron:"),
        ({"target_modules": ["q_proj"]}, "target_modules", "not found in the base model"),
        ({"target_modules": ["2"]}, "target_modules", "is not supported"),
        ({"target_modules": ["5"]}, "target_modules", "adapts a layer of head"),
        ({"head": ["classifier"]}, "head", "no such module"),
        ({"of_options": {"batch_size": 3}}, "of_options.batch_size", "is a setting of the loop"),
        (
            {"of_options": {**TABLE["of_options"], "standardise": "federated"}},
            "of_options.standardise",
            "of which an adapter has none",
        ),
        ({"of_options": {"label": "a", "columns": []}}, "of_options.columns", "at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused_where_they_stand(
    changes: dict[str, Any], key: str, text: str
) -> None:
    found = refusals({**TABLE, **changes})
    assert f"task.options.{key}" in found
    assert text in found


@pytest.mark.parametrize(
    ("base", "text"),
    [
        ("adapter_backbones:not_a_module", "returned int, no torch.nn.Module"),
        ("adapter_backbones:failing", "raised OSError: no such card"),
    ],
)
def test_a_function_that_fails_costs_an_error(base: str, text: str) -> None:
    with pytest.raises(TaskError, match=text):
        adapter({**TABLE, "base": base, "base_options": {}}).build_model()
