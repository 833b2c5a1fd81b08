"""Rounds of the loop under differential privacy, from opening the task to their price."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training_loading import OPTIONS, python_request, request, table
from torch.utils.data import TensorDataset

from p2pfed.errors import ConfigurationError, TrainingError
from p2pfed.training import frames
from p2pfed.training.loading import LoadedTask, load
from p2pfed.training.local_only import train_alone
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.privacy.accountant import epsilon_of
from p2pfed.training.privacy.pricing import price
from p2pfed.training.privacy.settings import PrivateSettings
from p2pfed.training.round_input import RoundInput, round_seed
from p2pfed.training.sampling import sampler_seed
from p2pfed.training.schema import prepare
from p2pfed.training.settings import LoopSettings
from p2pfed.training.site_state import SiteModel
from p2pfed.training.task import Datasets

__all__ = ["table"]  # a fixture

RECORDS = 40
SECRET = b"s" * 32
CPU = torch.device("cpu")


class Regression:
    """Noisy least squares with dropout and a norm that looks at one record alone."""

    def __init__(self, data: TensorDataset | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(RECORDS, 3, generator=generator)
        self.data = data or TensorDataset(features, features @ torch.tensor([1.0, -2.0, 0.5]))

    def build_model(self) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(3, 6),
            torch.nn.GroupNorm(2, 6),
            torch.nn.Tanh(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(6, 1),
        )

    def datasets(self) -> Datasets:
        return Datasets(self.data, self.data)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        features, targets = batch
        return ((model(features)[:, 0] - targets) ** 2).mean()

    def metrics(self, model: torch.nn.Module, batches: Any) -> dict[str, float]:
        return {"error": float(sum(self.loss(model, batch) for batch in batches))}


class Round:
    """A learner and where it stands."""

    def __init__(
        self, task: Regression, noise: float = 1.0, clip: float = 1.0, **options: Any
    ) -> None:
        model = genesis_model(task, seed=4)
        prepare(model)
        settings = LoopSettings(**{"batch_size": 8, "learning_rate": 0.05, **options})
        records = len(task.data)
        self.task = task
        self.learner = Learner(
            task, model, settings, CPU, privacy=PrivateSettings(noise, clip, 8, records)
        )
        state = np.zeros(self.learner.layout.floats, np.float32)
        self.model = SiteModel(self.learner.genesis(), state)

    def train(self, number: int = 0, steps: int = 4, secret: bytes | None = SECRET) -> SiteModel:
        given = RoundInput(
            self.model.parameters,
            self.model.state,
            number,
            steps,
            round_seed(0, "n", number),
            sampler_seed(0, "n"),
            noise_secret=secret,
        )
        after = SiteModel(np.empty_like(given.parameters), np.empty_like(given.state))
        self.learner.train(self.task.data, given, after.parameters, after.state, lambda _: None)
        return after


def bytes_of(model: SiteModel) -> bytes:
    return model.parameters.tobytes() + model.state.tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimiser": "adamw", "learning_rate": 0.01},
        {"gradient_tracking": True},
        {"proximal": 0.1},
        {"ditto": 0.1},
        {"local_norm": "all"},
        {"local_head": ("4",)},
        {"micro_batch_size": 3},
    ],
    ids=str,
)
def test_a_round_that_is_trained_again_gives_the_same_bytes(options: dict[str, Any]) -> None:
    one, other = Round(Regression(), **options), Round(Regression(), **options)
    for number in range(2):
        first, again = one.train(number), other.train(number)
        assert bytes_of(first) == bytes_of(again)
        assert bytes_of(first) == bytes_of(one.train(number))
        one.model = other.model = first


def test_who_knows_every_public_seed_and_not_the_secret_knows_neither_noise_nor_sample() -> None:
    site = Round(Regression(), noise=0.0, clip=1e9)
    sampled = [site.train(secret=bytes([n] * 32)).parameters for n in range(4)]
    for number in range(1, 4):
        assert not np.allclose(sampled[0], sampled[number], atol=1e-4)
    # With every record in every step, and no dropout to differ, the noise alone is left.
    everyone = Round(Regression(), noise=1.0, batch_size=RECORDS)
    everyone.learner.privacy = PrivateSettings(1.0, 1.0, RECORDS, RECORDS)
    noised = [everyone.train(steps=1, secret=bytes([n] * 32)).parameters for n in range(2)]
    assert np.abs(noised[0] - noised[1]).max() > 1e-4


def test_one_record_moves_a_step_by_no_more_than_the_clip_norm() -> None:
    features, targets = Regression().data.tensors

    def after_one_step(target: float) -> Any:
        changed = targets.clone()
        changed[7] = target
        site = Round(
            Regression(TensorDataset(features, changed)),
            noise=0.0,
            clip=0.3,
            momentum=0.0,
            learning_rate=1.0,
        )
        site.learner.privacy = PrivateSettings(0.0, 0.3, RECORDS, RECORDS)  # everybody is drawn
        return site.train(steps=1).parameters

    # The record's gradient is turned around: from the clip norm to as much the other way.
    moved = np.linalg.norm(after_one_step(1e4) - after_one_step(-1e4))
    assert moved == pytest.approx(2 * 0.3 / RECORDS, rel=0.05)


def test_private_training_learns() -> None:
    site = Round(Regression(), noise=0.5, learning_rate=0.05)
    before = site.learner.evaluate(site.task.data, site.model.parameters, site.model.state)
    for number in range(30):
        site.model = site.train(number, secret=bytes([number] * 32))
    after = site.learner.evaluate(site.task.data, site.model.parameters, site.model.state)
    assert after["error"] < 0.5 * before["error"]


def test_steps_without_a_record_are_taken_all_the_same() -> None:
    tiny = Regression(TensorDataset(*(tensor[:4] for tensor in Regression().data.tensors)))
    site = Round(tiny)
    site.learner.privacy = PrivateSettings(1.0, 1.0, 2, 4)
    heard: list[frames.Progress] = []
    given = RoundInput(site.model.parameters, site.model.state, 0, 40, 1, 1, noise_secret=SECRET)
    after = SiteModel(np.empty_like(given.parameters), np.empty_like(given.state))
    site.learner.train(tiny.data, given, after.parameters, after.state, heard.append)
    assert len(heard) == 40
    assert 0.0 in [progress.loss for progress in heard]


def test_a_secret_goes_with_privacy_and_only_with_it() -> None:
    site = Round(Regression())
    with pytest.raises(ValueError, match="secret"):
        site.train(secret=None)
    site.learner.privacy = None
    with pytest.raises(ValueError, match="secret"):
        site.train()


def test_a_failed_round_leaves_no_hooks_behind() -> None:
    task = Regression()
    site = Round(task)
    task.data.tensors[1][:] = torch.nan
    with pytest.raises(TrainingError, match="the loss is nan"):
        site.train()
    task.data.tensors[1][:] = 0.0
    first = site.train()
    assert bytes_of(first) == bytes_of(site.train())


PRIVATE: dict[str, Any] = {"noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-3}


def refused(opened: frames.Open) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        load(opened)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_a_table_is_opened_privately_and_says_at_which_rate_it_draws(table: Path) -> None:
    options = {**OPTIONS, "batch_norm": False, "batch_size": 9}
    loaded = load(request(table, options=options, **PRIVATE))
    assert loaded.learner.privacy is not None
    assert loaded.learner.privacy.sampling_rate == pytest.approx(9 / 27)
    assert load(request(table, options=options)).learner.privacy is None


def test_what_cannot_be_private_is_refused_when_the_task_is_opened(table: Path) -> None:
    plain = {**OPTIONS, "batch_norm": False}
    found = refused(request(table, **PRIVATE))
    assert "BatchNorm1d" in found["task"]
    assert "use torch.nn.GroupNorm" in found["task"]
    clipped = refused(request(table, options={**plain, "gradient_clip_norm": 1.0}, **PRIVATE))
    assert "privacy.clip_norm takes its place" in clipped["task.options.gradient_clip_norm"]
    single = refused(request(table, options={**plain, "batch_size": 1}, **PRIVATE))
    assert "1 records on average" in single["task.options.batch_size"]
    certain = refused(request(table, options=plain, **{**PRIVATE, "delta": 0.05}))
    assert "1 / 27 training records" in certain["privacy.delta"]


PREPARING = """
    import torch
    from torch.utils.data import TensorDataset
    from p2pfed.training.task import Datasets

    class Plain:
        def __init__(self, options, data):
            self.data = TensorDataset(torch.ones(30, 2), torch.ones(30))
        def build_model(self):
            return torch.nn.Linear(2, 1)
        def datasets(self):
            return Datasets(self.data, self.data)
        def loss(self, model, batch):
            return (model(batch[0])[:, 0] - batch[1]).square().mean()
        def metrics(self, model, batches):
            return {}
        def prepare(self, model, dataset, round_number, seed, prepared):
            return round_number < 2

    class Noised(Plain):
        noise = 4.0
        preparation_rounds = 2
        def preparation_spend(self):
            return self.noise, 1.0

    class Bare(Noised):
        noise = 0.0

    class Declared(Noised):
        def preparation_spend(self):
            return None
"""


def prepared_task(table: Path, name: str) -> LoadedTask:
    source = python_request(table, PREPARING, f"preparing_{name.lower()}:{name}", **PRIVATE)
    return load(source)


@pytest.mark.parametrize("name", ["Plain", "Bare"])
def test_statistics_that_no_noise_hides_are_refused(table: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="no noise hides them"):
        prepared_task(table, name)


def test_a_preparation_costs_once_and_a_round_its_own_steps(table: Path) -> None:
    loaded = prepared_task(table, "Noised")
    learner = loaded.learner
    state = np.zeros(learner.layout.floats, np.float32)

    def asked(number: int, steps: int = 5, most: int | None = None) -> frames.Priced:
        spent = ((0.1, 1.0, 10),)
        wanted = frames.Price(spent=spent, delta=1e-3, round_number=number, local_steps=steps)
        return price(wanted, learner, state, most)

    first = asked(0)
    assert first.next_spend == (1.0, 4.0, 1)
    assert first.epsilon == pytest.approx(epsilon_of([(0.1, 1.0, 10)], 1e-3))
    both = epsilon_of([(0.1, 1.0, 10), (1.0, 4.0, 1)], 1e-3)
    assert first.epsilon_with_next == pytest.approx(both)
    learner.layout.over(state).write_head(learner.layout.over(state).position, prepared=True)
    assert asked(1).next_spend[2] == 0
    assert asked(1).epsilon_with_next == asked(1).epsilon
    assert asked(2).next_spend == (1.0, 1.0, 5)  # 30 records, 32 a batch
    assert asked(2, most=3).next_spend == (1.0, 1.0, 3)
    assert asked(2, steps=0).next_spend == (0.0, 0.0, 0)


def test_a_preparation_that_looks_at_no_record_costs_nothing(table: Path) -> None:
    loaded = prepared_task(table, "Declared")
    state = np.zeros(loaded.learner.layout.floats, np.float32)
    wanted = frames.Price(spent=(), delta=1e-3, round_number=0, local_steps=5)
    assert price(wanted, loaded.learner, state, None).epsilon_with_next == 0.0


def test_training_alone_for_the_report_has_noise_of_its_own(table: Path) -> None:
    options = {**OPTIONS, "batch_norm": False, "batch_size": 9}
    figures = [
        train_alone(load(request(table, options=options, **PRIVATE)), 2, 2).metrics
        for _ in range(2)
    ]
    assert figures[0]["loss"] != figures[1]["loss"]
