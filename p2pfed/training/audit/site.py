"""The audit of one site: every attack, with and without privacy, and the controls of each."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from p2pfed.errors import ConfigurationError, P2pfedError
from p2pfed.training.audit.canaries import run_canaries
from p2pfed.training.audit.canary_plan import control_steps, longest
from p2pfed.training.audit.inversion import (
    MAX_SOUGHT_RECORDS,
    Attempt,
    Inverter,
    control_setting,
)
from p2pfed.training.audit.membership import likelihood_ratios, train_shadows
from p2pfed.training.audit.report import Control, Finding, SiteReport, Terms
from p2pfed.training.audit.request import AuditRequest
from p2pfed.training.audit.rounds import Noise, Setting
from p2pfed.training.audit.statistics import (
    CONFIDENCE,
    area,
    mean_interval,
    true_positive_rate,
    two_way_bootstrap,
)
from p2pfed.training.loading import LoadedTask, load
from p2pfed.training.privacy import requirements
from p2pfed.training.privacy.accountant import epsilon_of
from p2pfed.training.privacy.preparing import PricedPreparation

Say = Callable[[str], None]

MAX_RECORDS = 400  # of a site that membership is inferred of; the others are trained on all the same
OVERFITTED_RECORDS = 12
NEGATIVE_CONFIDENCE = 0.99
POSITIVE_AREA = 0.6
EXACT_CORRELATION = 0.99
SOUGHT_CORRELATION = 0.9
SMALL_BATCH = 4


@dataclass(frozen=True)
class Effort:
    """How much an audit tries: it bounds its time.

    :ivar models: shadow models, each a target in its turn.
    :ivar shadow_steps: local steps of each at most.
    :ivar overfitting_steps: of the models that must give their records away.
    :ivar canary_steps: of a training run with canaries, at most.
    :ivar trials: deltas inverted for each case.
    :ivar iterations: of the search behind a delta.
    """

    models: int
    shadow_steps: int
    overfitting_steps: int
    canaries: int
    canary_steps: int
    trials: int
    iterations: int


FULL = Effort(32, 600, 600, 2000, 60, 12, 200)
QUICK = Effort(10, 30, 300, 1000, 15, 4, 40)
CONTROL_ITERATIONS = 150


@dataclass(frozen=True)
class _Site:
    """What the attacks share."""

    name: str
    plain: Setting
    private: Setting | None
    terms: Terms | None
    training: Dataset[Any]
    holdout: Dataset[Any]
    records: int
    others: int
    rounds: int
    effort: Effort
    seed: int
    say: Say

    def generator(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose.encode()])

    def heard(self, what: str, total: int) -> Callable[[int], None]:
        """Says how far it is, a few times."""
        every = max(1, -(-total // 4))

        def on_progress(done: int) -> None:
            if done % every == 0 or done == total:
                self.say(f"{self.name}: {what}: {done} of {total}")

        return on_progress

    @property
    def settings(self) -> list[tuple[Setting, int]]:
        """Each setting with the rounds that are tried under it."""
        found = [(self.plain, self.rounds)]
        if self.private is not None and self.terms is not None:
            most = max(1, self.effort.shadow_steps // self.plain.local_steps)
            found.append((self.private, min(self.terms.rounds, most)))
        return found


def audit_site(request: AuditRequest, say: Say) -> SiteReport:
    """Attack the site that ``request`` describes.

    :raises ConfigurationError: the site cannot be trained, or not with the privacy in force.
    :raises TrainingError: the task's code failed.
    """
    started = time.monotonic()
    torch.set_num_threads(request.opening.threads)
    loaded = load(request.opening)
    effort = QUICK if request.quick else FULL
    plain = _setting(request, loaded)
    most = max(1, effort.shadow_steps // plain.local_steps)
    rounds = min(request.rounds, most) if request.rounds else most
    skipped: list[str] = []
    terms = _terms(request, plain)
    private = None
    if terms.rounds:
        private = _private_setting(request, loaded, plain, skipped)
    else:
        skipped.append("differential privacy: the budget does not allow a single round")
    site = _Site(
        name=request.opening.site,
        plain=plain,
        private=private,
        terms=terms if private is not None else None,
        training=loaded.datasets.training,
        holdout=loaded.datasets.holdout,
        records=loaded.training_records,
        others=loaded.holdout_records,
        rounds=rounds,
        effort=effort,
        seed=request.seed,
        say=say,
    )
    parts = [_membership(site), _inversion(site, skipped), _canaries(site, skipped)]
    return SiteReport(
        site=site.name,
        task=request.opening.task_class or request.opening.task_kind,
        training_records=site.records,
        holdout_records=site.others,
        parameters=loaded.learner.schema.dimension,
        rounds=rounds,
        local_steps=plain.local_steps,
        seed=request.seed,
        quick=request.quick,
        terms=site.terms,
        findings=tuple(one for findings, _ in parts for one in findings),
        controls=tuple(one for _, controls in parts for one in controls),
        skipped=tuple(skipped),
        seconds=round(time.monotonic() - started, 1),
    )


def _setting(request: AuditRequest, loaded: LoadedTask) -> Setting:
    steps = request.opening.maximum_local_steps
    return Setting(
        task=loaded.learner.task,
        # A personal model never leaves the site.
        loop=loaded.learner.settings.model_copy(update={"ditto": 0.0}),
        device=loaded.learner.device,
        seed=request.opening.seed,
        local_steps=request.local_steps if steps is None else min(steps, request.local_steps),
        records=loaded.training_records,
        topology_file=Path(request.opening.topology_file),
    )


def _terms(request: AuditRequest, plain: Setting) -> Terms:
    """How many rounds the budget allows."""
    given = request.privacy
    spent: list[tuple[float, float, int]] = []
    if isinstance(plain.task, PricedPreparation):
        spend = plain.task.preparation_spend()
        if spend is not None and spend[0] > 0.0:
            spent.append((spend[1], spend[0], 1))

    def accounted(rounds: int) -> float:
        steps = (plain.sampling_rate, given.noise_multiplier, rounds * plain.local_steps)
        return epsilon_of([*spent, steps], given.delta)

    most = request.rounds or max(1, FULL.shadow_steps // plain.local_steps)
    rounds = longest(most, lambda count: accounted(count) <= given.epsilon)
    return Terms(
        in_force=given.in_force,
        noise_multiplier=given.noise_multiplier,
        clip_norm=given.clip_norm,
        delta=given.delta,
        budget_epsilon=given.epsilon,
        sampling_rate=plain.sampling_rate,
        rounds=rounds,
        accounted_epsilon=accounted(rounds) if rounds else 0.0,
    )


def _private_setting(
    request: AuditRequest, loaded: LoadedTask, plain: Setting, skipped: list[str]
) -> Setting | None:
    given = request.privacy
    private = plain.with_noise(Noise(given.noise_multiplier, given.clip_norm))
    opening = replace(
        request.opening,
        noise_multiplier=given.noise_multiplier,
        clip_norm=given.clip_norm,
        delta=given.delta,
    )
    try:
        requirements.check(private.learner(plain.records), loaded.datasets.training, opening)
    except ConfigurationError as error:
        if given.in_force:
            raise
        skipped.append(f"differential privacy: {error}")
        return None
    return private


def _membership(site: _Site) -> tuple[list[Finding], list[Control]]:
    effort, generator = site.effort, site.generator("membership")
    targets = generator.permutation(site.records)[:MAX_RECORDS].tolist()
    outsiders = generator.permutation(site.others)[:MAX_RECORDS].tolist()
    train = partial(
        train_shadows,
        records=site.training,
        outsiders=site.holdout,
        outsider_indices=outsiders,
        models=effort.models,
        generator=generator,
    )
    findings, controls = [], []
    for setting, rounds in site.settings:
        private = setting.noise is not None
        words = "shadow models " + ("with" if private else "without") + " privacy"
        heard = site.heard(words, effort.models)
        shadows = train(setting, indices=targets, rounds=rounds, on_progress=heard)
        scores = likelihood_ratios(shadows.confidences, shadows.inside)
        figures = {
            "AUC": (area, 0.5),
            "TPR at 10 % FPR": (partial(true_positive_rate, false_positive_rate=0.1), 0.1),
            "TPR at 1 % FPR": (partial(true_positive_rate, false_positive_rate=0.01), 0.01),
        }
        for name, (figure, chance) in figures.items():
            found = two_way_bootstrap(figure, scores, shadows.inside, generator)
            findings.append(
                Finding(
                    "membership",
                    f"model after {rounds} rounds on half the records",
                    private,
                    name,
                    found.value,
                    found.low,
                    found.high,
                    found.confidence,
                    chance,
                    found.low > chance,
                )
            )
        if not private:
            controls.append(_strangers(shadows.outsiders, generator))
    overfitted = replace(
        site.plain,
        loop=site.plain.loop.model_copy(update={"weight_decay": 0.0}),
        local_steps=effort.overfitting_steps,
    )
    heard = site.heard("overfitted models", effort.models)
    few = targets[:OVERFITTED_RECORDS]
    shadows = train(overfitted, indices=few, rounds=1, on_progress=heard)
    scores = likelihood_ratios(shadows.confidences, shadows.inside)
    found = two_way_bootstrap(area, scores, shadows.inside, generator)
    controls.append(
        Control(
            "membership",
            f"AUC on models overfitted to half of {len(few)} records",
            True,
            found.value,
            found.low,
            found.high,
            f"interval above {POSITIVE_AREA}",
            found.low > POSITIVE_AREA,
        )
    )
    return findings, controls


def _strangers(confidences: Any, generator: np.random.Generator) -> Control:
    """Records that no model was trained on, told apart by coins that no model knows of."""
    coins = generator.random(confidences.shape) < 0.5
    scores = likelihood_ratios(confidences, coins)
    found = two_way_bootstrap(area, scores, coins, generator, NEGATIVE_CONFIDENCE)
    return Control(
        "membership",
        "AUC of non-members against non-members",
        False,
        found.value,
        found.low,
        found.high,
        f"0.5 within its {NEGATIVE_CONFIDENCE:.0%} interval",
        found.low <= 0.5 <= found.high,
    )


@dataclass(frozen=True)
class _Case:
    words: str
    setting: Setting
    batch_size: int
    steps: int
    pool: int
    trials: int
    by_quotient: bool = True
    iterations: int | None = None


def _attempts(site: _Site, inverter: Inverter, case: _Case) -> list[Attempt]:
    generator = site.generator(f"inversion {case.words} {case.setting.noise}")
    on_progress = site.heard(f"inverting deltas of {case.words}", case.trials)
    found = []
    for trial in range(case.trials):
        indices = generator.permutation(site.records)[: case.pool].tolist()
        attempt = inverter.attempt(
            case.setting,
            indices,
            batch_size=case.batch_size,
            steps=case.steps,
            iterations=case.iterations or site.effort.iterations,
            generator=generator,
            by_quotient=case.by_quotient,
        )
        if attempt is not None:
            found.append(attempt)
        on_progress(trial + 1)
    return found


def _inversion(site: _Site, skipped: list[str]) -> tuple[list[Finding], list[Control]]:
    try:
        inverter = Inverter(site.plain, site.training, site.holdout)
    except P2pfedError as error:
        skipped.append(f"inversion: {error}")
        return [], []
    effort = site.effort
    linear = control_setting(site.plain, inverter.values)
    controls = []
    for words, by_quotient, needed in (
        ("one record through a linear layer, by the quotient", True, EXACT_CORRELATION),
        ("one record through a linear layer, by search", False, SOUGHT_CORRELATION),
    ):
        case = _Case(words, linear, 1, 1, 1, effort.trials, by_quotient, CONTROL_ITERATIONS)
        values = np.concatenate([a.attack.correlations for a in _attempts(site, inverter, case)])
        found = mean_interval(values)
        controls.append(
            Control(
                "inversion",
                f"correlation with the true record: {words}",
                True,
                found.value,
                found.low,
                found.high,
                f"at least {needed}",
                found.value >= needed,
            )
        )
    findings = []
    for setting, _ in site.settings:
        for case in _cases(site, setting):
            attempts = _attempts(site, inverter, case)
            if attempts:
                findings.append(_inverted(site, case, attempts))
    return findings, controls


def _cases(site: _Site, setting: Setting) -> list[_Case]:
    private, trials, steps = setting.noise is not None, site.effort.trials, setting.local_steps
    few = max(1, trials // 3)
    own = min(setting.loop.batch_size, site.records, max(1, MAX_SOUGHT_RECORDS // steps))
    # Under privacy every step draws from all records by itself.
    pool = site.records if private else min(own * steps, site.records)
    return [
        _Case("1 record, 1 step", setting, 1, 1, 1, trials),
        _Case(
            f"{SMALL_BATCH} records, 1 step", setting, SMALL_BATCH, 1, SMALL_BATCH, few, False
        ),
        _Case(f"{own} records a step, {steps} steps", setting, own, steps, pool, 2, False),
    ]


def _inverted(site: _Site, case: _Case, attempts: list[Attempt]) -> Finding:
    attack = np.concatenate([one.attack.correlations for one in attempts])
    guess = np.concatenate([one.guess for one in attempts])
    found, gained = mean_interval(attack), mean_interval(attack - guess)
    return Finding(
        "inversion",
        f"delta of {case.words}",
        case.setting.noise is not None,
        "correlation with record",
        found.value,
        found.low,
        found.high,
        found.confidence,
        float(guess.mean()),
        gained.low > 0.0 and found.low > 0.0,
    )


def _canaries(site: _Site, skipped: list[str]) -> tuple[list[Finding], list[Control]]:
    if site.private is None or site.terms is None or site.private.noise is None:
        skipped.append("canaries: they need differential privacy")
        return [], []
    terms, steps_a_round = site.terms, site.private.local_steps
    generator = site.generator("canaries")
    canaries = site.effort.canaries

    def accounted(steps: int) -> float:
        spent = (terms.sampling_rate, terms.noise_multiplier, steps)
        return epsilon_of([spent], terms.delta)

    most = max(1, min(terms.rounds, site.effort.canary_steps // steps_a_round))
    known = control_steps(
        most * steps_a_round, steps_a_round, canaries, terms.sampling_rate, terms.delta, accounted
    )
    lengths = sorted({most * steps_a_round} | ({known} if known else set()))

    def bound(setting: Setting, steps: int, words: str) -> Any:
        rounds, left = divmod(steps, steps_a_round)
        rounds, each = (rounds, steps_a_round) if not left else (1, steps)
        run = run_canaries(
            replace(setting, local_steps=each),
            site.training,
            list(range(site.records)),
            canaries=canaries,
            rounds=rounds,
            generator=generator,
            on_progress=site.heard(words, rounds),
        )
        return run.bound(terms.delta, CONFIDENCE)

    findings = []
    for steps in lengths:
        found = bound(site.private, steps, f"{canaries} canaries, {steps} steps")
        findings.append(
            Finding(
                "canaries",
                f"{canaries} canaries, {steps} steps",
                True,
                "epsilon, lower bound",
                found.epsilon,
                found.epsilon,
                None,
                CONFIDENCE,
                accounted(steps),
                found.epsilon > accounted(steps),
            )
        )
    if known is None:
        what, value, claimed = "no run is short enough to tell missing noise", 0.0, accounted(1)
    else:
        mutant = site.private.with_noise(replace(site.private.noise, noise_multiplier=0.0))
        what = f"epsilon of {known} steps without the noise that is accounted for"
        value = bound(mutant, known, "canaries without noise").epsilon
        claimed = accounted(known)
    control = Control(
        "canaries",
        what,
        True,
        value,
        value,
        None,
        f"above the accounted {claimed:.3f}",
        value > claimed,
    )
    return findings, [control]
