"""One hostile site among five: the same federation under plain averaging and under the default
rule, side by side.

The hospitals of the heart demo are joined by a fifth site that holds a copy of Cleveland's
records and attacks. Only the four are judged.
"""

import csv
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from p2pfed.attacks import ATTACKS, DataAttack, ModelAttack, make
from p2pfed.config import Site
from p2pfed.daemon.status import Status
from p2pfed.demo.daemons import Daemons, run_command, run_in_child
from p2pfed.demo.layout import (
    MODEL_NAME,
    DemoLayout,
    DemoOptions,
    site_with_table,
    sites_of,
    write_layout,
)
from p2pfed.demo.runner import COMPARISON_MODULE
from p2pfed.errors import UsageError
from p2pfed.rules_catalogue import DEFAULT_RULE
from p2pfed.settings import read_toml
from p2pfed.shipped import demo_folder

REPORT_SCHEMA_VERSION = 1
HOSPITALS = "heart"  # the demo that the honest sites come from
HOSTILE = "impostor"
COPIED = "cleveland"  # whose records the hostile site holds
RULES = ("mean", DEFAULT_RULE)
DEFAULT_ATTACK = "sign_flip"
NO_ATTACK = "none"  # the fifth site is honest, but its records are another's
DEADLINE_SECONDS = 5.0  # a site whose deltas are refused is waited for, round after round
HOSTILE_MODULE = "p2pfed.demo.hostile"
CLASSES = 2


def attacks() -> list[str]:
    """The names of the attacks that the hostile site can be told."""
    kinds = (ModelAttack, DataAttack)
    return [*(name for name, one in ATTACKS.items() if issubclass(one, kinds)), NO_ATTACK]


@dataclass(frozen=True)
class ByzantineOptions:
    """What the command line may change. ``rounds`` None leaves the demo's own number."""

    attack: str = DEFAULT_ATTACK
    rounds: int | None = None
    seed: int = 0
    rules: tuple[str, ...] = RULES


def run_byzantine(
    directory: Path,
    options: ByzantineOptions,
    say: Callable[[str], None],
    progress: Callable[[str, dict[str, Status | None]], None],
) -> dict[str, Any]:
    """Run the federation once under each rule, below ``directory``, and return the report.

    :param say: takes a line for the person who watches.
    :param progress: takes the rule and every site's status, several times a second.
    :raises UsageError: the hostile site cannot be told that attack.
    :raises P2pfedError: a file is not sound, or a daemon failed; with its own words.
    """
    if options.attack not in attacks():
        raise UsageError(f"no attack {options.attack!r} here; there are: {', '.join(attacks())}")
    started = time.monotonic()
    runs: dict[str, list[str]] = {}
    rounds = 0
    for rule in options.rules:
        layout = _write(directory / rule, options, rule)
        say(f"{rule}: {HOSTILE} publishes {options.attack}; files in {layout.directory}")
        rounds = _run(layout, options, partial(progress, rule))
        runs[rule] = [str(site.path) for site in layout.sites if site.file.name != HOSTILE]
    compared = run_in_child(COMPARISON_MODULE, ["--runs", json.dumps(runs)])
    return {
        "schema_version": REPORT_SCHEMA_VERSION,
        "attack": options.attack,
        "seed": options.seed,
        "hostile": HOSTILE,
        "rounds": rounds,
        "rules": compared["runs"],
        "honest_reference": compared["reference"],
        "seconds": round(time.monotonic() - started, 1),
    }


def _write(directory: Path, options: ByzantineOptions, rule: str) -> DemoLayout:
    folder = demo_folder(HOSPITALS)
    table = folder / f"{COPIED}.csv"
    directory.mkdir(parents=True)
    own = directory / f"{HOSTILE}.csv"
    attack = make(options.attack) if options.attack != NO_ATTACK else None
    if isinstance(attack, DataAttack):
        label = read_toml(folder / f"{HOSPITALS}.toml")["task"]["options"]["label"]
        poison_table(table, own, attack, label, options.seed)
    else:
        shutil.copyfile(table, own)
    demo = DemoOptions(options.rounds, options.seed, rule, deadline_seconds=DEADLINE_SECONDS)
    hostile = site_with_table(HOSTILE, own, options.seed)
    return write_layout(folder, directory, demo, (*sites_of(folder, options.seed), hostile))


def poison_table(table: Path, target: Path, attack: DataAttack, label: str, seed: int) -> None:
    """Write ``table``, a CSV file of numbers, as the attack wants it.

    :param label: the column with the labels, 0 or 1; an empty field is a missing value.
    """
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    at = header.index(label)
    numbers = [[float(field) if field else np.nan for field in row] for row in rows]
    values = np.array(numbers, np.float32)
    features, labels = attack.poison(
        np.delete(values, at, axis=1),
        values[:, at].astype(np.int64),
        CLASSES,
        np.random.default_rng(seed),
    )
    poisoned = np.insert(features, at, labels, axis=1)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(
            ["" if np.isnan(value) else f"{value:g}" for value in row] for row in poisoned
        )


def _run(
    layout: DemoLayout,
    options: ByzantineOptions,
    progress: Callable[[dict[str, Status | None]], None],
) -> int:
    """Run every daemon to the end and keep the models of the honest.

    :returns: the number of rounds.
    """

    lies = options.attack != NO_ATTACK and issubclass(ATTACKS[options.attack], ModelAttack)

    def command(site: Site) -> list[str]:
        if site.file.name != HOSTILE or not lies:
            return run_command(site)
        arguments = [str(site.path), options.attack, str(options.seed)]
        return [sys.executable, "-m", HOSTILE_MODULE, *arguments]

    with Daemons(layout.sites, command) as daemons:
        finished = daemons.wait_until_finished(progress)
        for running in daemons.running:
            if running.name != HOSTILE:
                running.export(running.site.path.with_name(MODEL_NAME))
    return max(status.round.number for status in finished.values())
