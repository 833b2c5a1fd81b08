"""Private gradients against a sum over records one by one, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.layers import DPLSTM
from torch.utils.data import TensorDataset

from p2pfed.errors import ConfigurationError, TrainingError
from p2pfed.training.privacy import gradients
from p2pfed.training.privacy.gradients import PrivateGradients, largest_part
from p2pfed.training.privacy.randomness import SecretDraws
from p2pfed.training.privacy.requirements import check_loss, check_model, check_settings
from p2pfed.training.privacy.settings import PrivateSettings
from p2pfed.training.settings import LoopSettings
from p2pfed.training.task import Datasets, TaskError

SECRET = b"s" * 32
FILE, SITE_FILE = Path("topology.toml"), Path("site.toml")
Loss = Callable[[torch.nn.Module, Any], torch.Tensor]


def squared_error(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    features, targets = batch
    return ((model(features).flatten(1).sum(1) - targets) ** 2).mean()


class Made:
    """A task of a given model and loss over random records."""

    def __init__(self, model: torch.nn.Module, shape: tuple[int, ...], loss: Loss) -> None:
        self.model = model
        self._loss = loss
        generator = torch.Generator().manual_seed(0)
        self.data = TensorDataset(
            torch.randn(12, *shape, generator=generator), torch.randn(12, generator=generator)
        )

    def build_model(self) -> torch.nn.Module:
        return self.model

    def datasets(self) -> Datasets:
        return Datasets(self.data, self.data)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return self._loss(model, batch)

    def metrics(self, model: torch.nn.Module, batches: Any) -> dict[str, float]:
        return {}


class Token(torch.nn.Module):
    """A parameter of its own beside a layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.token = torch.nn.Parameter(torch.ones(4))
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features * self.token)


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = DPLSTM(4, 3, batch_first=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.cells(features)[0][:, -1]


MODELS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: torch.nn.Linear(4, 1), (4,)),
    "frozen part": (
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 3).requires_grad_(False), torch.nn.Tanh(),
                                    torch.nn.Linear(3, 1)),
        (4,),
    ),
    "convolution and group norm": (
        lambda: torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.GroupNorm(2, 4),
                                    torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 1)),
        (2, 4, 4),
    ),
    "three dimensions": (lambda: torch.nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "layer norm": (
        lambda: torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 1)), (4,),
    ),
    "a parameter of its own": (Token, (4,)),
    "recurrent": (Recurrent, (5, 4)),
}  # fmt: skip


def made(name: str, loss: Loss = squared_error) -> Made:
    torch.manual_seed(1)
    build, shape = MODELS[name]
    return Made(build().train(), shape, loss)


class Source(PrivateGradients):
    """Takes a step's records whole, or in parts of a given size."""

    def step(self, batch: Any, part: int = 100) -> float:
        records = 0 if batch is None else len(batch[0])
        parts = [
            (tuple(tensor[at : at + part] for tensor in batch), min(part, records - at))
            for at in range(0, records, part)
        ]
        return self.fill(self._task.model, parts, records, "here")  # type: ignore[attr-defined]


def private(task: Made, noise: float = 0.0, clip: float = 1e9, expected: int = 6) -> Source:
    settings = PrivateSettings(noise, clip, expected, len(task.data))
    assert settings.expected_batch == expected
    return Source(task, task.model, settings, SecretDraws(SECRET))


def batch_of(task: Made, *indices: int) -> Any:
    return task.data[list(indices)]


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def filled(task: Made, batch: Any, part: int = 100, **settings: Any) -> torch.Tensor:
    source = private(task, **settings)
    source.step(batch, part)
    result = torch.cat([p.grad.flatten().double() for p in trained(task.model)])  # type: ignore[union-attr]
    source.close()
    return result


def one_by_one(task: Made, indices: list[int], clip: float, expected: float) -> torch.Tensor:
    total: Any = 0.0
    for index in indices:
        task.model.zero_grad()
        squared_error(task.model, batch_of(task, index)).backward()
        gradient = torch.cat(
            [p.grad.flatten().double() for p in trained(task.model)]  # type: ignore[union-attr]
        )
        total = total + gradient * min(1.0, clip / float(gradient.norm()))
    return total / expected


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clip", [1e9, 0.5])
def test_without_noise_it_is_the_sum_of_each_records_clipped_gradient(
    name: str, clip: float
) -> None:
    task = made(name)
    indices = [0, 2, 3, 7, 11]
    found = filled(task, batch_of(task, *indices), clip=clip)
    wanted = one_by_one(task, indices, clip, 6)
    assert torch.allclose(found, wanted, atol=1e-6, rtol=1e-4)
    assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_in_parts_gives_the_same(name: str) -> None:
    task = made(name)
    batch = batch_of(task, *range(7))
    whole = filled(task, batch, clip=0.5, noise=1.0)
    assert torch.allclose(filled(task, batch, part=3, clip=0.5, noise=1.0), whole, atol=1e-6)


def test_parts_are_as_large_as_their_records_gradients_leave_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gradients, "MAX_GRADIENT_BYTES", 4 * 5 * 3)
    assert largest_part(torch.nn.Linear(4, 1)) == 3
    assert largest_part(torch.nn.Linear(400, 10)) == 1


def test_no_record_moves_the_gradient_by_more_than_the_clip_norm() -> None:
    task = made("convolution and group norm")
    task.data.tensors[1][5] = 1e4  # an outlier
    for other in range(5):
        with_it = filled(task, batch_of(task, 1, 2, 5), clip=0.3, expected=1)
        without = filled(task, batch_of(task, 1, 2), clip=0.3, expected=1)
        assert float((with_it - without).norm()) <= 0.3 * (1 + 1e-4)
        assert other < 5


def test_the_noise_is_sigma_times_clip_over_the_expected_batch() -> None:
    task = Made(torch.nn.Linear(200, 200), (200,), squared_error)
    batch = batch_of(task, 0, 1)
    plain = filled(task, batch, clip=0.5)
    noise = filled(task, batch, clip=0.5, noise=3.0) - plain
    assert float(noise.std()) == pytest.approx(3.0 * 0.5 / 6.0, rel=0.02)
    assert abs(float(noise.mean())) < 4 * 0.25 / np.sqrt(noise.numel())


def test_a_step_that_drew_nobody_is_noise_alone() -> None:
    task = made("linear")
    source = private(task, noise=2.0, clip=1.0)
    assert source.step(None) == 0.0
    first = task.model.weight.grad.clone()  # type: ignore[union-attr, operator]
    assert float(first.abs().max()) > 0.0
    source.step(None)
    source.close()
    assert not torch.equal(first, task.model.weight.grad)  # type: ignore[arg-type]
    again = private(task, noise=2.0, clip=1.0)
    again.step(None)
    assert torch.equal(first, task.model.weight.grad)  # type: ignore[arg-type]


def test_it_leaves_the_model_as_it_was() -> None:
    task = made("a parameter of its own")
    names = set(task.model.state_dict())
    source = private(task)
    source.step(batch_of(task, 1, 2))
    source.close()
    assert set(task.model.state_dict()) == names
    squared_error(task.model, batch_of(task, 1)).backward()
    assert all(getattr(p, "grad_sample", None) is None for p in task.model.parameters())
    private(task).step(batch_of(task, 1, 2))


def test_the_loss_is_the_mean_over_all_parts() -> None:
    task = made("linear")
    batch = batch_of(task, *range(7))
    wanted = squared_error(task.model, batch).item()
    assert private(task).step(batch, part=2) == pytest.approx(wanted, rel=1e-5)


def test_a_loss_or_gradient_that_is_not_finite_is_an_error_not_an_update() -> None:
    task = made("linear")
    task.data.tensors[0][3] = torch.nan
    with pytest.raises(TrainingError, match="the loss is nan"):
        private(task).step(batch_of(task, 1, 3))

    def kink(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return (model(batch[0])[:, 0] * 0.0).sqrt().mean()  # value 0, derivative infinite

    broken = made("linear", kink)
    with pytest.raises(TrainingError, match="gradient is not finite"):
        private(broken).step(batch_of(broken, 1, 2))


def rows_of_all(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    features, targets = batch
    return (model(features.reshape(-1, 2).repeat(1, 2))[::2, 0] - targets).square().mean()


def summed(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return squared_error(model, batch) * len(batch[0])


def penalised(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    assert isinstance(model, torch.nn.Linear)
    return squared_error(model, batch) + model.weight.square().sum()


def around_the_module(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    assert isinstance(model, torch.nn.Linear)
    return ((batch[0] @ model.weight[0] - batch[1]) ** 2).mean()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (rows_of_all, "24 rows for 12 records"),
        (penalised, "do not add up"),
        (around_the_module, "outside its module's forward"),
    ],
)
def test_gradients_that_are_not_the_records_own_are_refused(loss: Loss, words: str) -> None:
    task = made("linear", loss)
    with pytest.raises(TaskError, match=words):
        private(task).step(batch_of(task, *range(12)))


def test_a_buffer_that_takes_up_records_is_refused() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 1)
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            self.mean += features.detach().mean(0)
            return self.linear(features)  # type: ignore[no-any-return]

    task = Made(Counting(), (4,), squared_error)
    with pytest.raises(TaskError, match="buffer 'mean'"):
        private(task).step(batch_of(task, 1, 2))


def problems_of(model: torch.nn.Module) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        check_model(model, FILE)
    assert {problem.file for problem in caught.value.problems} == {FILE}
    return {problem.value or "": problem.remedy or "" for problem in caught.value.problems}


def test_every_layer_that_cannot_be_private_is_named_with_what_to_use() -> None:
    model = torch.nn.Sequential()
    model.add_module("norm", torch.nn.BatchNorm2d(64))
    model.add_module("odd", torch.nn.BatchNorm1d(33))
    model.add_module("running", torch.nn.InstanceNorm1d(3, track_running_stats=True))
    model.add_module("memory", torch.nn.LSTM(3, 3))
    model.add_module("gates", torch.nn.GRU(3, 3))
    model.add_module("loop", torch.nn.RNN(3, 3))
    model.add_module("attention", torch.nn.MultiheadAttention(4, 2))
    assert problems_of(model) == {
        "layer norm (BatchNorm2d)": "use torch.nn.GroupNorm(min(32, 64), 64)",
        "layer odd (BatchNorm1d)": "use torch.nn.GroupNorm(1, 33)",
        "layer running (InstanceNorm1d)": "use it with track_running_stats=False",
        "layer memory (LSTM)": "use opacus.layers.DPLSTM",
        "layer gates (GRU)": "use opacus.layers.DPGRU",
        "layer loop (RNN)": "use opacus.layers.DPRNN",
        "layer attention (MultiheadAttention)": "use opacus.layers.DPMultiheadAttention",
    }


def test_a_frozen_batch_norm_is_refused_unless_it_normalises_by_constants() -> None:
    class Backbone(torch.nn.Module):
        def __init__(self, keep: bool) -> None:
            super().__init__()
            self.keep = keep
            self.norm = torch.nn.BatchNorm1d(4).requires_grad_(False)
            self.head = torch.nn.Linear(4, 1)

        def train(self, mode: bool = True) -> "Backbone":
            super().train(mode)
            self.norm.train(mode and not self.keep)
            return self

    assert list(problems_of(Backbone(keep=False))) == ["layer norm (BatchNorm1d)"]
    check_model(Backbone(keep=True), FILE)


@pytest.mark.parametrize("name", MODELS)
def test_what_opacus_can_handle_passes(name: str) -> None:
    task = made(name)
    check_model(task.model, FILE)
    check_loss(task, task.model, task.data, 12, lambda batch: batch, FILE)


def weighted_by_the_batch(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    labels = (batch[1] > 0).long()
    scores = torch.cat([torch.zeros(len(labels), 1), model(batch[0])], 1)
    weight = torch.tensor([0.2, 0.8])
    return torch.nn.functional.cross_entropy(scores, labels, weight)


def ranked_against_the_others(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    scores = model(batch[0])[:, 0]
    return torch.logsumexp(scores, 0) - scores.mean()


@pytest.mark.parametrize("loss", [summed, weighted_by_the_batch, ranked_against_the_others])
def test_a_loss_that_is_no_mean_over_records_is_refused(loss: Loss) -> None:
    task = made("linear", loss)
    with pytest.raises(ConfigurationError, match="not the mean of their own losses"):
        check_loss(task, task.model, task.data, 12, lambda batch: batch, FILE)


def test_settings_that_cannot_be_private_are_all_refused_at_once() -> None:
    settings = LoopSettings(batch_size=1, gradient_clip_norm=1.0)
    with pytest.raises(ConfigurationError) as caught:
        check_settings(settings, 500, 0.002, FILE, SITE_FILE)
    assert [(p.file, p.key) for p in caught.value.problems] == [
        (FILE, "task.options.gradient_clip_norm"),
        (FILE, "task.options.batch_size"),
        (SITE_FILE, "privacy.delta"),
    ]
    check_settings(LoopSettings(batch_size=2), 500, 0.0019, FILE, SITE_FILE)
