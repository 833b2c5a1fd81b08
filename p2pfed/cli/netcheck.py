"""``p2pfed netcheck``: what works from here, as an IT engineer reads it."""

from collections.abc import Iterator
from pathlib import Path

from p2pfed.config import load_site
from p2pfed.daemon.control_link import DaemonLink
from p2pfed.daemon.netcheck import NeighbourCheck, Report, check_alone
from p2pfed.errors import NotRunningError
from p2pfed.keys import load_identity
from p2pfed.site_identity import check_membership
from p2pfed.topology import load_topology

TIMEOUT_SECONDS = 60.0


def examine(config: Path) -> Report:
    """Ask the running daemon, or do without where there is none.

    :raises ConfigurationError: no daemon runs, and the site's files do not fit together.
    """
    site = load_site(config)
    try:
        document = DaemonLink(site.control_socket).post("/v1/netcheck", None, TIMEOUT_SECONDS)
    except NotRunningError:
        pass
    else:
        return Report.from_json(document)
    identity, topology = load_identity(site.keys_directory), load_topology(site.topology_path)
    check_membership(site, topology, identity)
    import trio

    return trio.run(check_alone, site, topology, identity.seed, identity.peer_id)


def render(report: Report) -> Iterator[str]:
    """The report's lines, fit for a terminal: other sites wrote parts of them."""
    for line in _lines(report):
        yield "".join(each if each.isprintable() else "?" for each in line)


def _lines(report: Report) -> Iterator[str]:
    daemon = "its daemon runs" if report.daemon_running else "no daemon runs, tried without"
    yield f"site {report.site}: {daemon}"
    for own in report.listen:
        detail = f": {own.detail}" if own.detail else ""
        yield f"  listens on {own.address}: {own.state}{detail}"
    if not report.listen:
        yield "  listens nowhere: this site only dials out"
    for relay in report.relays:
        yield f"  {relay} takes connections for this site"
    for neighbour in report.neighbours:
        yield ""
        yield from _neighbour(neighbour)


def _neighbour(neighbour: NeighbourCheck) -> Iterator[str]:
    trip = neighbour.round_trip_seconds
    shown = f", {trip * 1000:.1f} ms" if trip is not None else ""
    state = f"reachable via {neighbour.path}{shown}" if neighbour.reachable else "NOT reachable"
    yield f"{neighbour.name}: {state}"
    for check in neighbour.addresses:
        yield f"  {check.address}: {check.outcome}, {check.detail}"
    if neighbour.relays:
        yield f"  relays to it: {', '.join(neighbour.relays)}"
    yield f"  identity: {neighbour.identity}; can it dial this site: {neighbour.can_dial_us}"
    if neighbour.detail:
        yield f"  reason: {neighbour.detail}"
    for line in neighbour.advice:
        yield f"  advice: {line}"
