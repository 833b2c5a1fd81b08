"""Two cliques joined sparsely: where clipped gossip holds, where it breaks, and what never held.

Gaucher, Dieuleveut, Hendrikx, "Unified Breakdown Analysis for Byzantine Robust Gossip", ICML
2025. The experiment is the benchmark's own; each attack knows everything."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from aggregation_references import run

EXPERIMENT = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "breakdown.py"))
)
WORLDS = EXPERIMENT.two_worlds(10, 4)
MU2 = 8.0  # of its honest sites' graph
ROUNDS = 40


def error(rule: str, b: int, attack: str | None = None, worlds: object = WORLDS) -> float:
    lie = None if attack is None else EXPERIMENT.ATTACKS[attack]
    return float(EXPERIMENT.remaining_error(worlds, rule, b, lie, rounds=ROUNDS))


@pytest.mark.parametrize(("sites", "links"), [(2, 1), (10, 4), (8, 6), (5, 5)])
def test_the_graph_is_the_papers(sites: int, links: int) -> None:
    worlds = EXPERIMENT.two_worlds(sites, links)
    assert worlds.algebraic_connectivity == pytest.approx(2 * links)
    for site, others in enumerate(worlds.neighbours):
        assert len(set(others)) == sites - 1 + links
        assert site not in others
        assert all(site in worlds.neighbours[other] for other in others)


@pytest.mark.parametrize("attack", list(EXPERIMENT.ATTACKS))
def test_below_a_quarter_of_the_connectivity_clipped_gossip_holds(attack: str) -> None:
    b = 1
    assert b < MU2 / 4
    assert error("clipped_gossip", b, attack) < EXPERIMENT.HELD


@pytest.mark.parametrize(("sites", "links"), [(10, 4), (8, 6)])
def test_from_a_quarter_of_the_connectivity_on_some_attack_breaks_it(
    sites: int, links: int
) -> None:
    worlds = EXPERIMENT.two_worlds(sites, links)
    limit = links // 2  # mu2 is twice the links
    assert error("clipped_gossip", limit - 1, "apart 0.3", worlds) < EXPERIMENT.HELD
    assert error("clipped_gossip", limit, "apart 0.3", worlds) > 1


@pytest.mark.parametrize(
    "rule",
    ["median_clipping", "trimmed_mean", "clipped_gossip", "nearest_neighbour_averaging", "krum"],
)
def test_from_half_of_the_connectivity_on_no_rule_holds(rule: str) -> None:
    b = 4
    assert b >= MU2 / 2
    attacks = ("far away", "apart 0.3")
    assert max(error(rule, b, attack) for attack in attacks) > 0.5


def test_one_hostile_neighbour_takes_the_mean_anywhere() -> None:
    assert error("mean", 0) < EXPERIMENT.HELD
    assert error("mean", 1, "far away") > EXPERIMENT.LOST


@pytest.mark.parametrize("rule", ["coordinate_median", "geometric_median", "median_clipping"])
def test_medians_cut_the_bridge_though_nobody_attacks(rule: str) -> None:
    """The majority of every neighbourhood is its own clique; these rules are told no b."""
    assert error(rule, 0) > 0.5


@pytest.mark.parametrize("links", [2, 3, 4, 6])
@pytest.mark.parametrize("b", [1, 2, 3])
def test_echoes_freeze_clipped_gossip_exactly_from_half_the_links_on(links: int, b: int) -> None:
    """With each clique in one point, k = 9 + links + b distances are 0 but for the links': the
    (k - 2b)-th smallest is not 0 if and only if 2b < links."""
    own, other = np.zeros(3, np.float32), np.full(3, 10, np.float32)
    heard = [own] * 9 + [other] * links + [own] * b
    result, outcome = run("clipped_gossip", own, [model.copy() for model in heard], b)
    assert bool(result.any()) is (2 * b < links)
    assert (outcome.threshold == 0) is (2 * b >= links)
