"""The canary bound of a site's private training, and its control."""

from dataclasses import dataclass, replace

import numpy as np

from p2pfed.errors import TrainingError
from p2pfed.training.audit.audited import AuditedSite
from p2pfed.training.audit.canaries import run_canaries
from p2pfed.training.audit.canary_plan import control_steps
from p2pfed.training.audit.report import Control, Finding, Terms
from p2pfed.training.audit.rounds import Setting
from p2pfed.training.audit.statistics import CONFIDENCE
from p2pfed.training.privacy.accountant import epsilon_of

# The theorem's term in delta outweighs thousands of canaries well below a site's delta. Accounting
# in Renyi divergences holds at every delta, so both sides are compared at a smaller one there.
MAX_CANARY_DELTA = 1e-5


@dataclass(frozen=True)
class _Canaries:
    site: AuditedSite
    terms: Terms
    generator: np.random.Generator

    def accounted(self, steps: int) -> float:
        spent = (self.terms.sampling_rate, self.terms.noise_multiplier, steps)
        return epsilon_of([spent], self.delta)

    @property
    def delta(self) -> float:
        """At which both the bound and the account are taken."""
        return min(self.terms.delta, MAX_CANARY_DELTA)

    def bound(self, setting: Setting, steps: int, words: str) -> float:
        """What one run of so many steps shows to be spent at least."""
        rounds, left = divmod(steps, setting.local_steps)
        if left:  # less than a round
            rounds, setting = 1, replace(setting, local_steps=steps)
        run = run_canaries(
            setting,
            self.site.training,
            list(range(self.site.records)),
            canaries=self.site.effort.canaries,
            rounds=rounds,
            generator=self.generator,
            on_progress=self.site.heard(f"rounds with canaries, {words}", rounds),
        )
        return run.bound(self.delta, CONFIDENCE).epsilon


def canaries(site: AuditedSite, skipped: list[str]) -> tuple[list[Finding], list[Control]]:
    """The bound must lie under what is accounted, and over it where the noise is left out.

    With few canaries little can be shown: where the training is accounted higher than that, a
    shorter run is tried as well, on which missing noise must show. Nothing, and why in ``skipped``,
    where the task calls its model in a way that no canary can follow.
    """
    private, terms = site.private, site.terms
    if private is None or terms is None or private.noise is None:
        skipped.append("canaries: they need differential privacy")
        return [], []
    audit = _Canaries(site, terms, site.generator("canaries"))
    each = private.local_steps
    most = each * max(1, min(terms.rounds, site.effort.canary_steps // each))
    known = control_steps(
        most, each, site.effort.canaries, terms.sampling_rate, audit.delta, audit.accounted
    )
    try:
        findings = [
            _finding(audit, private, steps)
            for steps in sorted({most} | ({known} if known else set()))
        ]
        return findings, [_control(audit, private, known)]
    except TrainingError as error:
        skipped.append(f"canaries: {error}")
        return [], []


def _finding(audit: _Canaries, private: Setting, steps: int) -> Finding:
    bound, accounted = audit.bound(private, steps, "with noise"), audit.accounted(steps)
    return Finding(
        "canaries",
        f"{audit.site.effort.canaries} canaries, {steps} steps, delta {audit.delta:g}",
        True,
        "epsilon, lower bound",
        bound,
        bound,
        None,
        CONFIDENCE,
        accounted,
        bound > accounted,
    )


def _control(audit: _Canaries, private: Setting, steps: int | None) -> Control:
    """Training that clips and samples and adds no noise, accounted as if it did."""
    assert private.noise is not None  # noqa: S101 - asked before
    if steps is None:
        what, bound, accounted = "no run tells missing noise", 0.0, audit.accounted(1)
    else:
        what = f"epsilon of {steps} steps without the noise that is accounted for"
        mutant = private.with_noise(replace(private.noise, noise_multiplier=0.0))
        bound, accounted = audit.bound(mutant, steps, "without noise"), audit.accounted(steps)
    return Control(
        "canaries",
        what,
        True,
        bound,
        bound,
        None,
        f"above the accounted {accounted:.3f}",
        bound > accounted,
    )
