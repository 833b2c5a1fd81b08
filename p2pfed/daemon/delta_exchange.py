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
from typing import BinaryIO

import structlog
import trio

from p2pfed.daemon.durable_files import SpareFiles
from p2pfed.daemon.transport import Stream, Transport
from p2pfed.errors import (
    AuthenticationError,
    MalformedMessageError,
    RemoteProtocolError,
    TransportError,
)
from p2pfed.keys import peer_id_from_public_key
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
PARTIAL_SUFFIX = ".partial"  # in the spool directory, with what was checked so far
WHOLE_SUFFIX = ".payload"  # waiting to be applied
SPARE_FILES = 2  # of payloads that were applied, to be overwritten by the next
RESUMABLE_PER_PEER = 2  # interrupted transfers whose verified part is kept
CHUNK_TIMEOUT_SECONDS = 60.0  # for an offer or a chunk of 1 MiB: at least 17 KB/s
# Chunks that were written may still be on their way before the reply: the multiplexer lets
# 16 MiB be under way, which is 53 s at 0.3 MB/s.
REPLY_TIMEOUT_SECONDS = 120.0
REASON_TIMEOUT_SECONDS = 1.0  # it came before the stream broke, or never will


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
            outcome = await _transfer(stream, offer, file)
        except RemoteProtocolError as error:
            await stream.abort()
            raise TransportError(str(error)) from error
        except BaseException:
            await stream.abort()
            raise
        await stream.close()
        return outcome


async def _transfer(stream: Stream, offer: Offer, file: BinaryIO) -> SendOutcome:
    """Offer, then send the chunks that are asked for.

    :raises TransportError: the stream failed.
    :raises RemoteProtocolError: the answer is not one to this offer.
    """
    header = offer.signed.header
    await stream.send_all(frame(offer.encode()))
    answer = await _receive(stream)
    if not isinstance(answer, Answer):
        raise MalformedMessageError("it answered an offer with something else")
    if answer.code is not AnswerCode.SEND:
        return SendOutcome(answer.code is AnswerCode.HAVE, answer.code, answer.detail)
    if answer.first_chunk > header.chunk_count:
        raise MalformedMessageError("it asks for a chunk that does not exist")
    file.seek(answer.first_chunk * sealed_chunk_bytes(header, 0))
    for index in range(answer.first_chunk, header.chunk_count):
        # At most 1 MiB from a file that was just written: no thread is worth it.
        sealed = file.read(sealed_chunk_bytes(header, index))
        if len(sealed) != sealed_chunk_bytes(header, index):
            raise TransportError(f"{file.name} is shorter than its header says")
        try:
            await stream.send_all(sealed)
        except TransportError as broken:
            raise await _reason_given(stream) or broken from None
    receipt = await _receive(stream)
    if not isinstance(receipt, Receipt):
        raise MalformedMessageError("it ended a transfer without a receipt")
    if not receipt.accepted:
        raise _refused(receipt)
    return SendOutcome(True, answer.code, receipt.detail)


def _refused(receipt: Receipt) -> TransportError:
    return TransportError(f"it did not accept the payload: {receipt.detail}")


async def _reason_given(stream: Stream) -> TransportError | None:
    """Why the receiver broke off: one that refuses a chunk says so before it does."""
    try:
        receipt = await _receive(stream, REASON_TIMEOUT_SECONDS)
    except (TransportError, RemoteProtocolError):
        return None
    return _refused(receipt) if isinstance(receipt, Receipt) and not receipt.accepted else None


async def _receive(
    stream: Stream, timeout_seconds: float = REPLY_TIMEOUT_SECONDS
) -> Answer | Receipt:
    body = await _receive_frame(stream, limits.MAX_MESSAGE_BYTES, timeout_seconds)
    message = decode_message(body)
    if not isinstance(message, Answer | Receipt):
        raise MalformedMessageError("not an answer")
    return message


async def _receive_frame(stream: Stream, max_bytes: int, timeout_seconds: float) -> bytes:
    prefix = await _receive_within(stream, LENGTH_PREFIX.size, timeout_seconds)
    (length,) = LENGTH_PREFIX.unpack(prefix)
    if length > max_bytes:
        raise MalformedMessageError(f"a frame of {length} bytes, at most {max_bytes} are allowed")
    return await _receive_within(stream, length, timeout_seconds)


async def _receive_within(stream: Stream, count: int, timeout_seconds: float) -> bytes:
    """:raises TransportError: the stream fails, or ``count`` bytes take too long."""
    with trio.move_on_after(timeout_seconds):
        return await stream.receive_exactly(count)
    raise TransportError(f"{count} bytes did not come within {timeout_seconds:g} s")


class ReceivedPayload:
    """A whole payload, checked and decrypted; in memory or in a spool file of its own."""

    def __init__(
        self,
        signed: SignedHeader,
        content: bytes | Path,
        release: Callable[[Path], object] = Path.unlink,
    ) -> None:
        self.signed = signed
        self._content = content
        self._release = release

    def chunks(self) -> Iterator[bytes]:
        """The encoded payload, chunk by chunk, in order."""
        codec = get_codec(self.signed.header.codec)
        chunk_bytes = codec.encoded_bytes(codec.chunk_parameters)
        if isinstance(self._content, bytes):
            for start in range(0, len(self._content), chunk_bytes):
                yield self._content[start : start + chunk_bytes]
        else:
            with self._content.open("rb") as file:
                left = self.signed.header.payload_bytes
                while left:
                    chunk = file.read(min(chunk_bytes, left))
                    left -= len(chunk)
                    yield chunk

    def close(self) -> None:
        content, self._content = self._content, b""
        if isinstance(content, Path):
            self._release(content)

    def __enter__(self) -> "ReceivedPayload":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Spool:
    """Where one payload's plaintext grows; resumable where it is a file.

    :param chunks_held: checked chunks that the file already begins with.
    """

    def __init__(self, header: Header, path: Path, chunks_held: int) -> None:
        self._header = header
        self._path = path
        self._memory: bytearray | None = None
        self._file = -1
        self.chunks_held = chunks_held
        if header.payload_bytes <= MEMORY_BYTES:
            self._memory = bytearray()
            return
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        # A torn last chunk is received again.
        os.lseek(self._file, chunks_held * _plain_chunk_bytes(header), os.SEEK_SET)

    def append(self, plaintext: bytes) -> None:
        if self._memory is not None:
            self._memory += plaintext
        else:
            # A full disk takes a part of it before it refuses.
            rest = memoryview(plaintext)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        self.chunks_held += 1

    def finish(self, signed: SignedHeader, release: Callable[[Path], object]) -> ReceivedPayload:
        """:raises MalformedMessageError: the length is not the one that was announced."""
        if self._memory is not None:
            held = len(self._memory)
        else:
            held = os.lseek(self._file, 0, os.SEEK_CUR)
        self.close()
        if held != self._header.payload_bytes:
            raise MalformedMessageError(f"{held} bytes of {self._header.payload_bytes} came")
        if self._memory is not None:
            return ReceivedPayload(signed, bytes(self._memory))
        # Whole payloads wait for their round under another name, out of reach of what bounds
        # the interrupted ones.
        whole = self._path.with_suffix(WHOLE_SUFFIX)
        self._path.replace(whole)
        return ReceivedPayload(signed, whole, release)

    @property
    def resumable(self) -> bool:
        return self._memory is None

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
        self._interrupted: dict[str, dict[str, int]] = {}  # by peer: file name -> chunks held
        self._spare = SpareFiles(SPARE_FILES)
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
            except OSError as error:
                log.error(  # noqa: TRY400 - the reason says it all
                    "a transfer cannot be stored; free space on the state directory's disk",
                    peer=stream.peer_id,
                    directory=str(self._directory),
                    reason=str(error),
                )
                await stream.abort()

    async def _receive_envelope(self, stream: Stream) -> None:
        body = await _receive_frame(stream, limits.MAX_OFFER_BYTES, CHUNK_TIMEOUT_SECONDS)
        offer = Offer.decode(body)
        header = offer.signed.header
        if peer_id_from_public_key(header.sender) != stream.peer_id:
            # Or it could sign for each neighbour with another key, and never contradict itself.
            raise AuthenticationError("it offers an envelope that it did not sign itself")
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
        name = f"{stream.peer_id}-{offer.signed.digest.hex()}{PARTIAL_SUFFIX}"
        path = self._directory / name
        interrupted = self._interrupted.setdefault(stream.peer_id, {})
        held = interrupted.pop(name, None)
        if held is None:
            self._make_room(interrupted, path, header.payload_bytes)
        spool = _Spool(header, path, held or 0)
        try:
            first = spool.chunks_held
            await stream.send_all(encode_message(Answer(AnswerCode.SEND, first, "")))
            if sealed_chunk_bytes(header, 0) <= INLINE_BYTES:
                await _open_inline(stream, header, opener, spool)
            else:
                await self._open_in_threads(stream, header, opener, spool)
            return spool.finish(offer.signed, self._spare.give)
        except RemoteProtocolError as error:
            path.unlink(missing_ok=True)
            await stream.send_all(encode_message(Receipt(False, str(error))))
            raise
        except BaseException:
            if spool.resumable:
                interrupted[name] = spool.chunks_held
            raise
        finally:
            spool.close()

    async def _open_in_threads(
        self, stream: Stream, header: Header, opener: ChunkOpener, spool: _Spool
    ) -> None:
        """Check and decrypt a chunk in a thread while the next ones are read."""
        sender, receiver = trio.open_memory_channel[tuple[int, bytes]](CHUNKS_IN_FLIGHT)
        failures: list[RemoteProtocolError | TransportError | OSError] = []

        def open_and_keep(index: int, sealed: bytes) -> None:
            spool.append(opener.open(index, sealed))

        async def read() -> None:
            async with sender:
                try:
                    for index in range(spool.chunks_held, header.chunk_count):
                        sealed = await _receive_chunk(stream, header, index)
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
                except (RemoteProtocolError, OSError) as error:
                    failures.insert(0, error)  # it weighs more than a stream that broke off
                    nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]

    def _make_room(self, interrupted: dict[str, int], path: Path, size_bytes: int) -> None:
        """Bound what interrupted transfers of one peer leave behind, and find a file."""
        while len(interrupted) >= RESUMABLE_PER_PEER:
            oldest = next(iter(interrupted))
            del interrupted[oldest]
            self._spare.give(self._directory / oldest)
        self._spare.take(path, size_bytes)


def _plain_chunk_bytes(header: Header) -> int:
    return sealed_chunk_bytes(header, 0) - limits.SEAL_BYTES


async def _open_inline(stream: Stream, header: Header, opener: ChunkOpener, spool: _Spool) -> None:
    for index in range(spool.chunks_held, header.chunk_count):
        sealed = await _receive_chunk(stream, header, index)
        spool.append(opener.open(index, sealed))


async def _receive_chunk(stream: Stream, header: Header, index: int) -> bytes:
    return await _receive_within(stream, sealed_chunk_bytes(header, index), CHUNK_TIMEOUT_SECONDS)
