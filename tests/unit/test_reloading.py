"""What a running site may take of a changed topology file, and what it says of the rest."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w
import topology_documents

from p2pfed.config import Site, load_site
from p2pfed.daemon.reloading import Reload, read_again
from p2pfed.errors import ConfigurationError, Problem
from p2pfed.protocol.messages import RefusalCode
from p2pfed.topology import Topology
from p2pfed.topology.diff import reloadable_fields
from p2pfed.topology.plan import plan_of

SCHEMA, GENESIS = b"s" * 32, b"g" * 32
BEFORE: dict[str, Any] = {
    "graph": {"kind": "complete"},
    "aggregation": {"rule": "median_clipping"},
    "task": {"kind": "python", "class": "a:B", "options": {"width": 2}},
}
# Another value of every key that a reload does not apply, and how the one in force is shown.
FIXED: dict[str, tuple[dict[str, Any], str, str]] = {
    "federation.name": ({"federation": {"name": "other"}}, "'other'", "'test'"),
    "aggregation.rule": ({"aggregation": {"rule": "mean"}}, "'mean'", "'median_clipping'"),
    "aggregation.pre_aggregation": (
        {"aggregation": {"pre_aggregation": "bucketing"}},
        "'bucketing'",
        "'none'",
    ),
    "aggregation.byzantine_neighbours": ({"aggregation": {"byzantine_neighbours": 1}}, "1", "0"),
    "aggregation.mixing_step": ({"aggregation": {"mixing_step": 0.5}}, "0.5", "1.0"),
    "codec.name": ({"codec": {"name": "float32"}}, "'float32'", "'int8'"),
    "task.kind": ({"task": {"kind": "tabular", "options": {"width": 2}}}, "'tabular'", "'python'"),
    "task.class": (
        {"task": {"kind": "python", "class": "a:C", "options": {"width": 2}}},
        "'a:C'",
        "'a:B'",
    ),
    "task.seed": ({"task": {**BEFORE["task"], "seed": 3}}, "3", "0"),
    "task.options": ({"task": {**BEFORE["task"], "options": {"width": 3}}}, "3", "2"),
    "privacy.minimum_records": ({"privacy": {"minimum_records": 30}}, "30", "20"),
    "privacy.differential_privacy": (
        {"privacy": {"differential_privacy": True}},
        "True",
        "False",
    ),
    "privacy.maximum_epsilon": ({"privacy": {"maximum_epsilon": 9.0}}, "9.0", "8.0"),
    "privacy.maximum_delta": ({"privacy": {"maximum_delta": 1e-4}}, "0.0001", "1e-05"),
    "privacy.minimum_noise_multiplier": (
        {"privacy": {"minimum_noise_multiplier": 0.5}},
        "0.5",
        "1.0",
    ),
    "privacy.maximum_clip_norm": ({"privacy": {"maximum_clip_norm": 2.0}}, "2.0", "1.0"),
}
ONLY_ONE_VALUE = {"round.mode"}


class Place:
    """Site ``a`` of a federation of four, which runs with ``BEFORE``."""

    def __init__(self, directory: Path) -> None:
        self.running = topology_documents.load(directory, self.document())
        path = directory / "site.toml"
        path.write_text(tomli_w.dumps({"schema_version": 1, "name": "a"}))
        self.site: Site = load_site(path)

    @staticmethod
    def document(names: str = "abcd", **changes: Any) -> dict[str, Any]:
        return topology_documents.document(names, **{**BEFORE, **changes})

    def read(self, content: dict[str, Any] | str) -> Reload | None:
        text = content if isinstance(content, str) else tomli_w.dumps(content)
        self.site.topology_path.write_text(text)
        identity = topology_documents.identity("a")
        plan = plan_of(self.running, "a", SCHEMA, GENESIS)
        return read_again(self.site, identity, self.running, plan)

    def refused(self, content: dict[str, Any] | str) -> tuple[Problem, ...]:
        with pytest.raises(ConfigurationError) as caught:
            self.read(content)
        return caught.value.problems


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_every_key_that_needs_a_restart_has_its_case() -> None:
    fixed = {
        f"{table}.{key}"
        for table, keys in reloadable_fields().items()
        for key, applies in keys.items()
        if not applies
    }
    assert fixed - ONLY_ONE_VALUE == set(FIXED)


@pytest.mark.parametrize("key", FIXED)
def test_a_change_that_needs_a_restart_is_refused_by_file_key_value_and_remedy(
    key: str, place: Place
) -> None:
    changes, value, before = FIXED[key]
    problems = {problem.key: problem for problem in place.refused(place.document(**changes))}
    [found] = [problem for name, problem in problems.items() if name.startswith(key)]
    assert found.file == place.site.topology_path
    assert found.value == value
    assert found.reason == f"cannot change while the federation runs; in force is {before}"
    assert "stop every site" in (found.remedy or "")


def test_all_that_needs_a_restart_is_named_at_once_and_what_does_not_is_not(place: Place) -> None:
    changed = place.document(
        "abcde", codec={"name": "float32"}, round={"quorum": 1.0}, privacy={"minimum_records": 9}
    )
    keys = [problem.key for problem in place.refused(changed)]
    assert sorted(keys) == ["codec.name", "privacy.minimum_records"]


def test_a_graph_that_stays_cannot_become_one_that_varies(place: Place) -> None:
    changed = place.document(graph={"kind": "one_peer_exponential"})
    [problem] = place.refused(changed)
    assert (problem.key, problem.value) == ("graph", "varies with the round")


def test_a_file_that_does_not_parse_is_refused_by_its_line(place: Place) -> None:
    [problem] = place.refused("[federation\nname = 1")
    assert problem.file == place.site.topology_path
    assert "line 1" in problem.reason


def test_a_file_that_is_gone_is_refused(place: Place) -> None:
    place.site.topology_path.unlink()
    with pytest.raises(ConfigurationError, match="no such file"):
        read_again(
            place.site,
            topology_documents.identity("a"),
            place.running,
            plan_of(place.running, "a", SCHEMA, GENESIS),
        )


def test_a_file_without_this_site_says_that_it_was_taken_out(place: Place) -> None:
    [problem] = place.refused(place.document("bcd"))
    assert (problem.file, problem.key) == (place.site.topology_path, "peer")
    assert "this site, a, was taken out" in problem.reason
    assert "p2pfed stop" in (problem.remedy or "")


def test_another_key_for_this_site_is_refused(place: Place) -> None:
    document = place.document()
    document["peer"][0]["key"] = topology_documents.key("z")
    [problem] = place.refused(document)
    assert problem.key == "peer[0].key"
    assert "another key" in problem.reason


def test_another_name_for_this_key_is_refused(place: Place) -> None:
    document = place.document()
    document["peer"][0]["name"] = "z"
    [problem] = place.refused(document)
    assert "this key is listed there as 'z'" in (problem.remedy or "")


def test_a_file_that_means_the_same_is_no_change(place: Place) -> None:
    document = place.document()
    document["peer"].reverse()
    text = "# agreed upon by telephone\n" + tomli_w.dumps(document)
    assert place.read(text) is None


def test_what_a_reload_applies_is_listed_with_the_plan_that_follows(place: Place) -> None:
    found = place.read(place.document("abce", round={"quorum": 1.0, "deadline_seconds": 5.0}))
    assert found is not None
    assert {"+ peer e", "- peer d", "~ round.quorum: 0.5 -> 1.0"} <= set(found.changes)
    assert found.plan.topology_digest == found.topology.digest != place.running.digest
    assert (found.plan.quorum, found.plan.deadline_seconds) == (1.0, 5.0)
    assert found.plan.neighbours == {"b", "c", "e"}
    assert (found.plan.schema_digest, found.plan.genesis_replica) == (SCHEMA, GENESIS)


def farewell(topology: Topology, found: Reload | None, name: str) -> str:
    assert found is not None
    refusal = found.farewells[topology.peer(name).peer_id_text]
    assert refusal.code is RefusalCode.NOT_A_NEIGHBOUR
    return refusal.detail


def test_who_is_no_neighbour_any_more_is_told_what_the_file_lacks(place: Place) -> None:
    edges = [["a", "b"], ["b", "c"]]
    found = place.read(place.document("abc", graph={"kind": "explicit", "edges": edges}))
    assert found is not None
    assert len(found.farewells) == 2
    assert "lacks an edge between the two" in farewell(place.running, found, "c")
    assert "lacks d's key" in farewell(place.running, found, "d")


def test_a_replaced_key_is_parted_with_and_the_new_one_is_not(place: Place) -> None:
    document = place.document()
    document["peer"][1]["key"] = topology_documents.key("z")
    found = place.read(document)
    assert found is not None
    assert list(found.farewells) == [place.running.peer("b").peer_id_text]
    assert "lacks b's key" in farewell(place.running, found, "b")
