"""The trainer process's side of the conversation: one request at a time, one answer each."""

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from p2pfed.errors import ConfigurationError, DataError, TrainingError
from p2pfed.protocol.digests import vector_digest
from p2pfed.training import frames
from p2pfed.training.export import evaluate_on_file, export_model
from p2pfed.training.loading import LoadedTask, device_words, load
from p2pfed.training.processes import Processes, SharedGradients
from p2pfed.training.regions import RegionLayout, Regions
from p2pfed.training.round_input import RoundInput
from p2pfed.training.site_state import SiteModel
from p2pfed.training.task import DeviceMemoryError, TaskError

PROGRESS_INTERVAL_SECONDS = 0.25


def serve(
    connection: socket.socket, memory_descriptor: int, processes: Processes | None = None
) -> None:
    """Answer requests until the daemon closes its end.

    :param processes: those that share the local steps, where there are several.
    :raises FrameError: the daemon sent something that is no request.
    """
    prepare_torch()
    leads = processes is None or processes.leads

    def send(reply: frames.Message) -> None:
        if leads or not isinstance(reply, frames.Progress):
            connection.sendall(frames.encode(reply))

    trainer = _Trainer(memory_descriptor, send, processes)
    with connection.makefile("rb") as stream:
        while len(prefix := stream.read(frames.LENGTH.size)) == frames.LENGTH.size:
            body = stream.read(frames.body_length(prefix))
            request = frames.decode(body)
            if processes is not None:
                processes.pass_on(request)
            answer = _answer(trainer, request)
            if processes is not None and leads:
                answer = processes.agree(request, answer)
            send(answer)


def prepare_torch() -> None:
    """Make the same round give the same bytes, as far as torch has algorithms for it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would also fill every new tensor before use, a further pass over all activations, in case
    # somebody reads what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _answer(trainer: "_Trainer", request: frames.Message) -> frames.Message:
    """The answer to ``request``: its counterpart, or why there is none."""
    try:
        return trainer.answer(request)
    except DataError as error:
        return _failure("data", error)
    except ConfigurationError as error:
        return _failure("configuration", error)
    except DeviceMemoryError as error:
        return _failure("out_of_memory", error)
    except TaskError as error:
        return _failure("task", error)
    except TrainingError as error:
        return _failure("training", error)


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

    def __init__(
        self,
        memory_descriptor: int,
        send: Callable[[frames.Reply], None],
        processes: Processes | None,
    ) -> None:
        self._memory_descriptor = memory_descriptor
        self._send = send
        self._processes = processes
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
        loaded = load(request, self._processes.share if self._processes is not None else None)
        learner = loaded.learner
        words = device_words(learner.device)
        if self._processes is not None:
            learner.gradients = SharedGradients(learner.gradients, self._processes, learner.device)
            words = f"{words} and {self._processes.share.processes - 1} more"
        self._loaded = loaded
        return frames.Ready(
            dimension=loaded.learner.schema.dimension,
            state_floats=loaded.learner.layout.floats,
            kept_state_floats=loaded.learner.layout.kept_floats,
            schema_digest=loaded.learner.schema.digest,
            schema=loaded.learner.schema.tensors,
            training_records=loaded.training_records,
            holdout_records=loaded.holdout_records,
            device=words,
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
        given = RoundInput.at_site(
            SiteModel(regions.parameters_in, regions.state_in),
            seed=opened.seed,
            site=opened.site,
            round_number=request.round_number,
            local_steps=request.local_steps,
            steps=opened.maximum_local_steps,
            noise_secret=request.noise_secret,
        )
        if self._processes is not None:
            self._processes.join(loaded.learner.device)
        out = regions.parameters_out, regions.state_out
        if self._processes is not None and not self._processes.leads:
            out = np.empty_like(out[0]), np.empty_like(out[1])  # process 0's is the daemon's
        summary = loaded.learner.train(
            loaded.datasets.training,
            given,
            *out,
            self._send,
            PROGRESS_INTERVAL_SECONDS,
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
