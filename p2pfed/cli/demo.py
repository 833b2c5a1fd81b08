"""``p2pfed demo``."""

import json
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from p2pfed.cli.status_view import size
from p2pfed.daemon.status import Status
from p2pfed.demo.byzantine import DEFAULT_ATTACK, ByzantineOptions, attacks, run_byzantine
from p2pfed.demo.layout import DemoOptions
from p2pfed.demo.runner import run_demo
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
        str, typer.Argument(help="Which demonstration: heart, or byzantine.")
    ] = "heart",
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of rounds.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and the first model.")] = 0,
    rule: Annotated[str | None, typer.Option(help="Aggregation rule; not for byzantine.")] = None,
    topology: Annotated[
        Path | None,
        typer.Option(help="A topology file to take graph and settings from; not for byzantine."),
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
    averaging and under the default rule.
    """
    if name == BYZANTINE and (rule is not None or topology is not None):
        raise UsageError("--rule and --topology are not for the byzantine demo: it compares rules")
    if name != BYZANTINE and attack is not None:
        raise UsageError("--attack is for the byzantine demo: p2pfed demo byzantine --attack NAME")
    interrupted = _heed_signals()
    console = Console(stderr=json_output)
    with tempfile.TemporaryDirectory(prefix="p2pfed-") as temporary:
        directory = _prepare(keep) if keep is not None else Path(temporary)
        with _watch(console, json_output, interrupted) as (say, show):
            if name == BYZANTINE:
                byzantine = ByzantineOptions(attack or DEFAULT_ATTACK, rounds, seed)
                report = run_byzantine(
                    directory, byzantine, say, lambda rule, found: show(found, rule)
                )
            else:
                options = DemoOptions(rounds, seed, rule, topology)
                report = run_demo(name, directory, options, say, show)
        if json_output:
            typer.echo(json.dumps(report))
            return
        (_show_rules if name == BYZANTINE else _show_gain)(console, report)
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


def _show_gain(console: Console, report: dict[str, Any]) -> None:
    kinds = {"local": "local only", "federated": "federated", "pooled": "pooled"}
    rows = [*report["sites"], {"name": "all", **report["overall"]}]
    console.print(
        _result("AUC / accuracy on the same hold-outs", kinds, rows),
        f"{report['rounds']} rounds, {size(report['bytes_sent'])} sent by all sites, "
        f"{report['seconds']} s, rule {report['rule']}, topology {report['topology']}",
        sep="\n",
    )


def _show_rules(console: Console, report: dict[str, Any]) -> None:
    rules = report["rules"]
    rows = [
        {**site, **{rule: rules[rule]["sites"][at] for rule in rules}}
        for at, site in enumerate(next(iter(rules.values()))["sites"])
    ]
    rows.append({"name": "all", **{rule: rules[rule]["overall"] for rule in rules}})
    title = f"AUC / accuracy of the honest hospitals; {report['hostile']}: {report['attack']}"
    reference = report["honest_reference"]
    console.print(
        _result(title, {rule: rule for rule in rules}, rows),
        f"without a federation, over all hold-outs: each hospital alone "
        f"{_figures(reference['local'])}, all records in one place "
        f"{_figures(reference['pooled'])}",
        f"{report['rounds']} rounds under each rule, {report['seconds']} s",
        sep="\n",
    )


def _result(title: str, kinds: dict[str, str], rows: list[dict[str, Any]]) -> Table:
    """``kinds`` are the columns by their key in a row; the last row is that of all sites."""
    table = Table(title=title, header_style="bold")
    table.add_column("hospital")
    table.add_column("test rows", justify="right")
    for heading in kinds.values():
        table.add_column(heading, justify="right")
    *sites, overall = rows
    for row in sites:
        table.add_row(
            str(row["name"]), str(row["test_rows"]), *(_figures(row[kind]) for kind in kinds)
        )
    table.add_section()
    total = sum(row["test_rows"] for row in sites)
    table.add_row(str(overall["name"]), str(total), *(_figures(overall[kind]) for kind in kinds))
    return table


def _figures(figures: dict[str, float]) -> str:
    return f"{figures['auc']:.3f} / {figures['accuracy']:.3f}"
