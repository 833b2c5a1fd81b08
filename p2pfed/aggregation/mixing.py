"""How a federation mixes: the settings of ``[aggregation]`` as every site applies them."""

from collections.abc import Sequence
from dataclasses import dataclass

from p2pfed.aggregation.preaggregation import round_seed
from p2pfed.aggregation.rules import Outcome, aggregate
from p2pfed.aggregation.streaming import NeighbourModel, Vector
from p2pfed.rules_catalogue import NO_PRE_AGGREGATION
from p2pfed.topology import TopologyFile


@dataclass(frozen=True, slots=True)
class Mixing:
    """``step`` is gamma, the fraction of the rule's step that is taken; ``federation`` its
    name, from which the groups of a round are drawn."""

    rule: str
    federation: str
    byzantine_neighbours: int = 0
    pre_aggregation: str = NO_PRE_AGGREGATION
    step: float = 1.0

    @classmethod
    def of(cls, file: TopologyFile) -> "Mixing":
        settings = file.aggregation
        return cls(
            rule=settings.rule,
            federation=file.federation.name,
            byzantine_neighbours=settings.byzantine_neighbours,
            pre_aggregation=settings.pre_aggregation,
            step=settings.mixing_step,
        )

    def aggregate(
        self,
        round_number: int,
        total_rounds: int,
        own: Vector,
        neighbours: Sequence[NeighbourModel],
        out: Vector,
        start: Vector | None = None,
    ) -> Outcome:
        """Write what the rule makes of the round to ``out``; see ``rules.aggregate``.

        :param total_rounds: 0 where the federation runs until stopped.
        :raises AggregationError: a model is not finite; it names the neighbour.
        """
        return aggregate(
            self.rule,
            own,
            neighbours,
            out,
            byzantine_neighbours=self.byzantine_neighbours,
            pre_aggregation=self.pre_aggregation,
            progress=min(1.0, round_number / total_rounds) if total_rounds else 0.0,
            seed=round_seed(self.federation, round_number),
            start=start,
        )
