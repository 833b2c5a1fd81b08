"""Attacks by name: the registry, its page, and how options are checked."""

import dataclasses
import re
import subprocess
import sys
from importlib.resources import files

import pytest

from p2pfed.attacks import ATTACKS, DataAttack, MessageAttack, ModelAttack, make
from p2pfed.errors import UsageError


def documented() -> dict[str, str]:
    """Each row of ATTACKS.md that describes an attack, by the name in its first column."""
    page = (files("p2pfed.attacks") / "ATTACKS.md").read_text("utf-8")
    return {row[1]: row[0] for row in re.finditer(r"^\| `(\w+)` \|.*$", page, re.MULTILINE)}


def test_the_page_describes_exactly_the_attacks_that_there_are() -> None:
    assert list(documented()) == sorted(ATTACKS, key=list(documented()).index)
    assert set(documented()) == set(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_page_names_every_option_and_the_source(name: str) -> None:
    row, attack = documented()[name], ATTACKS[name]
    options = [option.name for option in dataclasses.fields(attack)]
    assert row.count("|") == 5
    assert re.findall(r"`(\w+)` \(", row.split("|")[3]) == options
    assert row.split("|")[4].strip() == attack.source


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_a_name_a_summary_and_a_target(name: str) -> None:
    attack = make(name)
    assert attack.name == name
    assert len(attack.summary.split()) > 3
    assert isinstance(attack, ModelAttack | DataAttack | MessageAttack)


def test_an_unknown_attack_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"no attack is called 'sign_flop'.*sign_flip, gaussian"):
        make("sign_flop")


def test_an_unknown_option_is_refused_with_the_options_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"alie: no option is called 'scale'; it takes z"):
        make("alie", scale=2.0)
    with pytest.raises(UsageError, match=r"zero: no option is called 'scale'; it takes none"):
        make("zero", scale=2.0)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sign_flip", {"scale": "ten"}, r"scale = 'ten' is not a finite number"),
        ("sign_flip", {"scale": float("nan")}, r"scale = nan is not a finite number"),
        ("sign_flip", {"scale": True}, r"scale = True is not a finite number"),
        ("sign_flip", {"scale": 0}, r"scale = 0 is not above 0"),
        ("gaussian", {"deviation": -1.0}, r"deviation = -1.0 is not above 0"),
        ("alie", {"z": 0.0}, r"z = 0.0 is not above 0"),
        ("ipm", {"epsilon": 0.0}, r"epsilon = 0.0 is not above 0"),
        ("dissensus", {"epsilon": -2.0}, r"epsilon = -2.0 is not above 0"),
        ("noise", {"scale": 0.0}, r"scale = 0.0 is not above 0"),
        ("min_max", {"direction": "up"}, r"direction = 'up' is not one of deviation, update"),
        ("drift", {"direction_seed": 1.5}, r"direction_seed = 1.5 is not a whole number"),
        ("drift", {"direction_seed": -1}, r"direction_seed = -1 is below 0"),
        ("shrink", {"reach": 0.0}, r"reach = 0.0 is not above 0"),
        ("mimic", {"victim": -1}, r"victim = -1 is below 0"),
        ("not_a_number", {"kind": "zero"}, r"kind = 'zero' is not one of nan, infinity"),
        ("not_a_number", {"parameters": 0}, r"parameters = 0 is not at least 1"),
        ("label_flip", {"share": 1.5}, r"share = 1.5 is not above 0 and at most 1"),
        ("backdoor", {"share": 0.0}, r"share = 0.0 is not above 0 and at most 1"),
        ("backdoor", {"columns": []}, r"columns is empty"),
        ("backdoor", {"columns": ["a"]}, r"columns = \('a',\) is not a list of whole numbers"),
        ("backdoor", {"target": -1}, r"target = -1 is below 0"),
        ("backdoor", {"boost": 0.0}, r"boost = 0.0 is not above 0"),
        ("replay", {"age": 0}, r"age = 0 is not at least 1"),
        ("stale_flood", {"copies": 0}, r"copies = 0 is not at least 1"),
        ("stale_flood", {"depth": 0}, r"depth = 0 is not at least 1"),
    ],
)
def test_a_bad_value_is_refused_and_named(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=rf"^attack {name}: {said}"):
        make(name, **options)


def test_a_list_from_a_file_serves_as_a_tuple() -> None:
    assert make("backdoor", columns=[1, 2]) == make("backdoor", columns=(1, 2))


def test_the_daemon_that_p2pfed_run_starts_never_loads_the_attacks() -> None:
    code = (
        "import sys, p2pfed.daemon.main, p2pfed.daemon.daemon, p2pfed.cli.main;"
        "print([m for m in sys.modules if m.startswith(('p2pfed.attacks', 'p2pfed.demo.'))])"
    )
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"
