"""Local health: a process that stands still blames itself."""

from hypothesis import given
from hypothesis import strategies as st

from p2pfed.protocol.local_health import (
    HIGHEST_SCORE,
    LAG_OF_A_POINT_SECONDS,
    RECOVERY_SECONDS,
    TICK_SECONDS,
    LocalHealth,
)


def ticking(health: LocalHealth, now: float, seconds: float) -> float:
    """Tick in time for a while; returns the time afterwards."""
    for _ in range(round(seconds / TICK_SECONDS)):
        now += TICK_SECONDS
        health.tick(now)
    return now


def test_a_loop_in_time_is_well_and_always_awake() -> None:
    health = LocalHealth(100.0)
    now = ticking(health, 100.0, 10.0)
    assert (health.score, health.multiplier, health.lag_seconds) == (0, 1, 0.0)
    assert health.awake(now) == 110.0


def test_a_pause_is_slept_through_and_lengthens_every_timeout() -> None:
    health = LocalHealth(0.0)
    now = ticking(health, 0.0, 5.0)
    # Something else is handled before the tick that is late: it is dated before the pause.
    assert health.awake(now + 20.0) == 5.0 + TICK_SECONDS
    health.tick(now + TICK_SECONDS + 20.0)
    assert health.awake(now + TICK_SECONDS + 20.0) == 5.0 + TICK_SECONDS
    assert health.score == HIGHEST_SCORE
    assert health.multiplier == 1 + HIGHEST_SCORE
    assert health.lag_seconds == 20.0


def test_a_slow_start_is_no_lag() -> None:
    health = LocalHealth(0.0)
    health.tick(30.0)
    assert (health.score, health.lag_seconds) == (0, 0.0)
    assert health.awake(30.0) == TICK_SECONDS


def test_the_score_follows_the_lag_and_recovers_step_by_step() -> None:
    health = LocalHealth(0.0)
    now = ticking(health, 0.0, 1.0) + TICK_SECONDS + 3 * LAG_OF_A_POINT_SECONDS
    health.tick(now)
    scores = [health.score]
    for _ in range(4):
        now = ticking(health, now, RECOVERY_SECONDS)
        scores.append(health.score)
    assert scores == [3, 2, 1, 0, 0]
    assert health.lag_seconds == 0.0


def test_small_lags_do_no_harm() -> None:
    health, now = LocalHealth(0.0), 0.0
    for _ in range(100):
        now += TICK_SECONDS + 0.9 * LAG_OF_A_POINT_SECONDS
        health.tick(now)
    assert health.score == 0


def test_a_failed_probe_is_one_point_and_puts_off_recovery() -> None:
    health = LocalHealth(0.0)
    health.probe_failed()
    now = ticking(health, 0.0, RECOVERY_SECONDS / 2)
    health.probe_failed()
    now = ticking(health, now, RECOVERY_SECONDS / 2)
    assert health.score == 2
    ticking(health, now, RECOVERY_SECONDS / 2)
    assert health.score == 1


@given(st.lists(st.one_of(st.floats(0.0, 100.0), st.none()), max_size=60))
def test_the_score_is_bounded_and_awake_time_never_runs_ahead_or_back(
    steps: list[float | None],
) -> None:
    health, now, awake = LocalHealth(0.0), 0.0, 0.0
    for step in steps:
        if step is None:
            health.probe_failed()
        else:
            now += step
            assert awake <= health.awake(now) <= awake + min(step, TICK_SECONDS) + 1e-9
            health.tick(now)
        assert 0 <= health.score <= HIGHEST_SCORE
        assert awake - 1e-9 <= health.awake(now) <= awake + TICK_SECONDS + 1e-9
        awake = health.awake(now)
