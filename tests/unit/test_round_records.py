"""The record of a round: what is written, and what the recent ones say together."""

import json
from typing import Any

import numpy as np

from p2pfed.aggregation import Outcome
from p2pfed.daemon.round_records import NOT_EVALUATED, RoundRecords
from p2pfed.daemon.round_work import Mixed
from p2pfed.protocol.commands import Notice, NoticeKind
from p2pfed.protocol.plan import FederationPlan
from p2pfed.report.records import MAX_REFUSALS_PER_ROUND, parse_record
from p2pfed.training import frames

READY = frames.Ready(
    dimension=5,
    state_floats=0,
    kept_state_floats=0,
    schema_digest=b"s" * 32,
    schema=(),
    training_records=137,
    holdout_records=44,
    device="cpu",
    torch_version="2.13.0",
)


class Plan:
    topology_digest = b"\x01" * 32
    schema_digest = b"\x02" * 32


def made(records: RoundRecords, number: int = 0, **changes: Any) -> dict[str, Any]:
    plan: FederationPlan = Plan()  # type: ignore[assignment]
    given: dict[str, Any] = {
        "plan": plan,
        "ready": READY,
        "trained": frames.Trained(loss=0.4, seconds=1.5, samples=64),
        "before": {"auc": 0.7},
        "after": frames.Evaluated(
            metrics={"auc": 0.75},
            records=44,
            intervals={"auc": (0.6, 0.85)},
            calibration={"brier": 0.2},
            bins=((0.2, 0.1, 34), (0.8, 0.9, 4)),
        ),
        "left_out": ("c",),
        "privacy": None,
    }
    outcome = Outcome("mean", {"b": 0.5}, {}, dropped=("d",))
    mixed = Mixed(b"\x03" * 32, np.zeros(5, np.float32), outcome, 0.125)
    return records.make(number, mixed, **{**given, **changes})


def refused(number: int, detail: str) -> Notice:
    return Notice(NoticeKind.DELTA_REFUSED, number, "b", detail)


def test_what_is_kept_of_a_round_comes_back_from_the_journal() -> None:
    written = json.loads(json.dumps(made(RoundRecords([]), 7)))
    found = parse_record(written)
    assert (found.round, found.rule, found.weights) == (7, "mean", {"b": 0.5})
    assert (found.dropped, found.left_out, found.degraded) == (("d",), ("c",), True)
    assert found.intervals == {"auc": (0.6, 0.85)}
    assert found.consensus_distance == 0.125
    assert (found.training_records, found.holdout_records) == ((100, 200), (20, 50))
    assert found.run.topology == "01" * 32
    assert [point.records for point in found.reliability] == [(20, 50)]  # of four it says nothing
    assert (found.training_loss, found.training_seconds) == (0.4, 1.5)


def test_a_round_that_was_resumed_has_no_training_of_its_own() -> None:
    record = made(RoundRecords([]), trained=None, after=NOT_EVALUATED)
    assert record["training_loss"] is None
    assert parse_record(record).after == {}


def test_refusals_stand_in_the_round_that_ends_next_and_only_there() -> None:
    records = RoundRecords([])
    records.note(refused(3, "too old\x1b[2J"))
    records.note(Notice(NoticeKind.FINISHED, 3, None, "no refusal"))
    first = made(records, 3)
    records.note(refused(4, "while it was being stored"))
    records.committed(first)
    second = made(records, 4)
    assert [one["reason"] for one in first["refusals"]] == ["too old\\x1b[2J"]
    assert [one["reason"] for one in second["refusals"]] == ["while it was being stored"]


def test_a_flood_of_refusals_is_bounded() -> None:
    records = RoundRecords([])
    for _ in range(10 * MAX_REFUSALS_PER_ROUND):
        records.note(refused(0, "x" * 10_000))
    record = made(records)
    assert len(record["refusals"]) == MAX_REFUSALS_PER_ROUND
    assert len(json.dumps(record)) < 40_000


def test_a_fall_is_seen_when_it_comes_and_after_a_restart() -> None:
    def round_of(number: int) -> dict[str, Any]:
        auc = 0.9 if number < 30 else 0.5
        after = frames.Evaluated(metrics={"auc": auc}, records=44, intervals={"auc": (0.8, 0.95)})
        return made(RoundRecords([]), number, after=after)

    history = [round_of(number) for number in range(36)]
    records = RoundRecords(history[:30])
    assert records.drifts == ()
    for record in history[30:]:
        records.committed(record)
    [fell] = records.drifts
    assert (fell.metric, fell.since_round, fell.beyond_interval) == ("auc", 30, True)
    assert RoundRecords(history).drifts == records.drifts


def test_a_damaged_record_does_not_keep_a_daemon_from_starting() -> None:
    records = RoundRecords([{"round": "x"}, made(RoundRecords([]), 1)])
    assert records.drifts == ()


def test_the_privacy_that_is_spent_is_kept_with_the_round() -> None:
    spending = {
        "epsilon_spent": 1.25,
        "epsilon_budget": 4.0,
        "delta": 1e-5,
        "noise_multiplier": 1.1,
        "clip_norm": 0.5,
        "charged_rounds": 3,
        "stopped": None,
    }
    found = parse_record(json.loads(json.dumps(made(RoundRecords([]), privacy=spending))))
    assert found.privacy is not None
    assert found.privacy.model_dump() == spending
    assert parse_record(made(RoundRecords([]))).privacy is None
