"""Reports of a round under way, as often as somebody can read them."""

import time
from collections.abc import Callable

import torch

from p2pfed.training.frames import Progress
from p2pfed.training.losses import RoundLosses


class ProgressMeter:
    """Reports the first and the last step, and between them one an interval.

    A report asks the device for losses, which it has to finish for; the steps in between do not.

    :param waited_seconds: for how long the steps have waited for records by now.
    """

    def __init__(
        self,
        steps: int,
        device: torch.device,
        interval_seconds: float,
        on_progress: Callable[[Progress], None],
        waited_seconds: Callable[[], float],
    ) -> None:
        self._steps = steps
        self._device = device
        self._interval_seconds = interval_seconds
        self._on_progress = on_progress
        self._waited_seconds = waited_seconds
        self._started = time.perf_counter()
        self._waited_before_seconds = waited_seconds()
        self._next_report = self._started
        self._step = 0
        self._samples = 0

    def step_done(self, samples: int, losses: RoundLosses) -> None:
        """:raises TrainingError: a loss is not finite."""
        self._step += 1
        self._samples += samples
        now = time.perf_counter()
        if self._step < self._steps and now < self._next_report:
            return
        loss = losses.latest()
        now = time.perf_counter()  # the device may have had to catch up
        self._next_report = now + self._interval_seconds
        seconds = max(now - self._started, 1e-9)
        waited_seconds = self._waited_seconds() - self._waited_before_seconds
        self._on_progress(
            Progress(
                step=self._step,
                steps=self._steps,
                loss=loss,
                samples_per_second=self._samples / seconds,
                gpu_memory_bytes=gpu_memory_bytes(self._device),
                data_wait_share=min(1.0, waited_seconds / seconds),
            )
        )


def gpu_memory_bytes(device: torch.device) -> int:
    """What tensors take on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
