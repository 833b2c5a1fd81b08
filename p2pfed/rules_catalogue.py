"""The aggregation rules by name: what each is, and what it needs to hold.

Apart from the rules' own code, so that a topology file can be checked without loading it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class RuleDescription:
    """``tolerates(k)`` is the largest number of Byzantine neighbours among k under which the
    rule's own guarantee holds; ``asks_for_b`` whether it needs to be told that number."""

    name: str
    summary: str
    asks_for_b: bool
    tolerates: Callable[[int], int]


def _minority_of_neighbours(degree: int) -> int:
    return max(0, (degree - 1) // 2)


def _minority_with_self(degree: int) -> int:
    return degree // 2


RULES: Mapping[str, RuleDescription] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            RuleDescription(
                "mean",
                "gossip averaging; no protection at all",
                asks_for_b=False,
                tolerates=lambda _: 0,
            ),
            RuleDescription(
                "median_clipping",
                "gossip averaging in which no neighbour pulls further than the median one",
                asks_for_b=False,
                tolerates=_minority_of_neighbours,
            ),
            RuleDescription(
                "coordinate_median",
                "the median of each parameter; biased where sites' data differ",
                asks_for_b=False,
                tolerates=_minority_with_self,
            ),
            RuleDescription(
                "geometric_median",
                "the point of least summed distance",
                asks_for_b=False,
                tolerates=_minority_with_self,
            ),
            RuleDescription(
                "trimmed_mean",
                "the mean of each parameter without the b highest and b lowest",
                asks_for_b=True,
                tolerates=_minority_with_self,
            ),
            RuleDescription(
                "clipped_gossip",
                "gossip averaging clipped at the (k-2b)-th smallest distance",
                asks_for_b=True,
                tolerates=_minority_of_neighbours,
            ),
        )
    }
)

DEFAULT_RULE = "median_clipping"


def precondition(rule: str, degree: int, byzantine_neighbours: int) -> str | None:
    """Why ``rule`` cannot hold with ``byzantine_neighbours`` among ``degree`` neighbours, in a
    sentence for an operator; None where it can."""
    most = RULES[rule].tolerates(degree)
    if byzantine_neighbours <= most:
        return None
    return (
        f"{rule} with {degree} neighbours tolerates at most {most} Byzantine among them, "
        f"byzantine_neighbours is {byzantine_neighbours}"
    )
