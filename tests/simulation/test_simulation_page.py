"""topology/SIMULATION.md says what the code does."""

import re
import typing
from pathlib import Path

import pytest

from p2pfed.settings import Settings
from p2pfed.shipped import shipped
from p2pfed.simulation import checkers, scenario
from p2pfed.simulation.scenario import LinkChange, LinkQuality, Scenario

PAGE = (shipped("topology") / "SIMULATION.md").read_text(encoding="utf-8")


def section(name: str) -> dict[str, str]:
    """The documented keys of one table, with their defaults."""
    heading = re.search(rf"^### .*`\[+{name}\]+`.*$", PAGE, re.MULTILINE)
    assert heading is not None, f"no section for {name}"
    text = PAGE[heading.end() :].split("\n#", maxsplit=1)[0]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|", text, re.MULTILINE)
    return dict(rows)


def tables() -> dict[str, type[Settings]]:
    found: dict[str, type[Settings]] = {}
    for name, field in Scenario.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Settings):
                found[name] = kind
    return found


@pytest.mark.parametrize("name", list(tables()))
def test_every_key_of_a_scenario_is_there_with_its_default(name: str) -> None:
    documented = section(name)
    fields = tables()[name].model_fields
    assert set(documented) == set(fields)
    for key, field in fields.items():
        if field.is_required():
            assert documented[key] == "required", key
        elif tables()[name] is LinkChange:
            assert documented[key] == "as `[links]`", key
        else:
            assert documented[key] == str(field.get_default(call_default_factory=True)), key


def test_all_tables_are_there_and_no_others() -> None:
    headings = re.findall(r"^### (.*)$", PAGE, re.MULTILINE)
    documented = {name for heading in headings for name in re.findall(r"\[+(\w+)\]+`", heading)}
    assert documented == set(tables())
    assert set(LinkQuality.model_fields) < set(LinkChange.model_fields)


def test_every_checker_is_there_with_what_it_watches() -> None:
    source = Path(checkers.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r"""(?:fail\(|_check\(|counts\[)\s*"([a-z_]+)\"""", source))
    assert set(re.findall(r"^\| `([a-z]+_[a-z_]+)` \| [^|]+ \|$", PAGE, re.MULTILINE)) == named


def test_every_scenario_file_is_named() -> None:
    shipped_files = {path.name for path in (shipped("topology") / "scenarios").glob("*.toml")}
    assert shipped_files == set(re.findall(r"`([a-z-]+\.toml)`", PAGE)) & shipped_files
    assert scenario.SCENARIO_VERSION == 1
