"""What neighbours say to each other on the control stream, and the answers to an offer.

A frame is a 32-bit big-endian length and a canonical msgpack array: the message's code, then
its fields.
"""

import dataclasses
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from p2pfed.errors import MalformedMessageError
from p2pfed.protocol import limits
from p2pfed.protocol.canonical import pack, unpack
from p2pfed.protocol.fields import FieldReader

LENGTH_PREFIX = struct.Struct("!I")
MAX_TOKEN = 2**32 - 1
NEVER_HEARD = -1  # of a ProbeReport


class RefusalCode(StrEnum):
    """Why a link is not used. Both ends show it to their operators."""

    OTHER_VERSION = "other_version"
    OTHER_FEDERATION = "other_federation"
    OTHER_TOPOLOGY = "other_topology"
    OTHER_SCHEMA = "other_schema"
    OTHER_GENESIS = "other_genesis"
    NOT_A_NEIGHBOUR = "not_a_neighbour"
    QUARANTINED = "quarantined"


class AnswerCode(StrEnum):
    """What is said to an offer of a payload."""

    SEND = "send"
    HAVE = "have"
    NOT_NOW = "not_now"
    STALE = "stale"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message in each direction. Digests are 32 bytes."""

    version: int
    software: str
    federation_name: str
    federation_id: bytes
    topology_digest: bytes
    schema_digest: bytes
    genesis_digest: bytes
    certificate: bytes  # certificates.issue_certificate
    address_record: bytes  # certificates.issue_address_record
    round_number: int
    phase: str
    published_round: int  # -1 before the first
    published_replica: bytes


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life; answered by ``HeartbeatReply`` with the same token."""

    token: int
    round_number: int
    phase: str


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    token: int
    round_number: int
    phase: str


@dataclass(frozen=True, slots=True)
class Want:
    """Send me what I miss of you, from the replica that I hold on."""

    replica_held: bytes


@dataclass(frozen=True, slots=True)
class HeaderNotice:
    """A member's signed delta header, passed on."""

    encoded: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class EquivocationProof:
    """Two signed delta headers of one sender for one round."""

    first_encoded: bytes
    first_signature: bytes
    second_encoded: bytes
    second_signature: bytes


@dataclass(frozen=True, slots=True)
class AddressRecordNotice:
    """A member's signed addresses, passed on."""

    record: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """This link is of no use, and why."""

    code: RefusalCode
    detail: str


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender stops; nothing is wrong."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to an offer. With SEND, chunks are wanted from ``first_chunk`` on."""

    code: AnswerCode
    first_chunk: int
    detail: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """The end of a transfer: whether everything arrived and held."""

    accepted: bool
    detail: str


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Do you hear ``target``, a neighbour of us both? Answered by a ``ProbeReport`` with the same
    token."""

    target: bytes  # public key
    token: int


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """How long ago the sender last heard ``target``; ``NEVER_HEARD`` without a link to it."""

    target: bytes  # public key
    token: int
    heard_milliseconds_ago: int


Message = (
    Hello
    | Heartbeat
    | HeartbeatReply
    | Want
    | HeaderNotice
    | EquivocationProof
    | AddressRecordNotice
    | Refusal
    | Goodbye
    | Answer
    | Receipt
    | ProbeRequest
    | ProbeReport
)


def _enumerated(kind: type[StrEnum]) -> Callable[[FieldReader], StrEnum]:
    def read(fields: FieldReader) -> StrEnum:
        text = fields.text(limits.MAX_NAME_CHARACTERS)
        try:
            return kind(text)
        except ValueError:
            raise MalformedMessageError(f"{text!r} is no {kind.__name__}") from None

    return read


def _round(fields: FieldReader) -> int:
    return fields.integer(0, limits.MAX_ROUND_NUMBER)


def _name(fields: FieldReader) -> str:
    return fields.text(limits.MAX_NAME_CHARACTERS)


def _header(fields: FieldReader) -> bytes:
    return fields.some_bytes(limits.MAX_HEADER_BYTES)


def _signature(fields: FieldReader) -> bytes:
    return fields.exact_bytes(limits.SIGNATURE_BYTES)


def _record(fields: FieldReader) -> bytes:
    return fields.some_bytes(limits.MAX_RECORD_BYTES)


def _token(fields: FieldReader) -> int:
    return fields.integer(0, MAX_TOKEN)


def _public_key(fields: FieldReader) -> bytes:
    return fields.exact_bytes(limits.PUBLIC_KEY_BYTES)


_Readers = tuple[Callable[[FieldReader], object], ...]
_HEARTBEAT: _Readers = (_token, _round, _name)

# Code on the wire -> type and how each of its fields is read, in order.
_LAYOUT: Mapping[int, tuple[type[Message], _Readers]] = MappingProxyType(
    {
        1: (
            Hello,
            (
                lambda fields: fields.integer(0, limits.MAX_ROUND_NUMBER),
                _name,
                _name,
                FieldReader.digest,
                FieldReader.digest,
                FieldReader.digest,
                FieldReader.digest,
                _record,
                _record,
                _round,
                _name,
                lambda fields: fields.integer(-1, limits.MAX_ROUND_NUMBER),
                FieldReader.digest,
            ),
        ),
        2: (Heartbeat, _HEARTBEAT),
        3: (HeartbeatReply, _HEARTBEAT),
        4: (Want, (FieldReader.digest,)),
        5: (HeaderNotice, (_header, _signature)),
        6: (EquivocationProof, (_header, _signature, _header, _signature)),
        7: (AddressRecordNotice, (_record,)),
        8: (Refusal, (_enumerated(RefusalCode), FieldReader.text)),
        9: (Goodbye, (FieldReader.text,)),
        10: (
            Answer,
            (
                _enumerated(AnswerCode),
                lambda fields: fields.integer(0, limits.MAX_CHUNKS),
                FieldReader.text,
            ),
        ),
        11: (Receipt, (FieldReader.boolean, FieldReader.text)),
        12: (ProbeRequest, (_public_key, _token)),
        13: (
            ProbeReport,
            (
                _public_key,
                _token,
                lambda fields: fields.integer(NEVER_HEARD, limits.MAX_HEARD_MILLISECONDS),
            ),
        ),
    }
)
_CODES: Mapping[type[Message], int] = MappingProxyType(
    {kind: code for code, (kind, _) in _LAYOUT.items()}
)


def encode_message(message: Message) -> bytes:
    """The whole frame, length prefix included. Texts are cut to what the receiver takes."""
    values: list[object] = [_CODES[type(message)]]
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if isinstance(value, str):
            value = str(value)[: limits.MAX_TEXT_CHARACTERS]
        values.append(value)
    return frame(pack(values))


def decode_message(body: bytes) -> Message:
    """Decode a frame's body.

    :raises MalformedMessageError: unknown code, or any field of the wrong type or range.
    """
    value = unpack(body, max_bytes=limits.MAX_MESSAGE_BYTES)
    code = value[0] if isinstance(value, list) and value else None
    if type(code) is not int or code not in _LAYOUT:
        raise MalformedMessageError("a message of unknown kind")
    kind, readers = _LAYOUT[code]
    fields = FieldReader(kind.__name__, value[1:], len(readers))
    construct: Callable[..., Message] = kind
    return construct(*(read(fields) for read in readers))


def frame(body: bytes) -> bytes:
    return LENGTH_PREFIX.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frame bodies.

    :param max_bytes: the longest body; a longer one is refused by its length alone.
    """

    def __init__(self, max_bytes: int = limits.MAX_MESSAGE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes and yield the bodies that they complete.

        :raises MalformedMessageError: a frame claims to be longer than ``max_bytes``.
        """
        self._buffer += data
        while len(self._buffer) >= LENGTH_PREFIX.size:
            (length,) = LENGTH_PREFIX.unpack_from(self._buffer)
            if length > self._max_bytes:
                raise MalformedMessageError(
                    f"a frame of {length} bytes, at most {self._max_bytes} are allowed"
                )
            end = LENGTH_PREFIX.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[LENGTH_PREFIX.size : end])
            del self._buffer[:end]
            yield body
