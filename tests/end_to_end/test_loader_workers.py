"""A trainer process whose records are read by workers of its own."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pfed.daemon.trainer import Trainer
from p2pfed.errors import ConfigurationError
from p2pfed.training.frames import Open

TASK_MODULE = """
    import torch
    from torch.utils.data import Dataset
    from p2pfed.training.task import Datasets

    class Noisy(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            x = torch.full((3,), float(index)) + torch.randn(3)
            return x, x.sum()

    class Closed(Noisy):
        def __init__(self):
            self.read = lambda index: index

    class Linear:
        records = Noisy

        def __init__(self, options, data):
            pass

        def build_model(self):
            return torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(3, 1))

        def datasets(self):
            return Datasets(training=self.records(), holdout=self.records())

        def loss(self, model, batch):
            x, y = batch
            return ((model(x)[:, 0] - y) ** 2).mean() / 100

        def metrics(self, model, batches):
            return {"loss": sum(self.loss(model, batch) for batch in batches)}

    class CannotBePassedOn(Linear):
        records = Closed
"""


def request_for(directory: Path, class_name: str, workers: int) -> Open:
    (directory / "noisy_tasks.py").write_text(textwrap.dedent(TASK_MODULE))
    return Open(
        task_kind="python",
        task_class=f"noisy_tasks:{class_name}",
        task_path=str(directory),
        site="north",
        options={"batch_size": 4, "learning_rate": 0.01},
        data={},
        device="cpu",
        loader_workers=workers,
    )


async def trained(request: Open) -> list[bytes]:
    results: list[bytes] = []
    trainer = Trainer(request, on_progress=lambda _: None, on_log=print)
    async with trio.open_nursery() as nursery:
        await nursery.start(trainer.run)
        trainer.parameters_in[:] = trainer.genesis
        for round_number in range(3):
            await trainer.train(round_number, 3)
            results.append(trainer.parameters_out.tobytes())
            trainer.parameters_in[:] = trainer.parameters_out
            trainer.state_in[:] = trainer.state_out
        nursery.cancel_scope.cancel()
    return results


async def test_rounds_are_the_same_bytes_with_and_without_workers(tmp_path: Path) -> None:
    alone = await trained(request_for(tmp_path, "Linear", 0))
    assert await trained(request_for(tmp_path, "Linear", 1)) == alone
    assert len(set(alone)) == 3


async def test_records_that_no_worker_can_be_given_are_refused_at_once(tmp_path: Path) -> None:
    def unheard(_: Any) -> None: ...

    trainer = Trainer(
        request_for(tmp_path, "CannotBePassedOn", 1), on_progress=unheard, on_log=unheard
    )
    with pytest.raises(ConfigurationError) as caught:
        await trainer.run()
    [problem] = caught.value.problems
    assert problem.key == "training.loader_workers"
    assert "lambda" in problem.reason
