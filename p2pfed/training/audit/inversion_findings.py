"""Gradient inversion against a site, and its controls."""

from dataclasses import dataclass

import numpy as np

from p2pfed.errors import TrainingError
from p2pfed.training.audit.audited import AuditedSite
from p2pfed.training.audit.inversion import Attempt, Inverter, control_setting
from p2pfed.training.audit.report import Control, Finding
from p2pfed.training.audit.rounds import Setting
from p2pfed.training.audit.statistics import mean_interval

MAX_SOUGHT_RECORDS = 256  # at once; bounds memory and time
SMALL_BATCH = 4
OWN_ROUND_TRIALS = 2
CONTROL_ITERATIONS = 150
EXACT_CORRELATION = 0.99
SOUGHT_CORRELATION = 0.9


@dataclass(frozen=True)
class _Case:
    """Deltas of one kind.

    :ivar pool: records that the round is trained on.
    """

    words: str
    setting: Setting
    batch_size: int
    steps: int
    pool: int
    trials: int
    by_quotient: bool


def inversion(site: AuditedSite, skipped: list[str]) -> tuple[list[Finding], list[Control]]:
    """What cannot be tried on this task goes to ``skipped``, with the reason."""
    try:
        inverter = Inverter(site.plain, site.training, site.holdout)
    except TrainingError as error:
        skipped.append(f"inversion: {error}")
        return [], []
    findings = []
    for setting, _ in site.settings:
        for case in _cases(site, setting):
            try:  # batch norm, for one, cannot be trained on one record
                attempts = _attempts(site, inverter, case, site.effort.iterations)
            except TrainingError as error:
                skipped.append(f"inversion of a delta of {case.words}: {error}")
                continue
            if attempts:
                findings.append(_finding(case, attempts))
    return findings, _controls(site, inverter)


def _cases(site: AuditedSite, setting: Setting) -> list[_Case]:
    trials, steps = site.effort.trials, setting.local_steps
    own = min(setting.loop.batch_size, site.records, max(1, MAX_SOUGHT_RECORDS // steps))
    # Under privacy every step draws from all records by itself.
    pool = site.records if setting.noise is not None else min(own * steps, site.records)
    few = f"{SMALL_BATCH} records, 1 step"
    return [
        _Case("1 record, 1 step", setting, 1, 1, 1, trials, True),
        _Case(few, setting, SMALL_BATCH, 1, SMALL_BATCH, max(1, trials // 3), False),
        _Case(f"{own} records a step, {steps} steps", setting, own, steps, pool,
              OWN_ROUND_TRIALS, False),
    ]  # fmt: skip


def _attempts(site: AuditedSite, inverter: Inverter, case: _Case, iterations: int) -> list[Attempt]:
    generator = site.generator(f"inversion {case.words} {case.setting.noise}")
    words = f"inverting deltas of {case.words}"
    on_progress = site.heard(
        words if case.setting.noise is None else f"{words}, noised", case.trials
    )
    found = []
    for trial in range(case.trials):
        attempt = inverter.attempt(
            case.setting,
            generator.permutation(site.records)[: case.pool].tolist(),
            batch_size=case.batch_size,
            steps=case.steps,
            iterations=iterations,
            generator=generator,
            by_quotient=case.by_quotient,
        )
        if attempt is not None:
            found.append(attempt)
        on_progress(trial + 1)
    return found


def _finding(case: _Case, attempts: list[Attempt]) -> Finding:
    """Each record counts as one; those of one delta are not quite independent."""
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


def _controls(site: AuditedSite, inverter: Inverter) -> list[Control]:
    """Records of the site that each attack must find: one at a time, through a linear layer."""
    linear = control_setting(site.plain, inverter.values)
    controls = []
    for words, by_quotient, needed in (
        ("one record through a linear layer, by the quotient", True, EXACT_CORRELATION),
        ("one record through a linear layer, by search", False, SOUGHT_CORRELATION),
    ):
        case = _Case(words, linear, 1, 1, 1, site.effort.trials, by_quotient)
        attempts = _attempts(site, inverter, case, CONTROL_ITERATIONS)
        found = mean_interval(np.concatenate([one.attack.correlations for one in attempts]))
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
    return controls
