"""The messages of circuit relay v2 (libp2p specifications, relay/circuit-v2).

A message is a protobuf behind its length as an unsigned varint. The generated protobuf module
is the library's; its protocol logic needs the library's host, which is not used here.
"""

from enum import IntEnum
from typing import TypeVar

from google.protobuf.message import DecodeError
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.utils.varint import encode_uvarint

from p2pfed.daemon.transport import Stream
from p2pfed.errors import MalformedMessageError

HOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/hop"  # client to relay
STOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/stop"  # relay to the circuit's far end
MAX_MESSAGE_BYTES = 4096  # the specification's limit
MAX_PEER_ID_BYTES = 128

HopMessage = circuit_pb2.HopMessage
StopMessage = circuit_pb2.StopMessage
_Kind = TypeVar("_Kind", HopMessage, StopMessage)


class Status(IntEnum):
    """The specification's status codes."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


_MEANINGS = {
    Status.RESERVATION_REFUSED: "it takes no reservation",
    Status.RESOURCE_LIMIT_EXCEEDED: "it relays as much as its site file allows",
    Status.PERMISSION_DENIED: "it does not allow this",
    Status.CONNECTION_FAILED: "it cannot reach the other end",
    Status.NO_RESERVATION: "the other end has not asked it to relay",
    Status.MALFORMED_MESSAGE: "it could not read the request",
    Status.UNEXPECTED_MESSAGE: "it did not expect the request",
}


def meaning(status: int) -> str:
    """A status in words that tell an operator what to look at."""
    try:
        return _MEANINGS[Status(status)]
    except (ValueError, KeyError):
        return f"it answered with status {status}"


def hop_reserve() -> HopMessage:
    return HopMessage(type=HopMessage.RESERVE)


def hop_connect(peer_id: str) -> HopMessage:
    return HopMessage(type=HopMessage.CONNECT, peer=_peer(peer_id))


def hop_status(status: Status) -> HopMessage:
    return HopMessage(type=HopMessage.STATUS, status=circuit_pb2.Status.ValueType(status))


def stop_connect(peer_id: str, limit: circuit_pb2.Limit) -> StopMessage:
    return StopMessage(type=StopMessage.CONNECT, peer=_peer(peer_id), limit=limit)


def stop_status(status: Status) -> StopMessage:
    return StopMessage(type=StopMessage.STATUS, status=circuit_pb2.Status.ValueType(status))


def limit_of(circuit_seconds: int, circuit_bytes: int) -> circuit_pb2.Limit:
    """How long a circuit lasts, and the bytes it carries in each direction."""
    return circuit_pb2.Limit(duration=circuit_seconds, data=circuit_bytes)


def reservation_until(expires_at_unix_seconds: int) -> circuit_pb2.Reservation:
    """Without addresses and voucher, both of which are optional: members know each other's
    addresses from the topology file and from signed records."""
    return circuit_pb2.Reservation(expire=expires_at_unix_seconds)


def peer_of(message: HopMessage | StopMessage) -> str:
    """:raises MalformedMessageError: the message names no peer."""
    raw = message.peer.id
    if not raw or len(raw) > MAX_PEER_ID_BYTES:
        raise MalformedMessageError("a circuit message without a peer id")
    return str(ID(raw))


def _peer(peer_id: str) -> circuit_pb2.PeerId:
    return circuit_pb2.PeerId(id=ID.from_string(peer_id).to_bytes())


def is_ok(message: HopMessage | StopMessage) -> bool:
    return int(message.status) == Status.OK


def encode(message: HopMessage | StopMessage) -> bytes:
    body: bytes = message.SerializeToString()
    prefix: bytes = encode_uvarint(len(body))
    return prefix + body


async def read_hop(stream: Stream) -> HopMessage:
    """:raises MalformedMessageError: no message of the protocol.
    :raises TransportError: the stream ended.
    """
    return _parse(HopMessage, await _read_body(stream))


async def read_stop(stream: Stream) -> StopMessage:
    """As ``read_hop``."""
    return _parse(StopMessage, await _read_body(stream))


async def _read_body(stream: Stream) -> bytes:
    """Not a byte beyond the message: what follows it belongs to the circuit."""
    length = shift = 0
    while True:
        (byte,) = await stream.receive_exactly(1)
        length |= (byte & 0x7F) << shift
        if length > MAX_MESSAGE_BYTES or (byte & 0x80 and shift >= 7):
            raise MalformedMessageError(f"a circuit message of more than {MAX_MESSAGE_BYTES} bytes")
        if not byte & 0x80:
            return await stream.receive_exactly(length)
        shift += 7


def _parse(kind: type[_Kind], body: bytes) -> _Kind:
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise MalformedMessageError("bytes that are no circuit message") from error
    if not message.HasField("type"):
        raise MalformedMessageError("a circuit message without a type")
    return message
