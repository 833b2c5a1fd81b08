"""What came of a simulation, for a program and for a person."""

import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pfed.simulation.federation import Outcome, SiteFigures

SCHEMA_VERSION = 1
SPARKS = "▁▂▃▄▅▆▇█"
SPARK_CHARACTERS = 40
REJECTIONS = ("delta_refused", "delta_rejected", "bad_signature", "foreign_envelope", "dropped")


@dataclass(frozen=True, slots=True)
class Setting:
    """What was simulated, and what it took of the real machine."""

    topology: str
    task: str
    rule: str
    graph: str
    wall_seconds: float
    peak_memory_bytes: int


def document(outcome: Outcome, setting: Setting) -> dict[str, Any]:
    """The report as plain values; ``schema_version`` grows when their meaning changes."""
    honest = [site for site in outcome.sites if not site.hostile]
    return {
        "schema_version": SCHEMA_VERSION,
        **dataclasses.asdict(setting),
        "seed": outcome.seed,
        "trace_hash": outcome.trace_hash,
        "finished": outcome.finished,
        "virtual_seconds": outcome.seconds,
        "events": outcome.events,
        "summary": summary(outcome),
        "quarantined": list(outcome.quarantined),
        "rejected": _totals(honest, REJECTIONS),
        "checked": dict(sorted(outcome.checked.items())),
        "rounds": [dataclasses.asdict(one) for one in outcome.rounds],
        "sites": [dataclasses.asdict(site) for site in outcome.sites],
    }


def summary(outcome: Outcome) -> dict[str, Any]:
    """The figures that one looks at first; bytes and events are a site's in a round."""
    honest = [site for site in outcome.sites if not site.hostile]
    evaluated = [one for one in outcome.rounds if one.mean_accuracy is not None]
    site_rounds = max(1, sum(site.rounds for site in honest))
    last = evaluated[-1] if evaluated else None
    return {
        "sites": len(outcome.sites),
        "hostile_sites": len(outcome.sites) - len(honest),
        "rounds": len(outcome.rounds),
        "mean_accuracy": last.mean_accuracy if last else None,
        "worst_accuracy": last.worst_accuracy if last else None,
        "worst_site": last.worst_site if last else None,
        "consensus_distance": outcome.rounds[-1].consensus_distance if outcome.rounds else None,
        "seconds_per_round": outcome.seconds / max(1, len(outcome.rounds)),
        "bytes_per_site_and_round": sum(_bytes(site) for site in honest) / site_rounds,
        "delta_bytes_per_site_and_round": (
            sum(site.bytes_sent.get("payload", 0) for site in honest) / site_rounds
        ),
        "events_per_site_and_round": (
            sum(sum(site.events.values()) for site in honest) / site_rounds
        ),
        "restarts": sum(site.restarts for site in outcome.sites),
    }


def text(outcome: Outcome, setting: Setting) -> str:
    """The report for a terminal."""
    figures = summary(outcome)
    accuracy = [one.mean_accuracy for one in outcome.rounds if one.mean_accuracy is not None]
    distance = [one.consensus_distance for one in outcome.rounds]
    honest = [site for site in outcome.sites if not site.hostile]
    rejected = {name: count for name, count in _totals(honest, REJECTIONS).items() if count}
    rows = [
        ("sites", f"{figures['sites']}, {figures['hostile_sites']} of them hostile"),
        ("graph", setting.graph),
        ("rule", setting.rule),
        ("task", setting.task),
        ("rounds", f"{figures['rounds']}, {figures['seconds_per_round']:.2f} virtual s each"),
        ("accuracy, mean", _trend(accuracy, "{:.1%}")),
        ("accuracy, worst", _worst(figures)),
        ("consensus distance", _trend(distance, "{:.3g}")),
        ("bytes a site a round", f"{figures['bytes_per_site_and_round']:,.0f}"),
        ("  of them deltas", f"{figures['delta_bytes_per_site_and_round']:,.0f}"),
        ("events a site a round", f"{figures['events_per_site_and_round']:.1f}"),
        ("refused by honest sites", _named(rejected)),
        ("convicted of lying", ", ".join(outcome.quarantined) or "nobody"),
        ("restarts", str(figures["restarts"])),
        ("checked", f"{sum(outcome.checked.values()):,} times, nothing broken"),
        ("trace", f"{outcome.trace_hash[:16]}, seed {outcome.seed}, {outcome.events:,} events"),
        (
            "this machine",
            f"{setting.wall_seconds:.1f} s, {setting.peak_memory_bytes / 1e6:,.0f} MB",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def page(outcome: Outcome, setting: Setting) -> str:
    """The report as one HTML page that loads nothing from elsewhere."""
    rows = "".join(
        f"<tr><th>{html.escape(line[:24].strip())}</th><td>{html.escape(line[24:].strip())}</td></tr>"
        for line in text(outcome, setting).splitlines()
    )
    sites = "".join(
        f"<tr><td>{html.escape(site.name)}</td><td>{'hostile' if site.hostile else ''}</td>"
        f"<td>{site.rounds}</td><td>{site.restarts}</td><td>{_bytes(site):,}</td></tr>"
        for site in outcome.sites
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>p2pfed simulate {html.escape(setting.topology)}</title>"
        "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
        "padding:0 1rem}table{border-collapse:collapse}th,td{text-align:left;padding:.2rem 1rem "
        ".2rem 0;vertical-align:top}th{font-weight:600}svg{max-width:100%;height:auto}</style>"
        f"<h1>{html.escape(setting.topology)}</h1><table>{rows}</table>{_plots(outcome)}"
        "<h2>Sites</h2><table><tr><th>site</th><th></th><th>rounds</th><th>restarts</th>"
        f"<th>bytes sent</th></tr>{sites}</table></html>"
    )


def _plots(outcome: Outcome) -> str:
    """Accuracy, consensus distance and virtual time over the rounds, as inline SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415 - slow to load
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    accuracy, distance, time = figure.subplots(1, 3)
    evaluated = [one for one in outcome.rounds if one.mean_accuracy is not None]
    at = [one.round_number for one in evaluated]
    accuracy.plot(at, [one.mean_accuracy for one in evaluated], label="mean")
    accuracy.plot(at, [one.worst_accuracy for one in evaluated], label="worst site")
    accuracy.set(title="accuracy", xlabel="round", ylim=(0, 1))
    accuracy.legend()
    rounds = [one.round_number for one in outcome.rounds]
    distance.plot(rounds, [one.consensus_distance for one in outcome.rounds])
    distance.set(title="consensus distance", xlabel="round")
    time.plot(rounds, [one.seconds for one in outcome.rounds])
    time.set(title="virtual seconds", xlabel="round")
    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return out.getvalue().partition("<svg")[1] + out.getvalue().partition("<svg")[2]


def _bytes(site: SiteFigures) -> int:
    return sum(site.bytes_sent.values())


def _totals(sites: Sequence[SiteFigures], names: Sequence[str]) -> dict[str, int]:
    return {name: sum(site.notices.get(name, 0) for site in sites) for name in names}


def _named(counts: Mapping[str, int]) -> str:
    shown = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items()]
    return ", ".join(shown) or "nothing"


def _worst(figures: Mapping[str, Any]) -> str:
    if figures["worst_accuracy"] is None:
        return "not evaluated"
    return f"{figures['worst_accuracy']:.1%} at {figures['worst_site']}"


def _trend(values: Sequence[float], shape: str) -> str:
    if not values:
        return "not evaluated"
    step = max(1, len(values) // SPARK_CHARACTERS)
    shown = values[::step]
    low, high = min(shown), max(shown)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    sparks = "".join(SPARKS[round((value - low) * scale)] for value in shown)
    return f"{shape.format(values[0])} {sparks} {shape.format(values[-1])}"
