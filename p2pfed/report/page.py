"""The report as one HTML page: self-contained, without scripts, fit to be printed.

Everything in it that is not written here passes through :func:`_text`: site names, reasons and
paths come from members and files, and may hold anything.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from p2pfed.protocol.texts import printable
from p2pfed.report.buckets import Bucket, words
from p2pfed.report.charts import Point, line_chart, reliability_chart
from p2pfed.report.document import HistoryRow, IntervalEnds, Report

SHOWN_CHARACTERS = 500
SHOWN_DIGEST = 16
SHOWN_ROWS = 60  # of the table of rounds; the JSON has more
NOTHING = "–"

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1f24; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ccd; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
figure { margin: 1rem 0; }
table { border-collapse: collapse; margin: .5rem 0; width: 100%; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #e4e7ec;
         vertical-align: top; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.note { color: #555; }
.warn { color: #8a1c00; font-weight: 600; }
svg { max-width: 100%; height: auto; }
svg text { font-size: 11px; fill: #555; }
.grid { stroke: #e4e7ec; }
.line { fill: none; stroke: #1f5fa8; stroke-width: 1.6; }
.band { fill: #1f5fa8; opacity: .15; }
circle { fill: #1f5fa8; }
.ideal { fill: none; stroke: #999; stroke-dasharray: 4 3; }
@media print {
  body { margin: 0; max-width: none; font-size: 11px; }
  h2 { break-after: avoid; }
  tr, svg { break-inside: avoid; }
}
"""

MODEL_WORDS = {
    "local_only": "local only",
    "trained": "before aggregation",
    "federated": "federated",
    "personalised": "personalised",
}


def render_page(report: Report) -> str:
    """The whole page; the same report gives the same text."""
    details = report.model_details
    title = f"Model card: {details.federation} at {details.site}"
    sections = [
        _section("Model details", _details(report)),
        _section("Intended use", _intended_use(report)),
        _section("Who took part", _participants(report)),
        _section("Factors", _factors()),
        _section("Metrics on this site's hold-out", _metrics(report)),
        _section("Calibration", _calibration(report)),
        _section("Evaluation and training data", _data(report)),
        _section("Quantitative analyses: over the rounds", _history(report)),
        _section("Drift", _drift(report)),
        _section("Other sites", _other_sites(report)),
        _section("Refused and rejected, equivocation", _refusals(report)),
        _section("Ethical considerations: privacy", _privacy(report)),
        _section("Lineage", _lineage(report)),
        _section("Caveats and limitations", _list(report.limitations)),
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{_text(title)}</h1>"
        f'<p class="note">Written {_date(report.written_at_seconds or 0)}. The parts follow '
        "M. Mitchell et al., Model Cards for Model Reporting (FAT* 2019). Confidence intervals "
        "are of 95 %.</p>"
        f"{''.join(sections)}</body></html>\n"
    )


def _text(value: object, most: int = SHOWN_CHARACTERS) -> str:
    """Text from anywhere, as HTML that shows it and does nothing."""
    return escape(printable(str(value), most))


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def _paragraph(text: object, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{_text(text, most=5_000)}</p>"


def _list(lines: Iterable[object]) -> str:
    return "<ul>" + "".join(f"<li>{_text(line, most=5_000)}</li>" for line in lines) + "</ul>"


def _facts(rows: Sequence[tuple[str, object]]) -> str:
    return (
        "<table>"
        + "".join(
            f"<tr><th>{escape(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows
        )
        + "</table>"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], numbers: int) -> str:
    """The last ``numbers`` columns are aligned to the right."""
    first = len(heads) - numbers

    def cells(values: Sequence[object], tag: str) -> str:
        numeric = f'<{tag} class="n">'
        return "".join(
            f"{numeric if at >= first else f'<{tag}>'}{_text(value)}</{tag}>"
            for at, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(heads, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _date(seconds: int) -> str:
    if seconds <= 0:
        return "at a time that is not known"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _ends(ends: IntervalEnds | None) -> str:
    return NOTHING if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _range(given: Bucket | None) -> str:
    return "not known" if given is None else words(given)


def _digest(digest: str) -> str:
    return digest[:SHOWN_DIGEST] or NOTHING


def _details(report: Report) -> str:
    details, rounds = report.model_details, report.rounds
    planned = f" of {rounds.planned}" if rounds.planned else ", without a planned end"
    rules = ", ".join(f"{rule} ({count} rounds)" for rule, count in details.rules.items())
    own_class = f", class {details.task_class}" if details.task_class else ""
    return _facts(
        [
            ("federation", f"{details.federation}, {details.sites} sites"),
            ("federation id", details.federation_id),
            ("site", f"{details.site}, peer id {details.peer_id}"),
            ("task", details.task + own_class),
            ("task options", json.dumps(details.task_options, ensure_ascii=False)),
            ("seed", details.seed),
            ("model", f"{details.parameters} parameters that travel"),
            ("model digest", details.model_digest or NOTHING),
            ("model schema", details.model_schema or NOTHING),
            ("rounds done", f"{rounds.done}{planned}; {details.local_steps} local steps each"),
            ("rule", rules),
            ("Byzantine neighbours tolerated", details.byzantine_neighbours),
            ("codec", details.codec),
            ("graph", details.graph),
            ("topology file", f"{details.topology_file}, digest {details.topology_digest}"),
            ("topology of the last round", details.topology_digest_of_last_round or NOTHING),
            ("software", f"{details.software or NOTHING}, torch {details.torch or NOTHING}"),
            ("device", details.device or NOTHING),
        ]
    )


def _intended_use(report: Report) -> str:
    use = report.intended_use
    rows = [
        ("intended use", use.intended_use),
        ("out of scope", use.out_of_scope),
        ("contact", use.contact),
    ]
    missing = [name for name, value in rows if not value]
    body = _facts([(name, value) for name, value in rows if value])
    if missing:
        body += _paragraph(
            f"Not stated by the site: {', '.join(missing)} (table [report] of the site file).",
            "warn",
        )
    return body


def _participants(report: Report) -> str:
    heads = (
        "site", "role", "peer id", "mixed", "missed", "dropped", "refusals", "mean weight", "last",
    )  # fmt: skip
    rows = [
        (
            one.name + (" (quarantined)" if one.quarantined else ""),
            one.role,
            one.peer_id,
            one.rounds_mixed,
            one.rounds_missed,
            one.rounds_dropped,
            one.refusals,
            _figure(one.mean_weight),
            _figure(one.last_weight),
        )
        for one in report.participants
    ]
    return _table(heads, rows, numbers=6) + _paragraph(
        "Mixed, missed and dropped count rounds of this site: those in which the other's model had "
        "a weight in its own, that closed without the other, and in which the rule discarded its "
        "model. The mean weight is what the other contributed to this site's model.",
        "note",
    )


def _factors() -> str:
    return _paragraph(
        "The factor that this report looks at is the hospital: each site judges the model on "
        "patients of its own. Instruments, coding practice and the mix of patients differ between "
        "hospitals; what of it matters shows in the figures of the other sites, where they are "
        "given below."
    )


def _metrics(report: Report) -> str:
    if not report.metrics:
        return _paragraph("No metric is known.")
    rows = [
        (
            one.name,
            {"higher": "higher is better", "lower": "lower is better"}.get(one.better, NOTHING),
            _figure(one.value),
            _ends(one.interval),
            _figure(one.before),
            _figure(one.previous),
            NOTHING if one.best_round is None else f"{_figure(one.best)} in {one.best_round}",
        )
        for one in report.metrics
    ]
    heads = ("metric", "", "now", "interval", "before aggregation", "round before", "best")
    return _table(heads, rows, numbers=5) + _models(report)


def _models(report: Report) -> str:
    names = sorted({name for one in report.models for name in one.metrics})
    rows = [
        (
            name,
            *(
                _with_interval(one.metrics.get(name), one.intervals.get(name))
                for one in report.models
            ),
        )
        for name in names
    ]
    heads = ("metric", *(MODEL_WORDS[one.model] for one in report.models))
    return (
        "<h3>Kinds of model on the same hold-out</h3>"
        + _table(heads, rows, numbers=len(report.models))
        + _paragraph("Pooled training is not known: no site has all records in one place.", "note")
    )


def _with_interval(value: float | None, ends: IntervalEnds | None) -> str:
    return _figure(value) if ends is None else f"{_figure(value)} ({_ends(ends)})"


def _calibration(report: Report) -> str:
    if not report.calibration:
        return _paragraph("Not known: see the limitations.")
    rows = [(one.name, _figure(one.value), _ends(one.interval)) for one in report.calibration]
    chart = reliability_chart(
        [(point.mean_probability, point.observed_share) for point in report.reliability]
    )
    return (
        _table(("figure", "value", "interval"), rows, numbers=2)
        + chart
        + _paragraph(
            "Perfect: slope 1, intercept 0, expected calibration error 0. Points of fewer than "
            "ten records are left out.",
            "note",
        )
    )


def _data(report: Report) -> str:
    return _facts(
        [
            ("training records", _range(report.data.training_records)),
            ("hold-out records", _range(report.data.holdout_records)),
            ("fewest records that are trained on", report.privacy.minimum_records),
        ]
    ) + _paragraph(
        "Ranges, so that one patient more or less is not to be read off; a share and its interval "
        "still let a reader estimate how many records they are of.",
        "note",
    )


def _history(report: Report) -> str:
    rounds = report.rounds
    if not report.history:
        return _paragraph("No round was finished.")
    lines = [
        f"Rounds {rounds.first} to {rounds.last} are in the journal, the last of them ended "
        f"{_date(rounds.last_ended_at_seconds)}.",
        f"{rounds.degraded} rounds closed without every neighbour"
        + (f", the last of them: {_some(rounds.degraded_rounds)}." if rounds.degraded else "."),
        f"{rounds.local_only} rounds used this site's own model alone.",
    ]
    names = sorted(report.history[-1].metrics)
    charts = [_chart(report.history, name) for name in names]
    charts.append(_plain_chart(report.history, "training loss", lambda row: row.training_loss))
    charts.append(
        _plain_chart(report.history, "consensus distance", lambda row: row.consensus_distance)
    )
    heads = ("round", "rule", "degraded", "model", "training loss", "consensus distance", *names)
    rows = [
        (
            row.round,
            row.rule,
            "yes" if row.degraded else "",
            _digest(row.model),
            _figure(row.training_loss),
            _figure(row.consensus_distance),
            *(_figure(row.metrics.get(name)) for name in names),
        )
        for row in report.history[-SHOWN_ROWS:]
    ]
    return _list(lines) + "".join(charts) + _table(heads, rows, numbers=2 + len(names))


def _some(rounds: Sequence[int]) -> str:
    return ", ".join(str(number) for number in rounds[-20:])


def _chart(history: Sequence[HistoryRow], name: str) -> str:
    points = [
        Point(row.round, row.metrics[name], row.intervals.get(name))
        for row in history
        if name in row.metrics
    ]
    return _titled(name, line_chart(f"{name} over the rounds", points))


def _plain_chart(
    history: Sequence[HistoryRow], name: str, value_of: Callable[[HistoryRow], float | None]
) -> str:
    points = [Point(row.round, value) for row in history if (value := value_of(row)) is not None]
    return _titled(name, line_chart(f"{name} over the rounds", points))


def _titled(name: str, chart: str) -> str:
    return f"<figure><h3>{_text(name)}</h3>{chart}</figure>" if chart else ""


def _drift(report: Report) -> str:
    if not report.drift:
        return _paragraph("No metric fell beyond noise from what this site had reached.")
    lines = []
    for one in report.drift:
        judged = {
            None: "its interval is not known",
            True: "beyond the interval of that round",
            False: "within the interval of that round",
        }[one.beyond_interval]
        lines.append(
            f"{one.metric}: its moving average was {one.best:.3f} at round {one.best_round} and "
            f"is {one.now:.3f} since round {one.since_round}, beyond the limit {one.limit:.3f}; "
            f"{judged}."
        )
    return _list(lines)


def _other_sites(report: Report) -> str:
    if not report.other_sites:
        return _paragraph("No other site's report was given.")
    names = sorted({name for one in report.other_sites for name in one.metrics})
    rows = [
        (
            one.site,
            _range(one.holdout_records),
            _digest(one.model_digest),
            *(_with_interval(one.metrics.get(name), one.intervals.get(name)) for name in names),
            *(_figure(one.local_only.get(name)) for name in names),
        )
        for one in report.other_sites
    ]
    heads = ("site", "hold-out", "model", *names, *(f"{name}, local only" for name in names))
    overall = [
        (one.metric, one.sites, _figure(one.mean), _figure(one.worst), one.worst_site or NOTHING)
        for one in report.overall
    ]
    return (
        _table(heads, rows, numbers=2 * len(names))
        + "<h3>Overall</h3>"
        + _table(("metric", "sites", "plain mean", "worst", "at"), overall, numbers=4)
    )


def _refusals(report: Report) -> str:
    refusals = report.refusals
    counts = ", ".join(f"{kind}: {count}" for kind, count in refusals.counts.items())
    body = _paragraph(f"Refused or rejected: {counts or 'nothing'}.")
    if refusals.latest:
        rows = [(one.round, one.site, one.kind, one.reason) for one in refusals.latest]
        body += _table(("round", "site", "kind", "reason"), rows, numbers=0)
    if not report.equivocations:
        return body + _paragraph("No site signed two different deltas for one round.")
    rows_found = [
        (one.site, one.round, one.first, one.second, _date(one.found_at_seconds))
        for one in report.equivocations
    ]
    heads = ("site", "round", "one header", "the other", "found")
    return (
        body
        + '<p class="warn">Sites that signed two different deltas for one round:</p>'
        + _table(heads, rows_found, numbers=0)
    )


def _privacy(report: Report) -> str:
    accounted = report.privacy.accounted
    body = _paragraph(report.privacy.statement, "" if accounted else "warn")
    if accounted is None:
        return body
    return body + _facts(
        [
            ("mechanism", accounted.mechanism),
            ("hidden unit", accounted.unit),
            ("epsilon spent", f"{accounted.epsilon_spent:.4f}"),
            ("epsilon left", f"{accounted.epsilon_left:.4f} of {accounted.epsilon_limit:g}"),
            ("delta", f"{accounted.delta:g}"),
            ("rounds charged", accounted.rounds_charged),
            ("charged since the last finished round", accounted.rounds_charged_since),
            ("noise multiplier", _figure(accounted.noise_multiplier)),
            ("clipping norm", _figure(accounted.clipping_norm)),
        ]
    )


def _lineage(report: Report) -> str:
    lineage = report.lineage
    body = _facts(
        [
            ("model", lineage.model or NOTHING),
            ("after round", NOTHING if lineage.round is None else lineage.round),
            ("chain of the kept rounds", lineage.chain or NOTHING),
        ]
    )
    if not lineage.exports:
        return body + _paragraph("No model file was exported.")
    rows = [
        (one.round, one.path, one.model, one.sha256, _date(one.exported_at_seconds))
        for one in lineage.exports
    ]
    heads = ("round", "exported file", "model", "SHA-256 of the file", "when")
    return body + _table(heads, rows, numbers=0)
