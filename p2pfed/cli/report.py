"""``p2pfed report``."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

from pydantic import ValidationError

from p2pfed.config import Site, load_site
from p2pfed.daemon.reporting import (
    LOCAL_NAME,
    LocalBaseline,
    as_json,
    gather,
    read_report,
    write_file,
)
from p2pfed.errors import StoreError, TrainingError, UsageError
from p2pfed.report.buckets import words
from p2pfed.report.build import Sources, build_report
from p2pfed.report.document import Report
from p2pfed.report.page import render_page
from p2pfed.topology import Topology, load_topology

STDOUT = Path("-")
LOCAL_MODULE = "p2pfed.training.local_only"
LOCAL_TIMEOUT_SECONDS = 24 * 3600
SHOWN_METRICS = 12


def make_report(
    config: Path,
    *,
    html: Path | None,
    json_file: Path | None,
    other_sites: list[Path],
    with_local: bool,
) -> list[str]:
    """Write the report of a site, and return what to print.

    :raises UsageError: both go to stdout.
    :raises P2pfedError: a file cannot be used, read or written, or the local training failed.
    """
    if html == json_file == STDOUT:
        raise UsageError("--html - and --json - would both be written to the same stream")
    site = load_site(config)
    topology = load_topology(site.topology_path)
    others = [read_report(path) for path in other_sites]
    sources = gather(site, topology, other_sites=others)
    if with_local:
        _train_alone(site, topology, sources)
        sources = gather(site, topology, other_sites=others)
    report = build_report(sources, int(time.time()))
    lines = []
    for path, text in ((html, render_page(report)), (json_file, as_json(report))):
        if path == STDOUT:
            lines.append(text.rstrip("\n"))
        elif path is not None:
            write_file(path.absolute(), text)
    if html is None and json_file is None:
        return _summary(report)
    return lines


def _train_alone(site: Site, topology: Topology, sources: Sources) -> None:
    """Train on this site's records alone, in a process of its own, and keep what it came to.

    :raises StoreError: no round was done, so that it is not known how long to train.
    :raises TrainingError: the training failed; with its own words.
    """
    from p2pfed.daemon.daemon import trainer_request
    from p2pfed.training import frames

    if not sources.records:
        raise StoreError("no round was finished yet; there is nothing to compare with")
    # Nothing of this model leaves the site, so it needs no noise, and no budget.
    request = dataclasses.replace(
        trainer_request(site, topology), noise_multiplier=None, clip_norm=None, delta=None
    )
    rounds = sources.records[-1].round + 1
    done = subprocess.run(
        [sys.executable, "-m", LOCAL_MODULE, str(rounds), str(topology.file.round.local_steps)],
        input=frames.encode(request),
        capture_output=True,
        check=False,
        timeout=LOCAL_TIMEOUT_SECONDS,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise TrainingError(f"training on this site's records alone failed: {said}")
    try:
        found = LocalBaseline.model_validate_json(done.stdout)
    except ValidationError as error:
        raise TrainingError(f"{LOCAL_MODULE} printed no figures: {error}") from error
    write_file(site.state_directory / LOCAL_NAME, found.model_dump_json() + "\n")


def _summary(report: Report) -> list[str]:
    """A few lines for a terminal."""
    details, rounds = report.model_details, report.rounds
    lines = [
        f"{details.federation} at {details.site}: {rounds.done} rounds, {rounds.degraded} degraded",
        f"model {details.model_digest[:16] or 'none yet'}",
    ]
    if report.data.holdout_records is not None:
        lines.append(f"hold-out: {words(report.data.holdout_records)} records")
    for metric in report.metrics[:SHOWN_METRICS]:
        ends = metric.interval
        interval = f"  ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
        lines.append(f"{metric.name:24} {metric.value:.3f}{interval}")
    lines += [f"{one.name:24} {one.value:.3f}" for one in report.calibration]
    lines += [
        f"drift: {one.metric} {one.best:.3f} -> {one.now:.3f} since round {one.since_round}"
        for one in report.drift
    ]
    lines += [f"equivocation: {one.site} in round {one.round}" for one in report.equivocations]
    lines.append(report.privacy.statement)
    lines.append("the whole report: p2pfed report --html FILE --json FILE")
    return lines
