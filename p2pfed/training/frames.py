"""What the daemon and its trainer process say to each other. Imports no torch.

A frame is a big-endian u32 length and that many bytes of msgpack: the kind of the message and
its fields. Vectors never travel here; they stand in shared memory (``regions``). Each request
is answered by its counterpart or by :class:`Failed`; a :class:`Train` is answered by any number
of :class:`Progress` first. The end of the stream is the order to end.
"""

import dataclasses
import struct
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgpack
from pydantic import ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass

from p2pfed.errors import Problem, TrainingError
from p2pfed.tasks_catalogue import TaskKind

LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 1024 * 1024
MAX_FRAME_ITEMS = 65_536
MAX_METRICS = 64
MAX_RELIABILITY_BINS = 64
MAX_MESSAGE_CHARACTERS = 4_000
MAX_PROBLEMS = 50

_STRICT = ConfigDict(strict=True, extra="forbid")

Interval = Annotated[tuple[float, float], Strict(strict=False)]
"""The ends of a 95 % confidence interval."""

Bin = Annotated[tuple[float, float, int], Strict(strict=False)]
"""Of a reliability curve: mean predicted probability, observed share, records."""

Side = Literal["in", "out"]
"""Which parameters of the shared memory are meant: what the daemon gave, or what came back."""

FailureKind = Literal["data", "configuration", "task", "training", "out_of_memory"]

TensorShape = Annotated[
    tuple[str, Annotated[tuple[int, ...], Strict(strict=False)]], Strict(strict=False)
]

SpendFields = Annotated[tuple[float, float, int], Strict(strict=False)]
"""Sampling rate, noise multiplier and steps of a part of the training."""


@dataclass(frozen=True, config=_STRICT)
class Open:
    """Load the task and the data. Answered by :class:`Ready`.

    :ivar task_kind: a built-in task, or ``python`` for the class that ``task_class`` names.
    :ivar task_path: a directory of this site to look for that class in as well.
    :ivar options: ``[task.options]`` of the topology file, alike at every site.
    :ivar data: ``[data]`` of the site file.
    :ivar seed: of the genesis model and of every draw made while training.
    :ivar minimum_records: fewer training records than this are refused.
    :ivar threads: intra-op threads; another number gives other bytes for the same round.
    :ivar maximum_local_steps: more than these this site does not take in a round.
    :ivar topology_file: named in messages, like ``site_file``; neither is read.
    :ivar noise_multiplier: with it the site trains with differential privacy: standard deviation
        of the noise over ``clip_norm``, the 2-norm to which each record's gradient is clipped.
    :ivar delta: at which the privacy is accounted.
    """

    task_kind: TaskKind
    site: str
    options: dict[str, Any]
    data: dict[str, Any]
    task_class: str | None = None
    task_path: str | None = None
    seed: int = 0
    device: str = "auto"
    minimum_records: int = 2
    threads: Annotated[int, Field(ge=1)] = 1
    maximum_local_steps: Annotated[int, Field(ge=1)] | None = None
    topology_file: str = "topology.toml"
    site_file: str = "site.toml"
    noise_multiplier: float | None = None
    clip_norm: float | None = None
    delta: float | None = None


@dataclass(frozen=True, config=_STRICT)
class Map:
    """Map the shared memory, now that it has its size. Answered by :class:`Genesis`.

    :ivar write_genesis: put the genesis model in ``parameters_out``. A process that replaces one
        that died must not: the daemon may still be reading a round's result there.
    """

    size_bytes: int
    write_genesis: bool


@dataclass(frozen=True, config=_STRICT)
class Train:
    """Train from ``parameters_in`` and ``state_in``. Answered by :class:`Trained`.

    :ivar noise_secret: what the noise and the sampling of a private round are drawn from; given
        exactly where the task was opened with a noise multiplier.
    """

    round_number: Annotated[int, Field(ge=0)]
    local_steps: Annotated[int, Field(ge=1)]
    noise_secret: Annotated[bytes, Field(min_length=32, max_length=32)] | None = None


@dataclass(frozen=True, config=_STRICT)
class Price:
    """Account for what was spent, and for a round that would begin with ``state_in``. Answered by
    :class:`Priced`.

    :ivar spent: sampling rate, noise multiplier and steps of what was trained so far; the order
        does not matter.
    :ivar local_steps: of the round to come; 0 for none.
    """

    spent: Annotated[tuple[SpendFields, ...], Strict(strict=False)]
    delta: float
    round_number: Annotated[int, Field(ge=0)] = 0
    local_steps: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, config=_STRICT)
class Evaluate:
    """Evaluate on this site's hold-out. Answered by :class:`Evaluated`."""

    side: Side


@dataclass(frozen=True, config=_STRICT)
class EvaluateFile:
    """Evaluate ``parameters_in`` on another data file. Answered by :class:`Evaluated`."""

    path: str


@dataclass(frozen=True, config=_STRICT)
class Export:
    """Write ``parameters_in`` as a safetensors file. Answered by :class:`Exported`."""

    path: str
    metadata: dict[str, str]


@dataclass(frozen=True, config=_STRICT)
class Ready:
    """The task is loaded.

    :ivar dimension: floats in the model's flat vector.
    :ivar state_floats: floats that this site keeps for itself from round to round.
    :ivar kept_state_floats: as many of the first are kept when another model is taken up.
    :ivar schema: name and shape of each tensor, in the order of the flat vector.
    :ivar device: what is trained on, in words.
    :ivar sampling_rate: probability with which a private step draws a record; 0 without privacy.
    """

    dimension: Annotated[int, Field(ge=1)]
    state_floats: Annotated[int, Field(ge=0)]
    kept_state_floats: Annotated[int, Field(ge=0)]
    schema_digest: Annotated[bytes, Field(min_length=32, max_length=32)]
    schema: Annotated[tuple[TensorShape, ...], Strict(strict=False)]
    training_records: int
    holdout_records: int
    device: str
    torch_version: str
    sampling_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


@dataclass(frozen=True, config=_STRICT)
class Genesis:
    """The memory is mapped; ``digest`` is the genesis model's, by ``vector_digest``."""

    digest: Annotated[bytes, Field(min_length=32, max_length=32)]


@dataclass(frozen=True, config=_STRICT)
class Progress:
    """A step of the round under way is done. ``gpu_memory_bytes`` is 0 on a CPU."""

    step: int
    steps: int
    loss: float
    samples_per_second: float
    gpu_memory_bytes: int


@dataclass(frozen=True, config=_STRICT)
class Trained:
    """The round's model stands in ``parameters_out``, its optimiser in ``state_out``.

    :ivar loss: mean over the local steps.
    :ivar samples: training records drawn, counted with repetition.
    """

    loss: float
    seconds: float
    samples: int


@dataclass(frozen=True, config=_STRICT)
class Priced:
    """The price.

    :ivar epsilon: of what was spent.
    :ivar next_spend: sampling rate, noise multiplier and steps of the round to come.
    :ivar epsilon_with_next: of both together.
    """

    epsilon: Annotated[float, Field(ge=0.0)]
    next_spend: SpendFields
    epsilon_with_next: Annotated[float, Field(ge=0.0)]


@dataclass(frozen=True, config=_STRICT)
class Evaluated:
    """The task's metrics over ``records`` records.

    :ivar intervals: by the name of a metric or of a calibration figure; those that there are.
    :ivar calibration: figures of the calibration of a task with two classes, by name.
    :ivar bins: its reliability curve, the smallest predictions first.
    """

    metrics: Annotated[dict[str, float], Field(max_length=MAX_METRICS)]
    records: int
    intervals: Annotated[dict[str, Interval], Field(max_length=2 * MAX_METRICS)] = field(
        default_factory=dict
    )
    calibration: Annotated[dict[str, float], Field(max_length=MAX_METRICS)] = field(
        default_factory=dict
    )
    bins: Annotated[
        tuple[Bin, ...], Strict(strict=False), Field(max_length=MAX_RELIABILITY_BINS)
    ] = ()


@dataclass(frozen=True, config=_STRICT)
class Exported:
    """The file is on disk, durable."""

    path: str
    size_bytes: int
    sha256: Annotated[bytes, Field(min_length=32, max_length=32)]


@dataclass(frozen=True, config=_STRICT)
class ProblemFields:
    """A :class:`p2pfed.errors.Problem` on its way to the daemon."""

    file: str
    key: str
    value: str | None
    reason: str
    remedy: str | None

    @classmethod
    def of(cls, problem: Problem) -> "ProblemFields":
        return cls(str(problem.file), problem.key, problem.value, problem.reason, problem.remedy)

    def problem(self) -> Problem:
        return Problem(Path(self.file), self.key, self.value, self.reason, self.remedy)


@dataclass(frozen=True, config=_STRICT)
class Failed:
    """The request failed; the trainer process is fit for the next one."""

    kind: FailureKind
    message: str
    problems: tuple[ProblemFields, ...] = ()


Request = Open | Map | Price | Train | Evaluate | EvaluateFile | Export
Reply = Ready | Genesis | Progress | Priced | Trained | Evaluated | Exported | Failed
Message = Request | Reply

_KINDS: dict[str, type[Message]] = {
    message.__name__: message
    for message in (
        Open, Map, Price, Train, Evaluate, EvaluateFile, Export,
        Ready, Genesis, Progress, Priced, Trained, Evaluated, Exported, Failed,
    )
}  # fmt: skip


class FrameError(TrainingError):
    """A message that does not fit a frame, or bytes that are none."""


def encode(message: Message) -> bytes:
    """A message as one frame, length included.

    :raises FrameError: over ``MAX_FRAME_BYTES``, or with a value that msgpack has no type for
        (a date in a TOML table).
    """
    fields = dataclasses.asdict(message)
    try:
        body: bytes = msgpack.packb([type(message).__name__, fields], use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise FrameError(
            f"{type(message).__name__} cannot be passed to or from the trainer process: {error}; "
            "tables may hold text, numbers, booleans, lists and tables, no dates"
        ) from error
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(
            f"{type(message).__name__} takes {len(body)} bytes, more than the {MAX_FRAME_BYTES} "
            "that pass between the daemon and its trainer process"
        )
    return LENGTH.pack(len(body)) + body


def body_length(prefix: bytes) -> int:
    """The length that the first ``LENGTH.size`` bytes of a frame announce.

    :raises FrameError: more than ``MAX_FRAME_BYTES``.
    """
    (length,) = LENGTH.unpack(prefix)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes announced; at most {MAX_FRAME_BYTES} are sent")
    return int(length)


def decode(body: bytes) -> Message:
    """The message in a frame's body.

    :raises FrameError: not msgpack, over a limit, of no known kind, or with other fields.
    """
    try:
        document = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_FRAME_BYTES,
            max_bin_len=MAX_FRAME_BYTES,
            max_array_len=MAX_FRAME_ITEMS,
            max_map_len=MAX_FRAME_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise FrameError(f"a frame is not msgpack within limits: {error}") from error
    match document:
        case [str(kind), dict(fields)] if kind in _KINDS:
            pass
        case _:
            raise FrameError("a frame holds no known kind of message")
    if kind == "Failed" and isinstance(fields.get("problems"), list):
        fields["problems"] = tuple(_problem(entry) for entry in fields["problems"])
    return _build(_KINDS[kind], fields)


Built = TypeVar("Built")


def _problem(entry: object) -> ProblemFields:
    if not isinstance(entry, dict):
        raise FrameError("a problem in a frame is no map")
    return _build(ProblemFields, entry)


def _build(kind: type[Built], fields: dict[str, Any]) -> Built:
    try:
        return kind(**fields)
    except (TypeError, ValidationError) as error:
        raise FrameError(f"{kind.__name__} with other fields than its own: {error}") from error
