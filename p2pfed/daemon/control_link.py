"""Talking to a running daemon: HTTP over its unix socket, with the standard library alone,
because a status must not wait for imports."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from p2pfed.errors import ControlError, ControlTimeoutError, ExitCode, NotRunningError

ANSWER_TIMEOUT_SECONDS = 10.0
LONG_TIMEOUT_SECONDS = 600.0  # of an export or evaluation of a large model


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_seconds: float | None) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class RemoteOperationError(ControlError):
    """The daemon refused; it says with which exit code the command ends."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = ExitCode(exit_code)


class DaemonLink:
    """A daemon's control socket.

    Every call raises NotRunningError, ControlTimeoutError, or the error that the daemon gave.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, target: str) -> Any:
        return self._call("GET", target, None, ANSWER_TIMEOUT_SECONDS)

    def post(
        self,
        target: str,
        body: dict[str, Any] | None = None,
        timeout_seconds: float = ANSWER_TIMEOUT_SECONDS,
    ) -> Any:
        return self._call("POST", target, body, timeout_seconds)

    def _call(
        self, method: str, target: str, body: dict[str, Any] | None, timeout_seconds: float
    ) -> Any:
        encoded = json.dumps(body) if body else None
        connection = _UnixConnection(self._path, timeout_seconds)
        try:
            # It may answer before it has read everything; the answer says why.
            with contextlib.suppress(BrokenPipeError):
                connection.request(method, target, encoded)
            response = connection.getresponse()
            text = response.read()
        except (FileNotFoundError, ConnectionRefusedError):
            raise self._not_running() from None
        except TimeoutError:
            raise ControlTimeoutError(
                f"the daemon did not answer within {timeout_seconds:g} s; see p2pfed log"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise NotRunningError(f"{self._path}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        document = _parse(text)
        if response.status != http.client.OK:
            if isinstance(document, dict) and "error" in document:
                raise RemoteOperationError(document["error"], document["exit_code"])
            raise ControlError(f"the daemon answered {response.status} to {target}")
        return document

    def lines(self, target: str) -> Iterator[str]:
        """The lines of a response that may never end."""
        connection = _UnixConnection(self._path, None)
        try:
            connection.request("GET", target)
            for line in connection.getresponse():
                yield line.decode().rstrip("\n")
        except (FileNotFoundError, ConnectionRefusedError):
            raise self._not_running() from None
        except (OSError, http.client.HTTPException):
            return  # the daemon stopped; what it had to say was said
        finally:
            connection.close()

    def _not_running(self) -> NotRunningError:
        return NotRunningError(
            f"no daemon answers on {self._path}; start one with p2pfed run --config SITE_FILE"
        )


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
