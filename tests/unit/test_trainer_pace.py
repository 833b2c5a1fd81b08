"""How long a trainer may be silent before it stands still."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfed.daemon.trainer_pace import (
    FIRST_PATIENCE_SECONDS,
    LEAST_PATIENCE_SECONDS,
    PATIENCE_FACTOR,
    REMEMBERED_STRETCHES,
    TrainerPace,
)
from p2pfed.training import frames

STEPS = 5


def progress(step: int) -> frames.Progress:
    return frames.Progress(step, STEPS, 0.1, 1.0, 0)


def train(pace: TrainerPace, at_seconds: float, gaps: Sequence[tuple[int, float]]) -> float:
    """A round with a frame after each gap; returns when it was over."""
    pace.asked(frames.Train(0, STEPS), at_seconds)
    for step, gap_seconds in gaps:
        at_seconds += gap_seconds
        pace.progressed(progress(step), at_seconds)
    pace.answered(at_seconds)
    pace.over()
    return at_seconds


def test_before_anything_is_known_it_may_load_for_long() -> None:
    pace = TrainerPace()
    assert pace.heard_at_seconds is None
    pace.asked(frames.Train(0, STEPS), 7.0)
    assert (pace.heard_at_seconds, pace.patience_seconds) == (7.0, FIRST_PATIENCE_SECONDS)
    # Loading the first batch says nothing of what a step takes.
    pace.progressed(progress(1), 107.0)
    assert (pace.heard_at_seconds, pace.patience_seconds) == (107.0, FIRST_PATIENCE_SECONDS)


def test_steps_and_the_start_of_a_round_are_known_apart() -> None:
    pace = TrainerPace()
    now = train(pace, 0.0, [(1, 100.0), (2, 5.0), (5, 15.0)])
    pace.asked(frames.Train(1, STEPS), now)
    assert pace.patience_seconds == PATIENCE_FACTOR * 100.0
    pace.progressed(progress(1), now + 90.0)
    assert pace.patience_seconds == PATIENCE_FACTOR * 5.0  # three steps in one frame took 15 s


def test_quick_steps_have_a_floor() -> None:
    pace = TrainerPace()
    now = train(pace, 0.0, [(1, 0.1), (2, 0.1), (5, 0.3)])
    pace.asked(frames.Train(1, STEPS), now)
    assert pace.patience_seconds == LEAST_PATIENCE_SECONDS


def test_one_slow_step_does_not_stretch_the_patience() -> None:
    pace, now = TrainerPace(), 0.0
    for _ in range(REMEMBERED_STRETCHES):
        now = train(pace, now, [(1, 10.0), (2, 10.0)])
    now = train(pace, now, [(1, 10.0), (2, 5000.0)])
    pace.asked(frames.Train(1, STEPS), now)
    pace.progressed(progress(1), now + 10.0)
    assert pace.patience_seconds == PATIENCE_FACTOR * 10.0


def test_an_evaluation_is_measured_whole_unless_it_failed() -> None:
    pace = TrainerPace()
    pace.asked(frames.Evaluate("in"), 0.0)
    pace.over()
    pace.asked(frames.Evaluate("in"), 50.0)
    assert pace.patience_seconds == FIRST_PATIENCE_SECONDS
    pace.answered(60.0)
    pace.over()
    pace.asked(frames.Evaluate("out"), 70.0)
    assert pace.patience_seconds == PATIENCE_FACTOR * 10.0


@pytest.mark.parametrize(
    "request_", [frames.EvaluateFile("/data.csv"), frames.Export("/model.safetensors", {})]
)
def test_what_has_no_usual_length_is_not_watched(request_: frames.Request) -> None:
    pace = TrainerPace()
    pace.asked(request_, 1.0)
    pace.answered(9.0)
    assert pace.heard_at_seconds is None


@given(st.lists(st.floats(0.001, 1000.0), min_size=2, max_size=80))
def test_no_silence_as_long_as_half_of_the_steps_is_too_long(gaps: list[float]) -> None:
    pace, now = TrainerPace(), 0.0
    for gap_seconds in gaps:
        now = train(pace, now, [(1, 1.0), (2, gap_seconds)])
    pace.asked(frames.Train(0, STEPS), now)
    pace.progressed(progress(1), now)
    recent = sorted(gaps[-REMEMBERED_STRETCHES:])
    assert pace.patience_seconds >= LEAST_PATIENCE_SECONDS
    assert pace.patience_seconds > 10 * recent[(len(recent) - 1) // 2]


def test_the_numbers_of_the_documents_are_these() -> None:
    import p2pfed.cli

    page = (Path(p2pfed.cli.__file__).parent / "STATUS.md").read_text()
    [row] = [line for line in page.splitlines() if line.startswith("| `trainer.patience_seconds`")]
    assert f"{PATIENCE_FACTOR:.0f} times" in row
    assert f"at least {LEAST_PATIENCE_SECONDS:.0f} s" in row
    assert FIRST_PATIENCE_SECONDS == 3600
    assert "an hour before" in row
