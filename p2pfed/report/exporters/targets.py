"""Where figures go: TensorBoard's event files, MLflow's tracking API."""

import os
import time
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from p2pfed.errors import P2pfedError
from p2pfed.report.exporters.messages import Begin, Figures

MAX_WAITING_ROUNDS = 1_000  # kept for a target that fails, the newest of them
MAX_REASON_CHARACTERS = 300
MLFLOW_TIMEOUT_SECONDS = 20
MLFLOW_RETRIES = 1
RUN_TAG = "p2pfed.run"


class ExportError(P2pfedError):
    """A target cannot be used."""


class Target(Protocol):
    """Takes the rounds in order; whatever it raises is a failure that is tried again."""

    def write(self, figures: Figures) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files, written without torch or TensorFlow.

    A daemon that was started again writes another file; TensorBoard reads all of a directory.
    """

    def __init__(self, begin: Begin) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: PLC0415
            from tensorboard.summary.writer.event_file_writer import (  # noqa: PLC0415
                EventFileWriter,
            )
        except ImportError as error:
            raise ExportError(
                f"{error}; pip install 'p2pfed[tensorboard]', or take export.tensorboard out of "
                "the site file"
            ) from error
        assert begin.tensorboard is not None  # noqa: S101 - asked before
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        directory = Path(begin.tensorboard) / begin.site
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(directory))

    def write(self, figures: Figures) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in figures.scalars.items()
        ]
        self._writer.add_event(
            self._event(
                wall_time=figures.at_seconds,
                step=figures.round,
                summary=self._summary(value=values),
            )
        )
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Mlflow:
    """One run for a site of a federation, gone on with when the daemon was started again."""

    def __init__(self, begin: Begin) -> None:
        assert begin.mlflow is not None  # noqa: S101 - asked before
        # A hospital's software reports to nobody, and a tracking server that is away must not
        # hold up the next round's figures for minutes.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(MLFLOW_TIMEOUT_SECONDS))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(MLFLOW_RETRIES))
        if begin.mlflow.startswith("file:"):
            # MLflow 3 refuses a directory unless it is told so; what else there is, is a database.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            from mlflow.entities import Metric, Param  # noqa: PLC0415
            from mlflow.tracking import MlflowClient  # noqa: PLC0415
        except ImportError as error:
            raise ExportError(
                f"{error}; pip install 'p2pfed[mlflow]', or take export.mlflow out of the site file"
            ) from error
        self._metric, self._param = Metric, Param
        self._client = MlflowClient(tracking_uri=begin.mlflow)
        self._run = self._find_or_begin_run(begin)

    def _find_or_begin_run(self, begin: Begin) -> str:
        client, name = self._client, f"p2pfed {begin.federation}"
        experiment = client.get_experiment_by_name(name)
        identifier = experiment.experiment_id if experiment else client.create_experiment(name)
        tag = f"{begin.federation_id}/{begin.site}"
        found = client.search_runs([identifier], f"tags.`{RUN_TAG}` = '{tag}'", max_results=1)
        if found:
            run = str(found[0].info.run_id)
            client.update_run(run, status="RUNNING")
            return run
        run = str(
            client.create_run(identifier, run_name=begin.site, tags={RUN_TAG: tag}).info.run_id
        )
        parameters = [self._param(key, value) for key, value in begin.parameters.items()]
        client.log_batch(run, params=parameters)
        return run

    def write(self, figures: Figures) -> None:
        at_milliseconds = 1000 * (figures.at_seconds or int(time.time()))
        metrics: list[Any] = [
            self._metric(name, value, at_milliseconds, figures.round)
            for name, value in figures.scalars.items()
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Waiting:
    """A target that is made when first needed, and what it has not taken yet.

    :param make: the target's class.
    :ivar error: why it last failed; None while it has everything.
    """

    def __init__(self, make: type[TensorBoard] | type[Mlflow], begin: Begin) -> None:
        self._make = make
        self._begin = begin
        self._target: Target | None = None
        self._rounds: deque[Figures] = deque(maxlen=MAX_WAITING_ROUNDS)
        self.error: str | None = None

    def take(self, figures: Figures | None) -> None:
        """Write ``figures`` and what waits before them; what fails waits for the next time."""
        if figures is not None:
            self._rounds.append(figures)
        try:
            if self._target is None:
                self._target = self._make(self._begin)
            while self._rounds:
                self._target.write(self._rounds[0])
                self._rounds.popleft()
        except Exception as error:  # noqa: BLE001 - a foreign library may raise anything
            self.error = f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]
        else:
            self.error = None

    def close(self) -> None:
        if self._target is None:
            return
        try:
            self._target.close()
        except Exception as error:  # noqa: BLE001 - as above; the process ends anyway
            self.error = str(error)


def targets_of(begin: Begin) -> dict[str, Waiting]:
    """Those that the site file names."""
    targets = {}
    if begin.tensorboard:
        targets["tensorboard"] = Waiting(TensorBoard, begin)
    if begin.mlflow:
        targets["mlflow"] = Waiting(Mlflow, begin)
    return targets
