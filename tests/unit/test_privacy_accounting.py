"""Epsilon against reference values, and draws that are secret, repeatable and distributed right."""

import itertools

import numpy as np
import pytest
from scipy import stats

from p2pfed.training.privacy.accountant import epsilon_of
from p2pfed.training.privacy.randomness import NORMALS_AT_ONCE, SecretDraws
from p2pfed.training.privacy.sampling import poisson_batches, sampling_rate

SECRET = bytes(range(32))


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "epsilon"),
    [
        (256 / 60000, 1.1, 14062, 2.5966),  # by Opacus 1.6
        (0.01, 1.0, 1000, 2.1014),
        (0.05, 1.0, 1000, 11.9795),
        (1.0, 10.0, 100, 4.7285),
    ],
)
def test_epsilon_is_that_of_the_reference(
    rate: float, noise: float, steps: int, epsilon: float
) -> None:
    assert epsilon_of([(rate, noise, steps)], 1e-5) == pytest.approx(epsilon, abs=1e-3)


def test_it_is_an_upper_bound_close_to_the_exact_value_where_that_is_known() -> None:
    """Without sampling T Gaussian steps are one with noise sigma / sqrt(T), whose delta has a
    closed form (Balle and Wang, Improving the Gaussian Mechanism, ICML 2018, theorem 8)."""
    steps, noise, delta = 100, 10.0, 1e-5
    mu = np.sqrt(steps) / noise

    def delta_at(epsilon: float) -> float:
        return float(
            stats.norm.cdf(mu / 2 - epsilon / mu)
            - np.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
        )

    bound = epsilon_of([(1.0, noise, steps)], delta)
    assert delta_at(bound) < delta < delta_at(0.9 * bound)


def test_parts_compose_in_any_order_and_nothing_costs_nothing() -> None:
    parts = [(0.01, 1.0, 400), (0.02, 1.5, 300), (0.005, 0.8, 10)]
    together = epsilon_of(parts, 1e-5)
    for order in itertools.permutations(parts):
        assert epsilon_of(order, 1e-5) == pytest.approx(together, rel=1e-12)
    split = [(rate, noise, 1) for rate, noise, steps in parts for _ in range(steps)]
    assert epsilon_of(split, 1e-5) == pytest.approx(together, rel=1e-9)
    assert max(epsilon_of([part], 1e-5) for part in parts) < together
    assert epsilon_of([], 1e-5) == epsilon_of([(0.01, 1.0, 0)], 1e-5) == 0.0


def test_less_delta_less_noise_and_more_steps_cost_more() -> None:
    base = epsilon_of([(0.05, 1.0, 100)], 1e-5)
    assert epsilon_of([(0.05, 1.0, 100)], 1e-6) > base
    assert epsilon_of([(0.05, 0.9, 100)], 1e-5) > base
    assert epsilon_of([(0.05, 1.0, 101)], 1e-5) > base
    assert epsilon_of([(0.06, 1.0, 100)], 1e-5) > base


def test_the_draws_of_a_secret_are_always_the_same_and_no_others() -> None:
    draws = SecretDraws(SECRET)
    count = NORMALS_AT_ONCE + 5
    normals = draws.normals("step 0", 0, count)
    assert normals.tobytes() == SecretDraws(SECRET).normals("step 0", 0, count).tobytes()
    others = [
        SecretDraws(bytes([1, *SECRET[1:]])).normals("step 0", 0, count),
        draws.normals("step 1", 0, count),
        draws.normals("step 0", 1, count),
    ]
    for one, other in itertools.combinations([normals, *others], 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
        assert not np.isin(one[:1000], other).any()
    assert not np.isin(normals[NORMALS_AT_ONCE:], normals[:NORMALS_AT_ONCE]).any()


def test_a_secret_of_another_length_is_a_bug() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SecretDraws(b"short")


def test_the_normals_are_normal() -> None:
    normals = SecretDraws(SECRET).normals("step", 0, 200_000)
    assert stats.kstest(normals, "norm").pvalue > 0.01
    assert np.abs(normals).max() > 4.0
    assert stats.kstest(SecretDraws(SECRET).uniforms("u", 0, 200_000), "uniform").pvalue > 0.01


def test_each_record_is_drawn_by_itself_at_the_rate_and_batches_vary_in_size() -> None:
    records, rate, steps = 200, 0.1, 3000
    batches = poisson_batches(SecretDraws(SECRET), records, rate, steps)
    assert len(batches) == steps
    drawn = np.zeros((steps, records))
    for step, batch in enumerate(batches):
        assert batch == sorted(set(batch))
        drawn[step, batch] = 1
    sizes = drawn.sum(1)
    expected, deviation = records * rate, np.sqrt(records * rate * (1 - rate))
    assert sizes.mean() == pytest.approx(expected, abs=4 * deviation / np.sqrt(steps))
    assert sizes.std() == pytest.approx(deviation, rel=0.05)
    rates = drawn.mean(0)
    assert np.abs(rates - rate).max() < 5 * np.sqrt(rate * (1 - rate) / steps)
    together = np.corrcoef(drawn[:, 3], drawn[:, 4])[0, 1]
    assert abs(together) < 4 / np.sqrt(steps)


def test_steps_that_draw_nobody_happen_and_a_rate_of_one_draws_all() -> None:
    draws = SecretDraws(SECRET)
    assert [] in poisson_batches(draws, 3, 0.2, 50)
    assert poisson_batches(draws, 4, 1.0, 2) == [[0, 1, 2, 3]] * 2
    assert sampling_rate(32, 20) == 1.0
    assert sampling_rate(32, 320) == 0.1
