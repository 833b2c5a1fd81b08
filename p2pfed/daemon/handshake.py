"""The two hellos with which a link begins: this end's, and the check of the neighbour's."""

import trio

from p2pfed.daemon.link_state import Link, LinkHandler
from p2pfed.daemon.transport import Stream
from p2pfed.errors import IncompatiblePeerError, RemoteProtocolError, TransportError
from p2pfed.keys import peer_id_from_public_key
from p2pfed.protocol import limits
from p2pfed.protocol.certificates import parse_certificate
from p2pfed.protocol.messages import (
    FrameReader,
    Hello,
    Message,
    Refusal,
    RefusalCode,
    decode_message,
    encode_message,
)

HANDSHAKE_TIMEOUT_SECONDS = 60.0  # on a link of 0.3 MB/s a stream can take 9 s to open
GOODBYE_TIMEOUT_SECONDS = 2.0  # for the other end to read why a link ends


async def shake_hands(
    stream: Stream, reader: FrameReader, link: Link, handler: LinkHandler
) -> tuple[Hello, Hello]:
    """Exchange hellos: this end's, and the neighbour's.

    :raises IncompatiblePeerError: either end refuses the other; both then know why.
    :raises RemoteProtocolError: the neighbour says something else.
    :raises TransportError: the stream ended.
    """
    with trio.fail_after(HANDSHAKE_TIMEOUT_SECONDS):
        said = handler.local_hello()
        await stream.send_all(encode_message(said))
        first = await next_message(stream, reader)
        refusal = None
        if isinstance(first, Hello):
            refusal = _check(link, first, handler)
            if refusal is not None:
                await stream.send_all(encode_message(refusal))
                # Leave the other end time to read why before the connection goes.
                await _await_end(stream)
        elif isinstance(first, Refusal):
            raise IncompatiblePeerError(f"{link.name} refuses: {first.detail}")
        else:
            raise RemoteProtocolError("its first message is no hello")
    if refusal is not None:
        raise IncompatiblePeerError(refusal.detail)
    return said, first


def _check(link: Link, hello: Hello, handler: LinkHandler) -> Refusal | None:
    if hello.version != limits.PROTOCOL_VERSION:
        return Refusal(
            RefusalCode.OTHER_VERSION,
            f"{link.name} speaks protocol {hello.version}, this site "
            f"{limits.PROTOCOL_VERSION}; install the same p2pfed release at both",
        )
    certificate = parse_certificate(hello.certificate)
    if peer_id_from_public_key(certificate.owner) != link.peer_id:
        raise RemoteProtocolError("its encryption key is certified by somebody else")
    refusal = handler.check_hello(link.peer_id, hello)
    if refusal is None:
        link.encryption_key = certificate.encryption_key
    return refusal


async def next_message(stream: Stream, reader: FrameReader) -> Message:
    """The next message of a control stream.

    :raises RemoteProtocolError: it is none.
    :raises TransportError: the stream ended.
    """
    while True:
        for body in reader.feed(b""):
            return decode_message(body)
        data = await stream.receive_some()
        if not data:
            raise TransportError("the neighbour closed the link")
        for body in reader.feed(data):
            return decode_message(body)


async def _await_end(stream: Stream) -> None:
    with trio.move_on_after(GOODBYE_TIMEOUT_SECONDS):
        try:
            while await stream.receive_some():
                pass
        except TransportError:
            return
