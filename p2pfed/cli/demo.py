"""``p2pfed demo``."""

import json
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from p2pfed.cli.demo_view import show_budgets, show_gain, show_rules
from p2pfed.cli.status_view import size
from p2pfed.daemon.status import Status
from p2pfed.demo.byzantine import DEFAULT_ATTACK, ByzantineOptions, attacks, run_byzantine
from p2pfed.demo.layout import DemoOptions
from p2pfed.demo.private import PRIVATE, run_private
from p2pfed.demo.runner import run_demo
from p2pfed.demo.xray import XRAY, run_xray
from p2pfed.errors import UsageError

app = typer.Typer(help="Run a real federation on this machine.")

Say = Callable[[str], None]
BYZANTINE = "byzantine"


class Show(Protocol):
    """Takes every site's status and a title for them, several times a second."""

    def __call__(self, found: dict[str, Status | None], title: str | None = None) -> None: ...


@app.command()
def demo(
    name: Annotated[
        str, typer.Argument(help="Which demonstration: heart, byzantine, xray, or private.")
    ] = "heart",
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of rounds.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and the first model.")] = 0,
    rule: Annotated[str | None, typer.Option(help="heart, xray: the aggregation rule.")] = None,
    topology: Annotated[
        Path | None,
        typer.Option(help="heart, xray: a topology file to take graph and settings from."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="xray: pneumoniamnist.npz; phantoms are drawn where it is not given."),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(help=f"byzantine: what the hostile site does: {', '.join(attacks())}."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep all files in this new or empty directory.")
    ] = None,
) -> None:
    """Run hospitals as daemons on this machine.

    heart: four, and what they gain. byzantine: the four and a hostile fifth, under plain
    averaging and under the default rule. xray: four with few images each, other patients and other
    machines. private: the four of heart with and without differential privacy.
    """
    if name in (BYZANTINE, PRIVATE) and (rule is not None or topology is not None):
        compared = "rules" if name == BYZANTINE else "runs with and without privacy"
        raise UsageError(
            f"--rule and --topology are not for the {name} demo: it compares {compared}"
        )
    if name != BYZANTINE and attack is not None:
        raise UsageError("--attack is for the byzantine demo: p2pfed demo byzantine --attack NAME")
    if name != XRAY and images is not None:
        raise UsageError("--images is for the xray demo: p2pfed demo xray --images FILE")
    interrupted = _heed_signals()
    console = Console(stderr=json_output)
    with tempfile.TemporaryDirectory(prefix="p2pfed-") as temporary:
        directory = _prepare(keep) if keep is not None else Path(temporary)
        with _watch(console, json_output, interrupted) as (say, show):
            options = DemoOptions(rounds, seed, rule, topology)
            if name == BYZANTINE:
                byzantine = ByzantineOptions(attack or DEFAULT_ATTACK, rounds, seed)
                report = run_byzantine(
                    directory, byzantine, say, lambda rule, found: show(found, rule)
                )
            elif name == PRIVATE:
                report = run_private(directory, options, say, lambda run, found: show(found, run))
            elif name == XRAY:
                report = run_xray(directory, options, images, say, show)
            else:
                report = run_demo(name, directory, options, say, show)
        if json_output:
            typer.echo(json.dumps(report))
            return
        shown = {BYZANTINE: show_rules, PRIVATE: show_budgets}.get(name, show_gain)
        shown(console, report)
        if keep is not None:
            console.print(f"everything is kept in {directory}")


@contextmanager
def _watch(
    console: Console, quiet: bool, interrupted: Callable[[], None]
) -> Iterator[tuple[Say, Show]]:
    """Where a demo says what it does, and shows how far its daemons are."""
    if quiet:
        yield lambda _: None, lambda *_: interrupted()
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def show(found: dict[str, Status | None], title: str | None = None) -> None:
            interrupted()
            live.update(_progress(found, title))

        yield live.console.print, show


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


def _progress(found: dict[str, Status | None], title: str | None) -> Table:
    table = Table(title=title, box=None, header_style="bold", padding=(0, 2, 0, 0))
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
