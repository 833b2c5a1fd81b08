"""The runbook says something about every health line, and nothing about what does not exist."""

import ast
import re
from pathlib import Path

import pytest
import typer
from status_samples import status

import p2pfed
from p2pfed.cli.main import app
from p2pfed.daemon import health, metrics
from p2pfed.protocol.commands import NoticeKind

PACKAGE = Path(p2pfed.__file__).parent
SOURCE = Path(__file__).parents[2] / "p2pfed"  # an installed package has no other pages beside it
RUNBOOK = (PACKAGE / "RUNBOOK.md").read_text(encoding="utf-8")


def template(problem: ast.expr) -> str:
    """A health line's text with every part that varies written as an ellipsis."""
    if isinstance(problem, ast.Constant):
        return str(problem.value)
    assert isinstance(problem, ast.JoinedStr), ast.dump(problem)
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "…" for part in problem.values
    )


def health_lines() -> set[str]:
    tree = ast.parse(Path(health.__file__).read_text(encoding="utf-8"))
    return {
        template(node.args[1])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "HealthLine"
    }


def plain(heading: str) -> str:
    """Two parts that vary side by side, as in a reason that may be missing, read as one."""
    return re.sub(r":? ?…(?::? ?…)*", "…", heading).strip()


def section(name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


def test_every_health_line_has_its_heading_and_every_heading_its_line() -> None:
    lines = {plain(line) for line in health_lines()}
    headings = re.findall(r"^### (.*)$", section("Health lines"), re.MULTILINE)
    assert len(lines) >= 11
    assert {plain(heading) for heading in headings} == lines
    assert len(headings) == len(set(headings))


def test_every_heading_is_followed_by_what_to_do() -> None:
    for part in re.split(r"^### .*$", section("Health lines"), flags=re.MULTILINE)[1:]:
        assert len(part.split()) > 15


@pytest.mark.parametrize(
    "topic",
    [
        "Disk full", "Neighbour down", "Clock wrong", "Trainer failing", "Back up and restore",
        "Replace a machine", "Rotate logs", "Upgrade", "Leave the federation", "What to alert on",
    ],
)  # fmt: skip
def test_what_an_operator_meets_has_a_section(topic: str) -> None:
    assert len(section(topic).split()) > 20


def test_every_metric_that_it_names_is_served() -> None:
    served = metrics.render(status).decode()
    named = set(re.findall(r"\bp2pfed_\w+", RUNBOOK))
    assert named
    for name in named:
        assert re.search(rf"^{name}(\{{| )", served, re.MULTILINE), name


def test_every_command_that_it_names_exists() -> None:
    group = typer.main.get_command(app)
    context = typer.Context(group)
    known = set(group.list_commands(context))  # type: ignore[attr-defined]
    named = set(re.findall(r"\bp2pfed ([a-z]+)", "\n".join(spans(RUNBOOK))))
    assert {"backup", "restore", "bugreport", "status"} <= named
    assert named <= known


def spans(text: str) -> list[str]:
    """What is set as code: between backticks, or in an indented line."""
    return [
        *re.findall(r"`([^`]+)`", text),
        *(line.partition("#")[0] for line in text.splitlines() if line.startswith("    ")),
    ]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", RUNBOOK):
        assert (SOURCE / target).exists(), target


def test_log_events_that_it_quotes_are_logged() -> None:
    quoted = re.findall(r"logs\s+`([a-z ]+)`", RUNBOOK)
    assert quoted
    for event in quoted:
        assert event.replace(" ", "_") in {kind.value for kind in NoticeKind}
