"""Sources of a report to test what is made of them."""

from pathlib import Path
from typing import Any

import topology_documents

from p2pfed.report.build import LocalFigures, Sources
from p2pfed.report.document import Equivocation, ExportedModel, IntendedUse
from p2pfed.report.records import RoundRecord, parse_record


def record(number: int, **changes: Any) -> RoundRecord:
    """Round ``number`` of site a in a ring of a, b, c and d."""
    auc = 0.6 + 0.02 * min(number, 10)
    return parse_record(
        {
            "round": number,
            "rule": "median_clipping",
            "weights": {"b": 0.25, "d": 0.25},
            "model": f"{number:064x}",
            "training_loss": 0.7 - 0.01 * number,
            "training_seconds": 0.5,
            "before": {"auc": auc - 0.01},
            "after": {"auc": auc, "loss": 0.6, "personal_auc": auc + 0.03},
            "intervals": {"auc": [auc - 0.1, auc + 0.1], "brier": [0.1, 0.2]},
            "calibration": {"brier": 0.15},
            "reliability": [
                {"mean_probability": 0.2, "observed_share": 0.25, "records": [20, 50]},
                {"mean_probability": 0.7, "observed_share": 0.6, "records": [20, 50]},
            ],
            "consensus_distance": 0.02,
            "training_records": [100, 200],
            "holdout_records": [50, 100],
            "run": {
                "software": "p2pfed 0.1.0",
                "torch": "2.13.0",
                "device": "cpu",
                "topology": "ab" * 32,
                "model_schema": "cd" * 32,
                "parameters": 21,
            },
            "at_seconds": 1_700_000_000 + 60 * number,
            **changes,
        }
    )


def sources(directory: Path, *records: RoundRecord, **changes: Any) -> Sources:
    """What the report of site a is made of; three rounds unless others are given."""
    topology = topology_documents.load(directory, topology_documents.document())
    return Sources(
        **{
            "site": "a",
            "topology": topology,
            "federation_id": "ef" * 32,
            "records": records
            or (
                record(0),
                record(1, degraded=True, left_out=["d"], weights={"b": 0.25}),
                record(
                    2,
                    dropped=["d"],
                    weights={"b": 0.5, "d": 0.0},
                    refusals=[
                        {"round": 2, "site": "d", "kind": "delta_rejected", "reason": "not finite"}
                    ],
                ),
            ),
            "equivocations": (
                Equivocation(
                    site="d",
                    round=1,
                    first="11" * 32,
                    second="22" * 32,
                    found_at_seconds=1_700_000_100,
                ),
            ),
            "exports": (
                ExportedModel(
                    round=3,
                    path="/models/a.safetensors",
                    model="33" * 32,
                    sha256="44" * 32,
                    exported_at_seconds=1_700_000_200,
                ),
            ),
            "intended_use": IntendedUse(intended_use="to sort referrals", contact="Dr. A"),
            "local": LocalFigures({"auc": 0.58}, {"auc": (0.5, 0.66)}),
            **changes,
        }
    )
