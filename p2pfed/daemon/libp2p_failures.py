"""What py-libp2p raises, and what to say of it."""

from collections.abc import Iterator
from typing import Any

from libp2p.io.exceptions import IOException
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError
from libp2p.transport.exceptions import MuxerUpgradeFailure

from p2pfed.daemon.transport import ANOTHER_KEY
from p2pfed.protocol import limits
from p2pfed.protocol.texts import printable

STREAM_FAILURES = (IOException, MuxedStreamError, MuxedConnError, OSError)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from; the library wraps errors many times over."""
    while True:
        yield error
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            return


def reason_of(error: BaseException) -> str:
    """The innermost cause in one line; the library quotes what the other end sent."""
    *_, innermost = _causes(error)
    text = str(innermost).strip().splitlines()
    return printable(text[0], limits.MAX_TEXT_CHARACTERS) if text else type(innermost).__name__


def dial_failure(error: BaseException) -> str:
    """Why a dial failed, in words that tell an operator what to look at."""
    causes: list[Any] = list(_causes(error))
    if any(isinstance(cause, PeerIDMismatchesPubkey) for cause in causes):
        return f"{ANOTHER_KEY}; check the address, or the peer's key in the topology"
    if any(isinstance(cause, MuxerUpgradeFailure) for cause in causes):
        return (
            "it hung up after the handshake; it refuses sites whose key is not in its own "
            "copy of the topology file"
        )
    return reason_of(error)
