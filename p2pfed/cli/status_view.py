"""A status as a person reads it."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2pfed.daemon.status import (
    NeighbourStatus,
    PrivacyStatus,
    ResourceStatus,
    Status,
    shown_path,
)

STATE_STYLES = {"connected": "green", "refused": "red", "dialling": "yellow", "waiting": "yellow"}


PIPE_COLUMNS = 160  # where the output is no terminal, nothing is cut


def wide_console() -> Console:
    """A console whose tables are not cut where nobody looks at a screen, and which takes a reason
    with ``[/bold]`` or ``:skull:`` in it as it stands."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, width=PIPE_COLUMNS)
    return console


def render(status: Status) -> RenderableType:
    """Header, neighbours, health."""
    return Group(_header(status), "", neighbour_table(status.neighbours), "", _health(status))


def _header(status: Status) -> Table:
    table = Table.grid(padding=(0, 2))
    site, current, model = status.site, status.round, status.model
    total = f" of {current.total}" if current.total else ""
    degraded = ", last one degraded" if current.degraded else ""
    rows = [
        ("site", f"{site.name}  {site.peer_id}"),
        ("federation", f"{site.federation}  topology {status.topology.digest[:12]}"),
        (
            "round",
            f"{current.number}{total}  {current.phase} for {duration(current.phase_seconds)}, "
            f"{current.delivered} of {current.expected} neighbours delivered{degraded}",
        ),
        (
            "model",
            f"{model.digest[:12]}  {model.parameters} parameters  {model.rule}, {model.codec}",
        ),
        ("metrics", _metrics(status.metrics_after) or "none yet"),
        ("trainer", _trainer(status)),
        (
            "traffic",
            f"{size(status.totals.bytes_sent)} sent, {size(status.totals.bytes_received)} received",
        ),
        ("daemon", _resources(status.resources)),
    ]
    if status.privacy is not None:
        rows.insert(6, ("privacy", _privacy(status.privacy)))
    if status.relay is not None:
        relay = status.relay
        rows.append(
            (
                "relaying",
                f"{relay.circuits} circuits of others, {size(relay.carried_bytes)} carried",
            )
        )
    for label, text in rows:
        table.add_row(Text(label, style="bold"), text)
    return table


def _metrics(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in sorted(values.items()))


def _trainer(status: Status) -> str:
    trainer = status.trainer
    text = f"{trainer.state} on {trainer.device or 'no device yet'}"
    if trainer.step is not None:
        text += f", step {trainer.step} of {trainer.steps}"
        if trainer.samples_per_second is not None:
            pace = trainer.samples_per_second
            text += f", {pace:,.0f} samples/s" if pace >= 100 else f", {pace:.2g} samples/s"
        if trainer.data_wait_share is not None:
            text += f", waits for data {trainer.data_wait_share:.0%}"
        if trainer.gpu_memory_bytes:
            text += f", {size(trainer.gpu_memory_bytes)} on the GPU"
    if trainer.restarts:
        text += f", restarted {trainer.restarts} times"
    return text


def _privacy(privacy: PrivacyStatus) -> str:
    text = (
        f"epsilon {privacy.epsilon_spent:.4g} of {privacy.epsilon_budget:g} spent, "
        f"{privacy.epsilon_left:.4g} left, at delta {privacy.delta:g}"
    )
    return text if privacy.stopped is None else f"{text}; trains no more"


def _resources(used: ResourceStatus) -> str:
    parts = [f"{used.tasks} tasks", f"{size(used.database_bytes)} database"]
    if used.memory_bytes is not None:
        parts.insert(0, f"{size(used.memory_bytes)} memory")
    if used.open_files is not None:
        parts.append(f"{used.open_files} open files")
    return ", ".join(parts)


def neighbour_table(neighbours: list[NeighbourStatus]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in (
        "neighbour",
        "state",
        "path",
        "rtt",
        "round",
        "last delta",
        "weight",
        "sent",
        "received",
    ):
        table.add_column(name, no_wrap=True)
    for n in neighbours:
        state = "quarantined" if n.quarantined else n.state
        silent = state == "connected" and n.liveness != "alive"
        table.add_row(
            n.name,
            Text(n.liveness, style="yellow")
            if silent
            else Text(state, style=STATE_STYLES.get(state, "red")),
            shown_path(n.address, n.direction, n.relay) if n.address else "-",
            f"{n.round_trip_seconds * 1000:.0f} ms" if n.round_trip_seconds is not None else "-",
            str(n.round) if n.round is not None else "-",
            duration(n.last_delta_age_seconds) if n.last_delta_age_seconds is not None else "-",
            f"{n.weight:.3f}",
            size(n.bytes_sent),
            size(n.bytes_received),
        )
    return table


def _health(status: Status) -> RenderableType:
    if not status.health:
        return Text("healthy", style="green")
    table = Table.grid(padding=(0, 2))
    for line in status.health:
        style = "red" if line.severity == "error" else "yellow"
        table.add_row(Text(line.severity, style=style), line.problem, Text(f"run: {line.command}"))
    return table


def duration(seconds: float) -> str:
    """As short as it is useful: 0.3 s, 41 s, 3 min, 5 h, 2 d."""
    for limit, unit, divisor in (
        (10, "s", 1),
        (120, "s", 1),
        (7200, "min", 60),
        (172_800, "h", 3600),
    ):
        if seconds < limit:
            return f"{seconds:.1f} s" if limit == 10 else f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def size(count: int) -> str:
    """Bytes in SI units."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
