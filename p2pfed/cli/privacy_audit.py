"""``p2pfed privacy-audit``: the audit runs in a process of its own, which imports torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from p2pfed.config import Site, load_site
from p2pfed.daemon.daemon import trainer_request
from p2pfed.daemon.reporting import write_file
from p2pfed.errors import ExitCode, P2pfedError
from p2pfed.privacy_terms import privacy_terms
from p2pfed.topology import Topology, load_topology
from p2pfed.training.audit.report import SiteReport, lines_of
from p2pfed.training.audit.request import AuditedPrivacy, AuditRequest

AUDIT_MODULE = "p2pfed.training.audit"
MAX_AUDIT_SECONDS = 6 * 3600.0  # a large model on a slow machine


class AuditError(P2pfedError):
    """The audit's process could not do it; the message and the exit code are its own."""

    def __init__(self, message: str, exit_code: int = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.exit_code = ExitCode(exit_code)


def audit(
    config: Path, json_file: Path | None, *, seed: int, quick: bool, say: Callable[[str], None]
) -> ExitCode:
    """Audit one site and show what was found.

    :param json_file: where the report is written as JSON; ``-``: to ``say``, in place of the text.
    :raises P2pfedError: the site's files are not sound, its data cannot be trained on, or the
        report cannot be written.
    """
    site = load_site(config)
    request = audit_request(site, load_topology(site.topology_path), seed=seed, quick=quick)
    report = SiteReport.from_json(_run(request))
    document = json.dumps(report.to_json(), indent=2)
    if json_file == Path("-"):
        say(document)
    else:
        say("\n".join(lines_of(report)))
        if json_file is not None:
            write_file(json_file.absolute(), document + "\n")
    return ExitCode.OK if report.conclusive and report.privacy_holds else ExitCode.FAILED


def audit_request(site: Site, topology: Topology, *, seed: int, quick: bool) -> AuditRequest:
    """What is audited at a site. Where it trains without differential privacy, what it would be
    under the federation's bounds is audited beside it.

    :raises ConfigurationError: the site file is weaker than the federation allows.
    """
    terms, common = privacy_terms(site, topology), topology.file.privacy
    return AuditRequest(
        opening=replace(
            trainer_request(site, topology), noise_multiplier=None, clip_norm=None, delta=None
        ),
        rounds=topology.file.round.rounds,
        local_steps=topology.file.round.local_steps,
        privacy=AuditedPrivacy(
            in_force=terms is not None,
            epsilon=terms.epsilon if terms else common.maximum_epsilon,
            delta=terms.delta if terms else common.maximum_delta,
            noise_multiplier=terms.noise_multiplier if terms else common.minimum_noise_multiplier,
            clip_norm=terms.clip_norm if terms else common.maximum_clip_norm,
        ),
        seed=seed,
        quick=quick,
    )


def _run(request: AuditRequest) -> dict[str, Any]:
    """:raises AuditError: the process ended without a report, or took too long."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", AUDIT_MODULE],
            input=request.encode(),
            stdout=subprocess.PIPE,  # progress goes to this process's own error output
            check=False,
            timeout=MAX_AUDIT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise AuditError(f"the audit took more than {MAX_AUDIT_SECONDS:g} s") from error
    try:
        document: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise AuditError(f"the audit's process ended with code {done.returncode}") from error
    if "error" in document:
        raise AuditError(document["error"], document["exit_code"])
    return document
