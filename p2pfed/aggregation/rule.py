"""What a rule is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from p2pfed.aggregation.rows import Decision, Rows
from p2pfed.rules_catalogue import RuleDescription


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a rule is told beside the models.

    ``byzantine``: b, no more than the rule tolerates among these rows. ``progress``: the
    fraction of the planned rounds that is done, in [0, 1]. ``options``: a value for every
    option of the rule's description.
    """

    byzantine: int
    progress: float
    options: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Rule:
    """``apply`` writes the result, and says what it did."""

    description: RuleDescription
    apply: Callable[[Rows, Parameters], Decision]
