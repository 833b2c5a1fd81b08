"""Topology files: what is read, what is refused, what their digest means."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from topology_documents import document, identity, key, load

from p2pfed.errors import ConfigurationError
from p2pfed.topology import load_topology
from p2pfed.topology.diff import compare, reloadable_fields
from p2pfed.topology.file import MAX_OPTIONS_DEPTH, TopologyFile
from p2pfed.topology.lint import check
from p2pfed.topology.template import new_topology

EXAMPLES = Path(__file__).parents[2] / "topology"


def problems(directory: Path, content: dict[str, Any] | str) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        load(directory, content)
    return {problem.key: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_sound(path: Path) -> None:
    report = check(load_topology(path), parameters=1000)
    assert report.spectral_gap > 0
    assert not [warning for warning in report.warnings if "no rule survives" in warning]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_task_of_every_example_is_sound(path: Path) -> None:
    from p2pfed.training.tasks.tabular.options import TabularOptions

    TabularOptions.model_validate(load_topology(path).file.task.options)


def page_rows() -> dict[tuple[str, str], tuple[str, bool]]:
    """What the page says of each key of each table: its default, and of a reload."""
    rows = {}
    for line in (EXAMPLES / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and cells[0].startswith("`") and "`: `" in cells[0]:
            table, keys = cells[0].split(": ")
            for name in keys.split(", "):
                rows[table.strip("`"), name.strip("`")] = (cells[2], cells[3] == "yes")
    return rows


def test_the_page_has_every_key_and_says_what_a_reload_does() -> None:
    truth = {
        (table, name): reload
        for table, keys in reloadable_fields().items()
        for name, reload in keys.items()
    }
    assert {place: reload for place, (_, reload) in page_rows().items()} == truth


def test_the_page_says_the_defaults() -> None:
    file = TopologyFile.model_validate(document())
    for (table, name), (default, _) in page_rows().items():
        if table in ("round", "aggregation", "codec", "privacy"):
            value = getattr(getattr(file, table), name)
            shown = str(value).lower() if isinstance(value, bool) else f"{value:{_form(default)}}"
            assert default == shown, name


def _form(text: str) -> str:
    return "g" if text[0].isdigit() else "s"


def test_every_field_is_documented() -> None:
    for table in TopologyFile.model_fields.values():
        assert table.description
        for annotation in (table.annotation, *getattr(table.annotation, "__args__", ())):
            for name, field in getattr(annotation, "model_fields", {}).items():
                assert field.description, name


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
    bad["peer"][3]["key"] = key("b")
    found = problems(tmp_path, bad)
    assert "peer[0] has this name" in found["peer[2].name"]
    assert "peer[1] has this key" in found["peer[3].key"]


def test_one_key_in_both_spellings_is_still_one_key(tmp_path: Path) -> None:
    bad = document()
    peer_id = identity("a").peer_id
    bad["peer"][1] = {"name": "b", "peer_id": peer_id}
    assert "has this key" in problems(tmp_path, bad)["peer[1].key"]


@pytest.mark.parametrize("both", [True, False])
def test_a_peer_has_exactly_one_identity(tmp_path: Path, both: bool) -> None:
    bad = document()
    if both:
        bad["peer"][0]["peer_id"] = identity("a").peer_id
    else:
        del bad["peer"][0]["key"]
    assert "exactly one of key and peer_id" in problems(tmp_path, bad)["peer[0]"]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("10.1.0.5:7400", "looks like"),
        ("/ip4/10.1.0.5/tcp/7400/p2p/12D3KooWx", "leave out /p2p/12D3KooWx"),
        ("/ip4/10.1.0/tcp/7400", "4 octets"),
        ("/ip6/fe80::1%eth0/tcp/7400", "zone"),
        ("/ip6/10.1.0.5/tcp/7400", "At least 3 parts"),
        ("/dns/-a.example/tcp/7400", "no host name"),
        ("/dns//tcp/7400", "no host name"),
        ("/unix/a/tcp/7400", "unknown address kind"),
        ("/ip4/10.1.0.5/udp/7400", "looks like"),
        ("/ip4/10.1.0.5/tcp/65536", "no port number"),
        ("/ip4/10.1.0.5/tcp/+74", "no port number"),
        ("/ip4/10.1.0.5/tcp/0", "cannot be dialled"),
    ],
)
def test_an_address_that_nobody_can_dial_is_refused(
    tmp_path: Path, address: str, says: str
) -> None:
    bad = document()
    bad["peer"][1]["addresses"] = [address]
    assert says in problems(tmp_path, bad)["peer[1].addresses[0]"]


def test_addresses_of_every_kind_are_taken(tmp_path: Path) -> None:
    good = document()
    addresses = ["/ip4/192.0.2.1/tcp/1", "/ip6/2001:db8::1/tcp/65535"]
    addresses += [f"/{kind}/p2pfed.hospital.example/tcp/7400" for kind in ("dns", "dns4", "dns6")]
    good["peer"][0]["addresses"] = addresses
    assert load(tmp_path, good).peer("a").addresses == tuple(addresses)
    good["peer"][0]["addresses"] = addresses * 2
    assert "at most 8" in problems(tmp_path, good)["peer[0].addresses"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("when = 2026-01-02", "options.when is a date"),
        ("rate = nan", "options.rate is not a finite number"),
        ("deep = [[1.0, inf]]", "options.deep[0][1] is not a finite number"),
        ("big = 9223372036854775808", "options.big does not fit 64 bits"),
        (f"deep = {'[' * 20}{']' * 20}", f"nested more than {MAX_OPTIONS_DEPTH} deep"),
    ],
)
def test_options_hold_only_what_every_site_reads_alike(
    tmp_path: Path, options: str, says: str
) -> None:
    text = tomli_w.dumps(document()) + f"\n[task.options]\n{options}\n"
    assert says in problems(tmp_path, text)["task.options"]


def test_asynchronous_rounds_need_a_graph_that_stays(tmp_path: Path) -> None:
    settings = {"mode": "async"}
    found = problems(tmp_path, document(round=settings, graph={"kind": "one_peer_exponential"}))
    assert "depends on the round" in found["round.mode"]
    path = tmp_path / "topology.toml"
    path.write_text(tomli_w.dumps(document(round=settings)))
    assert load_topology(path).file.round.mode == "async"


@pytest.mark.parametrize(
    "tables",
    [
        {"round": {"rounds": 2**63}},
        {"round": {"quorum": 1.01}},
        {"round": {"deadline_seconds": 0}},
        {"round": {"local_steps": True}},
        {"aggregation": {"mixing_step": 0}},
        {"aggregation": {"byzantine_neighbours": -1}},
        {"privacy": {"minimum_records": 1}},
        {"federation": {"name": "No Capitals"}},
        {"task": {"kind": "tabular", "seed": 2**63}},
        {"graph": {"kind": "random_regular", "degree": 3, "seed": 2**64}},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_their_key(
    tmp_path: Path, tables: dict[str, Any]
) -> None:
    ((table, keys),) = tables.items()
    assert list(problems(tmp_path, document(**tables))) == [f"{table}.{list(keys)[-1]}"]


@pytest.mark.parametrize("task", [{"kind": "python"}, {"kind": "tabular", "class": "a.b:C"}])
def test_a_class_goes_with_a_task_in_python(tmp_path: Path, task: dict[str, Any]) -> None:
    assert "class goes with" in problems(tmp_path, document(task=task))["task"]
    load(tmp_path, document(task={"kind": "python", "class": "a.b:C"}))


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
        ({"kind": "small_world", "degree": 3}, "degree must be even"),
        ({"kind": "small_world", "degree": 4}, "below the number of peers"),
        ({"kind": "explicit"}, "needs edges"),
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


@pytest.mark.parametrize(
    ("kind", "graph_keys"),
    [
        ("explicit", {}),
        ("ring", {}),
        ("torus", {"rows": 2, "columns": 2}),
        ("random_regular", {"degree": 2, "seed": 3}),
        ("small_world", {"degree": 2, "rewiring": 0.5}),
        ("random_per_round", {"degree": 2}),
    ],
)
def test_a_new_file_lacks_nothing_but_the_keys(
    tmp_path: Path, kind: str, graph_keys: dict[str, int | float]
) -> None:
    text = new_topology("test", kind, list("abcd"), graph_keys)
    found = problems(tmp_path, text)
    assert set(found) == {f"peer[{i}].key" for i in range(4)}
    assert "paste the [[peer]] block that p2pfed init printed" in found["peer[0].key"]
    filled = tomllib.loads(text)
    for peer in filled["peer"]:
        peer["key"] = key(peer["name"])
    topology = load(tmp_path, filled)
    assert topology.file.model_dump()["graph"].items() >= graph_keys.items()


@pytest.mark.parametrize(
    ("kind", "peers", "says"),
    [
        ("ring", ["a", "a"], "peer[0] has this name"),
        ("ring", ["A", "b"], "String should match"),
        ("ring", ['a"\n', "b"], "no name has such characters"),
        ("ring", ["a"], "at least 2"),
        ("one_peer_exponential", ["a", "b", "c"], "power of two"),
        ("random_regular", ["a", "b", "c"], "needs degree"),
    ],
)
def test_a_new_file_that_could_not_be_sound_is_not_written(
    kind: str, peers: list[str], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        new_topology("test", kind, peers)


def test_the_digest_is_of_the_meaning_alone(tmp_path: Path) -> None:
    text = tomli_w.dumps(document(round={"deadline_seconds": 60.0}))
    same = "# a comment\n" + text.replace("60.0", "60")
    assert load(tmp_path, text).digest == load(tmp_path, same).digest
    assert load(tmp_path, document()).digest == load(tmp_path, text).digest
    other = document(round={"deadline_seconds": 61})
    assert load(tmp_path, other).digest != load(tmp_path, text).digest


@pytest.mark.parametrize(
    "graph",
    [
        {"kind": "complete"},
        {"kind": "star"},
        {"kind": "exponential"},
        {"kind": "torus", "rows": 2, "columns": 3},
        {"kind": "random_regular", "degree": 3},
        {"kind": "small_world", "degree": 4},
        {"kind": "random_per_round", "degree": 2},
    ],
    ids=lambda graph: graph["kind"],
)
def test_the_order_of_peers_counts_exactly_where_it_makes_another_graph(
    tmp_path: Path, graph: dict[str, Any]
) -> None:
    one = load(tmp_path, document("abcdef", graph=graph))
    content = document("abcdef", graph=graph)
    content["peer"].reverse()
    two = load(tmp_path, content)
    alike = all(
        one.neighbours(name, number) == two.neighbours(name, number)
        for name in one.names
        for number in one.examined_rounds
    )
    assert (one.digest == two.digest) == alike
    assert bool(compare(one, two)) != alike


def test_writing_a_default_out_changes_nothing(tmp_path: Path) -> None:
    graph = {"kind": "small_world", "degree": 2}
    plain = load(tmp_path, document(graph=graph))
    spelt = load(tmp_path, document(graph=graph | {"seed": 0, "rewiring": 0.1}))
    assert plain.digest == spelt.digest
    assert compare(plain, spelt) == []


def test_true_and_one_are_different_options(tmp_path: Path) -> None:
    def with_options(**options: object) -> dict[str, Any]:
        return document(task={"kind": "tabular", "options": options})

    old = load(tmp_path, with_options(a={"x": 1}, b=[1.0, 2]))
    same = load(tmp_path, with_options(b=[1, 2.0], a={"x": 1.0}))
    new = load(tmp_path, with_options(a={"x": True}, b=[1, 2]))
    assert compare(old, same) == []
    assert [c.what for c in compare(old, new) if not c.reload] == ["~ task.options.a.x: 1 -> True"]


def test_on_an_explicit_graph_the_order_of_peers_and_edges_means_nothing(tmp_path: Path) -> None:
    edges = [["a", "b"], ["b", "c"]]
    one = document("abc", graph={"kind": "explicit", "edges": edges})
    two = document("abc", graph={"kind": "explicit", "edges": [["c", "b"], ["b", "a"]]})
    two["peer"].reverse()
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


def test_a_diff_tells_new_keys_and_addresses_of_a_peer(tmp_path: Path) -> None:
    old = load(tmp_path, document())
    content = document()
    content["peer"][0] |= {"key": key("z"), "addresses": []}
    changes = [change.what for change in compare(old, load(tmp_path, content))]
    assert changes == [
        f"~ peer a: peer id: {identity('a').peer_id} -> {identity('z').peer_id}",
        "~ peer a: addresses: /ip4/192.0.2.97/tcp/7400 -> none",
    ]


def test_a_diff_says_that_a_graph_that_varies_needs_a_restart(tmp_path: Path) -> None:
    old = load(tmp_path, document())
    new = load(tmp_path, document(graph={"kind": "one_peer_exponential"}))
    assert [c.what for c in compare(old, new) if not c.reload] == [
        "~ graph: the same every round -> varies with the round"
    ]


def test_a_diff_counts_edges_that_are_too_many_to_list(tmp_path: Path) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    old = load(tmp_path, document(names))
    new = load(tmp_path, document(names, graph={"kind": "complete"}))
    assert "+ 299 edges" in [change.what for change in compare(old, new)]


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
    assert one.common_neighbours("a")["c"] == {"b", "d", "e", "f"}


def test_common_neighbours_are_those_of_both(tmp_path: Path) -> None:
    edges = [["a", "b"], ["a", "c"], ["b", "c"], ["c", "d"]]
    topology = load(tmp_path, document(graph={"kind": "explicit", "edges": edges}))
    assert topology.common_neighbours("a") == {"b": {"c"}, "c": {"b"}}
    assert topology.common_neighbours("c") == {"a": {"b"}, "b": {"a"}, "d": frozenset()}


def test_the_heart_demo_is_a_sound_topology_but_for_its_peers() -> None:
    shipped = Path(__file__).parents[2] / "demos" / "heart" / "heart.toml"
    TopologyFile.model_validate(document() | tomllib.loads(shipped.read_text()))
