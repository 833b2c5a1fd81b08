"""The laboratory: what a rule is worth shows in a few rounds."""

import networkx as nx
import pytest

from p2pfed.aggregation import Mixing
from p2pfed.attacks import make
from p2pfed.simulation.lab import (
    Experiment,
    Run,
    RunResult,
    most_in_a_neighbourhood,
    place_attackers,
    run_experiment,
)
from p2pfed.simulation.tasks import synthetic

SITES = 7


def results(rule: str, attack: str | None, consistent: bool = False) -> RunResult:
    graph = nx.complete_graph(SITES)
    attackers = (0, 1) if attack else ()
    task = synthetic(SITES - len(attackers), 0.5, 0)
    if attackers:
        task = task.with_strangers(attackers, 0)
    run = Run(task, make(attack) if attack else None, 0)
    experiment = Experiment(
        graph, attackers, Mixing(rule, "lab", 2), rounds=25, consistent=consistent
    )
    return run_experiment(experiment, [run])[0]


def test_without_attack_every_site_learns() -> None:
    result = results("mean", None)
    assert result.worst_accuracy > 0.9
    assert 0.0 <= result.consensus_distance < 0.1


def test_sign_flip_destroys_the_mean_and_not_the_default() -> None:
    assert results("mean", "sign_flip").mean_accuracy < 0.6
    assert results("median_clipping", "sign_flip").mean_accuracy > 0.85


@pytest.mark.parametrize("attack", ["alie", "dissensus", "drift", "label_flip", "not_a_number"])
def test_the_default_bears_every_kind_of_attack(attack: str) -> None:
    assert results("median_clipping", attack, consistent=attack == "drift").mean_accuracy > 0.75


def test_runs_do_not_touch_one_another() -> None:
    graph = nx.cycle_graph(5)
    tasks = [synthetic(5, 0.5, seed) for seed in (0, 1)]
    experiment = Experiment(graph, (2,), Mixing("median_clipping", "lab"), rounds=6)
    quiet, loud = Run(tasks[0], None, 0), Run(tasks[0], make("sign_flip"), 0)
    [alone] = run_experiment(experiment, [quiet])
    together = run_experiment(experiment, [quiet, loud])[0]
    assert together.mean_accuracy == pytest.approx(alone.mean_accuracy, abs=1e-6)
    assert together.consensus_distance == pytest.approx(alone.consensus_distance, rel=1e-3)


def test_attackers_are_placed_where_a_rule_can_still_hold() -> None:
    graph = nx.circulant_graph(12, [1, 2, 4])
    attackers = place_attackers(graph, 3)
    assert most_in_a_neighbourhood(graph, attackers) == min(
        most_in_a_neighbourhood(graph, chosen) for chosen in [attackers, (0, 1, 2), (0, 4, 8)]
    )
    parts = nx.Graph([(0, 1), (2, 3)])
    with pytest.raises(ValueError, match="cut the honest sites apart"):
        place_attackers(parts, 1)
