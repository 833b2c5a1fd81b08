"""What an audit found at one site, and whether it may be believed. Imports no torch."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA_VERSION = 1

Attack = Literal["membership", "inversion", "canaries"]


@dataclass(frozen=True)
class Finding:
    """One attack under one setting.

    :ivar privacy: with differential privacy.
    :ivar figure: what ``value`` is; ``low`` to ``high`` is its interval at ``confidence``, without
        an end where ``high`` is None.
    :ivar reference: what the figure is held against: chance, a guess without the delta, or the
        accounted epsilon.
    :ivar exceeds: the figure is above the reference by more than chance explains.
    """

    attack: Attack
    setting: str
    privacy: bool
    figure: str
    value: float
    low: float
    high: float | None
    confidence: float
    reference: float
    exceeds: bool


@dataclass(frozen=True)
class Control:
    """A case whose outcome is known; where it does not come out, the attack's code proves nothing.

    :ivar positive: the attack must succeed; otherwise it must be at chance.
    :ivar needed: what ``value`` had to be, in words.
    """

    attack: Attack
    what: str
    positive: bool
    value: float
    low: float
    high: float | None
    needed: str
    passed: bool


@dataclass(frozen=True)
class Terms:
    """Differential privacy that was audited.

    :ivar in_force: the site trains with it; otherwise it is what the federation's bounds would
        make of it, tried for comparison.
    :ivar rounds: that the budget, or the federation, allows; the audit may try fewer.
    :ivar accounted_epsilon: of these rounds.
    """

    in_force: bool
    noise_multiplier: float
    clip_norm: float
    delta: float
    budget_epsilon: float
    sampling_rate: float
    rounds: int
    accounted_epsilon: float


@dataclass(frozen=True)
class SiteReport:
    """
    :ivar rounds: tried without privacy.
    :ivar skipped: what was not tried, and why.
    """

    site: str
    task: str
    training_records: int
    holdout_records: int
    parameters: int
    rounds: int
    local_steps: int
    seed: int
    quick: bool
    terms: Terms | None
    findings: tuple[Finding, ...]
    controls: tuple[Control, ...]
    skipped: tuple[str, ...]
    seconds: float

    @property
    def conclusive(self) -> bool:
        """Every control came out."""
        return bool(self.controls) and all(control.passed for control in self.controls)

    @property
    def privacy_holds(self) -> bool:
        """No canary bound lies above what the accountant says was spent."""
        return not any(one.attack == "canaries" and one.exceeds for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "conclusive": self.conclusive,
            "privacy_holds": self.privacy_holds,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "SiteReport":
        """:raises KeyError: a field is missing."""
        fields = {name: document[name] for name in cls.__dataclass_fields__}
        return cls(
            **{
                **fields,
                "terms": Terms(**fields["terms"]) if fields["terms"] else None,
                "findings": tuple(Finding(**one) for one in fields["findings"]),
                "controls": tuple(Control(**one) for one in fields["controls"]),
                "skipped": tuple(fields["skipped"]),
            }
        )


def lines_of(report: SiteReport) -> list[str]:
    """The report as an operator reads it."""
    lines = [
        f"site {report.site}: task {report.task}, {report.parameters} parameters, "
        f"{report.training_records} training and {report.holdout_records} hold-out records, "
        f"up to {report.rounds} rounds of {report.local_steps} steps",
        _terms_line(report.terms),
        "",
        f"{'attack':10} {'against':50} {'privacy':8} {'figure':24} "
        f"{'value [interval]':24} {'held against':>12}",
    ]
    for one in report.findings:
        interval = f"{one.value:.3f} [{one.low:.3f}, {_shown(one.high)}]"
        lines.append(
            f"{one.attack:10} {one.setting:50} {'with' if one.privacy else 'without':8} "
            f"{one.figure:24} {interval:24} {one.reference:12.3f}{'  above' if one.exceeds else ''}"
        )
    lines += ["", "controls"]
    for control in report.controls:
        kind = "must succeed" if control.positive else "must fail"
        interval = f"{control.value:.3f} [{control.low:.3f}, {_shown(control.high)}]"
        state = "passed" if control.passed else "FAILED"
        lines.append(
            f"{state}  {control.attack}, {kind}: {control.what}: {interval}, "
            f"needed: {control.needed}"
        )
    lines += [f"not tried: {reason}" for reason in report.skipped]
    return [*lines, "", *_conclusion(report)]


def _shown(bound: float | None) -> str:
    return "-" if bound is None else f"{bound:.3f}"


def _terms_line(terms: Terms | None) -> str:
    if terms is None:
        return "differential privacy: could not be tried"
    state = "in force at this site" if terms.in_force else "not in force; tried for comparison"
    return (
        f"differential privacy: {state}: sigma {terms.noise_multiplier:g}, "
        f"clip {terms.clip_norm:g}, sampling rate {terms.sampling_rate:.3g}; {terms.rounds} rounds "
        f"cost epsilon {terms.accounted_epsilon:.3f} of {terms.budget_epsilon:g} at delta "
        f"{terms.delta:g}"
    )


def _conclusion(report: SiteReport) -> list[str]:
    if not report.conclusive:
        return ["A control did not come out: this audit proves nothing."]
    words = (
        f"{one.attack} ({one.setting}, {'with' if one.privacy else 'without'} privacy)"
        for one in report.findings
        if one.exceeds and one.attack != "canaries"
    )
    found = list(dict.fromkeys(words))  # an attack with several figures is named once
    lines = [
        "Attacks that learned something: " + ("; ".join(found) if found else "none of those tried")
    ]
    if not report.privacy_holds:
        lines.append(
            "The canary bound is ABOVE the accounted epsilon: training is not as private as it is "
            "accounted. Stop it, and report this."
        )
    return lines
