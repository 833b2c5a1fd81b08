"""Membership inference against a site, and its controls."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from p2pfed.training.audit.audited import AuditedSite
from p2pfed.training.audit.membership import Shadows, likelihood_ratios, train_shadows
from p2pfed.training.audit.report import Control, Finding
from p2pfed.training.audit.rounds import Setting, held_at_once
from p2pfed.training.audit.statistics import (
    BoolArray,
    FloatArray,
    area,
    true_positive_rate,
    two_way_bootstrap,
)

MAX_RECORDS = 400  # whose membership is inferred
OVERFITTED_RECORDS = 16
NEGATIVE_CONFIDENCE = 0.99
POSITIVE_AREA = 0.6

# By name the figure, and what it is by chance.
FIGURES: dict[str, tuple[Callable[[FloatArray, BoolArray], float], float]] = {
    "AUC": (area, 0.5),
    "TPR at 10 % FPR": (partial(true_positive_rate, false_positive_rate=0.1), 0.1),
    "TPR at 1 % FPR": (partial(true_positive_rate, false_positive_rate=0.01), 0.01),
}


def membership(site: AuditedSite) -> tuple[list[Finding], list[Control]]:
    """:raises TrainingError: a shadow model could not be trained."""
    generator = site.generator("membership")
    task, most = site.plain.task, min(site.records, MAX_RECORDS)
    targets = generator.permutation(site.records)[: held_at_once(task, site.training, most)]
    findings, controls = [], []
    hardest: Sequence[int] = []
    for setting, rounds in site.settings:  # without privacy first
        private = setting.noise is not None
        words = "shadow models " + ("with" if private else "without") + " privacy"
        shadows = _train(site, setting, targets.tolist(), rounds, words, generator)
        against = f"model after {rounds} rounds on half the records"
        findings += _findings(shadows, against, private, generator)
        if not private:
            controls.append(_strangers(shadows.outsiders, generator))
            hardest = targets[_hardest(shadows)[:OVERFITTED_RECORDS]].tolist()
    return findings, [*controls, _overfitted(site, hardest)]


def _train(
    site: AuditedSite,
    setting: Setting,
    targets: Sequence[int],
    rounds: int,
    words: str,
    generator: np.random.Generator,
) -> Shadows:
    outsiders = held_at_once(setting.task, site.holdout, min(site.others, MAX_RECORDS))
    return train_shadows(
        setting,
        site.training,
        targets,
        site.holdout,
        range(outsiders),
        models=site.effort.models,
        rounds=rounds,
        generator=generator,
        on_progress=site.heard(words, site.effort.models),
    )


def _findings(
    shadows: Shadows, against: str, private: bool, generator: np.random.Generator
) -> list[Finding]:
    scores = likelihood_ratios(shadows.confidences, shadows.inside)
    findings = []
    for name, (figure, chance) in FIGURES.items():
        found = two_way_bootstrap(figure, scores, shadows.inside, generator)
        findings.append(
            Finding(
                "membership",
                against,
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
    return findings


def _strangers(confidences: FloatArray, generator: np.random.Generator) -> Control:
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


def _hardest(shadows: Shadows) -> NDArray[np.int64]:
    """Records in the order of how badly models tell them that were not trained on them."""
    out = ~shadows.inside
    means = np.where(out, shadows.confidences, 0.0).sum(0) / np.maximum(out.sum(0), 1)
    return np.argsort(np.where(out.any(0), means, np.inf), kind="stable")


def _overfitted(site: AuditedSite, few: Sequence[int]) -> Control:
    """The same attack where it must succeed: many steps on a handful of records, those of the site
    that a model gets wrong unless it has seen them."""
    generator = site.generator("overfitted")
    loop = site.plain.loop.model_copy(update={"weight_decay": 0.0})
    setting = replace(site.plain, loop=loop, local_steps=site.effort.overfitting_steps)
    shadows = _train(site, setting, few, 1, "overfitted models", generator)
    scores = likelihood_ratios(shadows.confidences, shadows.inside)
    found = two_way_bootstrap(area, scores, shadows.inside, generator)
    return Control(
        "membership",
        f"AUC on models overfitted to half of {len(few)} hard records",
        True,
        found.value,
        found.low,
        found.high,
        f"interval above {POSITIVE_AREA}",
        found.low > POSITIVE_AREA,
    )
