"""The heart hospitals with and without differential privacy, side by side.

Each hospital may spend the same budget. The smallest draws a larger part of its records each step,
so its budget is used up first: from then on it trains no more and goes on aggregating.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from p2pfed.daemon.status import PrivacyStatus, Status
from p2pfed.demo.daemons import Daemons, run_in_child
from p2pfed.demo.layout import MODEL_NAME, DemoLayout, DemoOptions, sites_of, write_layout
from p2pfed.demo.runner import COMPARISON_MODULE
from p2pfed.settings import read_toml
from p2pfed.shipped import demo_folder

REPORT_SCHEMA_VERSION = 1
PRIVATE = "private"
HOSPITALS = "heart"  # whose tables they are
PLAIN = "without privacy"
NOISED = "with privacy"


def run_private(
    directory: Path,
    options: DemoOptions,
    say: Callable[[str], None],
    progress: Callable[[str, dict[str, Status | None]], None],
) -> dict[str, Any]:
    """Run the federation without and with privacy, below ``directory``, and return the report.

    :param say: takes a line for the person who watches.
    :param progress: takes the run and every site's status, several times a second.
    :raises P2pfedError: a file is not sound, or a daemon failed; with its own words.
    """
    started = time.monotonic()
    sites = sites_of(demo_folder(HOSPITALS), options.seed)
    layouts: dict[str, DemoLayout] = {}
    finished: dict[str, dict[str, Status]] = {}
    changes = read_toml(demo_folder(PRIVATE) / f"{PRIVATE}.toml")
    for run in (PLAIN, NOISED):
        place = directory / run.replace(" ", "-")
        place.mkdir(parents=True)
        rounds = options.rounds or changes["round"]["rounds"]
        own = DemoOptions(rounds, options.seed, changes=changes if run == NOISED else {})
        layouts[run] = write_layout(demo_folder(HOSPITALS), place, own, sites)
        say(f"{run}: {layouts[run].topology}")
        finished[run] = _run(layouts[run], lambda found, run=run: progress(run, found))  # type: ignore[misc]
    files = {run: [str(site.path) for site in layouts[run].sites] for run in layouts}
    compared = run_in_child(COMPARISON_MODULE, ["--runs", json.dumps(files)])
    return {
        "schema_version": REPORT_SCHEMA_VERSION,
        **compared,
        "privacy": {name: asdict(_privacy(status)) for name, status in finished[NOISED].items()},
        "rounds": {
            run: {name: status.round.number for name, status in each.items()}
            for run, each in finished.items()
        },
        "seconds": round(time.monotonic() - started, 1),
        "seed": options.seed,
    }


def _run(
    layout: DemoLayout, progress: Callable[[dict[str, Status | None]], None]
) -> dict[str, Status]:
    with Daemons(layout.sites) as daemons:
        finished = daemons.wait_until_finished(progress)
        for running in daemons.running:
            running.export(running.site.path.with_name(MODEL_NAME))
    return finished


def _privacy(status: Status) -> PrivacyStatus:
    assert status.privacy is not None  # noqa: S101 - the topology file demands it
    return status.privacy
