"""The ``p2pfed`` command. Neither torch nor libp2p is imported to answer it."""

import json
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from p2pfed import __version__
from p2pfed.cli.site_choice import ConfigOption, choose_config
from p2pfed.daemon.control_link import LONG_TIMEOUT_SECONDS, DaemonLink
from p2pfed.errors import ControlTimeoutError, ExitCode, NotRunningError, P2pfedError

INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells report it
STOP_TIMEOUT_SECONDS = 60.0
STOP_POLL_SECONDS = 0.1

# Loaded only when they are used: graphs and demonstrations need heavy libraries.
_LAZY_GROUPS = {
    "topology": "p2pfed.cli.topology",
    "demo": "p2pfed.cli.demo",
    "simulate": "p2pfed.cli.simulate",
}


class LazyGroup(TyperGroup):
    """A group whose sub-applications are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_LAZY_GROUPS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _LAZY_GROUPS:
            command = typer.main.get_command(import_module(_LAZY_GROUPS[cmd_name]).app)
            command.name = cmd_name
            return command
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    cls=LazyGroup,
    name="p2pfed",
    help="Hospitals train one model together, peer to peer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Work with this site's files.", no_args_is_help=True)
app.add_typer(config_app, name="config")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; errors of ours become one line and an exit code."""
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=True)
    except P2pfedError as error:
        print(f"p2pfed: {error}", file=sys.stderr)  # noqa: T201 - the command line's own output
        sys.exit(int(error.exit_code))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT_CODE)
    return 0


def _link(config: Path | None) -> DaemonLink:
    from p2pfed.config import load_site

    return DaemonLink(load_site(choose_config(config)).control_socket)


def _say(text: str) -> None:
    typer.echo(text)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where the site's files go.")],
    name: Annotated[str, typer.Option("--name", help="The site's name in the federation.")],
) -> None:
    """Make a site: secret keys, a commented site file, and the [[peer]] block to hand out."""
    from p2pfed.cli.site_commands import init_site

    _say(init_site(directory, name))


@app.command()
def run(config: ConfigOption = None) -> None:
    """Run this site's daemon until it is stopped."""
    from p2pfed.daemon.main import run_daemon

    raise typer.Exit(run_daemon(choose_config(config)))


@app.command()
def status(
    config: ConfigOption = None,
    json_output: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until interrupted.")] = False,
) -> None:
    """Show this site, its neighbours and its health. Exit code 1: unhealthy, 3: not running."""
    from p2pfed.daemon.status import Status

    link = _link(config)
    if watch:
        _watch(link)
        return
    document = link.get("/v1/status")
    current = Status.from_json(document)
    if json_output:
        _say(json.dumps(document, indent=2))
    else:
        from p2pfed.cli.status_view import render, wide_console

        wide_console().print(render(current))
    raise typer.Exit(ExitCode.OK if current.healthy else ExitCode.FAILED)


def _watch(link: DaemonLink) -> None:
    from rich.live import Live

    from p2pfed.cli.status_view import render
    from p2pfed.daemon.status import Status

    with Live(refresh_per_second=4) as live:
        for line in link.lines("/v1/events"):
            live.update(render(Status.from_json(json.loads(line))))
    raise NotRunningError("the daemon stopped")


@app.command()
def peers(config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """Show this site's neighbours."""
    from p2pfed.daemon.status import Status

    document = _link(config).get("/v1/status")
    if json_output:
        _say(json.dumps(document["neighbours"], indent=2))
        return
    from p2pfed.cli.status_view import neighbour_table, wide_console

    wide_console().print(neighbour_table(Status.from_json(document).neighbours))


@app.command()
def ping(
    site: Annotated[str, typer.Argument(help="A neighbour's name.")],
    config: ConfigOption = None,
    count: Annotated[int, typer.Option("--count", min=1, max=1000)] = 3,
) -> None:
    """Measure the way to a neighbour and back, over the encrypted link."""
    from p2pfed.daemon.status import shown_path

    link = _link(config)
    for _ in range(count):
        result = link.post(f"/v1/ping/{site}")
        path = shown_path(result["address"], result["direction"], result["relay"])
        _say(f"{result['site']}: {result['seconds'] * 1000:.1f} ms via {path}")


@app.command()
def netcheck(config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """Tell which neighbours can be reached from here, and what to open. Exit code 1: not all."""
    from p2pfed.cli.netcheck import examine, render

    report = examine(choose_config(config))
    _say(json.dumps(report.to_json(), indent=2) if json_output else "\n".join(render(report)))
    raise typer.Exit(ExitCode.OK if report.ok else ExitCode.FAILED)


@app.command()
def reload(config: ConfigOption = None) -> None:
    """Read the topology file again and apply what changed."""
    result = _link(config).post("/v1/reload", timeout_seconds=LONG_TIMEOUT_SECONDS)
    for change in result["changes"]:
        _say(change)
    _say(f"topology {result['digest'][:12]} is in force")


@app.command()
def stop(
    config: ConfigOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return once it has stopped.")] = False,
) -> None:
    """Stop the daemon at the next point where nothing is lost."""
    link = _link(config)
    link.post("/v1/stop")
    until = time.monotonic() + STOP_TIMEOUT_SECONDS
    while wait:
        try:
            link.get("/v1/status")
        except NotRunningError:
            return
        if time.monotonic() > until:
            raise ControlTimeoutError(f"it still runs after {STOP_TIMEOUT_SECONDS:g} s")
        time.sleep(STOP_POLL_SECONDS)


@app.command()
def log(
    config: ConfigOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
) -> None:
    """Show the daemon's recent log lines."""
    for line in _link(config).lines("/v1/log?follow=1" if follow else "/v1/log"):
        _say(line)


@app.command()
def export(
    output: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    config: ConfigOption = None,
) -> None:
    """Write the current model with its lineage."""
    result = _link(config).post(
        "/v1/export", {"path": str(output.absolute())}, LONG_TIMEOUT_SECONDS
    )
    _say(
        f"{result['path']}: round {result['round']}, model {result['model'][:12]}, "
        f"{result['bytes']} bytes"
    )


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(help="A data file of the task's form.")],
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Evaluate the current model on a data file of this site."""
    result = _link(config).post(
        "/v1/evaluate", {"data": str(data.absolute())}, LONG_TIMEOUT_SECONDS
    )
    if json_output:
        _say(json.dumps(result, indent=2))
        return
    for name, value in sorted({**result["metrics"], **result["calibration"]}.items()):
        ends = result["intervals"].get(name)
        interval = f"  ({ends[0]:.4f} to {ends[1]:.4f})" if ends else ""
        _say(f"{name:12} {value:.4f}{interval}")
    _say(f"{'records':12} {result['records']}")


@app.command()
def report(
    config: ConfigOption = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page to read and print; - for stdout.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write it as JSON; - for stdout.")
    ] = None,
    site: Annotated[
        list[Path] | None,
        typer.Option("--site", help="Another site's report as JSON, to stand beside; repeatable."),
    ] = None,
    with_local: Annotated[
        bool,
        typer.Option("--with-local", help="Train on this site's records alone first, to compare."),
    ] = False,
) -> None:
    """Write this site's report, the model card; the daemon may run meanwhile."""
    from p2pfed.cli.report import make_report

    for line in make_report(
        choose_config(config),
        html=html,
        json_file=json_file,
        other_sites=site or [],
        with_local=with_local,
    ):
        _say(line)


@app.command()
def backup(
    output: Annotated[Path, typer.Argument(help="The tar file to write.")],
    config: ConfigOption = None,
    with_key: Annotated[
        bool, typer.Option("--with-key", help="Put the site's secret keys in as well.")
    ] = False,
) -> None:
    """Copy this site's state into one file; the daemon may run meanwhile."""
    from p2pfed.cli.backup import backup_site

    for line in backup_site(choose_config(config), output, with_key=with_key):
        _say(line)


@app.command()
def restore(
    archive: Annotated[
        Path | None, typer.Argument(help="What p2pfed backup wrote.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="The state directory itself came back from elsewhere, such as a snapshot of the "
            "machine: make it ask before it signs.",
        ),
    ] = False,
) -> None:
    """Bring a state back that this site had before."""
    from p2pfed.cli.backup import restore_site

    for line in restore_site(choose_config(config), archive, in_place=in_place):
        _say(line)


@app.command()
def bugreport(
    config: ConfigOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Default: p2pfed-bugreport-DATE.tar.gz here."),
    ] = None,
) -> None:
    """Collect what a maintainer needs into one file, without secrets and without data."""
    from p2pfed.cli.bugreport import write_report

    for line in write_report(choose_config(config), output):
        _say(line)


@app.command("privacy-audit")
def privacy_audit(
    config: ConfigOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report here; - for stdout alone.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer models and trials, wider intervals.")
    ] = False,
) -> None:
    """Attack this site's own training as a neighbour could, with and without privacy. Exit code 1:
    a control failed, so that nothing is proved, or training spends more than it accounts for."""
    from p2pfed.cli.privacy_audit import audit

    raise typer.Exit(audit(choose_config(config), json_file, seed=seed, quick=quick, say=_say))


@app.command()
def paths(config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """Show every path that this site's daemon uses."""
    from p2pfed.cli.site_commands import site_paths

    found = site_paths(choose_config(config))
    if json_output:
        _say(json.dumps(found, indent=2))
        return
    for label, path in found.items():
        _say(f"{label:10} {path}")


@app.command()
def version(json_output: JsonOption = False) -> None:
    """Show the version of p2pfed and of what it stands on."""
    from p2pfed.cli.site_commands import versions

    found: dict[str, Any] = {"p2pfed": __version__, **versions()}
    _say(json.dumps(found) if json_output else "\n".join(f"{k} {v}" for k, v in found.items()))


@config_app.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Check the site file, the topology file and the keys, and that they belong together."""
    from p2pfed.cli.site_commands import check_site

    for line in check_site(choose_config(config)):
        _say(line)
