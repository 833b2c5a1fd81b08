"""Real trainer processes under the daemon's `Trainer`; training itself is tested in unit/."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trio
from safetensors import safe_open

from p2pfed.daemon.trainer import Trainer
from p2pfed.errors import ConfigurationError, DataError, TrainerDiedError, TrainingError
from p2pfed.protocol.digests import vector_digest
from p2pfed.training.frames import Open, Progress

LOCAL_STEPS = 6

OPTIONS: dict[str, Any] = {
    "label": "disease",
    "batch_size": 16,
    "learning_rate": 0.1,
    "hidden": [4],
    "batch_norm": True,
    "columns": [
        {"name": "age", "kind": "numeric", "centre": 54.0, "scale": 9.0},
        {"name": "pain", "kind": "categorical", "categories": [1, 2, 3]},
    ],
}

TASK_MODULE = """
    import os, time
    import torch
    from torch.utils.data import TensorDataset
    from p2pfed.training.task import Datasets

    class Linear:
        def __init__(self, options, data):
            self.options, self.data = options, data

        def build_model(self):
            return torch.nn.Linear(3, 1)

        def datasets(self):
            x = torch.arange(60.0).reshape(20, 3) / 60
            data = TensorDataset(x, x.sum(1))
            return Datasets(training=data, holdout=data)

        def loss(self, model, batch):
            x, y = batch
            return ((model(x)[:, 0] - y) ** 2).mean()

        def metrics(self, model, batches):
            return {"loss": sum(self.loss(model, batch) for batch in batches)}

    class WaitsAtStepThree(Linear):
        steps = 0

        def loss(self, model, batch):
            self.steps += 1
            if self.steps == 3 and os.path.exists(self.data["gate"]):
                while True:
                    time.sleep(60)
            return super().loss(model, batch)

    class Raises(Linear):
        def loss(self, model, batch):
            print("about to fail")
            raise KeyError("no such tensor")

    class Chatty(Linear):
        def metrics(self, model, batches):
            for line in range(1000):
                print(f"line {line} " + "x" * 2000)
            return {"nothing": 0}

    class DiesAtStart(Linear):
        def datasets(self):
            os._exit(7)

    class ChangesItsMind(Linear):
        def build_model(self):
            width = 3 + os.path.exists(self.data["gate"])
            return torch.nn.Linear(width, 1)
"""


def table(path: Path, rows: int = 120) -> Path:
    generator = np.random.Generator(np.random.PCG64(7))
    age = generator.integers(30, 80, rows)
    pain = generator.integers(1, 4, rows)
    disease = (age + 8 * pain + generator.normal(0, 6, rows) > 71).astype(int)
    lines = [f"{a},{p},{d}" for a, p, d in zip(age, pain, disease, strict=True)]
    path.write_text("age,pain,disease\n" + "\n".join(lines) + "\n")
    return path


def tabular(tmp_path: Path, **changes: Any) -> Open:
    data = {"path": str(table(tmp_path / "site.csv"))}
    fields = {"task_kind": "tabular", "site": "north", "options": OPTIONS, "data": data}
    return Open(**{**fields, **changes})


def python_task(tmp_path: Path, class_name: str, **data: str) -> Open:
    (tmp_path / "trainer_tasks.py").write_text(textwrap.dedent(TASK_MODULE))
    return Open(
        task_kind="python",
        task_class=f"trainer_tasks:{class_name}",
        task_path=str(tmp_path),
        site="north",
        options={"batch_size": 4},
        data=dict(data),
    )


class Heard:
    """What a trainer reported, and a way to wait for the next report."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.lines: list[str] = []
        self._stir = trio.Event()

    def on_progress(self, progress: Progress) -> None:
        self.progress.append(progress)
        self._note()

    def on_log(self, line: str) -> None:
        self.lines.append(line)
        self._note()

    def _note(self) -> None:
        self._stir.set()
        self._stir = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._stir.wait()


@asynccontextmanager
async def running(request: Open, heard: Heard) -> AsyncIterator[Trainer]:
    trainer = Trainer(request, on_progress=heard.on_progress, on_log=heard.on_log)
    async with trio.open_nursery() as nursery:
        await nursery.start(trainer.run)
        yield trainer
        nursery.cancel_scope.cancel()


async def stopped_by_itself(request: Open, heard: Heard) -> None:
    await Trainer(request, on_progress=heard.on_progress, on_log=heard.on_log).run()


def give(trainer: Trainer, seed: int = 3) -> None:
    generator = np.random.Generator(np.random.PCG64(seed))
    trainer.parameters_in[:] = trainer.genesis + generator.normal(
        0, 0.1, trainer.ready.dimension
    ).astype(np.float32)
    trainer.state_in[:] = generator.normal(0, 0.01, trainer.ready.state_floats)


def result(trainer: Trainer) -> tuple[bytes, bytes]:
    return trainer.parameters_out.tobytes(), trainer.state_out.tobytes()


async def test_a_round_trains_evaluates_and_exports(tmp_path: Path) -> None:
    heard = Heard()
    async with running(tabular(tmp_path), heard) as trainer:
        assert trainer.genesis_digest == vector_digest(trainer.genesis)
        assert trainer.ready.training_records + trainer.ready.holdout_records == 120
        trainer.parameters_in[:] = trainer.genesis
        before = await trainer.evaluate("in")
        for round_number in range(8):
            trained = await trainer.train(round_number, LOCAL_STEPS)
            trainer.parameters_in[:] = trainer.parameters_out
            trainer.state_in[:] = trainer.state_out
        after = await trainer.evaluate("out")
        assert trained.samples == LOCAL_STEPS * 16
        assert after.metrics["auc"] > max(0.8, before.metrics["auc"])
        assert after.records == trainer.ready.holdout_records
        on_file = await trainer.evaluate_file(tmp_path / "site.csv")
        assert on_file.records == 120

        exported = await trainer.export(tmp_path / "model.safetensors", {"round": "8"})
        raw = (tmp_path / "model.safetensors").read_bytes()
        assert exported.size_bytes == len(raw)
        assert exported.sha256 == hashlib.sha256(raw).digest()
        with safe_open(tmp_path / "model.safetensors", "np") as file:
            assert file.metadata() == {"round": "8"}
            stored = np.concatenate([file.get_tensor(n).ravel() for n, _ in trainer.ready.schema])
        assert np.array_equal(stored, trainer.parameters_in)

        assert heard.progress[-1].step == LOCAL_STEPS
        assert trainer.status.state == "idle"
        assert trainer.status.restarts == 0
        pid = trainer.status.pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(TrainerDiedError, match="stopped"):
        await trainer.evaluate("in")


async def test_a_killed_trainer_is_replaced_and_repeats_the_round_byte_for_byte(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    heard = Heard()
    async with running(python_task(tmp_path, "WaitsAtStepThree", gate=str(gate)), heard) as trainer:
        give(trainer)
        given = trainer.parameters_in.tobytes(), trainer.state_in.tobytes()
        died: list[TrainerDiedError] = []

        async def train_until_killed() -> None:
            with pytest.raises(TrainerDiedError, match="SIGKILL") as caught:
                await trainer.train(5, LOCAL_STEPS)
            died.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(train_until_killed)
            await heard.until(lambda: bool(heard.progress))
            assert trainer.status.state == "training"
            first_pid = trainer.status.pid
            assert first_pid is not None
            os.kill(first_pid, signal.SIGKILL)
            gate.unlink()
        assert died
        assert given == (trainer.parameters_in.tobytes(), trainer.state_in.tobytes())
        assert np.array_equal(trainer.parameters_out, trainer.genesis)

        await heard.until(lambda: any("another is started" in line for line in heard.lines))
        assert "SIGKILL" in heard.lines[-1]
        await trainer.train(5, LOCAL_STEPS)
        after_the_kill = result(trainer)
        assert trainer.status.pid != first_pid
        assert trainer.status.restarts == 1
        assert trainer.status.last_error is None
        await trainer.train(5, LOCAL_STEPS)
        assert result(trainer) == after_the_kill

    async with running(python_task(tmp_path, "Linear"), Heard()) as unharmed:
        give(unharmed)
        await unharmed.train(5, LOCAL_STEPS)
        assert result(unharmed) == after_the_kill


async def test_a_stopped_trainer_is_silent_until_it_is_let_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing that this round does takes so long, and nobody waits for the real floor.
    monkeypatch.setattr("p2pfed.daemon.trainer_pace.LEAST_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr("p2pfed.daemon.trainer_pace.PATIENCE_FACTOR", 1.0)
    heard = Heard()
    async with running(tabular(tmp_path), heard) as trainer:
        give(trainer)
        assert trainer.status.heard_at_seconds is None
        await trainer.train(0, LOCAL_STEPS)
        assert trainer.status.heard_at_seconds is None
        pid = trainer.status.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trainer.train, 1, LOCAL_STEPS)
            await trio.testing.wait_all_tasks_blocked()
            asked_at_seconds = trainer.status.heard_at_seconds
            assert asked_at_seconds is not None
            assert trainer.status.patience_seconds is not None
            await trio.sleep_until(asked_at_seconds + 2 * trainer.status.patience_seconds)
            assert trainer.status.heard_at_seconds == asked_at_seconds
            os.kill(pid, signal.SIGCONT)
        assert trainer.status.heard_at_seconds is None
        assert trainer.status.restarts == 0


async def test_a_restart_leaves_the_last_result_in_place(tmp_path: Path) -> None:
    heard = Heard()
    async with running(tabular(tmp_path), heard) as trainer:
        give(trainer)
        await trainer.train(0, LOCAL_STEPS)
        before = result(trainer)
        assert trainer.status.pid is not None
        os.kill(trainer.status.pid, signal.SIGKILL)
        await heard.until(lambda: any("SIGKILL" in line for line in heard.lines))
        assert trainer.status.state == "restarting"
        evaluated = await trainer.evaluate("out")
        assert evaluated.records == trainer.ready.holdout_records
        assert result(trainer) == before


async def test_a_cancelled_request_leaves_nothing_out_of_step(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    heard = Heard()
    async with running(python_task(tmp_path, "WaitsAtStepThree", gate=str(gate)), heard) as trainer:
        give(trainer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trainer.train, 0, LOCAL_STEPS)
            await heard.until(lambda: bool(heard.progress))
            nursery.cancel_scope.cancel()
        gate.unlink()
        evaluated = await trainer.evaluate("in")
        assert evaluated.records == 20
        await trainer.train(0, LOCAL_STEPS)
        assert trainer.status.restarts == 1


async def test_requests_from_several_tasks_take_turns(tmp_path: Path) -> None:
    async with running(tabular(tmp_path), Heard()) as trainer:
        give(trainer)
        done: list[str] = []

        async def ask(what: str, request: Callable[[], Awaitable[object]]) -> None:
            await request()
            done.append(what)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "train", lambda: trainer.train(0, LOCAL_STEPS))
            nursery.start_soon(ask, "evaluate", lambda: trainer.evaluate("in"))
            nursery.start_soon(ask, "again", lambda: trainer.train(1, LOCAL_STEPS))
        assert sorted(done) == ["again", "evaluate", "train"]


async def test_a_task_that_raises_costs_the_request_and_not_the_process(tmp_path: Path) -> None:
    heard = Heard()
    async with running(python_task(tmp_path, "Raises"), heard) as trainer:
        give(trainer)
        pid = trainer.status.pid
        with pytest.raises(TrainingError, match="loss raised KeyError") as caught:
            await trainer.train(0, 1)
        assert not isinstance(caught.value, TrainerDiedError)
        assert "KeyError" in (trainer.status.last_error or "")
        await heard.until(lambda: "about to fail" in heard.lines)
        await heard.until(lambda: any("Traceback" in line for line in heard.lines))
        assert trainer.status.pid == pid
        assert trainer.status.state == "idle"


async def test_what_a_task_prints_arrives_within_bounds(tmp_path: Path) -> None:
    heard = Heard()
    async with running(python_task(tmp_path, "Chatty"), heard) as trainer:
        await trainer.evaluate("in")
        await heard.until(lambda: any("left out" in line for line in heard.lines))
    assert len(heard.lines) == 201
    assert max(len(line) for line in heard.lines) == 500


async def test_bad_data_end_the_start_with_every_problem(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("age,pain,disease\nold,9,0\n50,1,1\n")
    request = tabular(tmp_path, data={"path": str(bad)})
    with pytest.raises(DataError) as caught:
        await stopped_by_itself(request, Heard())
    assert {problem.key for problem in caught.value.problems} == {"age", "pain"}
    assert caught.value.problems[0].file == bad


async def test_bad_options_end_the_start_naming_the_topology_file(tmp_path: Path) -> None:
    request = tabular(tmp_path, options=OPTIONS | {"modell": "mlp"}, topology_file="hospitals.toml")
    with pytest.raises(ConfigurationError, match="did you mean 'model'") as caught:
        await stopped_by_itself(request, Heard())
    assert str(caught.value).startswith("hospitals.toml: task.options.modell")


async def test_a_process_that_dies_at_every_start_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pfed.daemon.trainer.FIRST_RESTART_DELAY_SECONDS", 0.0)
    monkeypatch.setattr("p2pfed.daemon.trainer.MAX_FIRST_STARTS", 2)
    heard = Heard()
    with pytest.raises(TrainerDiedError, match="exit status 7"):
        await stopped_by_itself(python_task(tmp_path, "DiesAtStart"), heard)
    assert len([line for line in heard.lines if "another is started" in line]) == 1


async def test_a_restart_with_another_model_is_refused(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    heard = Heard()
    async with running(python_task(tmp_path, "ChangesItsMind", gate=str(gate)), heard) as trainer:
        gate.touch()
        assert trainer.status.pid is not None
        os.kill(trainer.status.pid, signal.SIGKILL)
        await heard.until(lambda: any("SIGKILL" in line for line in heard.lines))
        with pytest.raises(TrainingError, match="changed while the daemon ran"):
            await trainer.evaluate("in")
        assert trainer.status.state == "failed"


PARENT = """
import sys, trio
from p2pfed.daemon.trainer import Trainer
from p2pfed.training.frames import Open

async def main():
    request = Open(task_kind="python", task_class="trainer_tasks:WaitsAtStepThree",
                   task_path=sys.argv[1], site="north", options={"batch_size": 4},
                   data={"gate": sys.argv[2]})
    trainer = Trainer(request, on_progress=lambda p: print(trainer.status.pid, flush=True),
                      on_log=lambda line: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(trainer.run)
        await trainer.train(0, 6)

assert "torch" not in sys.modules
trio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="watches the process by its pidfd")
async def test_a_trainer_in_the_middle_of_a_step_ends_with_its_killed_parent(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    python_task(tmp_path, "WaitsAtStepThree")
    parent = await trio.lowlevel.open_process(
        [sys.executable, "-c", PARENT, str(tmp_path), str(gate)], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    said = await parent.stdout.receive_some(32)
    trainer = os.pidfd_open(int(said.split()[0]))
    parent.kill()
    await parent.wait()
    await trio.lowlevel.wait_readable(trainer)
    os.close(trainer)
    await parent.stdout.aclose()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
async def test_a_round_on_the_gpu_agrees_with_the_cpu(tmp_path: Path) -> None:
    results = []
    for device in ("cpu", "cuda"):
        heard = Heard()
        async with running(tabular(tmp_path, device=device), heard) as trainer:
            assert trainer.ready.device.startswith(device)
            give(trainer)
            await trainer.train(2, LOCAL_STEPS)
            results.append(trainer.parameters_out.copy())
            if device == "cuda":
                assert heard.progress[-1].gpu_memory_bytes > 0
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-5)
