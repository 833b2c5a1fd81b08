"""The demos of privacy and of X-rays as a user runs them, small, with what is expected of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import GUARD_SECONDS
from typer.testing import CliRunner

from p2pfed.cli.main import app
from p2pfed.demo.layout import merged
from p2pfed.demo.phantoms import draw_chests
from p2pfed.demo.xray import HOSPITALS
from p2pfed.errors import UsageError


def report_of(demo: str, rounds: int, directory: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "p2pfed", "demo", demo, "--json", "--rounds", str(rounds)],
        cwd=directory,
        capture_output=True,
        check=False,
        timeout=2 * GUARD_SECONDS,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.daemons
def test_no_hospital_overspends_and_the_one_at_its_limit_goes_on_aggregating(
    short_tmp: Path,
) -> None:
    report = report_of("private", 18, short_tmp)
    budgets = report["privacy"]
    assert all(0 < one["epsilon_spent"] <= one["epsilon_budget"] == 6 for one in budgets.values())
    assert [name for name, one in budgets.items() if one["stopped"]] == ["switzerland"]
    assert budgets["switzerland"]["charged_rounds"] == 16
    assert {name: one["charged_rounds"] for name, one in budgets.items() if not one["stopped"]} == {
        "cleveland": 18, "hungary": 18, "long-beach": 18,
    }  # fmt: skip
    assert set(report["rounds"]["with privacy"].values()) == {18}, "it aggregates to the end"
    private, plain = (
        report["runs"][run]["overall"]["auc"] for run in ("with privacy", "without privacy")
    )
    assert plain - 0.05 < private < 1
    assert private > report["reference"]["local"]["auc"]


@pytest.mark.daemons
def test_unlike_hospitals_with_few_images_gain_by_learning_together(short_tmp: Path) -> None:
    report = report_of("xray", 15, short_tmp)
    assert "not real" in report["images"]
    auc = {kind: report["overall"][kind]["auc"] for kind in ("local", "federated", "pooled")}
    assert auc["federated"] > auc["local"] + 0.05
    assert auc["federated"] > auc["pooled"] - 0.02
    assert [site["test_rows"] for site in report["sites"]] == [200] * len(HOSPITALS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["private", "--rule", "mean"], "not for the private demo"),
        (["heart", "--images", "a.npz"], "--images is for the xray demo"),
        (["xray", "--images", "nothing.npz"], "not pneumoniamnist.npz"),
    ],
)
def test_what_a_demo_has_no_use_for_is_refused(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["demo", *arguments])
    assert done.exit_code != 0
    assert message in str(done.exception)


def test_a_file_that_is_not_the_images_is_refused(tmp_path: Path) -> None:
    damaged, other, few = (tmp_path / f"{name}.npz" for name in ("damaged", "other", "few"))
    damaged.write_bytes(b"PK\x03\x04 no archive")
    np.savez(other, images=np.zeros((4, 28, 28), np.uint8))
    pictures, labels = np.zeros((10, 28, 28), np.uint8), np.arange(10) % 2
    np.savez(
        few, train_images=pictures, train_labels=labels, test_images=pictures, test_labels=labels
    )
    for path, reason in ((damaged, "damaged"), (other, "no array"), (few, "too few images")):
        done = CliRunner().invoke(app, ["demo", "xray", "--images", str(path)])
        assert isinstance(done.exception, UsageError)
        assert reason in str(done.exception)


def test_phantoms_are_the_same_for_a_seed_and_as_ill_as_asked() -> None:
    images, labels = draw_chests(20, 0.3, np.random.default_rng(4))
    again, _ = draw_chests(20, 0.3, np.random.default_rng(4))
    assert images.shape == (20, 28, 28)
    assert images.dtype == np.uint8
    assert labels.sum() == 6
    assert np.array_equal(images, again)


def test_changes_replace_keys_of_tables_and_leave_the_rest() -> None:
    document = {"round": {"rounds": 40, "local_steps": 3}, "task": {"kind": "tabular"}}
    changes = {"round": {"rounds": 5}, "privacy": {"maximum_epsilon": 2.0}}
    assert merged(document, changes) == {
        "round": {"rounds": 5, "local_steps": 3},
        "task": {"kind": "tabular"},
        "privacy": {"maximum_epsilon": 2.0},
    }
