"""Gathers and writes the report of a site; the daemon does so at the end of a run, a command at
any time."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog
import trio
from pydantic import BaseModel, ConfigDict, ValidationError

from p2pfed.config import Site
from p2pfed.daemon.durable_files import TEMPORARY_SUFFIX, PendingFile
from p2pfed.daemon.journal_view import JournalView, read_journal
from p2pfed.errors import StoreError
from p2pfed.privacy_terms import PrivacyTerms, privacy_terms
from p2pfed.report.build import LocalFigures, Sources, build_report
from p2pfed.report.document import (
    MAX_TEXT_CHARACTERS,
    REPORT_SCHEMA_VERSION,
    IntendedUse,
    Privacy,
    Report,
)
from p2pfed.report.page import render_page
from p2pfed.report.records import Spending
from p2pfed.topology import Topology

log = structlog.get_logger(__name__)

REPORT_NAME = "report"  # .json and .html in the state directory
LOCAL_NAME = "local-baseline.json"  # there as well, once it was trained
MECHANISM = "DP-SGD with Poisson sampling, clipping and noise on each record's gradient"
MAX_REPORT_BYTES = 16 * 1024 * 1024  # of another site's; one of ours has at most a few
MAX_LOCAL_BYTES = 64 * 1024
ROUNDS_PER_REPORT = 100  # where a federation runs without a planned end


class LocalBaseline(BaseModel):
    """What training on this site's records alone came to, as it is kept.

    ``steps``: local steps in all.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_schema: str
    steps: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def gather(
    site: Site,
    topology: Topology,
    *,
    other_sites: Sequence[Report] = (),
) -> Sources:
    """What the report of ``site`` is made of, as of now.

    :raises StoreError: the state cannot be read, or there is none yet.
    :raises ConfigurationError: the site's privacy is weaker than the federation demands.
    """
    view = read_journal(site.state_directory)
    statement = site.file.report
    schema = view.records[-1].run.model_schema if view.records else ""
    return Sources(
        site=site.file.name,
        topology=topology,
        federation_id=view.federation_id,
        records=view.records,
        equivocations=view.equivocations,
        exports=view.exports,
        intended_use=IntendedUse(
            intended_use=statement.intended_use,
            out_of_scope=statement.out_of_scope,
            contact=statement.contact,
        ),
        minimum_records=site.file.privacy.minimum_records,
        privacy=_privacy(view, privacy_terms(site, topology)),
        local=_local_figures(site.state_directory / LOCAL_NAME, schema),
        other_sites=_of_this_federation(other_sites, view.federation_id, site.file.name),
    )


def _privacy(view: JournalView, terms: PrivacyTerms | None) -> Privacy | None:
    """None where no finished round was, and none is to be, trained with differential privacy."""
    recorded = next((one.privacy for one in reversed(view.records) if one.privacy), None)
    if recorded is None:
        if terms is None:
            return None
        recorded = Spending(
            epsilon_spent=0.0,
            epsilon_budget=terms.epsilon,
            delta=terms.delta,
            noise_multiplier=terms.noise_multiplier,
            clip_norm=terms.clip_norm,
            charged_rounds=0,
        )
    return Privacy(
        mechanism=MECHANISM,
        unit="training record",
        epsilon_spent=recorded.epsilon_spent,
        epsilon_limit=terms.epsilon if terms is not None else recorded.epsilon_budget,
        delta=recorded.delta,
        rounds_charged=recorded.charged_rounds,
        noise_multiplier=recorded.noise_multiplier,
        clipping_norm=recorded.clip_norm,
        rounds_charged_since=max(0, view.charged_rounds - recorded.charged_rounds),
        configured=terms is not None,
    )


def _local_figures(path: Path, schema: str) -> LocalFigures | None:
    """What was trained before, unless it was another model; None where nothing was."""
    text = _read_text(path, MAX_LOCAL_BYTES)
    if text is None:
        return None
    try:
        found = LocalBaseline.model_validate_json(text)
    except ValidationError:
        raise StoreError(f"{path}: damaged; remove it, or p2pfed report --with-local") from None
    return LocalFigures(found.metrics, found.intervals) if found.model_schema == schema else None


def _of_this_federation(
    reports: Sequence[Report], federation_id: str, own_name: str
) -> tuple[Report, ...]:
    """:raises StoreError: one is of another federation, or of this site, or of a site again."""
    seen = {own_name}
    for report in reports:
        name = report.model_details.site
        if report.model_details.federation_id != federation_id:
            raise StoreError(
                f"the report of {name} is of federation "
                f"{report.model_details.federation_id[:12]}, this site is of {federation_id[:12]}"
            )
        if name in seen:
            raise StoreError(f"two reports of {name}; give one of each other site")
        seen.add(name)
    return tuple(reports)


def read_report(path: Path) -> Report:
    """A report that ``p2pfed report --json`` wrote at another site.

    :raises StoreError: it cannot be read, or is none of this version.
    """
    text = _read_text(path, MAX_REPORT_BYTES)
    if text is None:
        raise StoreError(f"{path}: no such file")
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])[:MAX_TEXT_CHARACTERS]
        raise StoreError(
            f"{path}: no report of version {REPORT_SCHEMA_VERSION}: {place or 'file'}: "
            f"{first['msg']}"
        ) from None


def _read_text(path: Path, most_bytes: int) -> bytes | None:
    """None where there is no such file.

    :raises StoreError: it is larger than ``most_bytes``, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(most_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    if len(text) > most_bytes:
        raise StoreError(f"{path}: larger than {most_bytes} bytes")
    return text


def as_json(report: Report) -> str:
    return report.model_dump_json(indent=2) + "\n"


def write_file(path: Path, text: str) -> None:
    """Whole or not at all, and private: the figures of a hospital are not everybody's.

    :raises StoreError: it cannot be written.
    """
    pending = PendingFile(path.with_name(f".{path.name}{TEMPORARY_SUFFIX}"))
    try:
        pending.write(text.encode())
        pending.commit(path)
    finally:
        pending.discard()


def write_report(site: Site, topology: Topology, written_at_seconds: int) -> None:
    """Write ``report.json`` and ``report.html`` into the state directory.

    :raises StoreError: the state cannot be read or written.
    """
    report = build_report(gather(site, topology), written_at_seconds)
    write_file(site.state_directory / f"{REPORT_NAME}.json", as_json(report))
    write_file(site.state_directory / f"{REPORT_NAME}.html", render_page(report))


class ReportKeeper:
    """Writes a running daemon's report: when its rounds are done, every hundred, and at its end."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._rounds_written: int | None = None

    def is_due(self, rounds_done: int, *, finished: bool) -> bool:
        """Whether there is enough that the last one does not have.

        :param rounds_done: since the daemon began.
        """
        if self._rounds_written is None:
            return finished or rounds_done >= ROUNDS_PER_REPORT
        new = rounds_done - self._rounds_written
        return new >= ROUNDS_PER_REPORT or (finished and new > 0)

    async def write(self, topology: Topology, rounds_done: int) -> None:
        """Write it in a thread; what fails is logged, for a report is no reason to stop."""
        self._rounds_written = rounds_done
        job = partial(write_report, self._site, topology, int(time.time()))
        try:
            await trio.to_thread.run_sync(job)
        except StoreError as error:
            log.warning("the report cannot be written", reason=str(error))
        else:
            page = self._site.state_directory / f"{REPORT_NAME}.html"
            log.info("report written", path=str(page))
