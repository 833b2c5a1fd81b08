"""Reading a TOML file that an operator wrote into a validated, frozen model.

Shared by the site file and the topology file: whatever is wrong with a file is reported in
one go, each problem with its key, its value and what to write instead.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from p2pfed.errors import ConfigurationError, Problem

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_SHOWN_VALUE_CHARACTERS = 60


class Settings(BaseModel):
    """The base of every table of such a file: unknown keys refused, immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


SettingsT = TypeVar("SettingsT", bound=Settings)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    :raises ConfigurationError: it is missing, unreadable, over ``MAX_FILE_BYTES``, not
        UTF-8, or not TOML; the message carries line and column where the parser knows them.
    """

    def fail(reason: str, remedy: str | None = None) -> ConfigurationError:
        return ConfigurationError([Problem(path, "", None, reason, remedy)])

    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise fail("no such file", "check the path; p2pfed init writes a site file") from None
    except OSError as error:
        raise fail(f"cannot be read: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise fail(f"larger than {MAX_FILE_BYTES} bytes; this is no configuration file")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise fail(f"not UTF-8 at byte {error.start}", "save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise fail(f"not valid TOML: {error}") from error


def validate(model: type[SettingsT], document: dict[str, Any], path: Path) -> SettingsT:
    """Validate a parsed document, reporting every bad key at once.

    :raises ConfigurationError: one problem for each bad key.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # A table with a bad entry is reported as too short as well; the entry says enough.
        tables = {
            details["loc"][:depth] for details in found for depth in range(len(details["loc"]))
        }
        raise ConfigurationError(
            [
                _problem(path, model, details)
                for details in found
                if details["type"] != "too_short" or details["loc"] not in tables
            ]
        ) from error


def _problem(path: Path, model: type[Settings], details: Any) -> Problem:
    location: tuple[str | int, ...] = details["loc"]
    kind: str = details["type"]
    key = dotted(location)
    if kind == "missing":
        return Problem(path, key, None, "required, but missing", "add it")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _known_keys(model, location), n=1)
        remedy = f"did you mean {near[0]!r}?" if near else "remove it"
        return Problem(path, key, shown(details["input"]), "unknown key", remedy)
    reason = str(details["msg"]).removeprefix("Value error, ")
    return Problem(path, key, shown(details["input"]), reason)


def _known_keys(model: type[Settings], location: tuple[str | int, ...]) -> list[str]:
    """The keys a table accepts, found by walking the annotations along ``location``."""
    current: Any = model
    for step in location[:-1]:
        if isinstance(step, int) or not hasattr(current, "model_fields"):
            continue
        fields = current.model_fields
        by_alias = {field.alias or name: field for name, field in fields.items()}
        if step not in by_alias:
            return []
        annotation = by_alias[step].annotation
        arguments = [a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")]
        current = arguments[0] if arguments else annotation
    if not hasattr(current, "model_fields"):
        return []
    return [field.alias or name for name, field in current.model_fields.items()]


def dotted(location: tuple[str | int, ...]) -> str:
    """``("peer", 2, "name")`` -> ``peer[2].name``, as an operator would write it."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def shown(value: object) -> str | None:
    """A value as it may appear in a message: short, and on one line."""
    if isinstance(value, dict):
        return None
    text = repr(value)
    if len(text) > MAX_SHOWN_VALUE_CHARACTERS:
        text = text[: MAX_SHOWN_VALUE_CHARACTERS - 1] + "…"
    return text
