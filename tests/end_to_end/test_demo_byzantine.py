"""A hostile daemon among honest ones, as the demo shows it."""

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from federation import GUARD_SECONDS, POLL_SECONDS, alive

from p2pfed.attacks.poisoning import Backdoor, LabelFlip
from p2pfed.demo.byzantine import attacks, poison_table

pytestmark = pytest.mark.daemons

HONEST = ["cleveland", "hungary", "long-beach", "switzerland"]
RULES = ["mean", "median_clipping"]


def demo(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "p2pfed", "demo", "byzantine", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def events(log: Path, name: str) -> list[dict[str, object]]:
    written = log.read_text() if log.exists() else ""
    lines = [line for line in written.splitlines() if line.startswith("{") and line[-1] == "}"]
    return [event for event in map(json.loads, lines) if event.get("event") == name]


def of_this_demo(directory: Path) -> Iterator[int]:
    """The processes whose command line names ``directory``."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(directory).encode() in command:
                yield int(entry.name)


def test_one_liar_ruins_the_mean_and_not_the_default(short_tmp: Path) -> None:
    kept = short_tmp / "kept"
    process = demo("--json", "--rounds", "8", "--keep", str(kept), cwd=short_tmp)
    out, errors = process.communicate(timeout=GUARD_SECONDS)
    assert process.returncode == 0, errors
    report = json.loads(out)
    head = {key: report[key] for key in ("schema_version", "attack", "seed", "hostile", "rounds")}
    assert head == {
        "schema_version": 1,
        "attack": "sign_flip",
        "seed": 0,
        "hostile": "impostor",
        "rounds": 8,
    }
    assert list(report["rules"]) == RULES
    for run in report["rules"].values():
        assert [site["name"] for site in run["sites"]] == HONEST
        assert all(0 <= site["auc"] <= 1 and site["test_rows"] > 30 for site in run["sites"])
    mean, default = (report["rules"][rule]["overall"]["auc"] for rule in RULES)
    pooled = report["honest_reference"]["pooled"]["auc"]
    assert mean < 0.6
    assert default > pooled - 0.03
    hostile = kept / "median_clipping" / "impostor" / "daemon.log"
    lies = events(hostile, "published a lie")
    assert [lie["round"] for lie in lies] == list(range(8))
    # It mixes its honest model, not its lie, and so stays as well informed as the others.
    assert events(hostile, "round done")[-1]["auc"] > 0.8  # type: ignore[operator]
    honest = kept / "median_clipping" / "cleveland" / "daemon.log"
    assert events(honest, "published a lie") == []


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_of_either_kind(short_tmp: Path) -> None:
    process = demo("--keep", str(short_tmp / "kept"), cwd=short_tmp)
    hostile = short_tmp / "kept" / "mean" / "impostor"
    until = time.monotonic() + GUARD_SECONDS
    while not events(hostile / "daemon.log", "daemon started"):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(POLL_SECONDS)
    pids = list(of_this_demo(short_tmp))
    assert len(pids) >= 5
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=GUARD_SECONDS)
    assert process.returncode == 130
    assert not any(alive(pid) for pid in pids)
    assert not (hostile / "state" / "control.sock").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--attack", "nonsense"), "no attack 'nonsense' here; there are: sign_flip"),
        (("--attack", "replay"), "no attack 'replay' here"),
        (("--rule", "mean"), "it compares rules"),
    ],
)
def test_what_the_demo_cannot_do_is_refused_at_once(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    process = demo(*arguments, cwd=tmp_path)
    _, errors = process.communicate(timeout=GUARD_SECONDS)
    assert process.returncode == 2
    assert said in errors


def test_an_attack_is_for_this_demo_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "p2pfed", "demo", "heart", "--attack", "alie"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "p2pfed demo byzantine --attack" in done.stderr


def test_the_demo_offers_attacks_on_models_and_data_but_not_on_messages() -> None:
    assert {"sign_flip", "alie", "echo", "label_flip", "backdoor", "none"} <= set(attacks())
    assert not {"replay", "equivocation", "stale_flood"} & set(attacks())


TABLE = "age,disease,thalach\n63,0,150\n67,1,\n41,1,108.5\n"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_poisoned_table_differs_in_its_labels_alone(tmp_path: Path) -> None:
    table, poisoned = tmp_path / "a.csv", tmp_path / "b.csv"
    table.write_text(TABLE)
    poison_table(table, poisoned, LabelFlip(), "disease", seed=0)
    assert read(poisoned) == [
        {**row, "disease": str(1 - int(row["disease"]))} for row in read(table)
    ]


def test_a_backdoor_marks_columns_of_the_table(tmp_path: Path) -> None:
    table, poisoned = tmp_path / "a.csv", tmp_path / "b.csv"
    table.write_text(TABLE)
    attack = Backdoor(share=1.0, columns=(-1,), value=99.5)
    poison_table(table, poisoned, attack, "disease", seed=0)
    assert read(poisoned) == [{**row, "disease": "0", "thalach": "99.5"} for row in read(table)]
    assert np.all([row["age"] for row in read(poisoned)] == ["63", "67", "41"])
