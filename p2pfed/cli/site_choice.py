"""Which site a command is about: --config, else P2PFED_CONFIG, else ./site.toml, else
/etc/p2pfed/site.toml."""

import os
from pathlib import Path
from typing import Annotated

import typer

from p2pfed.errors import UsageError

SYSTEM_CONFIG = Path("/etc/p2pfed/site.toml")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The site file. Default: $P2PFED_CONFIG, ./site.toml, /etc/p2pfed/site.toml.",
    ),
]


def choose_config(given: Path | None) -> Path:
    """:raises UsageError: none is given and none is found."""
    if given is not None:
        return given
    named = os.environ.get("P2PFED_CONFIG")
    if named:
        return Path(named)
    for candidate in (Path("site.toml"), SYSTEM_CONFIG):
        if candidate.is_file():
            return candidate
    raise UsageError(
        "no site file: give --config FILE, set P2PFED_CONFIG, or run in a directory with site.toml"
    )
