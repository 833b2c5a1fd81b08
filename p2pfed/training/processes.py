"""The processes of a site that share its local steps, as each of them sees the others."""

import datetime
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from p2pfed.errors import P2pfedError, TrainingError
from p2pfed.training import frames
from p2pfed.training.gradients import Gradients
from p2pfed.training.losses import Loss
from p2pfed.training.records import Share
from p2pfed.training.task import DeviceMemoryError

COLLECTIVE_TIMEOUT = datetime.timedelta(hours=1)
FOLLOWED = (frames.Open, frames.Map, frames.Train)
"""What all processes do; the rest is for process 0 alone."""


class Processes:
    """This process among those of its site.

    :param followers: process 0's sockets to the others.
    """

    def __init__(
        self, rank: int, processes: int, group_file: Path, followers: list[socket.socket]
    ) -> None:
        self.share = Share(rank, processes)
        self._group_file = group_file
        self._followers = followers
        self._streams = [follower.makefile("rb") for follower in followers]

    @property
    def leads(self) -> bool:
        return self.share.rank == 0

    def join(self, device: torch.device) -> None:
        """Meet the others; the first call alone does something."""
        if torch.distributed.is_initialized():
            return
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{self._group_file}",
            rank=self.share.rank,
            world_size=self.share.processes,
            timeout=COLLECTIVE_TIMEOUT,
        )

    def pass_on(self, request: frames.Message) -> None:
        """Let the others do as this process is about to."""
        if isinstance(request, frames.Map):
            request = replace(request, write_genesis=False)
        if isinstance(request, FOLLOWED):
            for follower in self._followers:
                follower.sendall(frames.encode(request))

    def agree(self, request: frames.Message, answer: frames.Message) -> frames.Message:
        """``answer``, unless another process failed or came to something else."""
        if not isinstance(request, FOLLOWED):
            return answer
        others = [_read(stream) for stream in self._streams]
        for number, other in enumerate(others, start=2):
            if isinstance(answer, frames.Failed):
                break
            if isinstance(other, frames.Failed):
                text = f"process {number} of {self.share.processes}: {other.message}"
                answer = replace(other, message=text[: frames.MAX_MESSAGE_CHARACTERS])
            elif _result(other) != _result(answer):
                answer = frames.Failed(
                    "task",
                    f"process {number} of {self.share.processes} has another model or other "
                    "records: build_model and datasets must give the same at every call",
                )
        return answer


class SharedGradients:
    """The gradient of a batch of which each process takes its share.

    The shares' gradients, each already weighted by its records, are added up (one all-reduce of a
    flat vector a step), so every process has the whole batch's and takes the same step: what
    ``DistributedDataParallel`` does, without a wrapper between the task and its model.
    """

    def __init__(self, own: Gradients, processes: Processes, device: torch.device) -> None:
        self._own = own
        self._processes = processes
        self._device = device

    def fill(
        self,
        model: torch.nn.Module,
        parts: Iterable[tuple[Any, int]],
        records: int,
        place: str,
    ) -> Loss:
        """See :class:`Gradients`; ``parts`` are this process's, ``records`` those of all.

        :raises TrainingError: as well where another process's share failed.
        """
        error: P2pfedError | None = None
        loss: Loss = 0.0
        try:
            loss = self._own.fill(model, parts, records, place)
        except P2pfedError as caught:
            error = caught
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        flat = self._packed(trained, loss, failed=error is not None)
        torch.distributed.all_reduce(flat)
        loss, failed, *taken = flat[: 2 + len(trained)].tolist()
        if failed:
            raise self._what_failed(error)
        sizes = [parameter.numel() for parameter in trained]
        sums = torch.split(flat[2 + len(trained) :], sizes)
        for parameter, count, part in zip(trained, taken, sums, strict=True):
            parameter.grad = part.view(parameter.shape) if count else None
        return loss

    def _packed(
        self, trained: list[torch.nn.Parameter], loss: Loss, *, failed: bool
    ) -> torch.Tensor:
        """Loss, whether this share failed, which parameters took part, and their gradients."""
        head = [0.0 if failed else loss, float(failed)]
        head += [float(parameter.grad is not None) for parameter in trained]
        flat = torch.zeros(
            len(head) + sum(parameter.numel() for parameter in trained), device=self._device
        )
        flat[: len(head)] = torch.tensor([float(value) for value in head])
        offset = len(head)
        for parameter in trained:
            if parameter.grad is not None and not failed:
                flat[offset : offset + parameter.numel()] = parameter.grad.reshape(-1)
            offset += parameter.numel()
        return flat

    def _what_failed(self, error: P2pfedError | None) -> P2pfedError:
        """The first process's failure, for all of them alike."""
        texts: list[tuple[str, bool] | None] = [None] * self._processes.share.processes
        own = None if error is None else (str(error), isinstance(error, DeviceMemoryError))
        torch.distributed.all_gather_object(texts, own)
        found = [(number, text) for number, text in enumerate(texts, start=1) if text is not None]
        # All processes go on in the same way: with smaller parts, or not at all.
        kind = DeviceMemoryError if all(text[1] for _, text in found) else TrainingError
        number, (message, _) = found[0]
        return kind(f"process {number} of {len(texts)}: {message}")


def _read(stream: Any) -> frames.Message:
    """Another process's answer.

    :raises TrainingError: it has ended.
    """
    prefix = stream.read(frames.LENGTH.size)
    if len(prefix) < frames.LENGTH.size:
        raise TrainingError("a process that shares the local steps has ended")
    return frames.decode(stream.read(frames.body_length(prefix)))


def _result(answer: frames.Message) -> tuple[object, ...]:
    """What all processes must come to alike."""
    match answer:
        case frames.Ready():
            return (answer.schema_digest, answer.training_records, answer.state_floats)
        case frames.Genesis():
            return (answer.digest,)
        case frames.Trained():
            return (answer.samples,)
    return (type(answer),)
