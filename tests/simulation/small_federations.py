"""Small federations for tests of the simulator: a few sites that learn a few numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p2pfed.keys import Identity, format_public_key
from p2pfed.simulation.behaviour import Behaviour
from p2pfed.simulation.federation import Outcome, SimulatedFederation
from p2pfed.simulation.scenario import Scenario
from p2pfed.topology import Topology, parse_topology

DIMENSION = 12
RATE = 0.3


class Targets:
    """Each site's loss is half the squared distance to a point of its own, so what the
    federation should learn is known: the mean of the points."""

    dimension = DIMENSION

    def __init__(self, sites: int) -> None:
        self.points = np.random.default_rng(5).normal(1.0, 1.0, (sites, DIMENSION))

    def genesis(self) -> np.ndarray:
        return np.zeros(DIMENSION, np.float32)

    def train(
        self,
        peers: Sequence[int],
        models: np.ndarray,
        momentum: np.ndarray,
        round_numbers: Sequence[int],
        local_steps: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        trained = models.astype(np.float64)
        for _ in range(local_steps):
            trained += RATE * (self.points[list(peers)] - trained)
        return trained.astype(np.float32), momentum

    def accuracy(self, models: np.ndarray) -> np.ndarray:
        """1 at the mean of the points, and less the farther away."""
        distance = np.linalg.norm(models - self.points.mean(axis=0), axis=1)
        return np.asarray(1.0 / (1.0 + distance))


def identity_of(name: str) -> Identity:
    return Identity(name.encode().ljust(32, b"i"), name.encode().ljust(32, b"e"))


def topology(names: str = "abcd", rounds: int = 12, **tables: Any) -> Topology:
    document: dict[str, Any] = {
        "schema_version": 1,
        "federation": {"name": "simulated"},
        "peer": [
            {"name": name, "key": format_public_key(identity_of(name).public_key)} for name in names
        ],
        "graph": {"kind": "complete"},
        "round": {"rounds": rounds, "deadline_seconds": 10.0, "local_steps": 1},
        "task": {"kind": "tabular"},
    }
    for table, values in tables.items():
        document[table] = document.get(table, {}) | values if table != "graph" else values
    return parse_topology(document, Path("topology.toml"))


def federation(
    names: str = "abcd",
    seed: int = 0,
    scenario: dict[str, Any] | None = None,
    behaviours: Mapping[str, Behaviour] | None = None,
    **tables: Any,
) -> SimulatedFederation:
    rounds = tables.pop("rounds", 12)
    return SimulatedFederation(
        topology(names, rounds, **tables),
        {name: identity_of(name) for name in names},
        Scenario.model_validate(scenario or {}),
        Targets(len(names)),
        seed,
        behaviours=behaviours,
    )


def run(names: str = "abcd", seed: int = 0, **settings: Any) -> Outcome:
    return federation(names, seed, **settings).run()
