"""A status to test what is made of it."""

import dataclasses
from typing import Any

from p2pfed.daemon.status import (
    ModelStatus,
    NeighbourStatus,
    PrivacyStatus,
    RelayStatus,
    ResourceStatus,
    RoundStatus,
    SiteStatus,
    Status,
    TopologyStatus,
    Totals,
    TrainerReport,
)


def neighbour(name: str = "beta", **changes: Any) -> NeighbourStatus:
    sample = NeighbourStatus(
        name=name,
        peer_id="12D3KooWExample",
        state="connected",
        address="/ip4/192.0.2.1/tcp/7400",
        direction="outbound",
        round_trip_seconds=0.0123,
        round=7,
        phase="training",
        last_delta_age_seconds=3.0,
        staleness=0,
        weight=0.25,
        bytes_sent=1_500_000,
        bytes_received=999,
        last_error=None,
        refusal=None,
        quarantined=False,
        software="p2pfed 0.1.0",
    )
    return dataclasses.replace(sample, **changes)


def privacy(**changes: Any) -> PrivacyStatus:
    sample = PrivacyStatus(
        epsilon_spent=1.25,
        epsilon_left=2.75,
        epsilon_budget=4.0,
        delta=1e-5,
        noise_multiplier=1.5,
        clip_norm=1.0,
        sampling_rate=0.1,
        charged_rounds=7,
        assumed_rounds=0,
    )
    return dataclasses.replace(sample, **changes)


def status(**changes: Any) -> Status:
    sample = Status(
        site=SiteStatus(
            "alpha", "12D3KooWAlpha", "heart", "ab" * 32, "p2pfed 0.1.0", "/s.toml", 1, 9.0, []
        ),
        topology=TopologyStatus("/t.toml", "cd" * 32, 4),
        round=RoundStatus(7, 50, "collecting", 1.5, 20.0, 2, 3, False, {"training": 0.5}),
        model=ModelStatus("ef" * 32, 21, "01" * 32, "median_clipping", "int8"),
        metrics_before={"auc": 0.8},
        metrics_after={"auc": 0.85},
        training_loss=0.4,
        trainer=TrainerReport("idle", 2, "cpu", 0, None, None, None, None, 100, 50),
        neighbours=[neighbour()],
        totals=Totals(7, 1_500_000, 999, 21, 0, 0, 0),
        resources=ResourceStatus(31, 17, 90_000_000, 65_536),
        relay=RelayStatus(2, 5, 7_000_000),
        privacy=privacy(),
    )  # fmt: skip
    return dataclasses.replace(sample, **changes)
