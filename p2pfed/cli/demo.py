"""``p2pfed demo``."""

import json
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from p2pfed.cli.status_view import size
from p2pfed.daemon.status import Status
from p2pfed.demo.layout import DemoOptions
from p2pfed.demo.runner import run_demo
from p2pfed.errors import UsageError

app = typer.Typer(help="Run a real federation on this machine.")


@app.command()
def demo(
    name: Annotated[str, typer.Argument(help="Which demonstration.")] = "heart",
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of rounds.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and the first model.")] = 0,
    rule: Annotated[str | None, typer.Option(help="Aggregation rule.")] = None,
    topology: Annotated[
        Path | None, typer.Option(help="A topology file to take graph and settings from.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep all files in this new or empty directory.")
    ] = None,
) -> None:
    """Run four hospitals as four daemons on this machine, and show what they gain."""
    interrupted = _heed_signals()
    options = DemoOptions(rounds, seed, rule, topology)
    console = Console(stderr=json_output)
    with tempfile.TemporaryDirectory(prefix="p2pfed-") as temporary:
        directory = _prepare(keep) if keep is not None else Path(temporary)
        if json_output:
            report = run_demo(name, directory, options, lambda _: None, lambda _: interrupted())
            typer.echo(json.dumps(report))
            return
        with Live(console=console, refresh_per_second=4, transient=True) as live:

            def show(found: dict[str, Status | None]) -> None:
                interrupted()
                live.update(_progress(found))

            report = run_demo(name, directory, options, live.console.print, show)
        console.print(_result(report))
        console.print(
            f"{report['rounds']} rounds, {size(report['bytes_sent'])} sent by all sites, "
            f"{report['seconds']} s, rule {report['rule']}, topology {report['topology']}"
        )
        if keep is not None:
            console.print(f"everything is kept in {directory}")


def _heed_signals() -> Callable[[], None]:
    """A terminated demo stops its daemons, as an interrupted one does.

    :returns: a check that raises KeyboardInterrupt once a signal came: Python drops the
        exception where the signal finds it in a finaliser, and the demo would go on.
    """
    came = threading.Event()

    def take(_number: int, _frame: FrameType | None) -> None:
        came.set()
        raise KeyboardInterrupt

    def check() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, take)
    return check


def _prepare(keep: Path) -> Path:
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise UsageError(f"{keep} is not empty; --keep takes a new or empty directory")
    return keep.absolute()


def _progress(found: dict[str, Status | None]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("site", "round", "phase", "neighbours", "AUC", "sent"):
        table.add_column(column)
    for name, status in found.items():
        if status is None:
            table.add_row(name, "-", "starting", "-", "-", "-")
            continue
        linked = sum(n.state == "connected" for n in status.neighbours)
        area = status.metrics_after.get("auc")
        table.add_row(
            name,
            f"{status.round.number} of {status.round.total}",
            status.round.phase,
            f"{linked} of {len(status.neighbours)}",
            f"{area:.3f}" if area is not None else "-",
            size(status.totals.bytes_sent),
        )
    return table


def _result(report: dict[str, Any]) -> Table:
    table = Table(title="AUC / accuracy on the same hold-outs", header_style="bold")
    table.add_column("hospital")
    table.add_column("test rows", justify="right")
    for kind in ("local only", "federated", "pooled"):
        table.add_column(kind, justify="right")
    rows = [*report["sites"], {"name": "all", "test_rows": "", **report["overall"]}]
    rows[-1]["test_rows"] = sum(site["test_rows"] for site in report["sites"])
    for index, row in enumerate(rows):
        if index == len(rows) - 1:
            table.add_section()
        figures = [
            f"{row[kind]['auc']:.3f} / {row[kind]['accuracy']:.3f}"
            for kind in ("local", "federated", "pooled")
        ]
        table.add_row(str(row["name"]), str(row["test_rows"]), *figures)
    return table
