"""The audit of one site: every attack, with and without privacy, and the controls of each."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from p2pfed.errors import ConfigurationError, DataError, Problem, TrainingError
from p2pfed.training.audit.audited import FULL, QUICK, AuditedSite, Say
from p2pfed.training.audit.canary_findings import canaries
from p2pfed.training.audit.canary_plan import longest
from p2pfed.training.audit.inversion_findings import inversion
from p2pfed.training.audit.membership_findings import membership
from p2pfed.training.audit.report import SiteReport, Terms
from p2pfed.training.audit.request import AuditRequest
from p2pfed.training.audit.rounds import Noise, Setting
from p2pfed.training.loading import LoadedTask, load
from p2pfed.training.privacy import requirements
from p2pfed.training.privacy.accountant import epsilon_of
from p2pfed.training.privacy.preparing import PricedPreparation

MIN_RECORDS = 12


def audit_site(request: AuditRequest, say: Say) -> SiteReport:
    """Attack the site that ``request`` describes.

    :raises ConfigurationError: the site cannot be trained, or not with the privacy in force.
    :raises DataError: it has too few records for any attack to be judged.
    :raises TrainingError: the task's code failed.
    """
    started = time.monotonic()
    torch.set_num_threads(request.opening.threads)
    loaded = load(request.opening)
    _check_counts(loaded)
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
    site = AuditedSite(
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
    parts = [membership(site), inversion(site, skipped), canaries(site, skipped)]
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


def _check_counts(loaded: LoadedTask) -> None:
    counts = {"training": loaded.training_records, "hold-out": loaded.holdout_records}
    problems = [
        Problem(
            Path(loaded.request.site_file),
            "data",
            None,
            f"{count} {kind} records; an attack cannot be judged on fewer than {MIN_RECORDS}",
            "add records",
        )
        for kind, count in counts.items()
        if count < MIN_RECORDS
    ]
    if problems:
        raise DataError(problems)


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
    except (ConfigurationError, TrainingError) as error:
        if given.in_force:
            raise
        skipped.append(f"differential privacy: {error}")
        return None
    return private
