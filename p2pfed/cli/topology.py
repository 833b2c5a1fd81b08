"""``p2pfed topology``: check, show, new, diff."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from p2pfed.cli.status_view import size, wide_console
from p2pfed.errors import UsageError
from p2pfed.topology import load_topology
from p2pfed.topology.diff import compare
from p2pfed.topology.file import GRAPH_KEYS
from p2pfed.topology.lint import CheckReport
from p2pfed.topology.lint import check as check_topology

DIFFERENT_EXIT_CODE = 1  # as diff(1)

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
    over = f" over {report.rounds_examined} rounds" if report.rounds_examined > 1 else ""
    facts = [
        ("federation", f"{report.federation}, digest {report.digest[:12]}"),
        ("graph", f"{report.kind}{over}: {report.peers} peers, {report.edges} edges"),
        ("diameter", f"{report.diameter} hops"),
        (
            "failures",
            f"stays connected without any {report.vertex_connectivity - 1} of its sites",
        ),
        (
            "mixing",
            f"spectral gap {report.spectral_gap:.3f}, disagreement falls to 1 % in "
            f"{report.mixing_time_rounds} rounds of gossip",
        ),
        ("rule", f"{report.rule}, b = {report.byzantine_neighbours}"),
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
        hops = "never" if site.detour_hops is None else f"{site.detour_hops} hops"
        row = [site.name, str(site.degree), str(site.tolerates), hops]
        if site.bytes_per_round is not None:
            row.append(size(site.bytes_per_round))
        table.add_row(*row)
    console.print(table)
    for warning in report.warnings:
        console.print(f"[yellow]warning[/yellow]  {warning}")


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
        text = f"{hostile.borne} hostile sites are borne wherever they are"
        if hostile.breaking is not None:
            text += f"; {hostile.breaking} break it at {', '.join(hostile.placement)}"
        facts.append(("", text))
    return facts


@app.command()
def show(
    file: FileArgument,
    form: Annotated[Literal["terminal", "svg", "png"], typer.Option("--format")] = "terminal",
    output: Annotated[Path | None, typer.Option(help="Where the picture goes.")] = None,
) -> None:
    """Draw a topology."""
    from p2pfed.topology.draw import draw, sketch

    topology = load_topology(file)
    if form == "terminal":
        typer.echo(sketch(topology))
        return
    target = output or file.with_suffix(f".{form}")
    draw(topology, target, form)
    typer.echo(str(target))


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(GRAPH_KEYS)}.")],
    name: Annotated[str, typer.Option(help="The federation's name.")],
    peers: Annotated[str, typer.Option(help="Site names, with commas between.")],
    degree: Annotated[int | None, typer.Option(min=1)] = None,
    rows: Annotated[int | None, typer.Option(min=2)] = None,
    columns: Annotated[int | None, typer.Option(min=2)] = None,
    output: Annotated[
        Path | None, typer.Option(help="The file to make; never overwritten.")
    ] = None,
) -> None:
    """Make a commented topology file to fill in."""
    from p2pfed.topology.template import new_topology

    if kind not in GRAPH_KEYS:
        raise UsageError(f"no graph of kind {kind!r}; there are: {', '.join(GRAPH_KEYS)}")
    given = {"degree": degree, "rows": rows, "columns": columns}
    text = new_topology(
        name,
        kind,
        [peer.strip() for peer in peers.split(",") if peer.strip()],
        graph_keys={key: value for key, value in given.items() if value is not None},
    )
    if output is None:
        typer.echo(text)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{output} exists already and is never overwritten") from None
    typer.echo(f"{output}: replace each key by the one that p2pfed init printed at that site")


@app.command()
def diff(old: FileArgument, new_file: FileArgument, json_output: JsonOption = False) -> None:
    """Compare two topology files by what they mean. Exit code 1: they differ."""
    before, after = load_topology(old), load_topology(new_file)
    changes = compare(before, after)
    if json_output:
        typer.echo(
            json.dumps(
                {
                    "old": before.digest.hex(),
                    "new": after.digest.hex(),
                    "changes": [{"what": c.what, "reload": c.reload} for c in changes],
                }
            )
        )
    else:
        typer.echo(f"{before.digest.hex()[:12]} -> {after.digest.hex()[:12]}")
        for change in changes:
            typer.echo(str(change))
    raise typer.Exit(DIFFERENT_EXIT_CODE if before.digest != after.digest else 0)
