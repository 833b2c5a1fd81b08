"""The demo's daemons: started like an operator would, watched through their control sockets,
and gone when the demo ends, however it ends."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from p2pfed.config import Site
from p2pfed.daemon.control_link import DaemonLink
from p2pfed.daemon.status import Status
from p2pfed.errors import ControlError, P2pfedError

POLL_SECONDS = 0.25
STOP_TIMEOUT_SECONDS = 10.0
RUN_TIMEOUT_SECONDS = 600.0
SHOWN_LOG_LINES = 3


class DemoError(P2pfedError):
    """The demonstration did not come to its end."""


def run_command(site: Site) -> list[str]:
    """What an operator starts: ``p2pfed run``, under this interpreter."""
    return [sys.executable, "-m", "p2pfed", "run", "--config", str(site.path)]


class RunningSite:
    """One daemon process."""

    def __init__(self, site: Site, command: list[str]) -> None:
        self.site = site
        self.name = site.file.name
        self.link = DaemonLink(site.control_socket)
        self._log_path = site.path.with_name("daemon.log")
        self._log: IO[bytes] = self._log_path.open("wb")
        # A session of its own: Ctrl-C in the terminal reaches the demo, which then stops its
        # daemons in order.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def status(self) -> Status | None:
        """Its status, or None while it starts.

        :raises DemoError: the daemon ended.
        """
        code = self.process.poll()
        if code is not None:
            raise DemoError(
                f"the daemon of {self.name} ended with code {code}: {self._last_words()}"
            )
        try:
            return Status.from_json(self.link.get("/v1/status"))
        except ControlError:
            return None

    def _last_words(self) -> str:
        """What the daemon said last: its error if there is one, else its last lines."""
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("p2pfed: ")]
        if errors:
            start = lines.index(errors[-1])
            return "\n".join(lines[start:])
        return " | ".join(lines[-SHOWN_LOG_LINES:]) or "it said nothing"

    def export(self, path: Path) -> Any:
        return self.link.post("/v1/export", {"path": str(path)}, RUN_TIMEOUT_SECONDS)

    def terminate(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()

    def reap(self, until: float) -> None:
        try:
            self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


class Daemons:
    """All daemons of a demo; a context manager that leaves none behind.

    :param command: what to start for a site.
    """

    def __init__(
        self, sites: tuple[Site, ...], command: Callable[[Site], list[str]] = run_command
    ) -> None:
        self._sites = sites
        self._command = command
        self.running: list[RunningSite] = []

    def __enter__(self) -> "Daemons":
        try:
            for site in self._sites:
                self.running.append(RunningSite(site, self._command(site)))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        for site in self.running:
            site.terminate()
        until = time.monotonic() + STOP_TIMEOUT_SECONDS
        for site in self.running:
            site.reap(until)

    def wait_until_finished(
        self, progress: Callable[[dict[str, Status | None]], None]
    ) -> dict[str, Status]:
        """Poll until every site has done its last round.

        :raises DemoError: a daemon ended, or it takes longer than ``RUN_TIMEOUT_SECONDS``.
        """
        until = time.monotonic() + RUN_TIMEOUT_SECONDS
        while time.monotonic() < until:
            found = {site.name: site.status() for site in self.running}
            progress(found)
            finished = {
                name: status
                for name, status in found.items()
                if status is not None and status.round.phase == "finished"
            }
            if len(finished) == len(found):
                return finished
            time.sleep(POLL_SECONDS)
        raise DemoError(f"the federation did not finish within {RUN_TIMEOUT_SECONDS:g} s")


def run_in_child(module: str, arguments: list[str]) -> Any:
    """Run a module of ours in a process of its own and read the JSON that it prints; what
    needs torch is kept out of the command line's process.

    :raises DemoError: with the module's own last words.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_TIMEOUT_SECONDS,
    )
    if done.returncode != 0:
        raise DemoError(f"{module} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)
