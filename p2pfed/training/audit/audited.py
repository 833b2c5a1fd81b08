"""The site under audit, and how much is tried."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from p2pfed.training.audit.report import Terms
from p2pfed.training.audit.rounds import Setting

Say = Callable[[str], None]


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


FULL = Effort(32, 600, 600, 4000, 45, 12, 200)
QUICK = Effort(10, 30, 300, 4000, 15, 4, 40)


@dataclass(frozen=True)
class AuditedSite:
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
