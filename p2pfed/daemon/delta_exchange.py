"""One envelope over one stream: offer, answer, chunks, receipt.

The sender offers a header and the digest of every chunk. The receiver says from which chunk
on it wants the payload, so a transfer that broke off goes on where it was. Each chunk is
checked and decrypted in a worker thread while the next is read; what was checked is spooled
to disk. The end of a stream proves nothing: count and digests decide.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from p2pfed.daemon.transport import Stream, Transport
from p2pfed.errors import MalformedMessageError, RemoteProtocolError, TransportError
from p2pfed.protocol import limits
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.envelope import ChunkOpener, Offer, check_payload_shape, sealed_chunk_bytes
from p2pfed.protocol.header import Header, SignedHeader
from p2pfed.protocol.messages import (
    LENGTH_PREFIX,
    Answer,
    AnswerCode,
    Receipt,
    decode_message,
    encode_message,
    frame,
)

log = structlog.get_logger(__name__)

INLINE_BYTES = 64 * 1024  # a chunk that is opened sooner than a thread could be asked to
MEMORY_BYTES = 256 * 1024  # a payload that is not worth a file
OPENING_THREADS = 2
CHUNKS_IN_FLIGHT = 3  # received but not yet checked
RESUMABLE_PER_PEER = 2  # interrupted transfers whose verified part is kept


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """How an offer ended; ``delivered`` is true also where the neighbour had it already."""

    delivered: bool
    code: AnswerCode
    detail: str


async def send_envelope(
    transport: Transport, peer_id: str, offer: Offer, ciphertext: Path
) -> SendOutcome:
    """Offer an envelope to a connected neighbour and send what it asks for.

    :raises TransportError: the stream failed; it may be tried again.
    :raises FileNotFoundError: the ciphertext is not retained any more.
    """
    with ciphertext.open("rb") as file:
        stream = await transport.open_stream(peer_id, limits.DELTA_PROTOCOL)
        try:
            await stream.send_all(frame(offer.encode()))
            answer = await _receive(stream)
            if not isinstance(answer, Answer):
                raise TransportError("it answered an offer with something else")
            if answer.code is AnswerCode.SEND:
                header = offer.signed.header
                if answer.first_chunk > header.chunk_count:
                    raise TransportError("it asks for a chunk that does not exist")
                file.seek(answer.first_chunk * sealed_chunk_bytes(header, 0))
                for _ in range(answer.first_chunk, header.chunk_count):
                    # At most 1 MiB from a file that was just written: no thread is worth it.
                    await stream.send_all(file.read(sealed_chunk_bytes(header, 0)))
                receipt = await _receive(stream)
                if not isinstance(receipt, Receipt):
                    raise TransportError("it ended a transfer without a receipt")
                if not receipt.accepted:
                    raise TransportError(f"it did not accept the payload: {receipt.detail}")
                outcome = SendOutcome(True, answer.code, receipt.detail)
            else:
                outcome = SendOutcome(answer.code is AnswerCode.HAVE, answer.code, answer.detail)
        except RemoteProtocolError as error:
            await stream.abort()
            raise TransportError(str(error)) from error
        except BaseException:
            await stream.abort()
            raise
        await stream.close()
        return outcome


async def _receive(stream: Stream) -> Answer | Receipt:
    body = await _receive_frame(stream, limits.MAX_MESSAGE_BYTES)
    message = decode_message(body)
    if not isinstance(message, Answer | Receipt):
        raise MalformedMessageError("not an answer")
    return message


async def _receive_frame(stream: Stream, max_bytes: int) -> bytes:
    (length,) = LENGTH_PREFIX.unpack(await stream.receive_exactly(LENGTH_PREFIX.size))
    if length > max_bytes:
        raise MalformedMessageError(f"a frame of {length} bytes, at most {max_bytes} are allowed")
    return await stream.receive_exactly(length)


class ReceivedPayload:
    """A whole payload, checked and decrypted; in memory or in a spool file of its own."""

    def __init__(self, signed: SignedHeader, content: bytes | Path) -> None:
        self.signed = signed
        self._content = content

    def chunks(self) -> Iterator[bytes]:
        """The encoded payload, chunk by chunk, in order."""
        codec = get_codec(self.signed.header.codec)
        chunk_bytes = codec.encoded_bytes(codec.chunk_parameters)
        if isinstance(self._content, bytes):
            for start in range(0, len(self._content), chunk_bytes):
                yield self._content[start : start + chunk_bytes]
        else:
            with self._content.open("rb") as file:
                while chunk := file.read(chunk_bytes):
                    yield chunk

    def close(self) -> None:
        if isinstance(self._content, Path):
            self._content.unlink(missing_ok=True)

    def __enter__(self) -> "ReceivedPayload":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Spool:
    """Where one payload's plaintext grows; resumable where it is a file."""

    def __init__(self, header: Header, path: Path) -> None:
        self._header = header
        self._path = path
        self._memory: bytearray | None = None
        self._file = -1
        self.chunks_held = 0
        if header.payload_bytes <= MEMORY_BYTES:
            self._memory = bytearray()
            return
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        full = sealed_chunk_bytes(header, 0) - limits.SEAL_BYTES
        # Only whole chunks were checked; a torn last one is received again.
        self.chunks_held = min(os.fstat(self._file).st_size // full, header.chunk_count)
        os.truncate(self._file, self.chunks_held * full)
        os.lseek(self._file, 0, os.SEEK_END)

    def append(self, plaintext: bytes) -> None:
        if self._memory is not None:
            self._memory += plaintext
        else:
            os.write(self._file, plaintext)
        self.chunks_held += 1

    def finish(self, signed: SignedHeader) -> ReceivedPayload:
        """:raises MalformedMessageError: the length is not the one that was announced."""
        content = bytes(self._memory) if self._memory is not None else self._path
        held = len(content) if isinstance(content, bytes) else os.fstat(self._file).st_size
        self.close()
        if held != self._header.payload_bytes:
            raise MalformedMessageError(f"{held} bytes of {self._header.payload_bytes} came")
        return ReceivedPayload(signed, content)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@dataclass(frozen=True, slots=True)
class ExchangeHandler:
    """What the receiving side needs of the daemon.

    ``decide`` answers an offer whose header was verified; ``unwrap`` gives its payload key;
    ``deliver`` takes a whole payload; ``aborted`` hears that an accepted one will not come.
    """

    decide: Callable[[str, Offer], tuple[AnswerCode, str]]
    unwrap: Callable[[str, Offer], bytes]
    deliver: Callable[[str, ReceivedPayload], None]
    aborted: Callable[[str, SignedHeader], None]


class DeltaReceiver:
    """The receiving side of one daemon.

    :param dimension: parameters of the federation's model; a payload of any other length is
        refused before anything is allocated for it.
    """

    def __init__(self, spool_directory: Path, dimension: int, handler: ExchangeHandler) -> None:
        self._directory = spool_directory
        self._dimension = dimension
        self._handler = handler
        self._busy: dict[str, trio.Lock] = {}
        self._threads = trio.CapacityLimiter(OPENING_THREADS)
        for left_over in spool_directory.iterdir():
            left_over.unlink()

    async def handle(self, stream: Stream) -> None:
        """The stream handler: take at most one envelope."""
        async with self._busy.setdefault(stream.peer_id, trio.Lock()):
            try:
                await self._receive_envelope(stream)
            except RemoteProtocolError as error:
                log.warning("bad transfer", peer=stream.peer_id, reason=str(error))
                await stream.abort()
            except TransportError as error:
                log.info("transfer broke off", peer=stream.peer_id, reason=str(error))
                await stream.abort()

    async def _receive_envelope(self, stream: Stream) -> None:
        offer = Offer.decode(await _receive_frame(stream, limits.MAX_OFFER_BYTES))
        header = offer.signed.header
        check_payload_shape(header, self._dimension)
        code, detail = self._handler.decide(stream.peer_id, offer)
        if code is not AnswerCode.SEND:
            await stream.send_all(encode_message(Answer(code, 0, detail)))
            await stream.close()
            return
        delivered = False
        try:
            payload = await self._receive_payload(stream, offer)
            delivered = True
            self._handler.deliver(stream.peer_id, payload)
        finally:
            if not delivered:
                self._handler.aborted(stream.peer_id, offer.signed)
        await stream.send_all(encode_message(Receipt(True, "")))
        await stream.close()

    async def _receive_payload(self, stream: Stream, offer: Offer) -> ReceivedPayload:
        header = offer.signed.header
        opener = ChunkOpener(
            header, offer.chunk_digests, self._handler.unwrap(stream.peer_id, offer)
        )
        path = self._directory / f"{stream.peer_id}-{offer.signed.digest.hex()}"
        self._forget_older(stream.peer_id, path)
        spool = _Spool(header, path)
        try:
            first = spool.chunks_held
            await stream.send_all(encode_message(Answer(AnswerCode.SEND, first, "")))
            if sealed_chunk_bytes(header, 0) <= INLINE_BYTES:
                await _open_inline(stream, header, opener, spool)
            else:
                await self._open_in_threads(stream, header, opener, spool)
            return spool.finish(offer.signed)
        except RemoteProtocolError as error:
            path.unlink(missing_ok=True)
            await stream.send_all(encode_message(Receipt(False, str(error))))
            raise
        finally:
            spool.close()

    async def _open_in_threads(
        self, stream: Stream, header: Header, opener: ChunkOpener, spool: _Spool
    ) -> None:
        """Check and decrypt a chunk in a thread while the next ones are read."""
        sender, receiver = trio.open_memory_channel[tuple[int, bytes]](CHUNKS_IN_FLIGHT)
        failures: list[RemoteProtocolError | TransportError] = []

        def open_and_keep(index: int, sealed: bytes) -> None:
            spool.append(opener.open(index, sealed))

        async def read() -> None:
            async with sender:
                try:
                    for index in range(spool.chunks_held, header.chunk_count):
                        sealed = await stream.receive_exactly(sealed_chunk_bytes(header, index))
                        await sender.send((index, sealed))
                except TransportError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery, receiver:
            nursery.start_soon(read)
            async for index, sealed in receiver:
                try:
                    await trio.to_thread.run_sync(
                        open_and_keep, index, sealed, limiter=self._threads
                    )
                except RemoteProtocolError as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]

    def _forget_older(self, peer_id: str, keep: Path) -> None:
        """Bound what interrupted transfers of one peer leave behind."""
        others = sorted(
            (path for path in self._directory.glob(f"{peer_id}-*") if path != keep),
            key=lambda path: path.stat().st_mtime,
        )
        for path in others[: max(0, len(others) - (RESUMABLE_PER_PEER - 1))]:
            path.unlink()


async def _open_inline(stream: Stream, header: Header, opener: ChunkOpener, spool: _Spool) -> None:
    for index in range(spool.chunks_held, header.chunk_count):
        sealed = await stream.receive_exactly(sealed_chunk_bytes(header, index))
        spool.append(opener.open(index, sealed))
