"""``p2pfed topology``: output, exit codes, files."""

import json
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import tomli_w
from topology_documents import document, key, load

from p2pfed.cli.main import main
from p2pfed.topology import load_topology
from p2pfed.topology.draw import NODE_MARK, SKETCH_COLUMNS, SKETCH_PEERS, sketch

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MANY = "abcdefghijklmnopqrstuvwxyz"


class Terminal:
    """Runs commands in this process and keeps what they say."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def run(self, *arguments: str | Path) -> int:
        with pytest.raises(SystemExit) as stopped:
            main(["topology", *map(str, arguments)])
        self.out, self.err = self._capsys.readouterr()
        return int(stopped.value.code or 0)


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    return load(tmp_path, document("abcdef")).path


def test_check_prints_a_report_and_ends_well_in_spite_of_warnings(
    terminal: Terminal, ring: Path
) -> None:
    assert terminal.run("check", ring, "--parameters", "1000") == 0
    assert "spectral gap 0.333" in terminal.out
    assert "stays connected without any 1 of its sites" in terminal.out
    assert "warning  median_clipping bears no hostile neighbour at any site" in terminal.out
    assert terminal.err == ""


def test_check_says_over_which_rounds_a_graph_that_varies_was_examined(
    terminal: Terminal, tmp_path: Path
) -> None:
    graph = {"kind": "random_per_round", "degree": 2}
    terminal.run("check", load(tmp_path, document("abcdef", graph=graph)).path)
    assert "random_per_round, a sample of 32 rounds: 6 peers" in terminal.out
    terminal.run("check", load(tmp_path, document(graph={"kind": "one_peer_exponential"})).path)
    assert "one_peer_exponential, all 2 rounds of its period" in terminal.out


def test_check_in_json_is_one_object_with_a_version(terminal: Terminal, ring: Path) -> None:
    assert terminal.run("check", ring, "--json", "--parameters", "1000") == 0
    report = json.loads(terminal.out)
    assert report["schema_version"] == 1
    assert report["digest"] == load_topology(ring).digest.hex()
    assert {site["name"] for site in report["sites"]} == set("abcdef")
    assert all(site["bytes_per_round"] > 2000 for site in report["sites"])


def test_check_refuses_an_unsound_file_with_everything_wrong_and_the_configuration_code(
    terminal: Terminal, tmp_path: Path
) -> None:
    bad = document(round={"rounds": -1}, codec={"name": "zip"})
    path = tmp_path / "bad.toml"
    path.write_text(tomli_w.dumps(bad))
    assert terminal.run("check", path) == 78
    assert "round.rounds" in terminal.err
    assert "codec.name" in terminal.err
    assert "Traceback" not in terminal.err
    assert terminal.run("check", tmp_path / "none.toml") == 78
    assert "no such file" in terminal.err


def test_show_draws_every_site_and_lists_every_neighbour(terminal: Terminal, ring: Path) -> None:
    assert terminal.run("show", ring) == 0
    assert terminal.out.count(NODE_MARK) == 6
    assert "a  b, f\n" in terminal.out


@pytest.mark.parametrize("count", range(2, SKETCH_PEERS + 1))
def test_a_sketch_fits_a_terminal_and_shows_every_name(tmp_path: Path, count: int) -> None:
    content = document(MANY[:count], graph={"kind": "complete"})
    for peer in content["peer"]:
        peer["name"] = f"site-{peer['name']}"
    drawing = sketch(load(tmp_path, content)).split("\n\n")[1]
    assert all(len(line) <= SKETCH_COLUMNS for line in drawing.splitlines())
    assert all(drawing.count(f"site-{letter}") == 1 for letter in MANY[:count])
    assert drawing.count(NODE_MARK) == count


def test_a_sketch_has_dots_only_for_edges(tmp_path: Path) -> None:
    edges = [["a", "b"], ["b", "c"], ["c", "d"]]
    path = sketch(load(tmp_path, document(graph={"kind": "explicit", "edges": edges})))
    ring = sketch(load(tmp_path, document()))
    dots = {text: sum("\u2801" <= mark <= "\u28ff" for mark in text) for text in (path, ring)}
    assert 0 < dots[path] < dots[ring]


def test_long_names_are_cut_in_the_drawing_and_whole_in_the_list(tmp_path: Path) -> None:
    content = document()
    content["peer"][1]["name"] = "b" * 63
    parts = sketch(load(tmp_path, content)).split("\n\n")
    assert "b" * 19 + "…" in parts[1]
    assert "b" * 20 not in parts[1]
    assert "b" * 63 in parts[2]


def test_many_sites_are_listed_without_a_drawing(tmp_path: Path) -> None:
    text = sketch(load(tmp_path, document(MANY)))
    assert NODE_MARK not in text
    assert "b  a, c\n" in text


def test_show_writes_pictures_that_are_the_same_every_time(
    terminal: Terminal, ring: Path, tmp_path: Path
) -> None:
    assert terminal.run("show", ring, "--format", "svg") == 0
    first = ring.with_suffix(".svg").read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")  # noqa: S314 - our own file
    assert terminal.run("show", ring, "--format", "svg", "--output", tmp_path / "again.svg") == 0
    assert (tmp_path / "again.svg").read_bytes() == first
    assert terminal.run("show", ring, "--format", "png", "--output", tmp_path / "ring.png") == 0
    assert (tmp_path / "ring.png").read_bytes().startswith(PNG_SIGNATURE)


def test_show_says_where_it_cannot_write(terminal: Terminal, ring: Path, tmp_path: Path) -> None:
    target = tmp_path / "none" / "ring.svg"
    assert terminal.run("show", ring, "--format", "svg", "--output", target) == 2
    assert "cannot be written: No such file" in terminal.err
    assert terminal.run("show", ring, "--output", target) == 2
    assert "--format" in terminal.err


def test_new_writes_a_file_that_lacks_only_keys_and_never_overwrites(
    terminal: Terminal, tmp_path: Path
) -> None:
    target = tmp_path / "new.toml"
    arguments = ("new", "random_regular", "--name", "hearts", "--peers", "a, b,c,d")
    keys = ("--degree", "2", "--seed", "7", "--output", str(target))
    assert terminal.run(*arguments, *keys) == 0
    written = target.read_text()
    assert terminal.run("check", target) == 78
    assert terminal.err.count("paste the [[peer]] block") == 4
    filled = tomllib.loads(written)
    for peer in filled["peer"]:
        peer["key"] = key(peer["name"])
    assert load(tmp_path, filled).file.graph.seed == 7
    assert terminal.run(*arguments, *keys) == 2
    assert "never overwritten" in terminal.err
    assert target.read_text() == written


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wheel", "--peers", "a,b"], "no graph of kind 'wheel'"),
        (["ring", "--peers", "a,A"], "peer[1].name"),
        (["torus", "--peers", "a,b,c", "--rows", "2", "--columns", "2"], "not the 3 peers"),
        (["ring", "--peers", "a,b", "--degree", "2"], "takes no degree"),
    ],
)
def test_new_refuses_what_could_not_be_sound(
    terminal: Terminal, arguments: list[str], says: str
) -> None:
    assert terminal.run("new", *arguments, "--name", "hearts") == 2
    assert says in terminal.err
    assert terminal.out == ""


def test_diff_ends_as_diff_does_and_says_what_a_reload_applies(
    terminal: Terminal, ring: Path, tmp_path: Path
) -> None:
    same = tmp_path / "same.toml"
    same.write_text("# the same\n" + ring.read_text())
    assert terminal.run("diff", ring, same) == 0
    other = tmp_path / "other.toml"
    changed = document("abcdef", round={"quorum": 1}, aggregation={"rule": "mean"})
    other.write_text(tomli_w.dumps(changed))
    assert terminal.run("diff", ring, other) == 1
    assert "~ round.quorum: 0.5 -> 1.0  (reload applies it)" in terminal.out
    assert "'mean'  (needs a restart everywhere)" in terminal.out
    assert terminal.run("diff", ring, other, "--json") == 1
    found = json.loads(terminal.out)
    assert found["schema_version"] == 1
    assert found["old"] == load_topology(ring).digest.hex() != found["new"]
    assert {(change["key"], change["reload"]) for change in found["changes"]} == {
        ("round.quorum", True),
        ("aggregation.rule", False),
    }


def test_reading_a_topology_loads_no_library_for_drawing_or_graphs() -> None:
    code = (
        "import sys, p2pfed.topology; "
        "print(sorted({'matplotlib', 'networkx', 'scipy', 'torch', 'libp2p'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
