"""Real daemons that are killed end, byte for byte, as those that are left alone do.

Both federations hold the same keys, data and task; a quorum of all makes everybody wait for who is
down. The task draws from every generator that a task may draw from.
"""

import os
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dying_site import POINTS
from federation import GUARD_SECONDS, POLL_SECONDS, Federation, Hospital

from p2pfed.daemon.store import Store
from p2pfed.keys import load_identity

pytestmark = [pytest.mark.daemons, pytest.mark.slow, pytest.mark.timeout(900)]

DYING_SITE = Path(__file__).with_name("dying_site.py")
NAMES = ["alpha", "beta", "gamma"]

# 4,417 parameters: more than a block of the codec. While the file "hold" is there, a local step
# waits, and says so with the file "held".
TASK_CODE = """
import random, time
from pathlib import Path
import numpy as np
import torch
from torch.utils.data import TensorDataset
from p2pfed.training.task import Datasets

class Noisy:
    def __init__(self, options, data):
        self.noise = options["noise"]
        self.table = np.loadtxt(data["path"], delimiter=",", skiprows=1, dtype=np.float32)
        self.hold, self.held = Path(data["hold_path"]), Path(data["held_path"])
    def build_model(self):
        return torch.nn.Sequential(
            torch.nn.Linear(2, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(),
            torch.nn.Dropout(0.25), torch.nn.Linear(64, 63), torch.nn.ReLU(),
            torch.nn.Linear(63, 1),
        )
    def datasets(self):
        x, y = torch.from_numpy(self.table[:, :2]), torch.from_numpy(self.table[:, 2:])
        train, rest = TensorDataset(x[:80], y[:80]), TensorDataset(x[80:], y[80:])
        return Datasets(training=train, holdout=rest)
    def loss(self, model, batch):
        while self.hold.exists():
            self.held.touch()
            time.sleep(0.01)
        x, y = batch
        shift = self.noise * (np.random.normal() + random.gauss(0.0, 1.0))
        x = x + shift + self.noise * torch.randn_like(x)
        return torch.nn.functional.binary_cross_entropy_with_logits(model(x), y)
    def metrics(self, model, batches):
        return {"accuracy": torch.cat([((model(x) > 0) == y).float() for x, y in batches]).mean()}
"""


class Twins:
    """Two federations that differ in nothing but their ports; ``killed`` is the one to disturb."""

    def __init__(self, directory: Path, rounds: int, rule: str, **options: Any) -> None:
        tables: dict[str, Any] = {
            "graph": {"kind": "complete"},
            "round": {"rounds": rounds, "deadline_seconds": 600.0, "quorum": 1.0},
            "aggregation": {"rule": rule},
            "codec": {"name": "int8"},
            "task": {
                "kind": "python",
                "class": "noisy:Noisy",
                "options": {"noise": 0.1, "batch_size": 16, **options},
            },
        }
        self.spared = Federation(directory / "spared", NAMES, **tables)
        self.killed = Federation(directory / "killed", NAMES, **tables)
        for one, other in zip(self.spared.hospitals, self.killed.hospitals, strict=True):
            shutil.rmtree(other.directory / "keys")
            shutil.copytree(one.directory / "keys", other.directory / "keys")
            other.identity = load_identity(other.directory / "keys")
        for federation in (self.spared, self.killed):
            federation.write_topology()
            for hospital in federation.hospitals:
                (hospital.directory / "noisy.py").write_text(TASK_CODE)
                hospital.write_site(
                    task={"path": "."},
                    data={"path": "data.csv", "hold_path": "hold", "held_path": "held"},
                )

    def __enter__(self) -> "Twins":
        return self

    def __exit__(self, *_: object) -> None:
        self.spared.__exit__()
        self.killed.__exit__()

    def end_alike(self) -> None:
        """Let both come to their last round, and compare what they leave."""
        for federation in (self.spared, self.killed):
            for hospital in federation.hospitals:
                hospital.until("the last round", lambda s: s.round.phase == "finished")
            for hospital in federation.hospitals:
                hospital.send(signal.SIGTERM)
            for hospital in federation.hospitals:
                assert hospital.wait() == 0
        for one, other in zip(self.spared.hospitals, self.killed.hospitals, strict=True):
            expected, found = left_by(one), left_by(other)
            assert sorted(expected["replicas"]) == sorted(set(NAMES) - {one.name})
            for what, value in expected.items():
                assert found[what] == value, f"{one.name}: {what}"
            log = other.log.read_text()
            assert "Traceback" not in log
            assert "equivocation" not in log


def left_by(hospital: Hospital) -> dict[str, Any]:
    """What a stopped site would go on from, in full, and what it did in each round."""
    with closing(Store(hospital.directory / "state")) as store:
        generation = store.generation()
        assert generation is not None
        state = hospital.directory / "state"
        size = (state / "vectors" / f"{generation.model.hex()}.f32").stat().st_size // 4
        return {
            "models of the rounds": [(r["round"], r["model"]) for r in store.history(1000)],
            "weights of the rounds": [(r["weights"], r["degraded"]) for r in store.history(1000)],
            "published deltas": [
                (header.round_number, header.sequence, header.replica_before, header.replica_after)
                for header in (item.signed.header for item in store.envelopes())
            ],
            "generation": generation,
            "vectors": {
                path.name: path.read_bytes()
                for path in (state / "vectors").glob("*.f32")
                if path.stem in {digest.hex() for digest in generation.vectors()}
            },
            "replicas": {
                site: (stored.state, store.replica(site, stored.slot, size).tobytes())
                for site, stored in store.replicas(size).items()
            },
        }


def start_dying(hospital: Hospital, point: str, round_number: int) -> None:
    hospital.start(str(DYING_SITE), str(hospital.config), point, str(round_number))


def await_death(hospital: Hospital) -> None:
    code = hospital.wait()
    assert code == -signal.SIGKILL, hospital.log.read_text()[-2000:]


def await_file(path: Path) -> None:
    until = time.monotonic() + GUARD_SECONDS
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(POLL_SECONDS)


@pytest.mark.parametrize(
    ("rule", "optimiser"), [("start_clipping", "sgd"), ("median_clipping", "adamw")]
)
def test_whoever_is_killed_wherever_all_end_as_if_nobody_had_been(
    rule: str, optimiser: str, short_tmp: Path
) -> None:
    with Twins(short_tmp, rounds=14, rule=rule, optimiser=optimiser, learning_rate=0.01) as twins:
        sites = twins.killed.hospitals
        alpha, beta, gamma = sites
        twins.spared.start()
        deaths = [(sites[number % 3], point, number + 1) for number, point in enumerate(POINTS)]
        for hospital, point, round_number in deaths[:3]:
            start_dying(hospital, point, round_number)
        for number, (hospital, _, _) in enumerate(deaths):
            await_death(hospital)
            if number + len(sites) < len(deaths):
                start_dying(*deaths[number + len(sites)])
                continue
            if hospital is gamma:
                # A local step waits from here on, so that a death can be aimed at the training.
                (alpha.directory / "hold").touch()
            hospital.start()
        await_file(alpha.directory / "held")
        status = alpha.until("training", lambda s: s.trainer.state == "training")
        os.kill(status.trainer.pid or 0, signal.SIGKILL)
        alpha.until("another trainer", lambda s: s.trainer.restarts == 1)
        (alpha.directory / "held").unlink()
        await_file(alpha.directory / "held")
        beta.until("a round that waits for alpha", lambda s: s.round.phase == "collecting")
        for hospital in (alpha, beta):
            hospital.send(signal.SIGKILL)
            await_death(hospital)
        (alpha.directory / "hold").unlink()
        alpha.start()
        beta.start()
        gamma.until_round(11)
        for hospital in sites:
            hospital.send(signal.SIGKILL)
            await_death(hospital)
            hospital.start()
        twins.end_alike()
