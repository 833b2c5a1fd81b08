"""``p2pfed simulate``."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Try a topology file without any machines but this one.")


@app.command()
def simulate(
    topology: Annotated[Path, typer.Argument(help="The topology file; its keys are not needed.")],
    scenario: Annotated[
        Path | None, typer.Option(help="What the network is like, and what goes wrong (TOML).")
    ] = None,
    task: Annotated[
        str, typer.Option(help="What the sites learn: digits, or synthetic.")
    ] = "digits",
    concentration: Annotated[
        float, typer.Option(min=0.001, help="Of the Dirichlet distribution; small: unlike sites.")
    ] = 0.3,
    peers: Annotated[
        int | None, typer.Option(min=2, max=1000, help="So many peers instead of the file's.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Default: the file's, or 100 where it has none.")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="Another aggregation rule.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Rounds.")] = 10,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the whole report here; - for stdout.")
    ] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page here.")] = None,
) -> None:
    """Run a federation under virtual time: the daemon's own protocol and aggregation, simulated
    links, and checkers that watch it. The same seed gives the same trace.

    Exit code 1: something that must hold did not; the message says how to see it again.
    """
    from p2pfed.simulation import report
    from p2pfed.simulation.population import Changes
    from p2pfed.simulation.run import Request, simulate

    outcome, setting = simulate(
        Request(
            topology=topology,
            scenario=scenario,
            task=task,
            concentration=concentration,
            changes=Changes(peers, rounds, rule),
            seed=seed,
            evaluate_every=evaluate_every,
            replay=shlex.join(["p2pfed", *sys.argv[1:]]),
        )
    )
    if html_file is not None:
        html_file.write_text(report.page(outcome, setting), encoding="utf-8")
    if json_file is None:
        typer.echo(report.text(outcome, setting))
        return
    document = json.dumps(report.document(outcome, setting))
    if json_file == Path("-"):
        typer.echo(document)
    else:
        json_file.write_text(document + "\n", encoding="utf-8")
        typer.echo(report.text(outcome, setting))
