"""Whether the long run tells growth from noise."""

import random

import pytest
from soak_slopes import (
    FLAT_COUNT_AN_HOUR,
    JOURNAL_BYTES_A_ROUND,
    LEAST_SAMPLES,
    Sample,
    Slope,
    print_slopes,
    slopes,
)

MINUTES = 30.0
SAMPLE_SECONDS = 5.0


def sample(number: int, **changes: float) -> Sample:
    values = {
        "rss_kib": 200_000.0,
        "pss_kib": 150_000.0,
        "trainer_pss_kib": 300_000.0,
        "tasks": 40,
        "descriptors": 30,
        "threads": 3,
        "journal_kib": 100.0,
        "log_kib": 4000.0,
        "state_kib": 50.0,
    }
    return Sample(
        at_seconds=SAMPLE_SECONDS * number, site="alpha", life=1, round=number,
        **{**values, **changes},
    )  # fmt: skip


def measured(**growth: float) -> dict[str, Slope]:
    """A run in which some quantities grow by so much an hour, beneath a unit of noise."""
    noise = random.Random(0)
    flat = sample(0)
    samples = []
    for number in range(int(60 * MINUTES / SAMPLE_SECONDS)):
        hours = SAMPLE_SECONDS * number / 3600
        now = {
            name: getattr(flat, name) + rate * hours + noise.uniform(-1, 1)
            for name, rate in growth.items()
        }
        samples.append(sample(number, **now))
    return {slope.quantity: slope for slope in slopes(samples, MINUTES)}


def test_what_stays_as_it_is_is_flat() -> None:
    found = measured()
    assert {"rss_kib", "tasks", "descriptors", "journal_bytes"} <= found.keys()
    assert all(slope.flat and slope.slope == 0 for slope in found.values())


def test_a_task_that_leaks_every_minute_is_seen_beneath_the_noise() -> None:
    found = measured(tasks=60.0, descriptors=0.0)
    assert not found["tasks"].flat
    assert found["tasks"].slope == pytest.approx(60.0, abs=3 * found["tasks"].error)
    assert found["tasks"].bound == FLAT_COUNT_AN_HOUR
    assert found["descriptors"].flat


def test_start_midway_and_end_are_what_was_measured_there() -> None:
    slope = measured(rss_kib=20_000.0)["rss_kib"]
    assert not slope.flat
    assert [slope.start, slope.midway, slope.end] == pytest.approx(
        [200_000, 205_000, 210_000], abs=40
    )


def test_a_journal_may_grow_by_the_round_until_it_is_full() -> None:
    rounds_an_hour = 3600 / SAMPLE_SECONDS
    allowed = JOURNAL_BYTES_A_ROUND / 1024 * rounds_an_hour
    assert measured(journal_kib=0.9 * allowed)["journal_bytes"].flat
    assert not measured(journal_kib=1.2 * allowed)["journal_bytes"].flat


def test_too_few_samples_say_nothing() -> None:
    assert slopes([sample(number) for number in range(LEAST_SAMPLES - 1)], 0.01) == []


def test_the_course_is_printed_with_its_slope(capsys: pytest.CaptureFixture[str]) -> None:
    print_slopes([measured(tasks=60.0)["tasks"]])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("alpha     tasks")
    assert last.endswith("NOT FLAT")
