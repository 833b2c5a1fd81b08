"""Every error that p2pfed raises on purpose.

One hierarchy, so that a caller can catch exactly as much as it can handle. The process
exit code of each branch stands on the class: the command line needs no table of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """Exit codes of the ``p2pfed`` command; documented in the README and stable."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    TIMEOUT = 4
    CONFIGURATION = 78  # EX_CONFIG of sysexits(3); systemd does not restart on it when asked


class P2pfedError(Exception):
    """The base of all of them; its text is fit to be shown to an operator."""

    exit_code = ExitCode.FAILED


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one key of one file.

    ``key`` is a dotted path (``aggregation.rule``, ``peer[2].name``), empty where the file
    as a whole is meant. ``value`` is what stood there, already shortened and free of secrets.
    """

    file: Path
    key: str
    value: str | None
    reason: str
    remedy: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}: {self.key}" if self.key else str(self.file)
        found = f" = {self.value}" if self.value is not None else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{place}{found}: {self.reason}{remedy}"


class ConfigurationError(P2pfedError):
    """A file that an operator edits cannot be used; carries *all* that is wrong with it."""

    exit_code = ExitCode.CONFIGURATION

    def __init__(self, problems: list[Problem]) -> None:
        if not problems:
            raise ValueError("a ConfigurationError names at least one problem")
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))

    def __reduce__(self) -> tuple[type["ConfigurationError"], tuple[list[Problem]]]:
        # Between processes; an exception's default would make it of its text.
        return type(self), (list(self.problems),)


class KeyFileError(ConfigurationError):
    """A key file is missing, damaged, or readable by somebody else."""


class DataError(ConfigurationError):
    """A site's data do not fit what the topology file says of the task."""


class UsageError(P2pfedError):
    """The command line itself makes no sense."""

    exit_code = ExitCode.USAGE


class ProtocolError(P2pfedError):
    """The base of what goes wrong between peers."""


class LocalProtocolError(ProtocolError):
    """*This* side broke a rule of the protocol core: a bug here, never the peer's fault."""


class RemoteProtocolError(ProtocolError):
    """The *peer* sent something that no correct peer sends. It costs that peer its message
    or its link, and never this daemon."""


class MalformedMessageError(RemoteProtocolError):
    """Bytes that do not parse, are not canonical, or exceed a limit of ``protocol.limits``."""


class AuthenticationError(RemoteProtocolError):
    """A signature, seal, key commitment or digest does not hold."""


class IncompatiblePeerError(RemoteProtocolError):
    """The peer is honest but runs another federation, topology, schema or version."""


class AggregationError(P2pfedError):
    """Models that cannot be aggregated: unlike lengths, or values that are not finite.

    ``site`` names the neighbour at fault, where it is one.
    """

    def __init__(self, message: str, site: str | None = None) -> None:
        super().__init__(message)
        self.site = site


class TransportError(P2pfedError):
    """A link or a stream failed, or could not be made."""


class TrainingError(P2pfedError):
    """The trainer process reported a failure of the task or of the training loop."""


class TrainerDiedError(TrainingError):
    """The trainer process ended without an answer (killed, out of memory, a CUDA fault)."""


class StoreError(P2pfedError):
    """The state directory cannot be read or written, or another daemon holds it."""


class DamagedStateError(StoreError):
    """A stored object does not match the digest recorded for it."""


class ControlError(P2pfedError):
    """The daemon answered a command with an error."""


class NotRunningError(ControlError):
    """No daemon answers on the control socket."""

    exit_code = ExitCode.NOT_RUNNING


class ControlTimeoutError(ControlError):
    """The daemon did not answer in time."""

    exit_code = ExitCode.TIMEOUT


class InvariantError(P2pfedError):
    """Something that must hold in every simulation did not.

    ``checker`` names what; the text carries the seed, the end of the event trace and, where it
    is known, the command that runs the same simulation again.
    """

    def __init__(
        self,
        checker: str,
        detail: str,
        seed: int,
        now_seconds: float,
        trace: Sequence[str],
        replay: str,
    ) -> None:
        self.checker = checker
        self.seed = seed
        lines = [f"{checker}, seed {seed}, at {now_seconds:.3f} s: {detail}"]
        if replay:
            lines.append(f"run it again: {replay}")
        super().__init__("\n".join([*lines, "the last events:", *trace]))
