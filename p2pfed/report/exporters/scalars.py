"""A round's figures as flat names and numbers."""

import re
from collections.abc import Iterator

from p2pfed.report.records import RoundRecord

_UNFIT = re.compile(r"[^A-Za-z0-9_\-. /]")  # what MLflow refuses in a name
MAX_NAME_CHARACTERS = 250  # MLflow's limit


def scalars_of(record: RoundRecord) -> dict[str, float]:
    """By name: ``holdout/auc``, ``holdout_low/auc``, ``before/auc``, ``calibration/brier``,
    ``training/loss``, ``mixing/consensus_distance``, ``mixing/degraded``, ``weight/SITE``."""
    return {_UNFIT.sub("_", name)[:MAX_NAME_CHARACTERS]: value for name, value in _named(record)}


def _named(record: RoundRecord) -> Iterator[tuple[str, float]]:
    for name, value in record.after.items():
        yield f"holdout/{name}", value
    for name, (low, high) in record.intervals.items():
        yield f"holdout_low/{name}", low
        yield f"holdout_high/{name}", high
    for name, value in record.before.items():
        yield f"before/{name}", value
    for name, value in record.calibration.items():
        yield f"calibration/{name}", value
    if record.training_loss is not None:
        yield "training/loss", record.training_loss
    if record.consensus_distance is not None:
        yield "mixing/consensus_distance", record.consensus_distance
    yield "mixing/degraded", float(record.degraded)
    for site, weight in record.weights.items():
        yield f"weight/{site}", weight
