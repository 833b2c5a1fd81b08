"""Every attack by its name."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from p2pfed.attacks.attack import Attack
from p2pfed.attacks.blunt import Gaussian, NotANumber, SignFlip
from p2pfed.attacks.free_riding import Echo, Noise, Zero
from p2pfed.attacks.hidden import (
    ALittleIsEnough,
    Dissensus,
    Drift,
    InnerProductManipulation,
    Mimic,
    MinMax,
    Shrink,
)
from p2pfed.attacks.messages import Equivocation, Replay, StaleFlood
from p2pfed.attacks.poisoning import Backdoor, LabelFlip
from p2pfed.errors import UsageError

ATTACKS: Mapping[str, type[Attack]] = MappingProxyType(
    {
        attack.name: attack
        for attack in (
            SignFlip,
            Gaussian,
            LabelFlip,
            ALittleIsEnough,
            InnerProductManipulation,
            MinMax,
            Dissensus,
            Drift,
            Shrink,
            Mimic,
            Backdoor,
            Echo,
            Zero,
            Noise,
            NotANumber,
            Equivocation,
            Replay,
            StaleFlood,
        )
    }
)


def make(name: str, **options: object) -> Attack:
    """The attack of that name. A list stands for a tuple, as it comes out of a TOML file.

    :raises UsageError: for a name or an option that there is not, or a bad value.
    """
    if name not in ATTACKS:
        raise UsageError(f"no attack is called {name!r}; there are {', '.join(ATTACKS)}")
    attack = ATTACKS[name]
    known = [option.name for option in dataclasses.fields(attack)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            there_are = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UsageError(f"attack {name}: no option is called {option!r}; {there_are}")
    values = {
        option: tuple(value) if isinstance(value, list) else value
        for option, value in options.items()
    }
    return attack(**values)
