"""Scenario files and populations: what is wrong with one is said at once, with its key."""

from pathlib import Path

import pytest
from small_federations import Targets

from p2pfed.errors import ConfigurationError, UsageError
from p2pfed.shipped import shipped
from p2pfed.simulation.federation import SimulatedFederation
from p2pfed.simulation.population import DEFAULT_ROUNDS, Changes, read_population
from p2pfed.simulation.scenario import Scenario, load_scenario
from p2pfed.topology.file import PLACEHOLDER_KEY

SITES = frozenset("abc")


def load(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return load_scenario(path, SITES)


def test_an_empty_scenario_is_a_quiet_network(tmp_path: Path) -> None:
    scenario = load(tmp_path, "")
    assert scenario == Scenario()
    assert scenario.honest_and_quiet


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("[links]\nlos = 0.1", "links.los", "unknown key"),
        ("[links]\nloss = 1.5", "links.loss", "less than or equal to 1"),
        ("[links]\nloss = true", "links.loss", "valid number"),
        ("[links]\nbytes_per_second = 0", "links.bytes_per_second", "greater than 0"),
        ("[[crash]]\nsite = 'a'\nat_seconds = 1", "crash[0].down_seconds", "missing"),
        ("[[crash]]\nsite='z'\nat_seconds=1\ndown_seconds=1", "crash[0].site", "no such peer"),
        ("[[link]]\nbetween=['a','z']", "link[0].between", "no such peer"),
        ("[[partition]]\nsites=[]\nat_seconds=1\nfor_seconds=1", "partition[0].sites", "at least"),
        (
            "[[partition]]\nsites=['a']\nat_seconds=1\nfor_seconds=1\ndirection='up'",
            "partition[0].direction",
            "'both', 'in' or 'out'",
        ),
        ("[[hostile]]\nsite='a'\nattack='magic'", "hostile[0]", "no attack is called 'magic'"),
        (
            "[[hostile]]\nsite='a'\nattack='sign_flip'\noptions={scale='x'}",
            "hostile[0]",
            "scale = 'x' is not a finite number",
        ),
        ("[[straggler]]\nsite='a'\nfactor=0", "straggler[0].factor", "greater than 0"),
        (
            "[[hostile]]\nsite='a'\nattack='zero'\n[[hostile]]\nsite='a'\nattack='echo'",
            "hostile[1].site",
            "here twice",
        ),
        ("[[link]]\nbetween=['a','a']", "link[0].between", "one end only"),
        (
            "[[link]]\nbetween=['a','b']\n[[link]]\nbetween=['b','a']",
            "link[1].between",
            "here twice",
        ),
        (
            "[[partition]]\nsites=['c','b','a']\nat_seconds=1\nfor_seconds=1",
            "partition[0].sites",
            "there are no others",
        ),
        (
            "[[hostile]]\nsite='a'\nattack='sign_flip'\noptions={speed=1.0}",
            "hostile[0]",
            "no option is called 'speed'; it takes scale",
        ),
        ("schema_version = 2", "schema_version", "1"),
        ("[storm]\nfrom_seconds=5\nuntil_seconds=5", "storm.until_seconds", "not after"),
        (
            "[[join]]\nsite='a'\nat_seconds=9\n[[leave]]\nsite='a'\nat_seconds=3",
            "leave[0].at_seconds",
            "before it joins",
        ),
    ],
)
def test_a_bad_scenario_names_file_key_and_reason(
    tmp_path: Path, text: str, key: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        load(tmp_path, text)
    [problem] = error.value.problems
    assert problem.key == key
    assert reason in str(problem)
    assert "scenario.toml" in str(problem)


def test_all_bad_keys_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        load(tmp_path, "links = {loss = 2, delay = 1}\npace = {training_seconds = -1}")
    assert {problem.key for problem in error.value.problems} == {
        "links.loss",
        "links.delay",
        "pace.training_seconds",
    }


def test_all_names_that_the_topology_does_not_know_are_reported_at_once(tmp_path: Path) -> None:
    text = """
        [[straggler]]
        site = "x"
        factor = 2
        [[leave]]
        site = "y"
        at_seconds = 3
        [[link]]
        between = ["b", "b"]
        [[partition]]
        sites = ["a", "z"]
        at_seconds = 1
        for_seconds = 1
    """
    with pytest.raises(ConfigurationError) as error:
        load(tmp_path, text)
    assert {problem.key for problem in error.value.problems} == {
        "straggler[0].site",
        "leave[0].site",
        "link[0].between",
        "partition[0].sites",
    }
    assert all(problem.file.name == "scenario.toml" for problem in error.value.problems)


def test_a_site_may_join_leave_crash_and_lie_at_different_times(tmp_path: Path) -> None:
    text = """
        [[join]]
        site = "a"
        at_seconds = 3
        [[leave]]
        site = "a"
        at_seconds = 30
        [[crash]]
        site = "a"
        at_seconds = 5
        down_seconds = 1
        [[crash]]
        site = "a"
        at_seconds = 9
        down_seconds = 1
        [[hostile]]
        site = "a"
        attack = "not_a_number"
        options = { kind = "infinity", parameters = 3 }
    """
    scenario = load(tmp_path, text)
    assert len(scenario.crash) == 2
    assert not scenario.quiet


@pytest.mark.parametrize("file", ["hospital-consortium.toml", "ring-4.toml"])
def test_an_unsound_topology_on_the_way_is_refused_before_anything_runs(file: str) -> None:
    topology = read_population(shipped("topology") / file, Changes()).topology
    population = read_population(shipped("topology") / file, Changes(rounds=5))
    leaving = [{"site": name, "at_seconds": 5.0} for name in topology.names[1:]]
    scenario = Scenario.model_validate({"leave": leaving})
    with pytest.raises(ConfigurationError):
        SimulatedFederation(
            population.topology, population.identities, scenario, Targets(7), seed=0
        )


def test_a_file_can_be_tried_before_any_site_has_a_key(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    example = (shipped("topology") / "ring-4.toml").read_text(encoding="utf-8")
    lines = [
        f'key = "{PLACEHOLDER_KEY}"' if line.startswith("key =") else line
        for line in example.splitlines()
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    population = read_population(path, Changes())
    assert set(population.identities) == set(population.topology.names)
    for peer in population.topology.file.peers:
        assert population.identities[peer.name].public_key == peer.public_key
    assert population.topology.file.round.rounds == DEFAULT_ROUNDS


def test_peers_rounds_and_rule_can_be_others_than_the_files() -> None:
    changes = Changes(peers=20, rounds=7, rule="mean")
    topology = read_population(shipped("topology") / "exponential-8.toml", changes).topology
    assert len(topology.names) == 20
    assert topology.file.round.rounds == 7
    assert topology.file.aggregation.rule == "mean"


def test_explicit_edges_are_of_their_own_peers() -> None:
    path = shipped("topology") / "hospital-consortium.toml"
    with pytest.raises(UsageError, match="goes with a generated one"):
        read_population(path, Changes(peers=20))


def test_a_file_without_peers_says_so(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("schema_version = 1\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="peer"):
        read_population(path, Changes())
