"""The imaging tasks: listing, preparing, augmenting, and learning from real X-rays."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import write_dicom, write_nifti
from local_training import learner_for, train
from PIL import Image
from real_data import PNEUMONIA, REASON

from p2pfed.errors import ConfigurationError, DataError
from p2pfed.training.evaluation.assessment import assess
from p2pfed.training.frames import Open
from p2pfed.training.loader_workers import why_not_passed_on
from p2pfed.training.loading import load
from p2pfed.training.loop import genesis_model
from p2pfed.training.tasks import findings
from p2pfed.training.tasks.imaging.augmentation import augment, random_affine
from p2pfed.training.tasks.imaging.classification import ImageClassification
from p2pfed.training.tasks.imaging.options import Augmentation
from p2pfed.training.tasks.imaging.segmentation import Segmentation
from p2pfed.training.tasks.imaging.synthetic import Scanner, synthetic_scans

OPTIONS: dict[str, Any] = {
    "classes": ["well", "ill"],
    "spatial_size": [8, 8],
    "intensity": {"kind": "range", "low": 0.0, "high": 255.0},
    "widths": [4, 8],
}
MASKED: dict[str, Any] = {**OPTIONS, "classes": ["background", "lesion"]}

GENERATOR = np.random.default_rng(0)


def pictures(count: int, side: int = 8) -> np.ndarray:
    return GENERATOR.integers(0, 255, (count, side, side)).astype(np.uint8)


def folder_of_classes(root: Path, each: int = 6) -> Path:
    for name in ("well", "ill"):
        (root / name).mkdir(parents=True)
        for index, picture in enumerate(pictures(each)):
            Image.fromarray(picture).save(root / name / f"{index}.png")
    return root


def classification(path: Path, options: dict[str, Any] | None = None, **data: Any) -> Any:
    return ImageClassification(options or OPTIONS, {"path": str(path), **data})


def segmentation(path: Path, options: dict[str, Any] | None = None, **data: Any) -> Any:
    return Segmentation(options or MASKED, {"path": str(path), **data})


def problems(task: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        task.datasets()
    return [str(problem) for problem in caught.value.problems]


def test_a_folder_an_archive_and_a_manifest_give_the_same_records(tmp_path: Path) -> None:
    folder = folder_of_classes(tmp_path / "folder")
    paths = sorted(folder.rglob("*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    labels = np.asarray([[int(path.parent.name == "well")] for path in paths], np.uint8)
    # Where numbers stand for classes they follow the federation's order: 0 is well, 1 is ill.
    np.savez(tmp_path / "a.npz", images=images, labels=1 - labels)
    lines = [f"{path.relative_to(folder)},{path.parent.name}" for path in paths]
    (tmp_path / "a.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    found = [
        classification(folder).file_dataset(folder),
        classification(tmp_path / "a.npz").file_dataset(tmp_path / "a.npz"),
        classification(tmp_path / "a.csv", root_path=str(folder)).file_dataset(tmp_path / "a.csv"),
    ]
    for dataset in found:
        assert len(dataset) == len(paths)
        for index, path in enumerate(paths):
            image, label = dataset[index]
            assert image.dtype == torch.float32
            assert label == int(path.parent.name == "ill")
            expected = torch.from_numpy(images[index, None]) / 127.5 - 1
            torch.testing.assert_close(image, expected)


def test_an_archive_may_have_parts_and_a_list_of_rows(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        train_images=pictures(10), train_labels=np.arange(10)[:, None] % 2,
        val_images=pictures(3), val_labels=np.asarray([0, 1, 1]),
    )  # fmt: skip
    (tmp_path / "rows.txt").write_text("row\n7\n2\n4\n")
    datasets = classification(
        tmp_path / "a.npz",
        split="train", holdout_split="val", rows_path=str(tmp_path / "rows.txt"),
    ).datasets()  # fmt: skip
    assert [int(label) for _, label in datasets.training] == [1, 0, 0]
    assert [int(label) for _, label in datasets.holdout] == [0, 1, 1]

    (tmp_path / "rows.txt").write_text("7\n7\n10\n-1\nx\n")
    found = problems(
        classification(tmp_path / "a.npz", split="train", rows_path=str(tmp_path / "rows.txt"))
    )
    assert [text.split(": ")[1] for text in found] == ["line 2", "line 3", "line 4", "line 5"]


def test_the_holdout_takes_the_same_share_of_each_class(tmp_path: Path) -> None:
    labels = np.asarray([0] * 20 + [1] * 10)
    np.savez(tmp_path / "a.npz", images=pictures(30), labels=labels)
    task = classification(tmp_path / "a.npz", holdout_fraction=0.3)
    datasets = task.datasets()
    assert sorted(int(label) for _, label in datasets.holdout) == [0] * 6 + [1] * 3
    assert sorted(int(label) for _, label in datasets.training) == [0] * 14 + [1] * 7
    assert datasets.training.indices == task.datasets().training.indices
    other = classification(tmp_path / "a.npz", holdout_fraction=0.3, split_seed=1).datasets()
    assert other.training.indices != datasets.training.indices


def test_everything_wrong_with_the_records_is_said_at_once(tmp_path: Path) -> None:
    folder = folder_of_classes(tmp_path / "folder")
    (folder / "ill" / "3.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "well" / "small.png")  # is resized
    write_dicom(folder / "well" / "frames.dcm", np.zeros((3, 4, 4), np.uint16))
    found = problems(classification(folder))
    assert len(found) == 2
    assert "ill/3.png: is damaged" in found[0]
    assert "well/frames.dcm: has 3 frames" in found[1]

    (folder / "unsure").mkdir()
    (folder / "list.txt").write_text("")
    (folder / "ill" / "notes.txt").write_text("")
    found = problems(classification(folder))
    assert [text.partition(": ")[0].rpartition("folder/")[2] for text in found] == [
        "ill/notes.txt", "list.txt", "unsure",
    ]  # fmt: skip
    assert "no class that the federation knows" in found[2]


def test_a_manifest_names_every_bad_row_and_no_label(tmp_path: Path) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    lines = ["file,label,ward", "a.png,well,1", "gone.png,ill,2", "a.png,AIDS,3", ",ill,4"]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    found = problems(classification(tmp_path / "m.csv"))
    assert len(found) == 3
    assert "gone.png: no such file" in found[0]
    assert "data row 3: has a label that the federation does not know" in found[2]
    assert "AIDS" not in "".join(found)
    (tmp_path / "m.csv").write_text("file,diagnosis\na.png,well\n")
    assert "has no column label" in problems(classification(tmp_path / "m.csv"))[0]
    (tmp_path / "m.csv").write_text("file,label\na.png,well,1\n")
    assert "data row 1: has 3 fields" in problems(classification(tmp_path / "m.csv"))[0]


def test_long_lists_of_problems_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "MAX_LISTED_PROBLEMS", 3)
    folder = folder_of_classes(tmp_path / "folder")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"gone")
    found = problems(classification(folder))
    assert len(found) == 4
    assert found[-1].startswith(f"{folder}: 9 more problems like these")


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"images": pictures(4), "labels": np.asarray([0, 1, 2, 1])}, "labels[2]: has a label"),
        ({"images": pictures(4), "labels": np.asarray([0, 1, 1])}, "not of the same records"),
        ({"images": pictures(4)[0], "labels": np.zeros(8)}, "has shape (8, 8); expected records"),
        ({"images": pictures(4), "labels": np.zeros((4, 3))}, "expected one label a record"),
        ({"images": pictures(4)}, "has no array labels"),
        ({"images": pictures(4), "labels": np.zeros(4)}, "all 4 images are of one class"),
        ({"images": pictures(0), "labels": np.zeros(0)}, "has no records"),
        ({"images": pictures(4).astype("U"), "labels": np.zeros(4)}, "not of numbers"),
        ({"images": np.full((2, 8, 8), np.nan), "labels": [0, 1]}, "images[1]: has pixels"),
        ({"images": pictures(2), "labels": np.asarray([None, 1])}, "Python objects"),
    ],
)
def test_archives_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, Any], text: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert text in "\n".join(problems(classification(tmp_path / "a.npz")))


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=pictures(40), labels=np.arange(40) % 2)
    whole = path.read_bytes()
    for place in (60, 1000, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
        assert "a.npz" in problems(classification(path))[0]
        path.write_bytes(whole[:place])
        assert "is damaged, or no NPZ file" in problems(classification(path))[0]


def test_intensities_are_scaled_as_the_federation_says(tmp_path: Path) -> None:
    images = np.full((2, 8, 8), 40.0, np.float32)
    images[0, :, 4:], images[1, :, 4:] = 80.0, 1000.0
    np.savez(tmp_path / "a.npz", images=images, labels=[0, 1])

    def scaled(**intensity: Any) -> torch.Tensor:
        task = classification(tmp_path / "a.npz", {**OPTIONS, "intensity": intensity})
        dataset = task.file_dataset(tmp_path / "a.npz")
        return torch.stack([image for image, _ in dataset])[:, 0, 0, [0, -1]]

    window = scaled(kind="window", centre=40.0, width=80.0)
    torch.testing.assert_close(window, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    limits = scaled(kind="range", low=0, high=160)
    torch.testing.assert_close(limits, torch.tensor([[-0.5, 0.0], [-0.5, 1.0]]))
    own = scaled(kind="record")
    torch.testing.assert_close(own, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


def test_images_are_brought_to_one_size_and_masks_are_not_blended(tmp_path: Path) -> None:
    mask = np.zeros((12, 20), np.uint8)
    mask[:, 10:] = 255
    for name, values in (("images", mask), ("masks", mask)):
        (tmp_path / name).mkdir()
        Image.fromarray(values).save(tmp_path / name / "a.png")
    options = {**MASKED, "mask_values": [0, 255]}
    image, classes = segmentation(tmp_path, options).file_dataset(tmp_path)[0]
    assert image.shape == classes.shape == (1, 8, 8)
    assert classes.dtype == torch.uint8
    assert classes[0, :, :4].eq(0).all()
    assert classes[0, :, 4:].eq(1).all()
    image, classes = segmentation(
        tmp_path, {**options, "fit": "pad_or_crop", "spatial_size": [16, 16]}
    ).file_dataset(tmp_path)[0]
    assert image[0, 0].eq(-1).all()  # padded with the darkest
    assert classes[0, 2:14, 8:].eq(1).all()


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for name, size in (("a", 8), ("b", 8), ("c", 9)):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", np.zeros((8, 8), np.uint8))
        values = np.full((size, size), 3 if name == "b" else 1, np.uint8)
        write_nifti(tmp_path / "masks" / f"{name}.nii", values)
    found = problems(segmentation(tmp_path))
    assert len(found) == 2
    assert "b.nii: has pixels of a class that the federation does not know" in found[0]
    assert "c.nii.gz: has shape (8, 8), and its mask (9, 9)" in found[1]
    (tmp_path / "masks" / "a.nii").rename(tmp_path / "masks" / "d.nii")
    found = problems(segmentation(tmp_path))
    assert "a.nii.gz: has no mask" in found[0]
    assert "d.nii: has no image" in found[1]


def test_what_does_not_fit_the_memory_allowed_is_read_again(tmp_path: Path) -> None:
    folder = folder_of_classes(tmp_path / "folder")
    kept = classification(folder).file_dataset(folder)
    read_again = classification(folder, cache_megabytes=0).file_dataset(folder)
    before = [image.clone() for image, _ in read_again]
    for path in folder.rglob("*.png"):
        path.unlink()
    for index, image in enumerate(before):
        assert torch.equal(kept[index][0], image)
        with pytest.raises(DataError, match="No such file"):
            read_again[index]


def test_loader_workers_can_be_given_the_images(tmp_path: Path) -> None:
    folder = folder_of_classes(tmp_path / "folder")
    numbers = GENERATOR.integers(0, 2, (6, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "masks.npz", images=pictures(6), masks=numbers)
    for dataset in (
        classification(folder).file_dataset(folder),
        segmentation(tmp_path / "masks.npz").file_dataset(tmp_path / "masks.npz"),
    ):
        assert why_not_passed_on(dataset) is None
        passed_on = pickle.loads(pickle.dumps(dataset))  # noqa: S301
        assert all(torch.equal(*pair) for pair in zip(passed_on[5], dataset[5], strict=True))


def test_bad_options_are_all_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ImageClassification(
            {
                **OPTIONS,
                "spatial_size": [8],
                "intensity": {"kind": "window", "low": 1},
                "network": "vgg",
                "augmentation": {"scaling": 2.0},
            },
            {"path": "a", "holdout_fraction": 1.0},
        )
    keys = {problem.key for problem in caught.value.problems}
    assert keys == {
        "task.options.spatial_size",
        "task.options.intensity",
        "task.options.network",
        "task.options.augmentation.scaling",
    }


@pytest.mark.parametrize(
    ("task", "changes", "text"),
    [
        (ImageClassification, {"widths": [6]}, "multiples of 4"),
        (ImageClassification, {"network": "resnet"}, "takes widths of 4"),
        (ImageClassification, {"classes": ["a", "a"]}, "listed twice"),
        (ImageClassification, {"augmentation": {"flip_axes": [2]}}, "flip_axes are 0 to 1"),
        (ImageClassification, {"network": "densenet", "widths": [16]}, "sides of at least 16"),
        (ImageClassification, {"norm": "instance", "widths": [4] * 3}, "shrinks it to one pixel"),
        (Segmentation, {"spatial_size": [9, 8]}, "multiples of 2"),
        (Segmentation, {"mask_values": [0]}, "one number a class"),
        (Segmentation, {"network": "basic_unet"}, "takes 5 widths"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    task: Any, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigurationError, match=text):
        task({**OPTIONS, **changes}, {"path": "a"})


NETWORKS: list[tuple[Any, dict[str, Any]]] = [
    (ImageClassification, {"network": "cnn", "widths": [4, 8]}),
    (ImageClassification, {"network": "resnet", "widths": [4, 4, 8, 8], "spatial_size": [9, 9]}),
    (ImageClassification, {"network": "densenet", "widths": [16], "spatial_size": [32, 32]}),
    (Segmentation, {"network": "unet", "widths": [4, 8]}),
    (
        Segmentation,
        {"network": "basic_unet", "widths": [4, 4, 8, 8, 8], "spatial_size": [32, 32]},
    ),
]


@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize(("task_class", "changes"), NETWORKS)
def test_every_network_is_alike_at_every_site_and_gives_scores(
    task_class: Any, changes: dict[str, Any], volume: bool, norm: str
) -> None:
    options = {**OPTIONS, **changes, "norm": norm}
    if volume:
        options["spatial_size"] = [*options["spatial_size"], options["spatial_size"][0]]
    task = task_class(options, {"path": "a"})
    model = genesis_model(task, 7)
    again = genesis_model(task, 7)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(next(genesis_model(task, 8).parameters()), next(model.parameters()))
    scores = model(torch.zeros(2, 1, *options["spatial_size"]))
    is_mask = task_class is Segmentation
    assert scores.shape == ((2, 2, *options["spatial_size"]) if is_mask else (2, 1))


@pytest.mark.parametrize(("task_class", "changes"), NETWORKS)
def test_group_norm_lets_opacus_see_each_record(task_class: Any, changes: dict[str, Any]) -> None:
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    options = {**OPTIONS, **changes}
    task = task_class(options, {"path": "a"})
    model = genesis_model(task, 0)
    assert ModuleValidator.validate(model, strict=False) == []
    size = options["spatial_size"]
    images = torch.rand(3, 1, *size, requires_grad=True)
    targets = torch.tensor([0, 1, 0])
    if task_class is Segmentation:
        targets = (torch.rand(3, 1, *size) < 0.5).to(torch.uint8)
    wrapped = GradSampleModule(model)
    task.loss(wrapped, [images, targets]).backward()
    for parameter in model.parameters():
        each = parameter.grad_sample
        assert each.shape == (3, *parameter.shape)
        # The mean over the records, which the loss is.
        torch.testing.assert_close(each.sum(0) / 3, parameter.grad, rtol=1e-3, atol=1e-5)


def test_augmentation_moves_masks_with_images() -> None:
    torch.manual_seed(0)
    masks = (torch.rand(64, 1, 6, 6, 6) < 0.5).to(torch.uint8)
    images = masks.float()
    settings = Augmentation(flip_axes=(0, 2))
    moved, moved_masks = augment(settings, images, masks)
    assert moved_masks is not None
    assert torch.equal(moved, moved_masks.float())
    kept = [bool(torch.equal(a, b)) for a, b in zip(images, moved, strict=True)]
    assert 4 <= sum(kept) <= 30  # a quarter
    expected = {
        tuple(axes): image.flip([axis + 1 for axis in axes]) if axes else image
        for image in images[:1]
        for axes in ([], [0], [2], [0, 2])
    }
    assert any(torch.equal(moved[0], image) for image in expected.values())


def test_affine_augmentation_stays_within_its_bounds() -> None:
    torch.manual_seed(0)
    settings = Augmentation(rotation_degrees=90.0, scaling=0.2, translation=0.1)
    for dimensions in (2, 3):
        affine = random_affine(settings, 200, dimensions)
        rotation, shift = affine[:, :, :dimensions], affine[:, :, dimensions]
        size = torch.linalg.det(rotation) ** (1 / dimensions)
        assert 0.8 <= size.min() < 0.85
        assert 1.15 < size.max() <= 1.2
        turned = rotation / size[:, None, None]
        identity = torch.eye(dimensions).expand(200, -1, -1)
        torch.testing.assert_close(turned @ turned.mT, identity, atol=1e-5, rtol=0)
        assert 0.15 < shift.abs().max() <= 0.2  # of a side that is 2 long
    images = torch.rand(2, 1, 5, 5)
    still = Augmentation(rotation_degrees=1e-6)
    torch.testing.assert_close(augment(still, images)[0], images, atol=1e-4, rtol=0)


def test_mixed_precision_does_not_blur_what_is_augmented() -> None:
    images = torch.rand(4, 1, 32, 32)
    settings = Augmentation(rotation_degrees=30.0, translation=0.2)
    torch.manual_seed(0)
    exact, _ = augment(settings, images)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = augment(settings, images)
    assert torch.equal(exact, mixed)


@pytest.mark.parametrize("task_class", [ImageClassification, Segmentation])
def test_losses_in_mixed_precision_are_near_those_in_full(task_class: Any) -> None:
    task = task_class(OPTIONS, {"path": "a"})
    model = genesis_model(task, 0)
    targets = torch.tensor([0, 1]) if task_class is ImageClassification else None
    batch = [torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8).byte() if targets is None else targets]
    full = task.loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = task.loss(model, batch)
    assert mixed.item() == pytest.approx(full.item(), rel=0.02)
    mixed.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_round_that_is_augmented_is_trained_again_to_the_same_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pictures(20), labels=np.arange(20) % 2)
    options = {
        **OPTIONS,
        "augmentation": {"flip_axes": [1], "rotation_degrees": 10.0, "translation": 0.1},
    }
    task = classification(tmp_path / "a.npz", options)
    training = task.datasets().training
    first = train(task, training, steps=3, rounds=2)
    again = train(task, training, steps=3, rounds=2)
    assert first.parameters.tobytes() == again.parameters.tobytes()
    plain = train(classification(tmp_path / "a.npz"), training, steps=3, rounds=2)
    assert first.parameters.tobytes() != plain.parameters.tobytes()
    # The hold-out is not augmented.
    assert first.evaluate(training) == first.evaluate(training)


def shown_intervals(task: Any, dataset: Any) -> dict[str, tuple[float, float]]:
    """The confidence intervals of an untrained model's figures."""
    learner = learner_for(task)
    learner.model.eval()
    with torch.no_grad():
        predictions = task.predictions(learner.model, learner.batches(dataset))
    return assess(task, predictions, task.figures(predictions)).intervals


def test_many_classes_have_figures_of_their_own(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    images = (labels[:, None, None] * 80 + GENERATOR.integers(0, 60, (60, 8, 8))).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.asarray(["a", "b", "c"])[labels])
    task = classification(
        tmp_path / "a.npz", {**OPTIONS, "classes": ["a", "b", "c"], "learning_rate": 0.05}
    )
    datasets = task.datasets()
    found = train(task, datasets.training, steps=60).evaluate(datasets.holdout)
    assert found.keys() == {"accuracy", "loss", "auc"}
    assert found["auc"] > 0.95
    assert found["accuracy"] > 0.8
    assert shown_intervals(task, datasets.holdout).keys() == {"accuracy", "loss", "auc"}


def test_the_trainer_opens_the_tasks_by_their_kinds(tmp_path: Path) -> None:
    folder = folder_of_classes(tmp_path / "folder", each=20)
    opened = load(Open("image_classification", "north", OPTIONS, {"path": str(folder)}, seed=3))
    assert (opened.training_records, opened.holdout_records) == (26, 14)
    assert opened.learner.schema.dimension == opened.learner.genesis().size > 0
    images, masks = synthetic_scans(6, (8, 8), Scanner(), seed=0)
    np.savez(tmp_path / "a.npz", images=images, masks=masks)
    opened = load(Open("segmentation", "north", MASKED, {"path": str(tmp_path / "a.npz")}))
    assert (opened.training_records, opened.holdout_records) == (4, 2)


@pytest.mark.skipif(not PNEUMONIA.exists(), reason=REASON)
def test_pneumonia_is_told_on_real_x_rays(tmp_path: Path) -> None:
    """Six hospitals of 60 images, pooled; the test set of PneumoniaMNIST (Yang et al. 2023)."""
    rows = np.random.default_rng(0).permutation(4708)[:360]
    (tmp_path / "rows.txt").write_text("\n".join(map(str, rows)))
    options = {
        **OPTIONS,
        "spatial_size": [28, 28],
        "widths": [16, 32, 64],
        "optimiser": "adamw",
        "learning_rate": 0.003,
    }
    task = classification(
        PNEUMONIA, options,
        split="train", holdout_split="test", rows_path=str(tmp_path / "rows.txt"),
    )  # fmt: skip
    datasets = task.datasets()
    assert len(datasets.training) == 360
    assert len(datasets.holdout) == 624
    trained = train(task, datasets.training, steps=60)
    assert trained.evaluate(datasets.holdout)["auc"] > 0.85


@pytest.mark.parametrize(
    ("size", "widths", "steps"), [((32, 32), [8, 16, 32], 30), ((16, 16, 16), [8, 16, 32], 40)]
)
def test_lesions_are_found_in_synthetic_scans_of_two_scanners(
    tmp_path: Path, size: tuple[int, ...], widths: list[int], steps: int
) -> None:
    scanners = (Scanner(), Scanner(gain=2.5, offset=300.0, bias=0.35))
    parts = [synthetic_scans(24, size, scanner, seed) for seed, scanner in enumerate(scanners)]
    images, masks = (np.concatenate(part) for part in zip(*parts, strict=True))
    np.savez(tmp_path / "a.npz", images=images, masks=masks)
    options = {
        **MASKED,
        "spatial_size": list(size),
        "intensity": {"kind": "record"},
        "widths": widths,
        "optimiser": "adamw",
        "learning_rate": 0.01,
        "batch_size": 8,
    }
    task = segmentation(tmp_path / "a.npz", options)
    datasets = task.datasets()
    untrained = learner_for(task)
    none = np.zeros(untrained.layout.floats, np.float32)
    before = untrained.evaluate(datasets.holdout, untrained.genesis(), none)
    found = train(task, datasets.training, steps=steps).evaluate(datasets.holdout)
    assert found["dice"] == found["dice lesion"]
    assert found["dice"] > 0.8 > before["dice"]
    assert found["loss"] < before["loss"]
    low, high = shown_intervals(task, datasets.holdout)["dice"]
    assert 0 <= low < high <= 1


def test_dice_is_what_it_is_by_hand(tmp_path: Path) -> None:
    task = segmentation(tmp_path, {**MASKED, "classes": ["none", "a", "b", "c"]})

    class Fixed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 9.0 * torch.nn.functional.one_hot(images[:, 0].long(), 4).movedim(-1, 1).float()

    told = torch.zeros(2, 1, 8, 8)
    true = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    told[0, 0, 0, :4], true[0, 0, 0, 2:6] = 1, 1  # 2 * 2 / (4 + 4)
    told[0, 0, 3, :], true[0, 0, 3, :] = 2, 2
    told[1, 0, 3, :2], true[1, 0, 3, :6] = 2, 2  # 2 * 2 / (2 + 6)
    found = task.metrics(Fixed(), [[told, true]])
    assert found["dice a"] == pytest.approx(0.5)
    assert found["dice b"] == pytest.approx((1 + 0.5) / 2)
    assert "dice c" not in found  # in no record
    assert found["dice"] == pytest.approx((0.5 + 0.75) / 2)
