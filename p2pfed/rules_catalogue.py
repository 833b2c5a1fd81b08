"""The aggregation rules and pre-aggregations by name: what each is, and what it needs to hold.

Apart from the rules' own code, so that a topology file can be checked without loading it.
``p2pfed.aggregation.rules`` has the code of each, under the same names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

NO_PRE_AGGREGATION = "none"
BUCKET_SITES = 2  # neighbours in a group, as Karimireddy, He, Jaggi (ICLR 2022) recommend

FULL_POWER = "gives one broken or hostile site full power over every model"


@dataclass(frozen=True, slots=True)
class Option:
    """A number that a rule can be called with; never below ``least``."""

    default: float
    least: float
    summary: str


NO_OPTIONS: Mapping[str, Option] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RuleDescription:
    """``tolerates(k)`` is the largest number of Byzantine neighbours among k under which the
    rule's own guarantee holds; ``asks_for_b`` whether it needs to be told that number.
    ``weakness`` completes the sentence that begins with the rule's name, where no number of
    neighbours makes it safe."""

    name: str
    summary: str
    asks_for_b: bool
    tolerates: Callable[[int], int]
    options: Mapping[str, Option] = field(default_factory=lambda: NO_OPTIONS)
    weakness: str | None = None


@dataclass(frozen=True, slots=True)
class PreAggregationDescription:
    """What is done to the models before the rule sees them. ``neighbours_left(k)`` is the
    number of models that it makes of k neighbours'; b hostile neighbours spoil at most b."""

    name: str
    summary: str
    asks_for_b: bool
    neighbours_left: Callable[[int], int]


def _minority_of_neighbours(degree: int) -> int:
    return max(0, (degree - 1) // 2)


def _minority_with_self(degree: int) -> int:
    return degree // 2


def _krum(degree: int) -> int:
    """k + 1 >= 2b + 3 (Blanchard, El Mhamdi, Guerraoui, Stainer 2017)."""
    return max(0, (degree - 2) // 2)


def _nobody(degree: int) -> int:  # noqa: ARG001 - the signature of all of them
    return 0


RULES: Mapping[str, RuleDescription] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            RuleDescription(
                "mean",
                "gossip averaging; no protection at all",
                asks_for_b=False,
                tolerates=_nobody,
                weakness=FULL_POWER,
            ),
            RuleDescription(
                "median_clipping",
                "gossip averaging in which no neighbour pulls further than the median one",
                asks_for_b=False,
                tolerates=_minority_of_neighbours,
            ),
            RuleDescription(
                "start_clipping",
                "the same, measured from the model before this round's training; bounds liars that "
                "know the rule more closely, and unlike honest sites too",
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
                options=MappingProxyType(
                    {
                        "iterations": Option(8, 1, "Weiszfeld steps from the coordinate median"),
                        "floor": Option(1e-3, 1e-12, "smallest distance that is divided by"),
                    }
                ),
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
            RuleDescription(
                "centred_clipping",
                "gossip averaging clipped where the b farthest outweigh the others' spread",
                asks_for_b=True,
                tolerates=_minority_of_neighbours,
                options=MappingProxyType(
                    {"threshold": Option(0.0, 0.0, "tau, a distance; 0: from b and the distances")}
                ),
            ),
            RuleDescription(
                "nearest_neighbour_averaging",
                "the mean without the b models farthest from the own",
                asks_for_b=True,
                tolerates=_minority_with_self,
            ),
            RuleDescription(
                "krum",
                "the one model that is nearest to its own k-1-b nearest",
                asks_for_b=True,
                tolerates=_krum,
            ),
            RuleDescription(
                "multi_krum",
                "the mean of the k+1-b models that Krum ranks first",
                asks_for_b=True,
                tolerates=_krum,
            ),
            RuleDescription(
                "balance",
                "half the own model, half the mean of those within a shrinking radius of it",
                asks_for_b=False,
                tolerates=_nobody,
                options=MappingProxyType(
                    {
                        "gamma": Option(2.0, 0.0, "the radius at first, over the own model's norm"),
                        "kappa": Option(1.0, 0.0, "the radius shrinks by exp(-kappa) in all"),
                    }
                ),
                weakness="lets every site within its radius pull with full weight, however many "
                "are hostile",
            ),
        )
    }
)

DEFAULT_RULE = "median_clipping"

PRE_AGGREGATIONS: Mapping[str, PreAggregationDescription] = MappingProxyType(
    {
        step.name: step
        for step in (
            PreAggregationDescription(
                NO_PRE_AGGREGATION,
                "the rule sees the models as they are",
                asks_for_b=False,
                neighbours_left=lambda degree: degree,
            ),
            PreAggregationDescription(
                "nearest_neighbour_mixing",
                "each model becomes the mean of its k+1-b nearest, itself among them",
                asks_for_b=True,
                neighbours_left=lambda degree: degree,
            ),
            PreAggregationDescription(
                "bucketing",
                f"neighbours' models become means of groups of {BUCKET_SITES}, drawn each round",
                asks_for_b=False,
                neighbours_left=lambda degree: -(-degree // BUCKET_SITES),
            ),
        )
    }
)


def tolerates(rule: str, degree: int, pre_aggregation: str = NO_PRE_AGGREGATION) -> int:
    """The largest number of Byzantine neighbours among ``degree`` under which the guarantee of
    the rule holds for what the pre-aggregation leaves it."""
    return RULES[rule].tolerates(PRE_AGGREGATIONS[pre_aggregation].neighbours_left(degree))


def asks_for_b(rule: str, pre_aggregation: str = NO_PRE_AGGREGATION) -> bool:
    return RULES[rule].asks_for_b or PRE_AGGREGATIONS[pre_aggregation].asks_for_b


def describe(rule: str, pre_aggregation: str = NO_PRE_AGGREGATION) -> str:
    """The rule with what comes before it, for a sentence."""
    if pre_aggregation == NO_PRE_AGGREGATION:
        return rule
    return f"{rule} after {pre_aggregation}"


def precondition(
    rule: str,
    degree: int,
    byzantine_neighbours: int,
    pre_aggregation: str = NO_PRE_AGGREGATION,
) -> str | None:
    """Why ``rule`` cannot hold with ``byzantine_neighbours`` among ``degree`` neighbours, in a
    sentence for an operator; None where it can."""
    most = tolerates(rule, degree, pre_aggregation)
    if byzantine_neighbours <= most:
        return None
    return (
        f"{describe(rule, pre_aggregation)} with {degree} neighbours tolerates at most {most} "
        f"Byzantine among them, byzantine_neighbours is {byzantine_neighbours}"
    )
