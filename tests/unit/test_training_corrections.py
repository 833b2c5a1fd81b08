"""Each correction against a step worked out by hand: one parameter, loss (w - target)^2 / 2."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch.utils.data import TensorDataset

from p2pfed.training.corrections.normalised_steps import accumulated_steps
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.round_input import RoundInput
from p2pfed.training.schema import prepare
from p2pfed.training.settings import LoopSettings
from p2pfed.training.task import Datasets

Vector = NDArray[np.float32]


class Pull:
    """Pulls one parameter, at first 1, towards a site's own target."""

    def __init__(self, target: float = 0.0, curvature: float = 1.0) -> None:
        self.target = target
        self.curvature = curvature
        self.data = TensorDataset(torch.zeros(4, 1))

    def build_model(self) -> torch.nn.Module:
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(model.weight)
        return model

    def datasets(self) -> Datasets:
        return Datasets(training=self.data, holdout=self.data)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return self.curvature * (model.weight[0, 0] - self.target) ** 2 / 2

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, Any]:
        return {"weight": model.weight[0, 0]}


class Site:
    """One site's learner, with the model and state that it has at present."""

    def __init__(self, task: Any, **settings: Any) -> None:
        defaults = {"batch_size": 2, "learning_rate": 0.1, "momentum": 0.0}
        model = genesis_model(task, seed=0)
        prepare(model)
        options = LoopSettings(**{**defaults, **settings})
        self.learner = Learner(task, model, options, torch.device("cpu"))
        self.model = self.learner.genesis()
        self.state = np.zeros(self.learner.layout.floats, np.float32)

    def train(self, round_number: int = 0, steps: int = 2, own: int | None = None) -> float:
        given_ = RoundInput(self.model, self.state, round_number, steps, 0, 0, own)
        out = np.zeros_like(self.model), np.zeros_like(self.state)
        dataset = self.learner.task.datasets().training
        self.learner.train(dataset, given_, *out, lambda _: None)
        self.model, self.state = out
        return float(self.model[0])

    def figures(self) -> dict[str, float]:
        data = self.learner.task.datasets().holdout
        return self.learner.evaluate(data, self.model, self.state)


def test_without_a_correction_two_steps_are_two_steps() -> None:
    assert Site(Pull()).train() == pytest.approx(1 * 0.9 * 0.9)


def test_proximal_pulls_back_to_the_start_of_the_round() -> None:
    site = Site(Pull(), proximal=2.0)
    # w1 = 1 - .1 (1 + 2 * 0) = .9;  w2 = .9 - .1 (.9 + 2 (.9 - 1)) = .83
    assert site.train() == pytest.approx(0.83)
    # From .83: .83 - .083 = .747;  .747 - .1 (.747 + 2 (.747 - .83)) = .6889
    assert site.train(1) == pytest.approx(0.6889)


def test_fewer_steps_count_as_the_federations_number() -> None:
    # One step of three: the change of -.1 is multiplied by three.
    assert Site(Pull(), normalised_steps=True).train(steps=3, own=1) == pytest.approx(0.7)
    assert Site(Pull(), normalised_steps=False).train(steps=3, own=1) == pytest.approx(0.9)
    full = Site(Pull(), normalised_steps=True)
    assert full.train(steps=3) == pytest.approx(0.9**3)


def test_under_a_proximal_term_steps_are_counted_as_it_shrinks_them() -> None:
    # ||a||_1 of three steps at eta mu = .2 is 1 + .8 + .64 = 2.44; of one it is 1.
    assert accumulated_steps(3, 0.2) == pytest.approx(2.44)
    site = Site(Pull(), normalised_steps=True, proximal=2.0)
    assert site.train(steps=3, own=1) == pytest.approx(1 - 0.1 * 2.44)


@given(steps=st.integers(1, 50), shrinkage=st.floats(1e-6, 0.9))
def test_shrunk_steps_are_the_geometric_sum(steps: int, shrinkage: float) -> None:
    total = sum((1 - shrinkage) ** step for step in range(steps))
    assert accumulated_steps(steps, shrinkage) == pytest.approx(total)


def test_gradient_tracking_learns_what_sets_a_site_apart() -> None:
    site = Site(Pull(), gradient_tracking=True)
    trained = site.train()
    assert trained == pytest.approx(0.81), "nothing is known in the first round"
    site.model[0] = 1.0  # the others pulled it all the way back
    # c = .25 (.81 - 1) / (2 * .1) = -.2375;  w1 = 1 - .1 (1 - .2375) = .92375
    # w2 = .92375 - .1 (.92375 - .2375) = .855125
    assert site.train(1) == pytest.approx(0.855125)
    site.model[0] = 1.0
    # c = -.2375 + .25 (.855125 - 1) / .2 = -.41859375;  w1 = .941859375
    # w2 = .941859375 - .1 (.941859375 - .41859375) = .8895328125
    assert site.train(2) == pytest.approx(0.8895328125)


def mean_of(sites: list[Site]) -> None:
    mean = np.mean([site.model for site in sites], axis=0)
    for site in sites:
        site.model = mean.copy()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_sites_that_pull_apart_meet_at_the_common_optimum_only_with_tracking(
    momentum: float,
) -> None:
    """Minimum of (w - 4)^2 / 2 + 3 w^2 / 2: w = 1. Ten steps drift towards the flatter side."""

    def end(tracking: bool) -> float:
        tasks = [Pull(target=4.0), Pull(curvature=3.0)]
        sites = [Site(task, gradient_tracking=tracking, momentum=momentum) for task in tasks]
        for round_number in range(300):
            for site in sites:
                site.train(round_number, steps=10)
            mean_of(sites)
        return float(sites[0].model[0])

    assert abs(end(tracking=False) - 1.0) > 0.2
    assert end(tracking=True) == pytest.approx(1.0, abs=1e-3)


def test_quasi_global_momentum_follows_the_way_of_the_federation() -> None:
    site = Site(Pull(), quasi_global_momentum=0.5)
    assert site.train(steps=1) == pytest.approx(0.9), "no way is known in the first round"
    site.model[0] = 0.6  # what the aggregation made of it
    # m = .5 * 0 + .5 (1 - .6) / .1 = 2;  w = .6 - .1 (.6 + .5 * 2) = .44
    assert site.train(1, steps=1) == pytest.approx(0.44)
    # m = .5 * 2 + .5 (.6 - .44) / .1 = 1.8;  w = .44 - .1 (.44 + .9) = .306
    assert site.train(2, steps=1) == pytest.approx(0.306)


def test_ditto_trains_a_model_of_the_sites_own_beside() -> None:
    site = Site(Pull(), ditto=2.0)
    assert "personal_weight" not in site.figures()
    assert site.train() == pytest.approx(0.81), "the federation's model does not feel it"
    # v1 = 1 - .1 (1 + 2 * 0) = .9;  v2 = .9 - .1 (.9 + 2 (.9 - 1)) = .83
    assert site.figures() == pytest.approx({"weight": 0.81, "personal_weight": 0.83})
    site.model[0] = 2.0
    site.train(1)
    # v1 = .83 - .1 (.83 + 2 (.83 - 2)) = .981;  v2 = .981 - .1 (.981 + 2 (.981 - 2)) = 1.0867
    assert site.figures()["personal_weight"] == pytest.approx(1.0867)


def test_a_site_that_takes_up_another_model_keeps_what_is_its_own() -> None:
    site = Site(Pull(), ditto=2.0, momentum=0.9, gradient_tracking=True)
    site.train()
    kept = site.learner.layout.kept_floats
    personal = site.figures()["personal_weight"]
    site.model[:], site.state[kept:] = 5.0, 0.0
    assert site.figures()["personal_weight"] == personal
    alone = Site(Pull(), momentum=0.9)
    alone.model[:] = 5.0
    assert site.train(1) == pytest.approx(alone.train(1)), "momentum and corrections begin anew"


class Branches(Pull):
    """A head, a body and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.data = TensorDataset(torch.randn(16, 3, generator=generator))

    def build_model(self) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)
        )

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return ((model(batch[0]) - batch[0].sum(dim=1, keepdim=True)) ** 2).mean()

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, Any]:
        return {"loss": sum(self.loss(model, batch) for batch in batches)}


EVERYTHING = {
    "local_head": ("2",),
    "ditto": 0.5,
    "proximal": 0.1,
    "normalised_steps": True,
    "gradient_tracking": True,
    "batch_size": 8,
}


@pytest.mark.parametrize(
    "momentum", [{"momentum": 0.9}, {"momentum": 0.0, "quasi_global_momentum": 0.9}]
)
def test_everything_together_is_a_function_of_its_inputs(momentum: dict[str, float]) -> None:
    def rounds(sites: list[Site]) -> bytes:
        for round_number, site in enumerate(sites):
            if round_number:
                site.model, site.state = (
                    sites[round_number - 1].model,
                    sites[round_number - 1].state,
                )
            site.train(round_number, steps=3, own=2)
        return sites[-1].model.tobytes() + sites[-1].state.tobytes()

    one = Site(Branches(), **EVERYTHING, **momentum)
    restarted = [Site(Branches(), **EVERYTHING, **momentum) for _ in range(4)]
    assert rounds([one] * 4) == rounds(restarted)


def test_what_is_local_learns_and_never_travels() -> None:
    site = Site(Branches(), local_head=("2",), batch_size=8)
    names = [name for name, _ in site.learner.schema.tensors]
    assert names == ["0.weight", "0.bias"]
    genesis = site.learner.model.state_dict()
    before = {name: tensor.clone() for name, tensor in genesis.items()}
    site.train()
    site.learner.load(site.model, site.state)
    after = site.learner.model.state_dict()
    for name in ("2.weight", "1.weight", "1.running_mean"):
        assert not torch.equal(before[name], after[name]), name
    held = {name: tensor.clone() for name, tensor in after.items()}
    site.learner.load(np.zeros_like(site.model), site.state)
    for name in ("2.weight", "1.weight", "1.running_mean"):
        assert torch.equal(held[name], site.learner.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_tracking": True, "optimiser": "adamw"}, "gradient_tracking needs optimiser"),
        (
            {"quasi_global_momentum": 0.9, "optimiser": "adamw", "momentum": 0.0},
            "quasi_global_momentum needs optimiser",
        ),
        ({"quasi_global_momentum": 0.9}, "set momentum = 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoopSettings(**options)
