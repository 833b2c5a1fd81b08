"""What each attack publishes: hand-computed cases and the property that defines it."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfed.attacks import ATTACKS, ModelAttack, View, make
from p2pfed.attacks.attack import LARGEST_PARAMETER, Vector, distance
from p2pfed.attacks.hidden import largest_deviations

MODEL_ATTACKS = [name for name, attack in ATTACKS.items() if issubclass(attack, ModelAttack)]


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


def model_attack(name: str, **options: object) -> ModelAttack:
    attack = make(name, **options)
    assert isinstance(attack, ModelAttack)
    return attack


def publish(name: str, view: View, seed: int = 1, **options: object) -> Vector:
    return model_attack(name, **options).model(view, np.random.default_rng(seed))


def a_view(**known: object) -> View:
    """Two parameters; three honest sites about (2, 1), all started from (1, 1)."""
    facts: dict[str, object] = {
        "round_number": 3,
        "own": vector(2, 0),
        "start": vector(1, 1),
        "published": vector(7, 7),
        "honest": (vector(1, 1), vector(2, 1), vector(3, 1)),
    }
    return View(**{**facts, **known})  # type: ignore[arg-type]


@st.composite
def views(draw: st.DrawFn) -> View:
    """A view of random models about a random point, of few or many parameters."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    size, sites = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    spread = draw(st.sampled_from([0.0, 1e-3, 1.0, 50.0]))
    centre = generator.normal(size=size)

    def one() -> Vector:
        return (centre + spread * generator.normal(size=size)).astype(np.float32)

    told_apart = draw(st.booleans())
    return View(
        round_number=draw(st.integers(1, 100)),
        own=one(),
        start=one(),
        published=one(),
        honest=tuple(one() for _ in range(sites)),
        recipient=one() if told_apart else None,
        around_recipient=tuple(one() for _ in range(3)) if told_apart else (),
        byzantine_neighbours=draw(st.integers(1, 2)),
    )


@pytest.mark.parametrize("name", MODEL_ATTACKS)
@settings(max_examples=30, deadline=None)
@given(view=views(), seed=st.integers(0, 2**32))
def test_the_same_view_and_seed_give_the_same_lie_and_leave_the_view_alone(
    name: str, view: View, seed: int
) -> None:
    known = [view.own, view.start, view.published, *view.honest, *view.around_recipient]
    before = [model.copy() for model in known]
    first, second = publish(name, view, seed), publish(name, view, seed)
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.float32
    assert first.shape == view.own.shape
    for model, copy in zip(known, before, strict=True):
        np.testing.assert_array_equal(model, copy)
        assert not np.shares_memory(first, model)


@pytest.mark.parametrize("name", [name for name in MODEL_ATTACKS if name != "not_a_number"])
@pytest.mark.parametrize("size", [1e30, 3e38, math.inf, math.nan])
def test_a_lie_stays_a_model_when_the_federation_has_broken_down(name: str, size: float) -> None:
    broken = vector(size, -size)
    lie = publish(name, a_view(own=broken, honest=(broken, vector(1, 1)), published=broken))
    assert np.isfinite(lie).all()
    assert np.abs(lie).max() <= LARGEST_PARAMETER


@pytest.mark.parametrize("name", MODEL_ATTACKS)
def test_an_attacker_that_knows_of_nobody_still_publishes(name: str) -> None:
    assert publish(name, a_view(honest=())).shape == (2,)


def test_sign_flip_reverses_and_enlarges_its_own_update() -> None:
    np.testing.assert_array_equal(publish("sign_flip", a_view()), vector(-9, 11))
    np.testing.assert_array_equal(publish("sign_flip", a_view(), scale=1), vector(0, 2))


def test_gaussian_noise_has_the_mean_and_deviation_that_it_is_told() -> None:
    honest = (np.full(20_000, 2.0, np.float32), np.full(20_000, 4.0, np.float32))
    view = a_view(own=honest[0], start=honest[0], published=honest[0], honest=honest)
    lie = publish("gaussian", view, deviation=5.0)
    assert lie.mean() == pytest.approx(3.0, abs=0.15)  # 4 standard errors
    assert lie.std() == pytest.approx(5.0, rel=0.02)


def test_a_little_is_enough_lies_z_deviations_below_the_mean_everywhere() -> None:
    deviation = math.sqrt(2 / 3)  # of 1, 2, 3
    lie = publish("alie", a_view(), z=1.5)
    np.testing.assert_allclose(lie, vector(2 - 1.5 * deviation, 1), rtol=1e-6)


def test_a_little_is_enough_hides_among_the_recipients_neighbours_where_it_can() -> None:
    around = (vector(12, 5), vector(14, 5))
    lie = publish("alie", a_view(recipient=vector(10, 5), around_recipient=around), z=1.0)
    np.testing.assert_allclose(lie, vector(12 - math.sqrt(8 / 3), 5), rtol=1e-6)


@pytest.mark.parametrize(
    ("sites", "byzantine", "share"),
    # 50 sites of which 24 lie need 2 supporters among 26, so that 24 of 26 are below z; 10 sites
    # of which 3 lie need 3 among 7.
    [(50, 24, 24 / 26), (10, 3, 4 / 7)],
)
def test_the_papers_largest_shift_leaves_it_enough_supporters(
    sites: int, byzantine: int, share: float
) -> None:
    z = largest_deviations(sites, byzantine)
    assert 0.5 * (1 + math.erf(z / math.sqrt(2))) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("byzantine", [0, 5, 6])
def test_the_largest_shift_is_defined_for_minorities_alone(byzantine: int) -> None:
    with pytest.raises(ValueError, match="not a minority"):
        largest_deviations(10, byzantine)


def test_inner_product_manipulation_reverses_half_the_mean_update() -> None:
    np.testing.assert_array_equal(publish("ipm", a_view()), vector(0.5, 1))


@settings(max_examples=60, deadline=None)
@given(view=views(), epsilon=st.floats(0.1, 20))
def test_inner_product_manipulation_points_against_the_honest_update(
    view: View, epsilon: float
) -> None:
    update = np.mean(np.stack(view.audience()).astype(np.float64), axis=0) - view.start
    lie = publish("ipm", view, epsilon=epsilon).astype(np.float64) - view.start
    squared = float(update @ update)
    assert float(lie @ update) == pytest.approx(-epsilon * squared, rel=1e-3, abs=1e-5)


def farthest(models: tuple[Vector, ...]) -> float:
    return max(distance(one, other) for one, other in combinations(models, 2))


@pytest.mark.parametrize("direction", ["deviation", "update", "sign"])
@settings(max_examples=60, deadline=None)
@given(view=views())
def test_min_max_is_exactly_as_far_from_the_honest_as_they_are_from_each_other(
    direction: str, view: View
) -> None:
    models = tuple(view.audience())
    if len(models) < 2:
        return
    lie = publish("min_max", view, direction=direction)
    reached = max(distance(lie, model) for model in models)
    assert reached == pytest.approx(farthest(models), rel=1e-3, abs=1e-5)


def test_min_max_goes_against_the_deviation_of_the_honest() -> None:
    # The honest span 2 about 2: the farthest that is still 2 from (3, 1) is (1, 1).
    np.testing.assert_allclose(publish("min_max", a_view()), vector(1, 1), atol=1e-6)
    view = a_view(start=vector(2, -3), honest=(vector(1, 1), vector(3, 1)))
    lie = publish("min_max", view, direction="update")
    np.testing.assert_allclose(lie, vector(2, 1 - math.sqrt(3)), atol=1e-6)


def test_min_max_has_nowhere_to_go_where_the_honest_agree() -> None:
    view = a_view(honest=(vector(4, 5), vector(4, 5)))
    np.testing.assert_array_equal(publish("min_max", view), vector(4, 5))


def test_dissensus_undoes_the_pull_of_the_honest_neighbours() -> None:
    around = (vector(2, 0), vector(4, 2))
    told = {"recipient": vector(1, 1), "around_recipient": around}
    lie = publish("dissensus", a_view(**told), epsilon=1.0)
    np.testing.assert_array_equal(lie, vector(-3, 1))
    shared = publish("dissensus", a_view(**told, byzantine_neighbours=2), epsilon=1.0)
    np.testing.assert_array_equal(shared, vector(-1, 1))


@settings(max_examples=60, deadline=None)
@given(view=views(), epsilon=st.floats(1.1, 10))
def test_dissensus_moves_a_recipient_that_takes_the_plain_mean_away_from_its_neighbours(
    view: View, epsilon: float
) -> None:
    if view.recipient is None:
        return
    lie = publish("dissensus", view, epsilon=epsilon)
    mean_around = np.mean(np.stack(view.around_recipient).astype(np.float64), axis=0)
    pull = sum(model.astype(np.float64) - view.recipient for model in view.around_recipient)
    moved = view.recipient + 0.1 * (pull + view.byzantine_neighbours * (lie - view.recipient))
    before, after = distance(view.recipient, mean_around), distance(moved, mean_around)
    assert after > before or before == pytest.approx(after, rel=1e-3, abs=1e-5)
    if before > 0.1:
        assert after > before


def test_dissensus_with_one_message_for_all_pushes_the_outermost_site_further() -> None:
    honest = (vector(0, 0), vector(1, 0), vector(5, 0))
    lie = publish("dissensus", a_view(honest=honest), epsilon=1.0)
    np.testing.assert_array_equal(lie, vector(14, 0))


def test_drift_keeps_one_direction_at_the_median_neighbours_distance() -> None:
    around = (vector(1, 2), vector(1, 4), vector(1, 9))  # 1, 3 and 8 away
    told = {"recipient": vector(1, 1), "around_recipient": around}
    first = publish("drift", a_view(**told), seed=1)
    later = publish("drift", a_view(**told, round_number=50), seed=2)
    np.testing.assert_array_equal(first, later)
    assert distance(first, vector(1, 1)) == pytest.approx(3, rel=1e-6)
    np.testing.assert_allclose(np.abs(first - vector(1, 1)), 3 / math.sqrt(2), rtol=1e-6)


def test_drift_goes_elsewhere_under_another_seed_only() -> None:
    view = a_view(own=np.zeros(64, np.float32), start=np.zeros(64, np.float32))
    view = View(1, view.own, view.own, view.own, (view.own, np.ones(64, np.float32)))
    seeds = [publish("drift", view, direction_seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(seeds[0], seeds[1])
    assert not np.array_equal(seeds[0], seeds[2])


def test_shrink_pulls_against_the_mean_model_from_the_median_neighbours_distance() -> None:
    around = (vector(1, 2), vector(1, 4), vector(1, 9))  # 1, 3 and 8 away
    told = {"recipient": vector(1, 1), "around_recipient": around}
    honest = (vector(8, 0), vector(0, 0), vector(-2, 6))  # mean (2, 2)
    lie = publish("shrink", a_view(honest=honest, **told), reach=2.0)
    np.testing.assert_allclose(lie, 1 - np.full(2, 6 / math.sqrt(2)), rtol=1e-6)


def test_shrink_has_no_direction_where_nothing_was_learned() -> None:
    honest = (vector(-1, 0), vector(1, 0))
    lie = publish("shrink", a_view(honest=honest, recipient=vector(3, 1)))
    np.testing.assert_array_equal(lie, vector(3, 1))


def test_mimic_copies_the_same_site_whatever_the_seed() -> None:
    for seed in range(5):
        lie = publish("mimic", a_view(), seed=seed, victim=1)
        np.testing.assert_array_equal(lie, vector(2, 1))


def test_echo_copies_every_neighbour_sooner_or_later_and_nothing_else() -> None:
    seen = {tuple(publish("echo", a_view(), seed=seed).tolist()) for seed in range(40)}
    assert seen == {(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)}


def test_zero_repeats_what_it_published() -> None:
    np.testing.assert_array_equal(publish("zero", a_view()), vector(7, 7))


def test_free_riding_noise_is_as_long_as_the_median_honest_update() -> None:
    start = np.zeros(10_000, np.float32)
    honest = tuple(np.full(10_000, value, np.float32) for value in (0.01, 0.03, 0.5))
    lie = publish("noise", View(1, start, start, start, honest))
    assert distance(lie, start) == pytest.approx(3.0, rel=0.05)
    assert abs(float(lie.mean())) < 0.002  # it has no direction


@pytest.mark.parametrize(
    ("kind", "is_it"),
    [
        ("nan", np.isnan),
        ("infinity", np.isposinf),
        ("overflow", lambda lie: lie == np.finfo(np.float32).max),
    ],
)
def test_not_a_number_spoils_as_many_parameters_as_told(kind: str, is_it: object) -> None:
    own = np.arange(9, dtype=np.float32)
    lie = publish("not_a_number", View(1, own, own, own, ()), kind=kind, parameters=4)
    bad = is_it(lie)  # type: ignore[operator]
    assert bad.sum() == 4
    np.testing.assert_array_equal(lie[~bad], own[~bad])


def test_a_backdoor_enlarges_its_update() -> None:
    np.testing.assert_array_equal(publish("backdoor", a_view(), boost=3.0), vector(4, -2))
