"""The demo as a user runs it, and what it leaves behind."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from federation import GUARD_SECONDS, POLL_SECONDS, alive

pytestmark = pytest.mark.daemons


def demo(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "p2pfed", "demo", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_report_has_the_documented_form(short_tmp: Path) -> None:
    topology = Path(__file__).parents[2] / "topology" / "ring-4.toml"
    options = ["--rounds", "3", "--seed", "1", "--rule", "mean", "--topology", str(topology)]
    process = demo("--json", *options, "--keep", str(short_tmp / "kept"), cwd=short_tmp)
    out, errors = process.communicate(timeout=GUARD_SECONDS)
    assert process.returncode == 0, errors
    report = json.loads(out)
    assert report["schema_version"] == 1
    assert [report[key] for key in ("rounds", "seed", "rule")] == [3, 1, "mean"]
    assert report["topology"] == str(topology)
    assert report["bytes_sent"] > 0
    assert report["seconds"] > 0
    names = ["cleveland", "hungary", "long-beach", "switzerland"]
    assert [site["name"] for site in report["sites"]] == names
    for place in (*report["sites"], report["overall"]):
        for kind in ("local", "federated", "pooled"):
            assert set(place[kind]) == {"auc", "accuracy"}
            assert 0.3 < place[kind]["auc"] <= 1
    kept = short_tmp / "kept"
    assert (kept / "topology.toml").is_file()
    assert (kept / "hungary" / "site.toml").is_file()
    assert [(kept / name / "state" / "control.sock").exists() for name in names] == [False] * 4


def test_ctrl_c_leaves_no_process_and_no_socket(short_tmp: Path) -> None:
    process = demo("--keep", str(short_tmp / "kept"), cwd=short_tmp)
    sockets = [
        short_tmp / "kept" / name / "state" / "control.sock" for name in ("hungary", "cleveland")
    ]
    until = time.monotonic() + GUARD_SECONDS
    while not all(path.exists() for path in sockets):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(POLL_SECONDS)
    pids = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and str(short_tmp).encode() in _command_line(entry)
    ]
    assert len(pids) >= 4
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=GUARD_SECONDS)
    assert process.returncode == 130
    assert not any(path.exists() for path in sockets)
    assert not any(alive(pid) for pid in pids)


def _command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_failing_daemon_fails_the_demo_with_its_own_words(short_tmp: Path) -> None:
    bad = short_tmp / "bad.toml"
    good = Path(__file__).parents[2] / "topology" / "ring-4.toml"
    bad.write_text(good.read_text().replace("rounds = 0", "rounds = -1"))
    process = demo("--topology", str(bad), cwd=short_tmp)
    _, errors = process.communicate(timeout=GUARD_SECONDS)
    assert process.returncode == 78
    assert "round.rounds" in errors


def test_the_demo_needs_a_directory_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = demo("--keep", str(tmp_path), cwd=tmp_path)
    process.communicate(timeout=GUARD_SECONDS)
    assert process.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
