"""Logging through structlog: text on a terminal, JSON lines otherwise, and a bounded memory of
recent lines for ``p2pfed log``. Weights, records and keys are never rendered."""

import contextlib
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO, cast

import structlog

from p2pfed.protocol.texts import printable

KEPT_LINES = 2000
MAX_LINE_CHARACTERS = 4000
MAX_QUOTED_CHARACTERS = 1000  # of what a library says
MAX_RENDERED_BYTES = 64
SECRET_WORDS = ("secret", "seed", "private", "password", "token", "payload_key")
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class _Console:
    """The standard error stream, which may be gone or full: a line that it does not take is
    lost there and kept by :class:`RecentLines`, and ends nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class RecentLines:
    """The last log lines, and who follows them.

    A follower is a callable that must not block; one that raises is its owner's bug.
    """

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.followers: set[Callable[[str], None]] = set()

    def add(self, line: str) -> None:
        self.lines.append(line)
        for follower in list(self.followers):
            follower(line)


def withhold(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace what must not be logged: secrets by name, and anything that looks like data."""
    for key, value in event.items():
        if any(word in key.lower() for word in SECRET_WORDS):
            event[key] = "(withheld)"
        elif isinstance(value, bytes | bytearray | memoryview):
            event[key] = bytes(value).hex() if len(value) <= MAX_RENDERED_BYTES else "(withheld)"
        elif hasattr(value, "dtype") or hasattr(value, "__array__"):
            event[key] = "(withheld)"
    return event


def configure(level: str, style: str, recent: RecentLines) -> None:
    """Set up this process's logging.

    :param level: debug, info, warning or error.
    :param style: auto, text or json.
    """
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())

    def render(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
        line = json.dumps(event, default=str, ensure_ascii=False)[:MAX_LINE_CHARACTERS]
        recent.add(line)
        return line if as_json else str(console(logger, method, event))

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        withhold,
    ]
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Console(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    handler = _ToStructlog()
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


class _ToStructlog(logging.Handler):
    """What libraries log through the standard library joins the same stream. They may quote what
    a stranger sent."""

    def emit(self, record: logging.LogRecord) -> None:
        message = printable(record.getMessage(), MAX_QUOTED_CHARACTERS)
        structlog.get_logger().log(max(record.levelno, logging.INFO), message, library=record.name)
