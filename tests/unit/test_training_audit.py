"""Attacks on a site's deltas: their figures against known cases, and the cases that tell whether
an attack works at all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch.utils.data import TensorDataset

from p2pfed.demo.layout import HOLDOUT_FRACTION
from p2pfed.errors import ConfigurationError, DataError
from p2pfed.settings import read_toml
from p2pfed.shipped import shipped
from p2pfed.training.audit.canaries import CanaryRun, run_canaries
from p2pfed.training.audit.canary_findings import MAX_CANARY_DELTA
from p2pfed.training.audit.canary_plan import control_steps, longest, reachable
from p2pfed.training.audit.inversion import Attempt, Inverter, control_setting
from p2pfed.training.audit.likeness import Prior, likeness
from p2pfed.training.audit.membership import likelihood_ratios, train_shadows
from p2pfed.training.audit.one_run import GUESSINGS, audit_scores, epsilon_lower_bound, p_value
from p2pfed.training.audit.report import Control, Finding, SiteReport, lines_of
from p2pfed.training.audit.request import ADAPTER, AuditedPrivacy, AuditRequest
from p2pfed.training.audit.rounds import Noise, Setting, train_rounds
from p2pfed.training.audit.site import audit_site
from p2pfed.training.audit.statistics import (
    area,
    mean_interval,
    true_positive_rate,
    two_way_bootstrap,
)
from p2pfed.training.frames import Open
from p2pfed.training.privacy.accountant import epsilon_of
from p2pfed.training.task import Datasets, TaskError
from p2pfed.training.tasks.tabular.task import Tabular

CPU = torch.device("cpu")
DELTA = 1e-5


def hospital(name: str = "switzerland", **changed: Any) -> tuple[Setting, Datasets]:
    """A hospital of the heart demo as the demo trains it, and its records."""
    folder = shipped("demos") / "heart"
    options = {**read_toml(folder / "heart.toml")["task"]["options"], **changed}
    data = {"path": str(folder / f"{name}.csv"), "holdout_fraction": HOLDOUT_FRACTION}
    task = Tabular(options, data)
    datasets = task.datasets()
    assert isinstance(datasets.training, TensorDataset)
    return Setting(task, task.options, CPU, 0, 3, len(datasets.training)), datasets


def quiet(_: int) -> None:
    """Takes progress."""


# The one-run bound.


def test_the_p_value_is_the_theorems_sum() -> None:
    canaries, guesses, correct, epsilon, delta = 50, 20, 15, 1.2, 1e-3
    chance = np.exp(epsilon) / (np.exp(epsilon) + 1)
    tail = [binom.sf(v - 1, guesses, chance) for v in range(correct + 1)]  # f(0) .. f(correct)
    steepest = max((tail[correct - i] - tail[correct]) / i for i in range(1, correct + 1))
    expected = tail[correct] + 2 * canaries * delta * steepest
    assert p_value(canaries, guesses, correct, epsilon, delta) == pytest.approx(expected)


def test_all_right_without_delta_is_solved_by_hand() -> None:
    # (e^eps / (1 + e^eps))^100 = 0.05
    share = 0.05**0.01
    bound = epsilon_lower_bound(100, 100, 100, 0.0, 0.95)
    assert bound == pytest.approx(np.log(share / (1 - share)), abs=1e-6)


def test_chance_refutes_nothing() -> None:
    assert epsilon_lower_bound(1000, 1000, 500, DELTA, 0.95) == 0.0
    assert epsilon_lower_bound(1000, 0, 0, DELTA, 0.95) == 0.0


@pytest.mark.parametrize(("guesses", "correct"), [(11, 5), (5, 6), (5, -1)])
def test_counts_that_cannot_be_are_refused(guesses: int, correct: int) -> None:
    with pytest.raises(ValueError, match="guesses about 10 canaries"):
        p_value(10, guesses, correct, 1.0, 0.0)


counts = st.integers(1, 300).flatmap(
    lambda m: st.integers(1, m).flatmap(
        lambda r: st.tuples(st.just(m), st.just(r), st.integers(0, r - 1))
    )
)


@given(counts, st.floats(0, 8), st.floats(0, 8), st.sampled_from([0.0, 1e-6, 1e-3]))
def test_a_larger_epsilon_is_never_less_likely(
    case: tuple[int, int, int], one: float, other: float, delta: float
) -> None:
    low, high = sorted((one, other))
    canaries, guesses, correct = case
    small = p_value(canaries, guesses, correct, low, 0.0)
    assert small <= p_value(canaries, guesses, correct, high, 0.0) + 1e-12
    assert small <= p_value(canaries, guesses, correct, low, delta) + 1e-12


@given(counts, st.sampled_from([0.0, 1e-5, 1e-3]))
def test_more_right_guesses_never_show_less(case: tuple[int, int, int], delta: float) -> None:
    canaries, guesses, correct = case
    less = epsilon_lower_bound(canaries, guesses, correct, delta, 0.95)
    more = epsilon_lower_bound(canaries, guesses, correct + 1, delta, 0.95)
    surer = epsilon_lower_bound(canaries, guesses, correct + 1, delta, 0.99)
    assert less <= more + 1e-9
    assert surer <= more + 1e-9


@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0])
def test_randomised_response_is_bounded_below_its_epsilon_and_near_it(epsilon: float) -> None:
    generator = np.random.default_rng(7)
    canaries, runs, confidence = 1000, 60, 0.95
    bounds = []
    for _ in range(runs):
        inside = generator.random(canaries) < 0.5
        truthful = generator.random(canaries) < 1 / (1 + np.exp(-epsilon))
        said = np.where(truthful, inside, ~inside)
        # Between those of whom the same is said, the order is chance.
        scores = said + generator.random(canaries) / 2
        bounds.append(audit_scores(scores, inside, 0.0, confidence).epsilon)
    above = sum(bound > epsilon for bound in bounds)
    # 3 of 60 are allowed; more than 7 would be so by chance once in a hundred times.
    assert above <= binom.ppf(0.99, runs, 1 - confidence)
    assert np.mean(bounds) > 0.75 * epsilon


def test_scores_that_know_nothing_show_nothing() -> None:
    generator = np.random.default_rng(3)
    runs = 30
    bounds = [
        audit_scores(generator.random(1000), generator.random(1000) < 0.5, DELTA, 0.95).epsilon
        for _ in range(runs)
    ]
    assert sum(bound > 0 for bound in bounds) <= binom.ppf(0.99, runs, 0.05)


def test_the_best_of_several_guessings_pays_for_their_number() -> None:
    inside = np.arange(1000) >= 500
    scores = np.arange(1000.0)
    one = audit_scores(scores, inside, DELTA, 0.95, GUESSINGS[:1])
    best = audit_scores(scores, inside, DELTA, 0.95)
    assert (one.guesses, one.correct) == (1000, 1000)
    assert best.epsilon == pytest.approx(
        epsilon_lower_bound(1000, 1000, 1000, DELTA, 1 - 0.05 / len(GUESSINGS))
    )
    assert best.epsilon < one.epsilon


# How long a run must be.


@given(st.integers(0, 50), st.integers(0, 60))
def test_longest_is_the_last_that_holds(most: int, limit: int) -> None:
    assert longest(most, lambda count: count <= limit) == min(most, limit)


def test_the_control_is_as_long_as_its_claim_can_be_shown() -> None:
    def accounted(steps: int) -> float:
        return epsilon_of([(0.32, 1.0, steps)], DELTA)

    # A round of three steps costs 5.1 and one step 3.4: more than the 100 canaries show that one
    # step draws for certain of 1000, and less than those of 4000 do.
    assert control_steps(6, 3, 1000, 0.32, DELTA, accounted) is None
    assert control_steps(6, 3, 4000, 0.32, DELTA, accounted) == 1
    assert control_steps(120, 3, 1000, 0.32, DELTA, lambda _: 2.0) == 120
    assert control_steps(120, 3, 1000, 0.32, DELTA, lambda _: 40.0) is None
    assert reachable(1000, 0.01, DELTA) == 0.0  # hardly a canary was drawn


# Figures.


def test_rates_and_areas_of_a_small_case() -> None:
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    inside = np.array([True, False, True, True, False, False])
    assert area(scores, inside) == pytest.approx(7 / 9)
    assert true_positive_rate(scores, inside, 0.1) == pytest.approx(1 / 3)
    assert true_positive_rate(scores, inside, 0.34) == 1.0
    with pytest.raises(ValueError, match="members and others"):
        true_positive_rate(scores, np.ones(6, np.bool_), 0.1)


def test_the_mean_has_students_interval() -> None:
    found = mean_interval(np.array([1.0, 2.0, 3.0]))
    # The 0.975 quantile for two degrees of freedom is 4.3027; the error is 1 over the root of 3.
    assert (found.value, found.low, found.high) == pytest.approx((2.0, -0.4841, 4.4841), abs=1e-4)


def test_the_bootstrap_covers_chance_where_there_is_nothing() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(10):
        # Scores that share what is particular to a model, and to a record.
        scores = generator.normal(size=(10, 1)) + generator.normal(size=(1, 30))
        scores = scores + generator.normal(size=(10, 30))
        found = two_way_bootstrap(area, scores, generator.random((10, 30)) < 0.5, generator)
        covered += found.low <= 0.5 <= found.high
    assert covered >= 8  # fewer than 8 of 10 once in ninety times


# Membership.


def test_ratios_find_what_shifts_with_membership_and_nothing_else() -> None:
    generator = np.random.default_rng(1)
    inside = generator.random((24, 80)) < 0.5
    noise = generator.normal(size=inside.shape) + 3 * generator.normal(size=80)
    told = likelihood_ratios(noise + 1.5 * inside, inside)
    # Two normal distributions 1.5 standard deviations apart: Phi(1.5 / sqrt(2)) = .856
    assert area(told.ravel(), inside.ravel()) == pytest.approx(0.856, abs=0.03)
    blind = likelihood_ratios(noise, inside)
    assert area(blind.ravel(), inside.ravel()) == pytest.approx(0.5, abs=0.04)


def test_a_record_that_no_other_model_saw_has_no_ratio() -> None:
    inside = np.array([[True, True], [False, True], [False, False]])
    ratios = likelihood_ratios(np.arange(6.0).reshape(3, 2), inside)
    assert ratios[0, 0] == 0.0
    assert np.isfinite(ratios).all()


def test_an_overfitted_model_gives_its_records_away_and_strangers_stay_unknown() -> None:
    setting, data = hospital("cleveland", weight_decay=0.0)
    generator = np.random.default_rng(0)
    shadows = train_shadows(
        replace(setting, local_steps=200),
        data.training,
        list(range(12)),
        data.holdout,
        range(60),
        models=10,
        rounds=1,
        generator=generator,
        on_progress=quiet,
    )
    scores = likelihood_ratios(shadows.confidences, shadows.inside)
    found = two_way_bootstrap(area, scores, shadows.inside, generator)
    assert found.low > 0.6
    coins = generator.random(shadows.outsiders.shape) < 0.5
    strangers = two_way_bootstrap(
        area, likelihood_ratios(shadows.outsiders, coins), coins, generator, 0.99
    )
    assert strangers.low <= 0.5 <= strangers.high


# Inversion.


def attempts(setting: Setting, data: Datasets, trials: int, **changed: Any) -> list[Attempt]:
    inverter = Inverter(setting, data.training, data.holdout)
    aimed = changed.pop("aimed", setting)
    generator = np.random.default_rng(2)
    how = {"batch_size": 1, "steps": 1, "iterations": 100, "by_quotient": True, **changed}
    found = [
        inverter.attempt(aimed, [index], generator=generator, **how) for index in range(trials)
    ]
    assert all(found)
    return [one for one in found if one is not None]


def correlation(found: list[Attempt]) -> float:
    return float(np.mean([one.attack.correlations.mean() for one in found]))


def test_one_record_through_the_sites_own_linear_model_is_found_exactly() -> None:
    setting, data = hospital()
    found = attempts(setting, data, 5)
    # float32 parameters hold the change of a step to about 1e-5
    assert max(one.attack.errors.max() for one in found) < 1e-3
    assert correlation(found) > 0.9999


def test_the_search_finds_a_record_through_a_linear_layer() -> None:
    setting, data = hospital()
    values = Inverter(setting, data.training, data.holdout).values
    aimed = control_setting(setting, values)
    found = attempts(setting, data, 3, aimed=aimed, by_quotient=False, iterations=150)
    assert correlation(found) > 0.95


def test_privacy_hides_the_record_that_the_quotient_finds_without_noise() -> None:
    setting, data = hospital()
    hidden = attempts(setting.with_noise(Noise(4.0, 1.0)), data, 12)
    assert abs(correlation(hidden)) < 0.3
    bare = attempts(setting.with_noise(Noise(0.0, 1.0)), data, 4)
    # Weight decay, which is not clipped, is all that stands between the quotient and the record.
    assert correlation(bare) > 0.99


def test_likeness_matches_records_in_any_order() -> None:
    true = torch.tensor([[1.0, 0.0, 2.0], [0.0, 4.0, 1.0], [3.0, 2.0, 5.0]])
    prior = Prior.of(true)
    found = likeness(true[[2, 0, 1]], true, prior)
    assert found.errors == pytest.approx(np.zeros(3), abs=1e-6)
    assert found.correlations == pytest.approx(np.ones(3))


# Canaries.


def canary_run(sigma: float, rounds: int = 3, **changed: Any) -> tuple[CanaryRun, Setting]:
    setting, data = hospital("cleveland", **changed)
    setting = setting.with_noise(Noise(sigma, 1.0))
    run = run_canaries(
        setting,
        data.training,
        list(range(setting.records)),
        canaries=600,
        rounds=rounds,
        generator=np.random.default_rng(11),
        on_progress=quiet,
    )
    return run, setting


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_privacy_stays_under_what_is_accounted_and_missing_noise_is_found(optimiser: str) -> None:
    sigma, rounds = 2.0, 3
    private, setting = canary_run(sigma, rounds, optimiser=optimiser)
    spent = (setting.sampling_rate, sigma, rounds * setting.local_steps)
    accounted = epsilon_of([spent], DELTA)
    assert 2.0 < accounted < 3.5
    shown = private.bound(DELTA, 0.95).epsilon
    assert 0.0 < shown < accounted  # something is shown, so the canaries are heard
    mutant, _ = canary_run(0.0, rounds, optimiser=optimiser)
    assert mutant.bound(DELTA, 0.95).epsilon > accounted


def test_half_the_noise_that_is_accounted_for_shows_in_the_scores() -> None:
    """A canary's weight moves by lr C / (q n) for each step that drew it, and by sigma times
    that, at random, in every step."""
    for sigma in (1.0, 2.0):
        run, setting = canary_run(sigma, 1, momentum=0.0, weight_decay=0.0)
        expected_batch = setting.sampling_rate * (setting.records + run.inside.sum())
        unit = setting.loop.learning_rate / round(expected_batch)
        out = run.scores[~run.inside]
        assert out.std() == pytest.approx(unit * sigma * np.sqrt(3), rel=0.15)
        drawn = run.scores[run.inside].mean() / unit
        assert drawn == pytest.approx(3 * setting.sampling_rate, abs=4 * sigma * np.sqrt(3 / 300))


def test_canaries_touch_nothing_but_their_own_weight() -> None:
    run, _ = canary_run(0.0, 1, momentum=0.0, weight_decay=0.0)
    assert (run.scores[~run.inside] == 0.0).all()
    assert (run.scores[run.inside] >= 0.0).all()


class Talkative(Tabular):
    """Its model returns more than a tensor."""

    def build_model(self) -> torch.nn.Module:
        inner = super().build_model()

        class Pair(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return self.inner(features), features

        return Pair()

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return super().loss(lambda features: model(features)[0], batch)  # type: ignore[arg-type]


def test_a_model_that_no_canary_can_follow_is_refused() -> None:
    setting, data = hospital()
    folder = shipped("demos") / "heart"
    task = Talkative(
        read_toml(folder / "heart.toml")["task"]["options"],
        {"path": str(folder / "switzerland.csv")},
    )
    with pytest.raises(TaskError, match="canaries need a model that returns a tensor"):
        run_canaries(
            replace(setting, task=task, noise=Noise(1.0, 1.0)),
            data.training,
            list(range(setting.records)),
            canaries=50,
            rounds=1,
            generator=np.random.default_rng(0),
            on_progress=quiet,
        )


# Rounds and report.


def test_rounds_are_those_of_the_trainer_and_repeat_byte_for_byte() -> None:
    setting, data = hospital()
    for noise in (None, Noise(1.0, 1.0)):
        aimed = setting.with_noise(noise)
        once, again = (
            list(train_rounds(aimed.learner(aimed.records), data.training, 3, 2, seed))
            for seed in (4, 4)
        )
        assert len(once) == 3
        for one, other in zip(once, again, strict=True):
            assert one.after.parameters.tobytes() == other.after.parameters.tobytes()
        assert once[0].after.parameters.tobytes() == once[1].before.parameters.tobytes()
        (strange, *_) = train_rounds(aimed.learner(aimed.records), data.training, 1, 2, 5)
        assert not np.array_equal(strange.after.parameters, once[0].after.parameters)


def test_too_few_records_are_refused(tmp_path: Path) -> None:
    folder = shipped("demos") / "heart"
    rows = (folder / "cleveland.csv").read_text(encoding="utf-8").splitlines()[:36]
    (tmp_path / "data.csv").write_text("\n".join(rows), encoding="utf-8")
    request = AuditRequest(
        opening=Open(
            task_kind="tabular",
            site="alpha",
            options=read_toml(folder / "heart.toml")["task"]["options"],
            data={"path": str(tmp_path / "data.csv"), "holdout_fraction": HOLDOUT_FRACTION},
            seed=0,
            device="cpu",
            minimum_records=2,
            task_class=None,
            task_path=None,
        ),
        rounds=1,
        local_steps=1,
        privacy=AuditedPrivacy(False, 8.0, DELTA, 1.0, 1.0),
        seed=0,
        quick=True,
    )
    with pytest.raises(DataError, match="hold-out records; an attack cannot be judged"):
        audit_site(request, lambda _: None)
    assert ADAPTER.validate_json(request.encode()) == request


@pytest.mark.slow
def test_what_a_task_does_not_allow_is_named_and_the_rest_is_tried() -> None:
    folder = shipped("demos") / "heart"
    options = read_toml(folder / "heart.toml")["task"]["options"]
    request = AuditRequest(
        opening=Open(
            task_kind="tabular",
            site="alpha",
            options={**options, "model": "mlp", "batch_norm": True},
            data={"path": str(folder / "hungary.csv"), "holdout_fraction": HOLDOUT_FRACTION},
            seed=0,
            device="cpu",
            minimum_records=2,
            task_class=None,
            task_path=None,
        ),
        rounds=5,
        local_steps=3,
        privacy=AuditedPrivacy(False, 8.0, DELTA, 4.0, 1.0),
        seed=0,
        quick=True,
    )
    found = audit_site(request, lambda _: None)
    assert found.terms is None
    assert any("use torch.nn.GroupNorm" in reason for reason in found.skipped)
    assert {one.attack for one in found.findings} == {"membership", "inversion"}
    assert not any(one.privacy for one in found.findings)
    in_force = replace(request, privacy=replace(request.privacy, in_force=True))
    with pytest.raises(ConfigurationError, match="GroupNorm"):
        audit_site(in_force, lambda _: None)


def report(passed: bool, exceeds: bool) -> SiteReport:
    finding = Finding(
        "canaries", "600 canaries", True, "epsilon, lower bound", 3.0, 3.0, None, 0.95, 2.0, exceeds
    )
    control = Control("membership", "overfitted", True, 0.55, 0.5, 0.6, "above 0.6", passed)
    return SiteReport(
        "alpha", "tabular", 50, 20, 11, 10, 3, 0, True, None, (finding,), (control,), ("x",), 1.0
    )


def test_a_failed_control_says_that_nothing_is_proved() -> None:
    failed = report(passed=False, exceeds=False)
    assert not failed.conclusive
    assert "proves nothing" in lines_of(failed)[-1]
    assert report(passed=True, exceeds=False).conclusive


def test_a_bound_above_what_is_accounted_is_said_loudly() -> None:
    broken = report(passed=True, exceeds=True)
    assert not broken.privacy_holds
    assert "ABOVE the accounted epsilon" in lines_of(broken)[-1]


def test_the_report_survives_json(tmp_path: Path) -> None:
    one = report(passed=True, exceeds=False)
    assert SiteReport.from_json(one.to_json()) == one


def test_canaries_are_compared_at_a_delta_at_which_they_can_show_something() -> None:
    def steps_at(delta: float) -> int | None:
        return control_steps(
            45, 3, 4000, 0.16, delta, lambda n: epsilon_of([(0.16, 2.0, n)], delta)
        )

    assert steps_at(1e-3) is None
    assert steps_at(MAX_CANARY_DELTA) == 45
