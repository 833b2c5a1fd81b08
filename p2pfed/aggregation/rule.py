"""What a rule is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from p2pfed.aggregation.rows import Decision, Mask, Rows, nothing
from p2pfed.rules_catalogue import RuleDescription


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a rule is told beside the models.

    ``byzantine``: b, no more than the rule tolerates among these rows. ``progress``: the
    fraction of the planned rounds that is done, in [0, 1]. ``options``: a value for every
    option of the rule's description. ``returning``, shape (rows - 1,): rows that a rule which
    clips lets pull by at least ``floor``, a distance, however far away they are.
    """

    byzantine: int
    progress: float
    options: Mapping[str, float]
    returning: Mask = field(default_factory=nothing)
    floor: float = 0.0


@dataclass(frozen=True, slots=True)
class Rule:
    """``apply`` writes the result, and says what it did."""

    description: RuleDescription
    apply: Callable[[Rows, Parameters], Decision]
