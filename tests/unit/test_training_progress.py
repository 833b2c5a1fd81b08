"""What is said of a round under way, and when losses are looked at."""

import pytest
import torch

from p2pfed.errors import TrainingError
from p2pfed.training.frames import Progress
from p2pfed.training.losses import RoundLosses
from p2pfed.training.progress import ProgressMeter, gpu_memory_bytes

CPU = torch.device("cpu")
STEPS = 6


def test_losses_on_a_device_are_read_together_and_in_order() -> None:
    losses = RoundLosses()
    losses.add(1.0, "step 1")
    losses.add(torch.tensor(2.0), "step 2")
    losses.add(torch.tensor([6.0], dtype=torch.bfloat16), "step 3")
    assert losses.latest() == 6.0
    assert losses.mean() == 3.0
    losses.add(torch.tensor(11.0), "step 4")
    assert losses.mean() == 5.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_seen_late_is_named_with_the_step_that_it_arose_in(bad: float) -> None:
    losses = RoundLosses()
    for step, value in enumerate([0.5, bad, float("nan")], start=1):
        losses.add(torch.tensor(value), f"round 4, local step {step} of 3, 8 records")
    with pytest.raises(TrainingError, match=f"step 2 of 3, 8 records: the loss is {bad}"):
        losses.mean()


class CountedLosses(RoundLosses):
    looked = 0

    def latest(self) -> float:
        self.looked += 1
        return super().latest()


@pytest.mark.parametrize(
    ("interval_seconds", "expected"), [(0.0, [1, 2, 3, 4, 5, 6]), (60, [1, 6])]
)
def test_only_a_report_looks_at_the_losses(interval_seconds: float, expected: list[int]) -> None:
    heard: list[Progress] = []
    losses = CountedLosses()
    meter = ProgressMeter(STEPS, CPU, interval_seconds, heard.append, lambda: 0.0)
    for step in range(STEPS):
        losses.add(torch.tensor(float(step)), "")
        meter.step_done(8, losses)
    assert [progress.step for progress in heard] == expected
    assert losses.looked == len(expected)
    assert heard[-1].loss == 5.0
    assert heard[-1].samples_per_second > 0


def test_only_the_rounds_own_waiting_counts_and_never_more_than_its_time() -> None:
    waited = iter([100.0, 100.0, 1e9])
    heard: list[Progress] = []
    meter = ProgressMeter(2, CPU, 0.0, heard.append, lambda: next(waited))
    losses = RoundLosses()
    losses.add(1.0, "")
    meter.step_done(8, losses)
    meter.step_done(8, losses)
    assert [progress.data_wait_share for progress in heard] == [0.0, 1.0]
    assert gpu_memory_bytes(CPU) == 0
