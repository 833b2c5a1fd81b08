"""A topology file that is read again while the federation runs: whether what changed may change,
and what follows from it. Reading takes seconds where the federation is large."""

from collections.abc import Mapping
from dataclasses import dataclass

from p2pfed.config import Site
from p2pfed.daemon.membership import SHOWN_DIGEST_CHARACTERS
from p2pfed.errors import ConfigurationError, Problem
from p2pfed.keys import Identity
from p2pfed.protocol.messages import Refusal, RefusalCode
from p2pfed.protocol.plan import FederationPlan
from p2pfed.site_identity import check_membership
from p2pfed.topology import Topology, load_topology
from p2pfed.topology.diff import compare
from p2pfed.topology.plan import neighbour_ids_of, plan_of


@dataclass(frozen=True, slots=True)
class Reload:
    """A changed topology that a running site may take.

    ``changes`` are shown to the operator. ``farewells`` are what is said to those who are
    neighbours no more, by peer id.
    """

    topology: Topology
    plan: FederationPlan
    changes: tuple[str, ...]
    farewells: Mapping[str, Refusal]


def read_again(
    site: Site, identity: Identity, running: Topology, plan: FederationPlan
) -> Reload | None:
    """Read the site's topology file and compare it with the one that is in force.

    :param plan: the one in force.
    :returns: None where it means the same.
    :raises ConfigurationError: it is not sound, leaves this site out, or changes what needs a
        restart; it names everything of one kind.
    """
    topology = load_topology(site.topology_path)
    _refuse_to_be_left_out(site, topology, identity)
    check_membership(site, topology, identity)
    changes = compare(running, topology)
    if not changes:
        return None
    problems = [
        Problem(
            topology.path,
            change.key,
            change.after,
            f"cannot change while the federation runs; in force is {change.before or 'none'}",
            "undo the change, or stop every site, change it everywhere and start again",
        )
        for change in changes
        if not change.reload
    ]
    if problems:
        raise ConfigurationError(problems)
    name = site.file.name
    return Reload(
        topology,
        plan_of(topology, name, plan.schema_digest, plan.genesis_replica),
        tuple(change.what for change in changes),
        _farewells(name, running, topology),
    )


def _refuse_to_be_left_out(site: Site, topology: Topology, identity: Identity) -> None:
    name = site.file.name
    if name in topology.names or topology.peer_by_id(identity.peer_id) is not None:
        return
    raise ConfigurationError(
        [
            Problem(
                topology.path,
                "peer",
                None,
                f"this site, {name}, was taken out",
                "end its part with p2pfed stop, or have it put back at every site",
            )
        ]
    )


def _farewells(name: str, running: Topology, topology: Topology) -> dict[str, Refusal]:
    after = neighbour_ids_of(topology, name)
    digest = topology.digest.hex()[:SHOWN_DIGEST_CHARACTERS]
    farewells = {}
    for peer_id, former in neighbour_ids_of(running, name).items():
        if peer_id in after:
            continue
        what = "an edge between the two" if topology.peer_by_id(peer_id) else f"{former}'s key"
        farewells[peer_id] = Refusal(
            RefusalCode.NOT_A_NEIGHBOUR,
            f"{name} now has topology file {digest}, which lacks {what}; put the same file at "
            "every site and p2pfed reload, or stop the site that was taken out",
        )
    return farewells
