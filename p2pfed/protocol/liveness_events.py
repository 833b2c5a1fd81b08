"""What the failure detector is told, and what it says: the input and output of ``liveness``.

Sites go by their names. As with ``events`` and ``commands``, the shell carries out a command and
reports what comes of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from p2pfed.protocol.events import NeighbourHeard, NeighbourSilent


class Liveness(StrEnum):
    ALIVE = "alive"  # its link is up, and something was heard on it
    SUSPECT = "suspect"  # it is silent or its link is down; others are asked
    UNREACHABLE = "unreachable"  # nobody who was asked hears it: rounds do not wait for it


@dataclass(frozen=True, slots=True)
class Watch:
    """Watch these neighbours and no others.

    :ivar common: for each, the neighbours that this site and it have in common.
    :ivar patience_seconds: for how long the word of others can keep a neighbour that this site
        itself does not hear from being unreachable: the round's deadline.
    """

    common: Mapping[str, frozenset[str]]
    patience_seconds: float


@dataclass(frozen=True, slots=True)
class Linked:
    """The neighbour's hello was accepted."""

    site: str


@dataclass(frozen=True, slots=True)
class Unlinked:
    site: str


@dataclass(frozen=True, slots=True)
class Heard:
    """A byte of the neighbour has come, on any stream."""

    site: str


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """The smoothed round trip of heartbeats."""

    site: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ProbeAsked:
    """``asker`` wants to know whether this site hears ``target``."""

    asker: str
    target: str
    token: int


@dataclass(frozen=True, slots=True)
class ProbeReported:
    """``helper`` says how long ago it heard ``target``; None: it has no link to it."""

    helper: str
    target: str
    token: int
    heard_seconds_ago: float | None


@dataclass(frozen=True, slots=True)
class Tick:
    """Due at a fixed interval; that it comes late is how lag is found."""


LivenessEvent = Watch | Linked | Unlinked | Heard | RoundTrip | ProbeAsked | ProbeReported | Tick


@dataclass(frozen=True, slots=True)
class Ping:
    """Send the neighbour a heartbeat at once: it has to answer."""

    site: str


@dataclass(frozen=True, slots=True)
class AskHelper:
    """Ask ``helper`` whether it hears ``target``."""

    helper: str
    target: str
    token: int


@dataclass(frozen=True, slots=True)
class AnswerProbe:
    """Tell ``asker`` how long ago this site heard ``target``; None: there is no link to it."""

    asker: str
    target: str
    token: int
    heard_seconds_ago: float | None


@dataclass(frozen=True, slots=True)
class LivenessChanged:
    """For the log; ``vouched_by`` are those who hear it, and ``silent_seconds`` is for how long
    this site itself has not."""

    site: str
    before: Liveness
    after: Liveness
    silent_seconds: float
    vouched_by: tuple[str, ...]


# The last two go to the round engine.
LivenessCommand = (
    Ping | AskHelper | AnswerProbe | LivenessChanged | NeighbourSilent | NeighbourHeard
)
