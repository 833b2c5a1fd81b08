"""``p2pfed simulate``, as a user runs it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from p2pfed.shipped import shipped

RING = str(shipped("topology") / "ring-4.toml")
QUICK = ("--task", "synthetic", "--rounds", "6", "--evaluate-every", "2")


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from p2pfed.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_topology_file_is_tried_and_reported(tmp_path: Path) -> None:
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    done = simulate(RING, *QUICK, "--json", str(report), "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert "consensus distance" in done.stdout
    assert "nothing broken" in done.stdout
    document = json.loads(report.read_text(encoding="utf-8"))
    assert document["schema_version"] == 1
    assert document["finished"] is True
    assert len(document["rounds"]) == 6
    assert len(document["sites"]) == 4
    assert document["summary"]["mean_accuracy"] > 0.3
    assert document["summary"]["bytes_per_site_and_round"] > 0
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 1
    assert "<script" not in html
    assert "<link" not in html
    # Self-contained: what is named is names of XML, and nothing that a browser would load.
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(\s*["']?http""", html)


def test_json_alone_goes_to_standard_output() -> None:
    first, again = (simulate(RING, *QUICK, "--seed", "5", "--json", "-") for _ in range(2))
    one, other = json.loads(first.stdout), json.loads(again.stdout)
    assert one["trace_hash"] == other["trace_hash"]
    assert one["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such.toml"], 78, "no such file"),
        ([RING, "--task", "chess"], 2, "no task is called 'chess'"),
        ([RING, "--rule", "magic", *QUICK], 78, "unknown rule"),
        ([RING, "--scenario", "no-such.toml"], 78, "no such file"),
    ],
)
def test_bad_input_is_said_in_a_line(arguments: list[str], code: int, message: str) -> None:
    done = simulate(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_violation_ends_with_one_and_says_how_to_see_it_again() -> None:
    # A round that goes back; shlex makes the command fit to be pasted.
    code = (
        "import sys\n"
        "from p2pfed.cli.main import main\n"
        "from p2pfed.protocol.rounds import RoundEngine\n"
        "def back(self, _now): self.round_number -= 1\n"
        "RoundEngine._catch_up = back\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["simulate", RING, *QUICK, "--seed", "9"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "rounds_only_rise, seed 9" in done.stderr
    assert f"run it again: {shlex.join(['p2pfed', *arguments])}" in done.stderr
    assert "TrainingFinished" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("scenario", sorted((shipped("topology") / "scenarios").glob("*.toml")))
def test_every_scenario_that_we_ship_runs(scenario: Path) -> None:
    topology = str(shipped("topology") / "hospital-consortium.toml")
    done = simulate(topology, "--scenario", str(scenario), "--task", "synthetic", "--rounds", "30")
    assert done.returncode == 0, done.stderr
