"""The trainer process's side of the conversation: one request at a time, one answer each."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch

from p2pfed.errors import ConfigurationError, DataError, TrainingError
from p2pfed.protocol.digests import vector_digest
from p2pfed.training import frames
from p2pfed.training.export import evaluate_on_file, export_model
from p2pfed.training.loading import LoadedTask, device_words, load
from p2pfed.training.loop import RoundInput, round_seed
from p2pfed.training.regions import RegionLayout, Regions
from p2pfed.training.sampling import sampler_seed
from p2pfed.training.task import DeviceMemoryError, TaskError

PROGRESS_INTERVAL_SECONDS = 0.25


def serve(connection: socket.socket, memory_descriptor: int) -> None:
    """Answer requests until the daemon closes its end.

    :raises FrameError: the daemon sent something that is no request.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    trainer = _Trainer(memory_descriptor, lambda reply: connection.sendall(frames.encode(reply)))
    with connection.makefile("rb") as stream:
        while len(prefix := stream.read(frames.LENGTH.size)) == frames.LENGTH.size:
            body = stream.read(frames.body_length(prefix))
            connection.sendall(_answer(trainer, frames.decode(body)))


def _answer(trainer: "_Trainer", request: frames.Message) -> bytes:
    """The answer to ``request`` as a frame: its counterpart, or why there is none."""
    try:
        return frames.encode(trainer.answer(request))
    except DataError as error:
        return frames.encode(_failure("data", error))
    except ConfigurationError as error:
        return frames.encode(_failure("configuration", error))
    except DeviceMemoryError as error:
        return frames.encode(_failure("out_of_memory", error))
    except TaskError as error:
        return frames.encode(_failure("task", error))
    except TrainingError as error:
        return frames.encode(_failure("training", error))


def _failure(kind: frames.FailureKind, error: Exception) -> frames.Failed:
    problems = (
        error.problems[: frames.MAX_PROBLEMS] if isinstance(error, ConfigurationError) else ()
    )
    return frames.Failed(
        kind=kind,
        message=str(error)[: frames.MAX_MESSAGE_CHARACTERS],
        problems=tuple(frames.ProblemFields.of(problem) for problem in problems),
    )


class _Trainer:
    """What this process holds between requests: the task once opened, the memory once mapped."""

    def __init__(self, memory_descriptor: int, send: Callable[[frames.Reply], None]) -> None:
        self._memory_descriptor = memory_descriptor
        self._send = send
        self._loaded: LoadedTask | None = None
        self._regions: Regions | None = None

    def answer(self, request: frames.Message) -> frames.Reply:
        match request:
            case frames.Open():
                return self._open(request)
            case frames.Map():
                return self._map(request)
            case frames.Price():
                return self._price(request)
            case frames.Train():
                return self._train(request)
            case frames.Evaluate(side):
                return self._evaluate(side)
            case frames.EvaluateFile(path):
                loaded, regions = self._opened()
                return evaluate_on_file(
                    loaded.learner, regions.parameters_in, regions.state_in, Path(path)
                )
            case frames.Export(path, metadata):
                loaded, regions = self._opened()
                return export_model(
                    loaded.learner, regions.parameters_in, regions.state_in, Path(path), metadata
                )
            case _:
                raise frames.FrameError(f"{type(request).__name__} is no request")

    def _open(self, request: frames.Open) -> frames.Ready:
        # Another number of threads sums in another order: the bytes of a round depend on it.
        torch.set_num_threads(request.threads)
        loaded = load(request)
        self._loaded = loaded
        return frames.Ready(
            dimension=loaded.learner.schema.dimension,
            state_floats=loaded.learner.layout.floats,
            kept_state_floats=loaded.learner.layout.kept_floats,
            schema_digest=loaded.learner.schema.digest,
            schema=loaded.learner.schema.tensors,
            training_records=loaded.training_records,
            holdout_records=loaded.holdout_records,
            device=device_words(loaded.learner.device),
            torch_version=torch.__version__,
            sampling_rate=loaded.learner.privacy.sampling_rate if loaded.learner.privacy else 0.0,
        )

    def _map(self, request: frames.Map) -> frames.Genesis:
        if self._loaded is None:
            raise frames.FrameError("Map before Open")
        learner = self._loaded.learner
        layout = RegionLayout(learner.schema.dimension, learner.layout.floats)
        if request.size_bytes != layout.size_bytes:
            raise frames.FrameError(f"Map of {request.size_bytes} bytes, not {layout.size_bytes}")
        self._regions = Regions.map(self._memory_descriptor, layout, inputs_writable=False)
        genesis = learner.genesis()
        if request.write_genesis:
            self._regions.parameters_out[:] = genesis
        return frames.Genesis(digest=vector_digest(genesis))

    def _price(self, request: frames.Price) -> frames.Priced:
        from p2pfed.training.privacy.pricing import price  # noqa: PLC0415 - imports Opacus

        loaded, regions = self._opened()
        return price(request, loaded.learner, regions.state_in, loaded.request.maximum_local_steps)

    def _train(self, request: frames.Train) -> frames.Trained:
        loaded, regions = self._opened()
        opened = loaded.request
        if (request.noise_secret is None) != (loaded.learner.privacy is None):
            raise frames.FrameError("a secret goes with private training, and only with it")
        given = RoundInput(
            parameters=regions.parameters_in,
            state=regions.state_in,
            round_number=request.round_number,
            local_steps=request.local_steps,
            seed=round_seed(opened.seed, opened.site, request.round_number),
            sampler_seed=sampler_seed(opened.seed, opened.site),
            steps=opened.maximum_local_steps,
            noise_secret=request.noise_secret,
        )
        summary = loaded.learner.train(
            loaded.datasets.training,
            given,
            regions.parameters_out,
            regions.state_out,
            _Throttle(self._send).report,
        )
        return frames.Trained(loss=summary.loss, seconds=summary.seconds, samples=summary.samples)

    def _evaluate(self, side: frames.Side) -> frames.Evaluated:
        loaded, regions = self._opened()
        holdout = loaded.datasets.holdout
        if side == "in":
            return loaded.learner.assess(holdout, regions.parameters_in, regions.state_in)
        metrics = loaded.learner.evaluate(holdout, regions.parameters_out, regions.state_out)
        return frames.Evaluated(metrics=metrics, records=loaded.holdout_records)

    def _opened(self) -> tuple[LoadedTask, Regions]:
        if self._loaded is None or self._regions is None:
            raise frames.FrameError("a request before Open and Map")
        return self._loaded, self._regions


class _Throttle:
    """Passes on the first and the last step's progress, and between them one an interval."""

    def __init__(self, send: Callable[[frames.Reply], None]) -> None:
        self._send = send
        self._next_seconds = 0.0

    def report(self, progress: frames.Progress) -> None:
        now_seconds = time.monotonic()
        if progress.step < progress.steps and now_seconds < self._next_seconds:
            return
        self._next_seconds = now_seconds + PROGRESS_INTERVAL_SECONDS
        self._send(progress)
