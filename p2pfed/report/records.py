"""What the journal keeps of a round, as a report reads it.

A record grows fields and never changes their meaning: what an older daemon did not write has a
default here, and what a newer one writes beyond is passed over.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from p2pfed.report.buckets import Bucket, bucket
from p2pfed.report.drift import Drift, Observation, find_drift
from p2pfed.report.metric_names import direction

MAX_REFUSALS_PER_ROUND = 64
MAX_REFUSAL_CHARACTERS = 300
MIN_RECORDS_SHOWN = 10  # a point of the reliability curve of fewer says something of a patient
DRIFT_ROUNDS = 1000  # newest rounds in which a fall is looked for


def _finite(values: object) -> object:
    """Without figures that are no numbers: JSON has none of them, and no chart a place for them."""
    if not isinstance(values, Mapping):
        return values
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _finite_ends(values: object) -> object:
    if not isinstance(values, Mapping):
        return values
    return {
        name: ends
        for name, ends in values.items()
        if isinstance(ends, list | tuple)
        and all(isinstance(end, int | float) and math.isfinite(end) for end in ends)
    }


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Figures = Annotated[dict[str, float], BeforeValidator(_finite)]
Intervals = Annotated[dict[str, tuple[float, float]], BeforeValidator(_finite_ends)]
OptionalFigure = Annotated[float | None, BeforeValidator(_finite_or_none)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Run(_Part):
    """What a round ran on: versions, and digests in hex."""

    software: str = ""
    torch: str = ""
    device: str = ""
    topology: str = ""
    model_schema: str = ""
    parameters: int = 0


class Refusal(_Part):
    """An offer refused (``delta_refused``), a payload that did not keep what its header promised
    (``delta_rejected``), or a neighbour left out of a round for its model
    (``neighbour_excluded``)."""

    round: int
    site: str
    kind: str
    reason: str = ""


class ReliabilityPoint(_Part):
    """Of patients who were given about ``mean_probability``, the share with the disease."""

    mean_probability: float
    observed_share: float
    records: Bucket


class Spending(_Part):
    """The site's privacy budget at the end of a round; ``stopped``: why it trains no more."""

    epsilon_spent: float
    epsilon_budget: float
    delta: float
    noise_multiplier: float
    clip_norm: float
    charged_rounds: int
    stopped: str | None = None


class RoundRecord(_Part):
    """One finished round; see the journal's table ``history``.

    :ivar weights: each neighbour's effective mixing weight.
    :ivar dropped: neighbours whose model the rule discarded.
    :ivar left_out: neighbours that did not deliver in time.
    :ivar model: digest of the model after the round, hex.
    :ivar before: hold-out metrics of the site's trained model, before aggregation.
    :ivar after: the same after it.
    :ivar consensus_distance: Euclidean norm of the trained model less the aggregated one, over the
        norm of the trained one.
    :ivar privacy: None where the site trains without differential privacy.
    :ivar at_seconds: end of the round by the site's clock, Unix time; 0 where not known.
    """

    round: int = Field(ge=0)
    rule: str = ""
    weights: dict[str, float] = Field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    degraded: bool = False
    local_only: bool = False
    model: str = ""
    training_loss: OptionalFigure = None
    training_seconds: OptionalFigure = None
    before: Figures = Field(default_factory=dict)
    after: Figures = Field(default_factory=dict)
    intervals: Intervals = Field(default_factory=dict)
    calibration: Figures = Field(default_factory=dict)
    reliability: tuple[ReliabilityPoint, ...] = ()
    consensus_distance: OptionalFigure = None
    refusals: tuple[Refusal, ...] = ()
    training_records: Bucket | None = None
    holdout_records: Bucket | None = None
    run: Run = Run()
    privacy: Spending | None = None
    at_seconds: int = 0


def parse_record(document: object) -> RoundRecord:
    """:raises ValueError: it is no record of a round; the text says which field is not right."""
    try:
        return RoundRecord.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "the record"
        raise ValueError(f"{place}: {first['msg']}") from None


def reliability_points(bins: tuple[tuple[float, float, int], ...]) -> list[dict[str, Any]]:
    """Bins of mean prediction, observed share and records, as a record keeps them: counts in
    ranges, and none of so few patients that it would say something of one."""
    return [
        {"mean_probability": mean, "observed_share": share, "records": bucket(records)}
        for mean, share, records in bins
        if records >= MIN_RECORDS_SHOWN
    ]


def drifts_of(records: list[RoundRecord]) -> tuple[Drift, ...]:
    """The metrics that fell beyond noise, by name.

    :param records: the oldest first.
    """
    recent = records[-DRIFT_ROUNDS:]
    names = sorted(recent[-1].after) if recent else []
    found = (
        find_drift(
            name,
            [
                Observation(record.round, record.after[name], record.intervals.get(name))
                for record in recent
                if name in record.after
            ],
            direction(name),
        )
        for name in names
    )
    return tuple(drift for drift in found if drift is not None)
