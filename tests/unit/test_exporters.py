"""The exporter process against the real libraries, and what it does when they fail."""

import io
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import topology_documents
import trio
from report_samples import record

from p2pfed.config import load_site
from p2pfed.daemon import exporting as exporting_module
from p2pfed.daemon.exporting import Exporting, begin_of
from p2pfed.report.exporters import targets
from p2pfed.report.exporters.__main__ import serve
from p2pfed.report.exporters.messages import Begin, Figures, Written
from p2pfed.report.exporters.scalars import scalars_of
from p2pfed.report.exporters.targets import Waiting

GUARD_SECONDS = 60.0
POLL_SECONDS = 0.02


def begin(**places: str) -> Begin:
    return Begin(
        **{"tensorboard": None, "mlflow": None, **places},  # type: ignore[arg-type]
        site="a",
        federation="test",
        federation_id="ef" * 32,
        parameters={"rule": "mean"},
    )


def figures(number: int) -> Figures:
    return Figures(
        round=number, at_seconds=1_700_000_000 + number, scalars=scalars_of(record(number))
    )


def answers(first: Begin, *rounds: Figures) -> list[Written]:
    """What the process would answer, with everything written and closed."""
    source, sink = io.BytesIO(b"".join(one.line() for one in (first, *rounds))), io.BytesIO()
    serve(source, sink)
    return [Written.model_validate_json(line) for line in sink.getvalue().splitlines()]


def test_the_names_of_the_figures() -> None:
    found = scalars_of(record(3, weights={"b": 0.25}, after={"auc": 0.66, "dice@0.5": 0.5}))
    assert found["holdout/auc"] == 0.66
    assert found["holdout_low/auc"] == pytest.approx(0.56)
    assert found["holdout/dice_0.5"] == 0.5
    assert found["weight/b"] == 0.25
    assert found["calibration/brier"] == 0.15
    assert found["mixing/degraded"] == 0.0


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    given = begin(tensorboard=str(tmp_path))
    assert answers(given, figures(0), figures(1)) == [Written(errors={})] * 3
    assert answers(given, figures(2)) == [Written(errors={})] * 2  # the daemon was started again
    seen: dict[int, dict[str, float]] = {}
    for path in sorted((tmp_path / "a").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                number = (
                    value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
                )
                seen.setdefault(event.step, {})[value.tag] = number
                assert event.wall_time == 1_700_000_000 + event.step
    assert sorted(seen) == [0, 1, 2]
    assert seen[2]["holdout/auc"] == pytest.approx(0.64)
    assert set(seen[2]) == set(figures(2).scalars)


@pytest.fixture
def no_trace_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "MLFLOW_DISABLE_TELEMETRY",
        "MLFLOW_HTTP_REQUEST_TIMEOUT",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
        "MLFLOW_ALLOW_FILE_STORE",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_trace_of_mlflow")
def test_mlflow_has_one_run_for_a_site_also_after_a_restart(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    given = begin(mlflow=tmp_path.as_uri())
    assert answers(given, figures(0), figures(1)) == [Written(errors={})] * 3
    assert answers(given, figures(2)) == [Written(errors={})] * 2
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tmp_path.as_uri())
    experiment = client.get_experiment_by_name("p2pfed test")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a"
    assert run.data.params == {"rule": "mean"}
    history = client.get_metric_history(run.info.run_id, "holdout/auc")
    assert [(one.step, round(one.value, 2)) for one in history] == [(0, 0.6), (1, 0.62), (2, 0.64)]
    assert history[2].timestamp == 1_700_000_002_000
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_library_that_is_missing_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.compat.proto", None)
    *_, last = answers(begin(tensorboard=str(tmp_path)), figures(0))
    assert "pip install 'p2pfed[tensorboard]'" in last.errors["tensorboard"]


def test_what_a_target_refused_waits_for_the_next_round() -> None:
    taken: list[int] = []

    class Failing:
        broken = True

        def __init__(self, _: Begin) -> None:
            pass

        def write(self, given: Figures) -> None:
            if Failing.broken:
                raise ConnectionError("no route to host")
            taken.append(given.round)

        def close(self) -> None:
            raise ConnectionError

    waiting = Waiting(Failing, begin())  # type: ignore[arg-type]
    waiting.take(figures(0))
    waiting.take(figures(1))
    assert waiting.error == "ConnectionError: no route to host"
    Failing.broken = False
    waiting.take(figures(2))
    assert (taken, waiting.error) == ([0, 1, 2], None)
    waiting.close()  # nothing is raised


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "MAX_WAITING_ROUNDS", 2)

    class Never:
        def __init__(self, _: Begin) -> None:
            raise OSError("disk full")

    waiting = Waiting(Never, begin())  # type: ignore[arg-type]
    for number in range(5):
        waiting.take(figures(number))
    assert [one.round for one in waiting._rounds] == [3, 4]


def site_with(directory: Path, **export: str) -> Begin | None:
    topology = topology_documents.load(directory, topology_documents.document())
    path = directory / "site.toml"
    path.write_text(tomli_w.dumps({"schema_version": 1, "name": "a", "export": export}))
    return begin_of(load_site(path), topology, "ef" * 32)


def test_nothing_is_exported_unless_asked_for(tmp_path: Path) -> None:
    assert site_with(tmp_path) is None


def test_places_are_relative_to_the_site_file(tmp_path: Path) -> None:
    found = site_with(tmp_path, tensorboard="tb", mlflow="ml")
    assert found is not None
    assert found.tensorboard == str(tmp_path / "tb")
    assert found.mlflow == (tmp_path / "ml").as_uri()
    other = site_with(tmp_path, mlflow="https://mlflow.example:5000")
    assert other is not None
    assert other.mlflow == "https://mlflow.example:5000"


@asynccontextmanager
async def running(exporting: Exporting) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exporting.run)
        yield
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], Any]) -> None:
    with trio.fail_after(GUARD_SECONDS):
        while not holds():  # noqa: ASYNC110 - the processes tell nobody when they are ready
            await trio.sleep(POLL_SECONDS)


async def test_the_daemons_exporter_writes_and_is_replaced_when_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    monkeypatch.setattr(exporting_module, "RESTART_DELAY_SECONDS", 0.05)
    started: list[trio.Process] = []
    open_process = trio.lowlevel.open_process

    async def opened(*arguments: Any, **options: Any) -> trio.Process:
        process = await open_process(*arguments, **options)
        started.append(process)
        return process

    monkeypatch.setattr(exporting_module.trio.lowlevel, "open_process", opened)
    exporting = Exporting(begin(tensorboard=str(tmp_path)))
    async with running(exporting):
        exporting.offer(record(0))
        await until(lambda: not exporting._waiting)
        os.kill(started[0].pid, signal.SIGKILL)
        exporting.offer(record(1))
        await until(lambda: len(started) == 2 and not exporting._waiting)
        exporting.offer(record(2))  # what waits when the daemon stops still goes out
    assert [process.poll() is not None for process in started] == [True, True]
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    steps = {
        event.step
        for path in (tmp_path / "a").iterdir()
        for event in EventFileLoader(str(path)).Load()
        if event.summary.value
    }
    assert steps == {0, 1, 2}


async def test_a_place_that_cannot_be_written_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    (tmp_path / "file").touch()
    exporting = Exporting(begin(tensorboard=str(tmp_path / "file")))
    async with running(exporting):
        exporting.offer(record(0))
        await until(lambda: exporting.errors)
    assert "NotADirectoryError" in exporting.errors["tensorboard"]


async def test_a_process_that_talks_nonsense_is_a_failure_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporting_module, "MODULE", "this")
    exporting = Exporting(begin())
    async with running(exporting):
        await until(lambda: exporting.errors)
    assert "The Zen of Python" in exporting.errors["exporter"]


def test_a_password_in_the_tracking_uri_is_not_shown() -> None:
    exporting = Exporting(begin())
    exporting._show({"mlflow": "cannot reach https://user:word@mlflow.example/api"})
    assert exporting.errors == {"mlflow": "cannot reach https://mlflow.example/api"}
