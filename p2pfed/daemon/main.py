"""``p2pfed run``: from a site file to a running daemon and its exit code."""

from collections.abc import Callable
from pathlib import Path

import structlog
import trio

from p2pfed.config import load_site
from p2pfed.daemon.daemon import Daemon, TransportMaker
from p2pfed.daemon.logs import RecentLines, configure
from p2pfed.daemon.round_work import RoundWork
from p2pfed.daemon.store import Store
from p2pfed.errors import P2pfedError
from p2pfed.keys import load_identity
from p2pfed.site_identity import check_membership
from p2pfed.topology import load_topology

log = structlog.get_logger(__name__)


def run_daemon(config: Path, make_work: Callable[..., RoundWork] = RoundWork) -> int:
    """Run a site until it is stopped.

    :param make_work: what makes its vectors' work; see ``Daemon``.
    :returns: 0 after a clean stop.
    :raises P2pfedError: with the exit code that fits it.
    """
    site = load_site(config)
    recent = RecentLines()
    configure(site.file.log.level, site.file.log.format, recent)
    topology = load_topology(site.topology_path)
    identity = load_identity(site.keys_directory)
    check_membership(site, topology, identity)
    store = Store(site.state_directory)
    try:
        daemon = Daemon(site, topology, identity, store, recent, TransportMaker(), make_work)
        try:
            trio.run(daemon.run)
        except* P2pfedError as group:
            raise _first(group) from None
    finally:
        store.close()
    log.info("stopped")
    return 0


def _first(group: BaseExceptionGroup[P2pfedError]) -> P2pfedError:
    """The one error that ended the daemon; the rest are its echoes."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, P2pfedError)  # noqa: S101 - the group holds nothing else
    return error
