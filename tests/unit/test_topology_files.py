"""Topology files: what is read, what is refused, what their digest means."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from p2pfed.errors import ConfigurationError
from p2pfed.keys import Identity, format_public_key
from p2pfed.topology import Topology, load_topology
from p2pfed.topology.diff import compare
from p2pfed.topology.file import TopologyFile
from p2pfed.topology.lint import check
from p2pfed.topology.template import new_topology

EXAMPLES = Path(__file__).parents[2] / "topology"


def key(number: int) -> str:
    return format_public_key(Identity(bytes([number]) * 32, b"\x01" * 32).public_key)


def document(names: str = "abcd", **tables: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "federation": {"name": "test"},
        "graph": {"kind": "ring"},
        "task": {"kind": "tabular"},
        **tables,
        "peer": [{"name": name, "key": key(ord(name))} for name in names],
    }


def load(directory: Path, content: dict[str, Any] | str) -> Topology:
    path = directory / "topology.toml"
    path.write_text(content if isinstance(content, str) else tomli_w.dumps(content))
    return load_topology(path)


def problems(directory: Path, content: dict[str, Any] | str) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        load(directory, content)
    return {problem.key: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_sound(path: Path) -> None:
    report = check(load_topology(path), parameters=1000)
    assert report.spectral_gap > 0
    assert not [warning for warning in report.warnings if "no rule survives" in warning]


def test_the_page_names_every_key() -> None:
    page = (EXAMPLES / "README.md").read_text()
    for table, field in TopologyFile.model_fields.items():
        assert f"`{field.alias or table}" in page, table
        for annotation in (field.annotation, *getattr(field.annotation, "__args__", ())):
            for name, inner in getattr(annotation, "model_fields", {}).items():
                assert f"`{inner.alias or name}`" in page, name


def test_every_field_says_what_a_reload_does() -> None:
    for field in TopologyFile.model_fields.values():
        for annotation in (field.annotation, *getattr(field.annotation, "__args__", ())):
            for name, inner in getattr(annotation, "model_fields", {}).items():
                assert inner.description, name
                assert isinstance(inner.json_schema_extra["reload"], bool), name


def test_all_bad_keys_are_reported_at_once(tmp_path: Path) -> None:
    bad = document(
        round={"rounds": -1, "local_step": 3, "quorum": "half"},
        aggregation={"rule": "median"},
        codec={},
    )
    bad["peer"][1]["addresses"] = ["/ip4/10.0.0.300/tcp/7400", "/ip4/10.0.0.3/udp/7400"]
    del bad["federation"]
    found = problems(tmp_path, bad)
    assert set(found) == {
        "federation",
        "round.rounds",
        "round.local_step",
        "round.quorum",
        "aggregation.rule",
        "peer[1].addresses[0]",
        "peer[1].addresses[1]",
    }
    assert "did you mean 'local_steps'?" in found["round.local_step"]
    assert "median_clipping" in found["aggregation.rule"]


def test_two_peers_with_one_name_or_one_key_are_refused(tmp_path: Path) -> None:
    bad = document()
    bad["peer"][2]["name"] = "a"
    bad["peer"][3]["key"] = key(ord("b"))
    found = problems(tmp_path, bad)
    assert "peer[0] has this name" in found["peer[2].name"]
    assert "peer[1] has this key" in found["peer[3].key"]


def test_one_key_in_both_spellings_is_still_one_key(tmp_path: Path) -> None:
    bad = document()
    peer_id = Identity(b"a" * 32, b"\x01" * 32).peer_id
    bad["peer"][1] = {"name": "b", "peer_id": peer_id}
    assert "has this key" in problems(tmp_path, bad)["peer[1].key"]


@pytest.mark.parametrize("both", [True, False])
def test_a_peer_has_exactly_one_identity(tmp_path: Path, both: bool) -> None:
    bad = document()
    if both:
        bad["peer"][0]["peer_id"] = Identity(b"a" * 32, b"\x01" * 32).peer_id
    else:
        del bad["peer"][0]["key"]
    assert "exactly one of key and peer_id" in problems(tmp_path, bad)["peer[0]"]


def test_bad_edges_are_named(tmp_path: Path) -> None:
    edges = [["a", "b"], ["b", "c"], ["c", "d"], ["a", "x"], ["b", "b"], ["b", "a"]]
    found = problems(tmp_path, document(graph={"kind": "explicit", "edges": edges}))
    assert "no peer 'x'" in found["graph.edges[3]"]
    assert "no neighbour of itself" in found["graph.edges[4]"]
    assert "given twice" in found["graph.edges[5]"]


def test_a_graph_in_parts_names_the_parts(tmp_path: Path) -> None:
    graph = {"kind": "explicit", "edges": [["a", "b"], ["c", "d"]]}
    assert "a, b; c, d" in problems(tmp_path, document(graph=graph))["graph"]


def test_b_that_a_neighbourhood_cannot_bear_is_refused_at_that_site(tmp_path: Path) -> None:
    aggregation = {"rule": "clipped_gossip", "byzantine_neighbours": 1}
    found = problems(tmp_path, document(aggregation=aggregation))
    reason = found["aggregation.byzantine_neighbours"]
    assert "tolerates at most 0" in reason
    load(tmp_path, document(aggregation=aggregation, graph={"kind": "complete"}))


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        ({"kind": "ring", "degree": 2}, "takes no degree"),
        ({"kind": "torus", "rows": 2}, "needs columns"),
        ({"kind": "torus", "rows": 2, "columns": 3}, "are not the 4 peers"),
        ({"kind": "random_regular", "degree": 4}, "degree must be below"),
        ({"kind": "hexagon"}, "Input should be"),
    ],
)
def test_graph_keys_must_fit_the_kind(tmp_path: Path, graph: dict[str, Any], says: str) -> None:
    assert any(says in text for text in problems(tmp_path, document(graph=graph)).values())


def test_one_peer_exponential_needs_a_power_of_two(tmp_path: Path) -> None:
    graph = {"kind": "one_peer_exponential"}
    assert "power of two" in problems(tmp_path, document("abc", graph=graph))["graph"]


def test_another_version_of_the_format_says_what_to_do(tmp_path: Path) -> None:
    assert "version 1" in problems(tmp_path, document() | {"schema_version": 2})["schema_version"]


def test_a_new_file_asks_for_the_keys(tmp_path: Path) -> None:
    found = problems(tmp_path, new_topology("test", "ring", ["a", "b", "c"]))
    assert set(found) == {f"peer[{i}].key" for i in range(3)}
    assert "p2pfed init" in found["peer[0].key"]


def test_the_digest_is_of_the_meaning_alone(tmp_path: Path) -> None:
    text = tomli_w.dumps(document(round={"deadline_seconds": 60.0}))
    same = "# a comment\n" + text.replace("60.0", "60")
    assert load(tmp_path, text).digest == load(tmp_path, same).digest
    assert load(tmp_path, document()).digest == load(tmp_path, text).digest
    other = document(round={"deadline_seconds": 61})
    assert load(tmp_path, other).digest != load(tmp_path, text).digest


def test_on_an_explicit_graph_the_order_of_peers_and_edges_means_nothing(tmp_path: Path) -> None:
    edges = [["a", "b"], ["b", "c"]]
    one = document("abc", graph={"kind": "explicit", "edges": edges})
    two = document("cba", graph={"kind": "explicit", "edges": [["c", "b"], ["b", "a"]]})
    assert load(tmp_path, one).digest == load(tmp_path, two).digest


def test_a_diff_says_what_a_reload_applies(tmp_path: Path) -> None:
    old = load(tmp_path, document())
    changed = document("abcde", graph={"kind": "complete"}, round={"deadline_seconds": 5.0})
    changed["task"]["seed"] = 1
    changes = {change.what: change.reload for change in compare(old, load(tmp_path, changed))}
    assert changes["+ peer e"]
    assert changes["+ edge a - c"]
    assert changes["~ round.deadline_seconds: 60.0 -> 5.0"]
    assert not changes["~ task.seed: 0 -> 1"]
    assert compare(old, old) == []


def test_mixing_weights_are_symmetric_and_leave_a_share_to_the_site(tmp_path: Path) -> None:
    edges = [["a", "b"], ["a", "c"], ["a", "d"]]
    topology = load(tmp_path, document(graph={"kind": "explicit", "edges": edges}))
    assert topology.weights("a") == {"b": 0.25, "c": 0.25, "d": 0.25}
    assert topology.weights("b") == {"a": 0.25}


def test_a_varying_graph_is_the_same_at_every_site(tmp_path: Path) -> None:
    graph = {"kind": "random_per_round", "degree": 2}
    one, two = (load(tmp_path, document("abcdef", graph=graph)) for _ in range(2))
    drawn = [tuple(one.neighbours(name, number) for name in one.names) for number in range(20)]
    assert drawn == [
        tuple(two.neighbours(name, number) for name in two.names) for number in range(20)
    ]
    assert len(set(drawn)) > 1
    assert one.all_neighbours("a") == ("b", "c", "d", "e", "f")


def test_warnings_tell_of_hubs_and_cut_vertices(tmp_path: Path) -> None:
    star = check(load(tmp_path, document(graph={"kind": "star"})))
    assert "server by another name" in star.warnings[0]
    bridge = [["a", "b"], ["b", "c"], ["c", "a"], ["c", "d"]]
    report = check(load(tmp_path, document(graph={"kind": "explicit", "edges": bridge})))
    assert any(warning.startswith("c alone holds") for warning in report.warnings)


def test_the_heart_demo_is_a_sound_topology_but_for_its_peers() -> None:
    shipped = Path(__file__).parents[2] / "demos" / "heart" / "heart.toml"
    TopologyFile.model_validate(document() | tomllib.loads(shipped.read_text()))
