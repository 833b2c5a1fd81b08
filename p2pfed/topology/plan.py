"""From a topology file to what the round engine needs of it."""

from functools import lru_cache, partial

from p2pfed.protocol.federation import federation_id
from p2pfed.protocol.joining import donors_needed
from p2pfed.protocol.plan import FederationPlan
from p2pfed.topology import Topology

REMEMBERED_ROUNDS = 64  # of a graph that varies; the engine asks for the same few again


def plan_of(
    topology: Topology, site: str, schema_digest: bytes, genesis_digest: bytes
) -> FederationPlan:
    """One site's view of ``topology`` for a model with this schema and genesis."""
    file = topology.file
    weights_of = lru_cache(REMEMBERED_ROUNDS)(partial(topology.weights, site))
    return FederationPlan(
        topology_digest=topology.digest,
        schema_digest=schema_digest,
        federation_id=federation_id(file.federation.name, schema_digest, genesis_digest),
        genesis_replica=genesis_digest,
        weights_of=weights_of if topology.time_varying else lambda _: weights_of(0),
        time_varying=topology.time_varying,
        total_rounds=file.round.rounds,
        local_steps=file.round.local_steps,
        deadline_seconds=file.round.deadline_seconds,
        quorum=file.round.quorum,
        max_staleness=file.round.max_staleness,
        relayed=topology.relays.senders[site],
        donors_needed=donors_needed(file.aggregation.byzantine_neighbours),
        asynchronous=file.round.mode == "async",
        neighbours=frozenset(topology.all_neighbours(site)),
    )


def neighbour_ids_of(topology: Topology, site: str) -> dict[str, str]:
    """The name of each that is a neighbour of ``site`` in any round, by its peer id."""
    peer_ids = peer_ids_of(topology)
    return {peer_ids[name]: name for name in topology.all_neighbours(site)}


def peer_ids_of(topology: Topology) -> dict[str, str]:
    return {peer.name: peer.peer_id_text for peer in topology.file.peers}
