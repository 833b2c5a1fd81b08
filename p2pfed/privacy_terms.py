"""The differential privacy that holds at a site: the federation's bounds and its own file."""

from collections.abc import Callable
from dataclasses import dataclass

from p2pfed.config import Site
from p2pfed.errors import ConfigurationError, Problem
from p2pfed.topology import Topology


@dataclass(frozen=True)
class PrivacyTerms:
    """Under which a site trains with differential privacy.

    :ivar epsilon: the budget of the whole training at ``delta``.
    :ivar noise_multiplier: standard deviation of the noise over ``clip_norm``.
    :ivar clip_norm: 2-norm to which each record's gradient is clipped.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    clip_norm: float


def privacy_terms(site: Site, topology: Topology) -> PrivacyTerms | None:
    """What holds at ``site``; None where it trains without differential privacy.

    A site may only be stricter than the federation: less epsilon and delta, more noise, a
    smaller clipping norm. What its file leaves out is the federation's bound.

    :raises ConfigurationError: with everything in the site file that is weaker than the topology
        file allows.
    """
    own, common = site.file.privacy, topology.file.privacy
    if own.differential_privacy is False and common.differential_privacy:
        raise ConfigurationError(
            [
                Problem(
                    site.path,
                    "privacy.differential_privacy",
                    "false",
                    f"{topology.path} has privacy.differential_privacy = true",
                    "leave it out, or write true; a site may only be stricter than its federation",
                )
            ]
        )
    if not (own.differential_privacy or common.differential_privacy):
        return None
    problems: list[Problem] = []

    def bounded(
        key: str,
        bound_key: str,
        value: float | None,
        bound: float,
        is_weaker: Callable[[float, float], bool],
    ) -> float:
        if value is None:
            return bound
        if is_weaker(value, bound):
            problems.append(
                Problem(
                    site.path,
                    f"privacy.{key}",
                    f"{value:g}",
                    f"weaker than privacy.{bound_key} = {bound:g} of {topology.path}",
                    f"write {key} = {bound:g}, or leave it out; a site may only be stricter than "
                    "its federation",
                )
            )
        return value

    terms = PrivacyTerms(
        bounded("epsilon", "maximum_epsilon", own.epsilon, common.maximum_epsilon, float.__gt__),
        bounded("delta", "maximum_delta", own.delta, common.maximum_delta, float.__gt__),
        bounded(
            "noise_multiplier",
            "minimum_noise_multiplier",
            own.noise_multiplier,
            common.minimum_noise_multiplier,
            float.__lt__,
        ),
        bounded(
            "clip_norm",
            "maximum_clip_norm",
            own.clip_norm,
            common.maximum_clip_norm,
            float.__gt__,
        ),
    )
    if problems:
        raise ConfigurationError(problems)
    return terms
