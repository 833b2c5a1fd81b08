"""Several processes that share a site's local steps, under torchrun, over gloo."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import trio

from p2pfed.daemon.trainer import Trainer
from p2pfed.errors import TrainerDiedError, TrainingError
from p2pfed.training.frames import Open, Progress

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo is told Linux's loopback")

STEPS = 4
TASK_MODULE = """
    import os, time
    import torch
    from torch.utils.data import TensorDataset
    from p2pfed.training.task import Datasets

    class Network:
        def __init__(self, options, data):
            self.data = data

        def build_model(self):
            layers = torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
            model = torch.nn.Sequential(*layers)
            model.idle = torch.nn.Linear(3, 3)  # no gradient reaches it
            return model

        def datasets(self):
            generator = torch.Generator().manual_seed(3)
            x = torch.randn(41, 5, generator=generator)
            records = TensorDataset(x, x.sum(1).sin())
            return Datasets(training=records, holdout=records)

        def loss(self, model, batch):
            x, y = batch
            return ((model[2](model[1](model[0](x)))[:, 0] - y) ** 2).mean()

        def metrics(self, model, batches):
            return {"loss": sum(self.loss(model, batch) for batch in batches)}

    class FailsInTheSecond(Network):
        def loss(self, model, batch):
            if os.environ.get("RANK") == "1" and os.path.exists(self.data["gate"]):
                raise KeyError("no such tensor")
            return super().loss(model, batch)

    class Waits(Network):
        def loss(self, model, batch):
            while os.environ["RANK"] == "1":
                time.sleep(60)
            return super().loss(model, batch)
"""


def request_for(directory: Path, class_name: str) -> Open:
    (directory / "shared_tasks.py").write_text(textwrap.dedent(TASK_MODULE))
    return Open(
        task_kind="python",
        task_class=f"shared_tasks:{class_name}",
        task_path=str(directory),
        site="north",
        # 7 records a step: one process takes 3, the other 4.
        options={"batch_size": 7, "weight_decay": 0.01, "micro_batch_size": 2},
        data={"gate": str(directory / "gate")},
        device="cpu",
    )


@asynccontextmanager
async def running(
    request: Open, processes: int, heard: list[Progress] | None = None
) -> AsyncIterator[Trainer]:
    trainer = Trainer(
        request,
        on_progress=(heard if heard is not None else []).append,
        on_log=print,
        processes=processes,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(trainer.run)
        trainer.parameters_in[:] = trainer.genesis
        trainer.state_in[:] = 0
        yield trainer
        nursery.cancel_scope.cancel()


async def two_rounds(trainer: Trainer) -> tuple[Any, Any]:
    for round_number in range(2):
        await trainer.train(round_number, STEPS)
        trainer.parameters_in[:] = trainer.parameters_out
        trainer.state_in[:] = trainer.state_out
    return trainer.parameters_out.copy(), trainer.state_out.copy()


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def ranks_among(processes: list[psutil.Process]) -> dict[int, psutil.Process]:
    return {
        int(process.environ()["RANK"]): process
        for process in processes
        if "p2pfed.training.rank" in process.cmdline() and "RANK" in process.environ()
    }


async def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    request = request_for(tmp_path, "FailsInTheSecond")
    async with running(request, processes=1) as trainer:
        alone = await two_rounds(trainer)
    heard: list[Progress] = []
    async with running(request, processes=2, heard=heard) as trainer:
        assert trainer.ready.device == "cpu and 1 more"
        pid = trainer.status.pid
        assert pid is not None
        shared = await two_rounds(trainer)
        everyone = family(pid)
        assert set(ranks_among(everyone)) == {0, 1}
        assert open_ports(everyone) <= {"127.0.0.1", "::1"}
        assert {(p.step, p.steps) for p in heard} >= {(1, STEPS), (STEPS, STEPS)}

        (tmp_path / "gate").touch()
        with pytest.raises(TrainingError, match=r"process 2 of 2: .*KeyError.*no such tensor"):
            await trainer.train(2, STEPS)
        (tmp_path / "gate").unlink()
        assert (await trainer.train(2, STEPS)).samples == 7 * STEPS, "fit for the next round"
        assert (await trainer.evaluate("out")).records == 41

        ranks_among(everyone)[1].send_signal(signal.SIGKILL)
        with pytest.raises(TrainerDiedError, match="shares the local steps"):
            await trainer.train(3, STEPS)
    await all_ended(everyone)
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def open_ports(processes: list[psutil.Process]) -> set[str]:
    """Addresses that they listen on."""
    return {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


async def all_ended(processes: list[psutil.Process]) -> None:
    with trio.fail_after(20):
        for process in processes:
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            await trio.lowlevel.wait_readable(descriptor)
            os.close(descriptor)


PARENT = """
import sys, trio
import test_torchrun
from pathlib import Path

async def main():
    request = test_torchrun.request_for(Path(sys.argv[1]), "Waits")
    async with test_torchrun.running(request, 2) as trainer:
        print("pid", trainer.status.pid, flush=True)
        await trainer.train(0, 4)

trio.run(main)
"""


async def test_a_killed_daemon_leaves_none_of_them_behind(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    parent = await trio.lowlevel.open_process(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert parent.stdout is not None
    said = bytearray()
    while b"\n" not in said.partition(b"pid ")[2]:
        part = await parent.stdout.receive_some(64)
        assert part, said
        said += part
    everyone = family(int(said.partition(b"pid ")[2].split()[0]))
    assert set(ranks_among(everyone)) == {0, 1}
    parent.kill()
    await parent.wait()
    await all_ended(everyone)
    await parent.stdout.aclose()
