"""Runs a demo from an empty directory to its report."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pfed.daemon.status import Status
from p2pfed.demo.daemons import Daemons, run_in_child
from p2pfed.demo.layout import MODEL_NAME, DemoOptions, DemoSite, write_layout
from p2pfed.shipped import demo_folder
from p2pfed.topology import load_topology

REPORT_SCHEMA_VERSION = 1
COMPARISON_MODULE = "p2pfed.demo.comparison"  # run in a child: it imports torch


def run_demo(
    name: str,
    directory: Path,
    options: DemoOptions,
    say: Callable[[str], None],
    progress: Callable[[dict[str, Status | None]], None],
    sites: tuple[DemoSite, ...] | None = None,
) -> dict[str, Any]:
    """Run the federation of demo ``name`` under ``directory`` and return its report.

    :param sites: those of the demo where none are given.
    :param say: takes a line for the person who watches.
    :param progress: takes every site's status, several times a second.
    :raises P2pfedError: a file is not sound, or a daemon failed; with its own words.
    """
    layout = write_layout(demo_folder(name), directory, options, sites)
    say(f"topology file: {layout.topology}")
    for site in layout.sites:
        say(f"site file:     {site.path}")
    started = time.monotonic()
    with Daemons(layout.sites) as daemons:
        finished = daemons.wait_until_finished(progress)
        seconds = time.monotonic() - started
        for running in daemons.running:
            running.export(running.site.path.with_name(MODEL_NAME))
    compared = run_in_child(COMPARISON_MODULE, [str(site.path) for site in layout.sites])
    file = load_topology(layout.topology).file
    return {
        "schema_version": REPORT_SCHEMA_VERSION,
        **compared,
        "rounds": max(status.round.number for status in finished.values()),
        "bytes_sent": sum(status.totals.bytes_sent for status in finished.values()),
        "seconds": round(seconds, 1),
        "rule": file.aggregation.rule,
        "topology": str(options.topology) if options.topology else file.graph.kind,
        "seed": options.seed,
    }
