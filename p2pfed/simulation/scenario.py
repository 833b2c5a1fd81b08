"""The scenario file: what a simulated network and its sites are like, and what befalls them.

TOML beside the topology file, and validated like it. Times are virtual seconds since the start.
Nothing here says who is whose neighbour or how models are combined: that is the topology's.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from p2pfed.attacks import make
from p2pfed.errors import ConfigurationError, Problem, UsageError
from p2pfed.settings import Settings, read_toml, shown, validate

SCENARIO_VERSION = 1
MAX_SECONDS = 1e9
MAX_ENTRIES = 10_000  # of one list of events


def _as_float(value: object) -> object:
    return float(value) if type(value) is int else value


Number = Annotated[float, BeforeValidator(_as_float)]
Seconds = Annotated[Number, Field(ge=0.0, le=MAX_SECONDS)]
Fraction = Annotated[Number, Field(ge=0.0, le=1.0)]
Sites = Annotated[tuple[str, ...], Strict(strict=False)]


class LinkQuality(Settings):
    """One direction of a link. A message takes ``delay_seconds`` and a uniform share of
    ``jitter_seconds``, after the bytes before it have gone."""

    delay_seconds: Seconds = Field(0.02, description="Default 0.02.")
    jitter_seconds: Seconds = Field(0.01, description="Default 0.01.")
    bytes_per_second: Number = Field(12.5e6, gt=0, description="Bandwidth. Default 12.5e6.")
    loss: Fraction = Field(
        0.0,
        description="Probability that a control message is lost, or that an offer, an answer or a "
        "payload breaks the stream it is on. Default 0.",
    )
    duplication: Fraction = Field(
        0.0, description="Probability that a message or an offer comes twice. Default 0."
    )
    reordering: Fraction = Field(
        0.0, description="Probability that a message is overtaken by later ones. Default 0."
    )


class LinkChange(Settings):
    """The quality of one link, both ways, where it differs from ``[links]``."""

    between: Annotated[tuple[str, str], Strict(strict=False)] = Field(
        description="The two sites of the edge."
    )
    delay_seconds: Seconds | None = None
    jitter_seconds: Seconds | None = None
    bytes_per_second: Number | None = Field(None, gt=0)
    loss: Fraction | None = None
    duplication: Fraction | None = None
    reordering: Fraction | None = None


class Pace(Settings):
    """How long a site's own work takes."""

    training_seconds: Seconds = Field(1.0, description="Local training of a round. Default 1.")
    training_spread: Fraction = Field(
        0.2, description="Up to this share longer, drawn for each site and round. Default 0.2."
    )
    work_seconds: Seconds = Field(
        0.02, description="To publish, to apply a delta, to aggregate, to commit. Default 0.02."
    )
    start_spread_seconds: Seconds = Field(
        1.0, description="Sites start at a time drawn from this span. Default 1."
    )


class Straggler(Settings):
    site: str
    factor: Number = Field(gt=0, le=1e6, description="Its training takes this many times longer.")


class Crash(Settings):
    """SIGKILL: what was not durable is lost; the site starts again from its state."""

    site: str
    at_seconds: Seconds
    down_seconds: Seconds


class Freeze(Settings):
    """SIGSTOP: the site neither receives nor sends nor looks at its clock, and then goes on."""

    site: str
    at_seconds: Seconds
    for_seconds: Seconds
    clock: Literal["runs", "stands"] = Field(
        "runs",
        description="stands: its clock stands still as well, as where a virtual machine is "
        "paused. Default runs.",
    )


class Partition(Settings):
    """Nothing passes between ``sites`` and the others; or only one way."""

    sites: Sites = Field(min_length=1)
    at_seconds: Seconds
    for_seconds: Seconds
    direction: Literal["both", "in", "out"] = Field(
        "both",
        description="in: nothing reaches the sites; out: nothing leaves them. Default both.",
    )


class Leave(Settings):
    """The site is taken out of the topology file, and everybody reloads it."""

    site: str
    at_seconds: Seconds


class Join(Settings):
    """The site is not in the topology file before; then it is, and everybody reloads it."""

    site: str
    at_seconds: Seconds


class Clock(Settings):
    """A clock that is wrong from the start. Wall and monotonic clock drift alike."""

    site: str
    offset_seconds: Annotated[Number, Field(ge=-MAX_SECONDS, le=MAX_SECONDS)] = 0.0
    drift: Annotated[Number, Field(gt=-0.5, le=1.0)] = Field(
        0.0, description="0.01: it gains a hundredth."
    )


class Hostile(Settings):
    site: str
    attack: str = Field(description="An attack by name.")
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_an_attack(self) -> "Hostile":
        try:
            make(self.attack, **self.options)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self


class Storm(Settings):
    """Faults drawn by the seed, between ``from_seconds`` and ``until_seconds``."""

    from_seconds: Seconds = 0.0
    until_seconds: Seconds
    crashes: int = Field(0, ge=0, le=MAX_ENTRIES, description="Of sites drawn at random.")
    longest_down_seconds: Seconds = Field(30.0, description="Default 30.")
    partitions: int = Field(0, ge=0, le=MAX_ENTRIES, description="Of a random part of the sites.")
    longest_partition_seconds: Seconds = Field(30.0, description="Default 30.")
    freezes: int = Field(0, ge=0, le=MAX_ENTRIES, description="Of sites drawn at random.")
    longest_freeze_seconds: Seconds = Field(30.0, description="Default 30.")
    cut_links: int = Field(0, ge=0, le=MAX_ENTRIES, description="Single links that break.")


class Scenario(Settings):
    """A whole scenario file; without one, everything has its default."""

    schema_version: Literal[1] = 1
    links: LinkQuality = Field(default_factory=LinkQuality)
    link: Annotated[tuple[LinkChange, ...], Strict(strict=False)] = Field(
        (), max_length=MAX_ENTRIES
    )
    pace: Pace = Field(default_factory=Pace)
    straggler: Annotated[tuple[Straggler, ...], Strict(strict=False)] = ()
    crash: Annotated[tuple[Crash, ...], Strict(strict=False)] = Field((), max_length=MAX_ENTRIES)
    freeze: Annotated[tuple[Freeze, ...], Strict(strict=False)] = Field((), max_length=MAX_ENTRIES)
    partition: Annotated[tuple[Partition, ...], Strict(strict=False)] = Field(
        (), max_length=MAX_ENTRIES
    )
    leave: Annotated[tuple[Leave, ...], Strict(strict=False)] = ()
    join: Annotated[tuple[Join, ...], Strict(strict=False)] = ()
    clock: Annotated[tuple[Clock, ...], Strict(strict=False)] = ()
    hostile: Annotated[tuple[Hostile, ...], Strict(strict=False)] = ()
    storm: Storm | None = None

    @property
    def quiet(self) -> bool:
        """Whether no message is lost in it, and no site is ever away."""
        faults = (self.crash, self.freeze, self.partition, self.leave, self.join, self.storm)
        return not any(faults) and not self.loses_messages

    @property
    def honest_and_quiet(self) -> bool:
        """Whether nothing is to go wrong in it."""
        return self.quiet and not self.hostile

    @property
    def loses_messages(self) -> bool:
        return any((self.links.loss, *(change.loss for change in self.link)))


def load_scenario(path: Path, sites: frozenset[str]) -> Scenario:
    """Read and check a scenario file for a federation of ``sites``.

    :raises ConfigurationError: with everything that is wrong with it.
    """
    scenario = validate(Scenario, read_toml(path), path)
    problems = (
        _unknown_sites(scenario, path, sites)
        + _contradictions(scenario, path)
        + _without_effect(scenario, path, sites)
    )
    if problems:
        raise ConfigurationError(problems)
    return scenario


def _named_sites(scenario: Scenario) -> list[tuple[str, str]]:
    """Every (key, site) of the file."""
    named = [
        (f"{table}[{index}].site", entry.site)
        for table in ("straggler", "crash", "freeze", "leave", "join", "clock", "hostile")
        for index, entry in enumerate(getattr(scenario, table))
    ]
    named += [
        (f"link[{index}].between", site)
        for index, change in enumerate(scenario.link)
        for site in change.between
    ]
    return named + [
        (f"partition[{index}].sites", site)
        for index, partition in enumerate(scenario.partition)
        for site in partition.sites
    ]


def _unknown_sites(scenario: Scenario, path: Path, sites: frozenset[str]) -> list[Problem]:
    return [
        Problem(path, key, repr(site), "the topology file has no such peer", "mend the name")
        for key, site in _named_sites(scenario)
        if site not in sites
    ]


def _contradictions(scenario: Scenario, path: Path) -> list[Problem]:
    problems: list[Problem] = []
    for table in ("straggler", "leave", "join", "clock", "hostile"):
        seen: set[str] = set()
        for index, entry in enumerate(getattr(scenario, table)):
            if entry.site in seen:
                key = f"{table}[{index}].site"
                problems.append(Problem(path, key, repr(entry.site), "it is here twice"))
            seen.add(entry.site)
    if scenario.storm and scenario.storm.until_seconds <= scenario.storm.from_seconds:
        problems.append(
            Problem(
                path,
                "storm.until_seconds",
                str(scenario.storm.until_seconds),
                "is not after from_seconds",
            )
        )
    links: set[frozenset[str]] = set()
    for index, change in enumerate(scenario.link):
        ends = frozenset(change.between)
        if ends in links:
            key = f"link[{index}].between"
            problems.append(Problem(path, key, shown(change.between), "it is here twice"))
        links.add(ends)
    joined = {entry.site: entry.at_seconds for entry in scenario.join}
    for index, entry in enumerate(scenario.leave):
        if joined.get(entry.site, -1.0) >= entry.at_seconds:
            problems.append(
                Problem(
                    path, f"leave[{index}].at_seconds", str(entry.at_seconds), "before it joins"
                )
            )
    return problems


def _without_effect(scenario: Scenario, path: Path, sites: frozenset[str]) -> list[Problem]:
    """What would be taken, and change nothing."""
    problems = [
        Problem(path, f"link[{index}].between", shown(change.between), "has one end only")
        for index, change in enumerate(scenario.link)
        if len(set(change.between)) < 2
    ]
    return problems + [
        Problem(path, f"partition[{index}].sites", shown(partition.sites), "there are no others")
        for index, partition in enumerate(scenario.partition)
        if sites <= set(partition.sites)
    ]
