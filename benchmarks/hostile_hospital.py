"""Heart with one hostile hospital of five, on real daemons: attacks against rules.

    python benchmarks/hostile_hospital.py [--attacks none,sign_flip,alie,echo]
                                          [--rules mean,median_clipping] [--seeds 1]
                                          [--rounds N] [--json FILE]

The fifth site holds a copy of Cleveland's records. Printed is the AUC over all hold-outs of the
four honest hospitals' models, their mean, over the seeds: mean, and the least to the greatest
where there are several. "none": the fifth site is honest and only repeats another's records.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from p2pfed.demo.byzantine import RULES, ByzantineOptions, run_byzantine

ATTACKS = ("none", "sign_flip", "alie", "echo")


def measure(attack: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The report of one federation under each of the rules."""
    with tempfile.TemporaryDirectory(prefix="p2pfed-") as directory:
        options = ByzantineOptions(attack, arguments.rounds, seed, arguments.rules)
        return run_byzantine(Path(directory), options, lambda _: None, lambda *_: None)


def spread(areas: list[float]) -> str:
    text = f"{statistics.mean(areas):.3f}"
    return text if len(areas) == 1 else f"{text} ({min(areas):.3f} to {max(areas):.3f})"


def table(reports: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Markdown: a row for each attack, and one for what the hospitals reach by themselves."""
    lines = [
        "| attack | " + " | ".join(arguments.rules) + " |",
        "|---" * (1 + len(arguments.rules)) + "|",
    ]
    for attack in arguments.attacks:
        own = [report for report in reports if report["attack"] == attack]
        cells = [
            spread([report["rules"][rule]["overall"]["auc"] for report in own])
            for rule in arguments.rules
        ]
        lines.append(f"| {attack} | " + " | ".join(cells) + " |")
    first = [report for report in reports if report["attack"] == arguments.attacks[0]]
    for kind, what in (("local", "each hospital alone"), ("pooled", "all rows in one place")):
        areas = [report["honest_reference"][kind]["auc"] for report in first]
        lines.append(f"\n{what}: {spread(areas)}")
    return "\n".join(lines)


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attacks", type=names, default=ATTACKS)
    parser.add_argument("--rules", type=names, default=RULES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    reports = []
    for attack in arguments.attacks:
        for seed in range(arguments.seeds):
            reports.append(measure(attack, seed, arguments))
            print(f"{attack}, seed {seed}: {reports[-1]['seconds']} s", file=sys.stderr)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(reports), encoding="utf-8")
    print(table(reports, arguments))


if __name__ == "__main__":
    main()
