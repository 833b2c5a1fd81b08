"""``p2pfed privacy-audit`` as an operator runs it, on a hospital of the heart demo."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from p2pfed.config import Site
from p2pfed.demo.layout import DemoOptions, write_layout
from p2pfed.settings import read_toml
from p2pfed.shipped import demo_folder

GUARD_SECONDS = 240


def hospital(directory: Path, **privacy: Any) -> Site:
    layout = write_layout(demo_folder("heart"), directory, DemoOptions())
    (site,) = (one for one in layout.sites if one.file.name == "cleveland")
    document = {**read_toml(site.path), "privacy": privacy}
    site.path.write_text(tomli_w.dumps(document), encoding="utf-8")
    return site


def audit(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "p2pfed", "privacy-audit", "--config", str(site.path),
         *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=GUARD_SECONDS,
    )  # fmt: skip


def test_a_private_site_is_attacked_and_every_control_comes_out(short_tmp: Path) -> None:
    site = hospital(short_tmp, differential_privacy=True, noise_multiplier=4.0, epsilon=3.0)
    written = short_tmp / "audit.json"
    done = audit(site, "--quick", "--json", str(written))
    assert done.returncode == 0, done.stderr
    assert written.stat().st_mode & 0o777 == 0o600, "what a neighbour finds out is nobody's else"
    report: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    assert [report[key] for key in ("schema_version", "site", "conclusive", "privacy_holds")] == [
        1, "cleveland", True, True,
    ]  # fmt: skip
    terms = report["terms"]
    assert terms["in_force"] is True
    assert 0 < terms["rounds"] < 40  # the budget ends training before the federation does
    assert terms["accounted_epsilon"] <= 3.0
    found = {(one["attack"], one["privacy"], one["setting"]): one for one in report["findings"]}
    single = "delta of 1 record, 1 step"
    assert found["inversion", False, single]["value"] > 0.999
    assert found["inversion", True, single]["exceeds"] is False
    bounds = [one for one in report["findings"] if one["attack"] == "canaries"]
    assert bounds
    assert all(one["value"] <= one["reference"] for one in bounds)
    assert {(one["attack"], one["positive"]) for one in report["controls"]} == {
        ("membership", True), ("membership", False), ("inversion", True), ("canaries", True),
    }  # fmt: skip
    assert "controls" in done.stdout
    assert "proves nothing" not in done.stdout
    assert "cleveland: shadow models with privacy: 10 of 10" in done.stderr


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report_and_a_site_without_privacy_is_told(
    short_tmp: Path,
) -> None:
    site = hospital(short_tmp)
    first, again = (
        json.loads(audit(site, "--quick", "--seed", "3", "--json", "-").stdout) for _ in range(2)
    )
    for report in (first, again):
        del report["seconds"]
        assert report["terms"]["in_force"] is False
    assert first == again


def test_bad_input_is_said_in_a_line(short_tmp: Path) -> None:
    site = hospital(short_tmp)
    (site.path.parent / "data.csv").unlink()
    done = audit(site, "--quick")
    assert done.returncode == 78
    assert "data.csv: cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    site.path.unlink()
    assert audit(site).returncode == 78
