"""``p2pfed topology``: check, show, new, diff."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pfed.cli.status_view import size, wide_console
from p2pfed.errors import UsageError
from p2pfed.rules_catalogue import NO_PRE_AGGREGATION
from p2pfed.topology import load_topology
from p2pfed.topology.diff import compare
from p2pfed.topology.file import GRAPH_KEYS
from p2pfed.topology.lint import CheckReport
from p2pfed.topology.lint import check as check_topology

DIFFERENT_EXIT_CODE = 1  # as diff(1)
DIFF_SCHEMA_VERSION = 1

app = typer.Typer(help="Check, draw, make and compare topology files.", no_args_is_help=True)
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
FileArgument = Annotated[Path, typer.Argument(help="A topology file.")]


@app.command()
def check(
    file: FileArgument,
    json_output: JsonOption = False,
    parameters: Annotated[
        int | None, typer.Option(min=1, help="Model size, for the bytes of a round.")
    ] = None,
) -> None:
    """Say whether a topology is sound, how fast it mixes and what it survives."""
    report = check_topology(load_topology(file), parameters)
    if json_output:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print(wide_console(), report)


def _print(console: Console, report: CheckReport) -> None:
    facts = [
        ("federation", f"{report.federation}, digest {report.digest[:12]}"),
        ("graph", f"{report.kind}{_span(report)}: {report.peers} peers, {report.edges} edges"),
        ("diameter", _hops(report.diameter)),
        (
            "failures",
            f"stays connected without any {report.vertex_connectivity - 1} of its sites",
        ),
        (
            "mixing",
            f"spectral gap {report.spectral_gap:.3f}, disagreement falls to 1 % in "
            f"{_count(report.mixing_time_rounds, 'round')} of gossip",
        ),
        ("rule", f"{_rule(report)}, b = {report.byzantine_neighbours}"),
        *_hostility(report),
        ("weak sites", ", ".join(report.weak_sites) or "none"),
    ]
    grid = Table.grid(padding=(0, 2))
    for label, text in facts:
        grid.add_row(label, text)
    console.print(grid)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    columns = ["site", "neighbours", "safe for b up to", "a lie to two neighbours meets within"]
    sizes_known = any(site.bytes_per_round is not None for site in report.sites)
    for column in (*columns, *(["sends a round"] if sizes_known else [])):
        table.add_column(column)
    for site in report.sites:
        degree = str(site.degree)
        if site.largest_degree > site.degree:
            degree += f" to {site.largest_degree}"
        hops = "never" if site.detour_hops is None else _hops(site.detour_hops)
        row = [site.name, degree, str(site.tolerates), hops]
        if site.bytes_per_round is not None:
            row.append(size(site.bytes_per_round))
        table.add_row(*row)
    console.print(table)
    for warning in report.warnings:
        console.print(Text.assemble(("warning", "yellow"), "  ", warning))


def _span(report: CheckReport) -> str:
    if report.rounds_examined == 1:
        return ""
    rounds = f"{report.rounds_examined} rounds"
    return f", all {rounds} of its period" if report.repeats else f", a sample of {rounds}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rule(report: CheckReport) -> str:
    if report.pre_aggregation == NO_PRE_AGGREGATION:
        return report.rule
    return f"{report.rule} after {report.pre_aggregation}"


def _hops(number: int) -> str:
    return _count(number, "hop")


def _hostility(report: CheckReport) -> list[tuple[str, str]]:
    """What theory says of hostile sites; nothing on a graph that varies."""
    facts: list[tuple[str, str]] = []
    if report.byzantine_limit is not None:
        facts.append(
            (
                "hostility",
                f"no rule has a guarantee from {report.byzantine_limit:.2f} Byzantine neighbours "
                "a site on",
            )
        )
    hostile = report.hostile_sites
    if hostile is not None:
        text = f"clipping has one against {_count(hostile.borne, 'hostile site')} wherever they are"
        if hostile.breaking is not None:
            text += (
                f"; against {hostile.breaking} in the worst place "
                f"({', '.join(hostile.placement)}) no rule has"
            )
        facts.append(("", text))
    return facts


@app.command()
def show(
    file: FileArgument,
    form: Annotated[Literal["terminal", "svg", "png"], typer.Option("--format")] = "terminal",
    output: Annotated[Path | None, typer.Option(help="Where the picture goes.")] = None,
) -> None:
    """Draw a topology; a picture goes beside the file unless --output says where."""
    from p2pfed.topology.draw import draw, sketch

    topology = load_topology(file)
    if form == "terminal":
        if output is not None:
            raise UsageError("--output is for pictures: give --format svg or png as well")
        typer.echo(sketch(topology))
        return
    target = output or file.with_suffix(f".{form}")
    try:
        draw(topology, target, form)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from error
    typer.echo(str(target))


@app.command("new")
def new_file(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(GRAPH_KEYS)}.")],
    name: Annotated[str, typer.Option(help="The federation's name.")],
    peers: Annotated[str, typer.Option(help="Site names, with commas between.")],
    degree: Annotated[
        int | None, typer.Option(help="random_regular, small_world, random_per_round.")
    ] = None,
    rewiring: Annotated[float | None, typer.Option(help="small_world: a probability.")] = None,
    rows: Annotated[int | None, typer.Option(help="torus.")] = None,
    columns: Annotated[int | None, typer.Option(help="torus.")] = None,
    seed: Annotated[int | None, typer.Option(help="The random kinds.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The file to make; never overwritten.")
    ] = None,
) -> None:
    """Make a commented topology file to fill in."""
    from p2pfed.topology.template import new_topology

    if kind not in GRAPH_KEYS:
        raise UsageError(f"no graph of kind {kind!r}; there are: {', '.join(GRAPH_KEYS)}")
    given = {
        "degree": degree,
        "rewiring": rewiring,
        "rows": rows,
        "columns": columns,
        "seed": seed,
    }
    names = [peer.strip() for peer in peers.split(",") if peer.strip()]
    try:
        text = new_topology(
            name, kind, names, {key: value for key, value in given.items() if value is not None}
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{output} exists already and is never overwritten") from None
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error
    typer.echo(f"{output}: replace each key by the one that p2pfed init printed at that site")


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="A topology file.")],
    new: Annotated[Path, typer.Argument(help="The file to compare it with.")],
    json_output: JsonOption = False,
) -> None:
    """Compare two topology files by what they mean. Exit code 1: they differ."""
    before, after = load_topology(old), load_topology(new)
    changes = compare(before, after)
    if json_output:
        typer.echo(
            json.dumps(
                {
                    "schema_version": DIFF_SCHEMA_VERSION,
                    "old": before.digest.hex(),
                    "new": after.digest.hex(),
                    "changes": [{"what": change.what, **asdict(change)} for change in changes],
                },
                indent=2,
            )
        )
    else:
        typer.echo(f"{before.digest.hex()[:12]} -> {after.digest.hex()[:12]}")
        for change in changes:
            typer.echo(str(change))
    raise typer.Exit(DIFFERENT_EXIT_CODE if before.digest != after.digest else 0)
