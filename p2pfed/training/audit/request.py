"""What the audit's process is asked. Imports no torch."""

from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from p2pfed.training.frames import Open


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class AuditedPrivacy:
    """Differential privacy to audit; see :class:`p2pfed.privacy_terms.PrivacyTerms`.

    :ivar in_force: the site trains with it.
    """

    in_force: bool
    epsilon: float
    delta: float
    noise_multiplier: float
    clip_norm: float


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class AuditRequest:
    """
    :ivar opening: what the daemon would tell its trainer, without privacy.
    :ivar rounds: of the federation; 0: until stopped.
    :ivar quick: fewer models, rounds and trials: wider intervals.
    """

    opening: Open
    rounds: Annotated[int, Field(ge=0)]
    local_steps: Annotated[int, Field(ge=1)]
    privacy: AuditedPrivacy
    seed: Annotated[int, Field(ge=0)]
    quick: bool

    def encode(self) -> bytes:
        return ADAPTER.dump_json(self)


ADAPTER = TypeAdapter(AuditRequest)
