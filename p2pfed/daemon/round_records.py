"""What the journal keeps of each round for reports, and what the recent rounds say together."""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from p2pfed import __version__
from p2pfed.daemon.round_work import Mixed
from p2pfed.protocol.commands import Notice, NoticeKind
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.texts import printable
from p2pfed.report.buckets import bucket
from p2pfed.report.drift import Drift
from p2pfed.report.records import (
    DRIFT_ROUNDS,
    MAX_REFUSAL_CHARACTERS,
    MAX_REFUSALS_PER_ROUND,
    RoundRecord,
    drifts_of,
    parse_record,
    reliability_points,
)
from p2pfed.training import frames

log = structlog.get_logger(__name__)

_REFUSALS = (NoticeKind.DELTA_REFUSED, NoticeKind.DELTA_REJECTED, NoticeKind.NEIGHBOUR_EXCLUDED)

NOT_EVALUATED = frames.Evaluated(metrics={}, records=0)


class RoundRecords:
    """Makes the records of finished rounds.

    :param history: records of the journal, the oldest first.
    :ivar drifts: the metrics that have fallen beyond noise.
    """

    def __init__(self, history: Iterable[Mapping[str, Any]]) -> None:
        self._recent: deque[RoundRecord] = deque(maxlen=DRIFT_ROUNDS)
        self._refusals: list[dict[str, Any]] = []
        self._refusals_written = 0
        self.drifts: tuple[Drift, ...] = ()
        for record in history:
            try:
                self._recent.append(parse_record(record))
            except ValueError as error:  # it is of no use for drift; p2pfed report says which
                log.warning("the record of a round cannot be read", reason=str(error))
        self.drifts = drifts_of(list(self._recent))

    def note(self, notice: Notice) -> None:
        """Keep what a member was refused for; beyond the bound a round's first are kept."""
        if notice.kind in _REFUSALS and len(self._refusals) < MAX_REFUSALS_PER_ROUND:
            self._refusals.append(
                {
                    "round": notice.round_number,
                    "site": notice.site or "",
                    "kind": notice.kind.value,
                    "reason": printable(notice.detail, MAX_REFUSAL_CHARACTERS),
                }
            )

    def make(
        self,
        round_number: int,
        mixed: Mixed,
        *,
        plan: FederationPlan,
        ready: frames.Ready,
        trained: frames.Trained | None,
        before: Mapping[str, float],
        after: frames.Evaluated,
        left_out: tuple[str, ...],
        privacy: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """The record of a round, as JSON has it; see :class:`~p2pfed.report.records.RoundRecord`.

        :param trained: None where the round's training was done in an earlier life of the daemon.
        :param left_out: neighbours that did not deliver.
        :param privacy: the state of the privacy budget, where there is one.
        """
        self._refusals_written = len(self._refusals)
        outcome = mixed.outcome
        return {
            "round": round_number,
            "rule": outcome.rule,
            "weights": dict(outcome.weights),
            "dropped": list(outcome.dropped),
            "left_out": list(left_out),
            "degraded": bool(left_out),
            "local_only": outcome.local_only,
            "model": mixed.digest.hex(),
            "training_loss": trained.loss if trained else None,
            "training_seconds": round(trained.seconds, 3) if trained else None,
            "before": dict(before),
            "after": dict(after.metrics),
            "intervals": {name: list(ends) for name, ends in after.intervals.items()},
            "calibration": dict(after.calibration),
            "reliability": reliability_points(after.bins),
            "consensus_distance": mixed.consensus_distance,
            "refusals": list(self._refusals),
            "training_records": bucket(ready.training_records),
            "holdout_records": bucket(ready.holdout_records),
            "run": {
                "software": f"p2pfed {__version__}",
                "torch": ready.torch_version,
                "device": ready.device,
                "topology": plan.topology_digest.hex(),
                "model_schema": plan.schema_digest.hex(),
                "parameters": ready.dimension,
            },
            "privacy": privacy,
            "at_seconds": int(time.time()),
        }

    def committed(self, record: Mapping[str, Any]) -> RoundRecord:
        """Take up a record that is durable now."""
        del self._refusals[: self._refusals_written]
        self._refusals_written = 0
        parsed = parse_record(record)
        self._recent.append(parsed)
        self.drifts = drifts_of(list(self._recent))
        return parsed
