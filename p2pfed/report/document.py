"""The report as JSON. The form is an interface: ``topology/REPORT.md`` documents it.

``schema_version`` grows when a field changes meaning or goes; new fields may appear at any time.
The parts are those of M. Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from p2pfed.report.buckets import Bucket
from p2pfed.report.metric_names import Direction
from p2pfed.report.records import Refusal, ReliabilityPoint

REPORT_SCHEMA_VERSION = 1

MAX_HISTORY_ROUNDS = 500  # shown; of more, a part that is spread evenly
MAX_LISTED = 200  # rows of every other list that grows with time
MAX_SITES = 1_000
MAX_TEXT_CHARACTERS = 4_000

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
Role = Literal["site", "neighbour", "member", "former neighbour"]
IntervalEnds = tuple[float, float]


class Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class ModelDetails(Part):
    """What the model is and what made it. Digests are hex."""

    federation: Text
    federation_id: Text
    site: Text
    peer_id: Text
    task: Text
    task_class: Text | None
    task_options: dict[str, Any]
    seed: int
    parameters: int
    model_schema: Text
    model_digest: Text
    software: Text
    torch: Text
    device: Text
    topology_file: Text
    topology_digest: Text
    topology_digest_of_last_round: Text
    graph: Text
    sites: int
    local_steps: int
    rules: dict[str, int]
    byzantine_neighbours: int
    codec: Text


class IntendedUse(Part):
    """In the words of the site's operator; empty where nothing was said."""

    intended_use: Text = ""
    out_of_scope: Text = ""
    contact: Text = ""


class Participant(Part):
    """A member of the federation, and its part in the model of the reporting site.

    :ivar role: the site itself; a neighbour, whose model it mixed in; a member that is none.
    :ivar rounds_mixed: rounds in which its model had a weight.
    :ivar rounds_missed: rounds that closed without it.
    :ivar rounds_dropped: rounds in which the rule discarded its model.
    :ivar mean_weight: mean mixing weight over all rounds; the site's own is what the others leave.
    """

    name: Text
    peer_id: Text
    role: Role
    rounds_mixed: int
    rounds_missed: int
    rounds_dropped: int
    first_round: int | None
    last_round: int | None
    mean_weight: float
    last_weight: float
    refusals: int
    quarantined: bool


class Rounds(Part):
    """``planned`` 0: without end. ``kept`` of them are in the journal, from ``first`` to ``last``.

    ``degraded_rounds``: the newest of them."""

    done: int
    planned: int
    kept: int
    first: int | None
    last: int | None
    degraded: int
    degraded_rounds: tuple[int, ...]
    local_only: int
    first_ended_at_seconds: int
    last_ended_at_seconds: int


class Metric(Part):
    """A hold-out metric of the present model.

    :ivar before: of the site's own trained model in the last round, before aggregation.
    :ivar previous: of the round before.
    """

    name: Text
    better: Direction
    value: float
    interval: IntervalEnds | None
    before: float | None
    previous: float | None
    best: float | None
    best_round: int | None


class CalibrationFigure(Part):
    name: Text
    value: float
    interval: IntervalEnds | None


class ModelFigures(Part):
    """Metrics of one kind of model on the same hold-out."""

    model: Literal["local_only", "trained", "federated", "personalised"]
    metrics: dict[str, float]
    intervals: dict[str, IntervalEnds]


class DriftSignal(Part):
    """See ``p2pfed.report.drift.Drift``."""

    metric: Text
    since_round: int
    best_round: int
    best: float
    now: float
    limit: float
    beyond_interval: bool | None


class HistoryRow(Part):
    round: int
    ended_at_seconds: int
    rule: Text
    degraded: bool
    metrics: dict[str, float]
    intervals: dict[str, IntervalEnds]
    training_loss: float | None
    consensus_distance: float | None
    model: Text


class Equivocation(Part):
    """Two signed headers of one sender for one round: digests of both, hex."""

    site: Text
    round: int
    first: Text
    second: Text
    found_at_seconds: int


class Refusals(Part):
    """``counts`` over the kept rounds, by kind; ``latest`` are the newest."""

    counts: dict[str, int]
    latest: tuple[Refusal, ...]


class Privacy(Part):
    """What the privacy ledger says as of the last finished round.

    :ivar mechanism: how the guarantee is made, in words.
    :ivar unit: what one more or less of is hidden: a record, a patient.
    :ivar rounds_charged: those that ``epsilon_spent`` is of.
    :ivar rounds_charged_since: charged after the last finished round and not in it.
    :ivar configured: whether the present settings train with it.
    """

    mechanism: Text
    unit: Text
    epsilon_spent: float = Field(ge=0)
    epsilon_limit: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    rounds_charged: int = Field(ge=0)
    noise_multiplier: float | None = None
    clipping_norm: float | None = None
    rounds_charged_since: int = Field(0, ge=0)
    configured: bool = True

    @property
    def epsilon_left(self) -> float:
        return max(0.0, self.epsilon_limit - self.epsilon_spent)


class PrivacyPart(Part):
    """``statement`` is a sentence; ``accounted`` is null where no differential privacy is on."""

    statement: Text
    accounted: Privacy | None
    minimum_records: int


class ExportedModel(Part):
    round: int
    path: Text
    model: Text
    sha256: Text
    exported_at_seconds: int


class Lineage(Part):
    """Where the present model comes from.

    :ivar chain: BLAKE2b-256, over the rounds that are kept, of the chain so far, the round's
        number and its model's digest: two reports with the same chain went through the same models.
    """

    model: Text
    round: int | None
    chain: Text
    exports: tuple[ExportedModel, ...]


class DataPart(Part):
    """Ranges, of at least the first number and less than the second."""

    training_records: Bucket | None
    holdout_records: Bucket | None


class OtherSite(Part):
    """The same federation at another site, from that site's own report."""

    site: Text
    rounds: int
    model_digest: Text
    holdout_records: Bucket | None
    metrics: dict[str, float]
    intervals: dict[str, IntervalEnds]
    local_only: dict[str, float]


class Overall(Part):
    """Over this site and the other sites whose reports were given: the plain mean of a metric, for
    the numbers of records are not told, and the worst of it."""

    metric: Text
    sites: int
    mean: float
    worst: float | None
    worst_site: Text | None


class Report(Part):
    """The whole report; ``written_at_seconds`` is None in one that has no date of its own."""

    schema_version: Literal[1] = 1
    written_at_seconds: int | None
    model_details: ModelDetails
    intended_use: IntendedUse
    participants: tuple[Participant, ...] = Field(max_length=MAX_SITES)
    rounds: Rounds
    data: DataPart
    metrics: tuple[Metric, ...] = Field(max_length=MAX_LISTED)
    calibration: tuple[CalibrationFigure, ...] = Field(max_length=MAX_LISTED)
    reliability: tuple[ReliabilityPoint, ...] = Field(max_length=MAX_LISTED)
    models: tuple[ModelFigures, ...] = Field(max_length=4)
    drift: tuple[DriftSignal, ...] = Field(max_length=MAX_LISTED)
    history: tuple[HistoryRow, ...] = Field(max_length=MAX_HISTORY_ROUNDS)
    refusals: Refusals
    equivocations: tuple[Equivocation, ...] = Field(max_length=MAX_SITES)
    privacy: PrivacyPart
    lineage: Lineage
    other_sites: tuple[OtherSite, ...] = Field(max_length=MAX_SITES)
    overall: tuple[Overall, ...] = Field(max_length=MAX_LISTED)
    limitations: tuple[Text, ...] = Field(max_length=MAX_LISTED)
