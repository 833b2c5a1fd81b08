"""What a demonstration came to, for a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from p2pfed.cli.status_view import size


def show_gain(console: Console, report: dict[str, Any]) -> None:
    """Local, federated and pooled side by side."""
    kinds = {"local": "local only", "federated": "federated", "pooled": "pooled"}
    rows = [*report["sites"], {"name": "all", **report["overall"]}]
    console.print(
        _result("AUC / accuracy on the same hold-outs", kinds, rows),
        f"{report['rounds']} rounds, {size(report['bytes_sent'])} sent by all sites, "
        f"{report['seconds']} s, rule {report['rule']}, topology {report['topology']}",
        sep="\n",
    )


def show_rules(console: Console, report: dict[str, Any]) -> None:
    """The rules side by side."""
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


def show_budgets(console: Console, report: dict[str, Any]) -> None:
    """Without and with privacy side by side, and what was spent."""
    runs = report["runs"]
    rows = [
        {**site, **{run: runs[run]["sites"][at] for run in runs}}
        for at, site in enumerate(next(iter(runs.values()))["sites"])
    ]
    rows.append({"name": "all", **{run: runs[run]["overall"] for run in runs}})
    table = Table(title="The privacy budgets", header_style="bold")
    for column in ("hospital", "epsilon spent", "of", "at delta", "training"):
        table.add_column(column)
    for name, privacy in report["privacy"].items():
        table.add_row(
            name,
            f"{privacy['epsilon_spent']:.2f}",
            f"{privacy['epsilon_budget']:g}",
            f"{privacy['delta']:g}",
            "stopped: the budget is used up" if privacy["stopped"] else "to the end",
        )
    reference = report["reference"]
    console.print(
        _result("AUC / accuracy on the same hold-outs", {run: run for run in runs}, rows),
        table,
        f"without privacy, over all hold-outs: each hospital alone {_figures(reference['local'])}, "
        f"all records in one place {_figures(reference['pooled'])}; {report['seconds']} s",
        sep="\n",
    )
