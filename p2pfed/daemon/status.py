"""What a daemon says of itself: one frozen type behind the table, the JSON and the metrics.

The JSON is an interface: ``schema_version`` grows when a field changes meaning or goes.
``p2pfed/cli/STATUS.md`` documents every field.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

STATUS_SCHEMA_VERSION = 1

Severity = Literal["warning", "error"]


@dataclass(frozen=True, slots=True)
class SiteStatus:
    name: str
    peer_id: str
    federation: str
    federation_id: str
    software: str
    config: str
    pid: int
    uptime_seconds: float
    listen_addresses: list[str]


@dataclass(frozen=True, slots=True)
class TopologyStatus:
    path: str
    digest: str
    peers: int


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """``number`` counts from 0 and is the round under way; ``total`` 0 means without end."""

    number: int
    total: int
    phase: str
    phase_seconds: float
    deadline_in_seconds: float | None
    delivered: int
    expected: int
    degraded: bool
    last_seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    digest: str
    parameters: int
    schema: str
    rule: str
    codec: str


@dataclass(frozen=True, slots=True)
class TrainerReport:
    """``silent_seconds`` since the last sign of life under a request; ``patience_seconds`` of
    silence are usual there. Both are None while the trainer is asked for nothing."""

    state: str
    pid: int | None
    device: str | None
    restarts: int
    last_error: str | None
    step: int | None
    steps: int | None
    samples_per_second: float | None
    training_records: int
    holdout_records: int
    silent_seconds: float | None = None
    patience_seconds: float | None = None

    @property
    def stands_still(self) -> bool:
        if self.silent_seconds is None or self.patience_seconds is None:
            return False
        return self.silent_seconds > self.patience_seconds


@dataclass(frozen=True, slots=True)
class NeighbourStatus:
    name: str
    peer_id: str
    state: str
    address: str | None
    direction: str | None
    round_trip_seconds: float | None
    round: int | None
    phase: str | None
    last_delta_age_seconds: float | None
    staleness: int | None
    weight: float
    bytes_sent: int
    bytes_received: int
    last_error: str | None
    refusal: str | None
    quarantined: bool
    software: str | None
    relay: str | None = None
    liveness: str = "alive"
    vouched_by: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LocalHealthStatus:
    """Whether this process itself was kept waiting: ``score`` is 0 (well) to 8."""

    score: int = 0
    lag_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Totals:
    rounds_done: int
    bytes_sent: int
    bytes_received: int
    deltas_accepted: int
    deltas_refused: int
    deltas_rejected: int
    strangers_refused: int


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """What this site carries for others; ``carried_bytes`` counts each byte once."""

    circuits: int
    circuits_opened: int
    carried_bytes: int


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """What the daemon uses, its trainer not included; None where the system does not say.

    ``tasks`` are those of trio that are alive; ``database_bytes`` is the size of the round journal
    on the disk, its write-ahead log included, as of the last commit.
    """

    tasks: int
    open_files: int | None
    memory_bytes: int | None
    database_bytes: int


@dataclass(frozen=True, slots=True)
class DriftStatus:
    """A metric that fell beyond noise from what this site had reached; see ``report.drift``."""

    metric: str
    since_round: int
    best_round: int
    best: float
    now: float
    beyond_interval: bool | None

    @property
    def alarming(self) -> bool:
        return self.beyond_interval is not False


@dataclass(frozen=True, slots=True)
class PrivacyStatus:
    """The site's privacy budget, at ``delta``. ``stopped``: why nothing more is trained; None
    while training goes on. ``assumed_rounds`` of ``charged_rounds`` were charged because a
    restored state cannot know whether they were trained."""

    epsilon_spent: float
    epsilon_left: float
    epsilon_budget: float
    delta: float
    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    charged_rounds: int
    assumed_rounds: int
    ledger_damaged: bool = False
    stopped: str | None = None


@dataclass(frozen=True, slots=True)
class HealthLine:
    """A problem and the command to run next."""

    severity: Severity
    problem: str
    command: str


@dataclass(frozen=True, slots=True)
class Status:
    """Everything at one moment."""

    site: SiteStatus
    topology: TopologyStatus
    round: RoundStatus
    model: ModelStatus
    metrics_before: dict[str, float]
    metrics_after: dict[str, float]
    training_loss: float | None
    trainer: TrainerReport
    neighbours: list[NeighbourStatus]
    totals: Totals
    resources: ResourceStatus
    relay: RelayStatus | None = None
    privacy: PrivacyStatus | None = None
    storage_error: str | None = None
    local_health: LocalHealthStatus = LocalHealthStatus()
    metrics_intervals: dict[str, list[float]] = field(default_factory=dict)
    calibration: dict[str, float] = field(default_factory=dict)
    drift: list[DriftStatus] = field(default_factory=list)
    export_errors: dict[str, str] = field(default_factory=dict)
    health: list[HealthLine] = field(default_factory=list)
    schema_version: int = STATUS_SCHEMA_VERSION

    @property
    def healthy(self) -> bool:
        return not any(line.severity == "error" for line in self.health)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Status":
        """Read what ``to_json`` wrote; keys of a newer daemon that are unknown are ignored."""
        values = {"local_health": {}, **document}
        for name, kind in _TABLES.items():
            if values.get(name) is not None:
                values[name] = _known(kind, values[name])
        for name, kind in _LISTS.items():
            values[name] = [_known(kind, item) for item in values.get(name, [])]
        result: Status = _known(cls, values)
        return result


def shown_path(address: str, direction: str | None, relay: str | None) -> str:
    """How a neighbour is connected, as a person reads it."""
    if relay is not None:
        return f"{relay} (relayed, {direction})"
    return f"{address} (direct, {direction})"


def _known(kind: Any, values: dict[str, Any]) -> Any:
    names = {item.name for item in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in values.items() if key in names})


_TABLES: dict[str, Any] = {
    "site": SiteStatus,
    "topology": TopologyStatus,
    "round": RoundStatus,
    "model": ModelStatus,
    "trainer": TrainerReport,
    "totals": Totals,
    "local_health": LocalHealthStatus,
    "resources": ResourceStatus,
    "relay": RelayStatus,
    "privacy": PrivacyStatus,
}
_LISTS: dict[str, Any] = {
    "neighbours": NeighbourStatus,
    "drift": DriftStatus,
    "health": HealthLine,
}
