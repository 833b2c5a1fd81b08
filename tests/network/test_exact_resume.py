"""A federation in which nodes die ends as one in which none does: byte for byte.

Each node dies where its engine stands in a phase of a round, on the virtual clock, and comes back
on what its state directory holds. A quorum of all makes the others wait, so that no round closes
without it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from memory_nodes import MemoryFederation, Node, memory_federation

from p2pfed.protocol.rounds import Phase

pytestmark = pytest.mark.timeout(120)

ROUNDS = 5
RESUMED = (Phase.TRAINING, Phase.PUBLISHING, Phase.COLLECTING, Phase.AGGREGATING, Phase.COMMITTING)
SETTINGS: dict[str, Any] = {
    "graph": {"kind": "complete"},
    "round": {"rounds": ROUNDS, "deadline_seconds": 600.0, "quorum": 1.0},
}


@dataclass(frozen=True)
class Ending:
    """All that a site goes on from, and the way there."""

    round_number: int
    model: bytes
    site_state: bytes
    published: bytes
    replicas: dict[str, tuple[bytes, int, int]]
    vectors: dict[str, bytes]
    models: list[tuple[int, str]]
    weights: list[dict[str, float]]


def ending(node: Node) -> Ending:
    generation = node.store.generation()
    assert generation is not None
    dimension = node.trainer.genesis.shape[0]
    replicas = node.store.replicas(dimension)
    history = node.store.history(ROUNDS + 1)
    return Ending(
        generation.round_number,
        generation.model,
        generation.site_state,
        generation.replica,
        {
            site: (stored.state.replica, stored.state.round_number, stored.state.sequence)
            for site, stored in replicas.items()
        },
        {
            **{
                digest.hex(): node.store.vector(digest, dimension).tobytes()
                for digest in generation.vectors()
            },
            **{
                site: node.store.replica(site, stored.slot, dimension).tobytes()
                for site, stored in replicas.items()
            },
        },
        [(record["round"], record["model"]) for record in history],
        [record["weights"] for record in history],
    )


async def finish(federation: MemoryFederation) -> dict[str, Ending]:
    await federation.until_all(Phase.FINISHED, ROUNDS)
    return {name: ending(node) for name, node in federation.nodes.items()}


async def with_deaths(
    directory: Path, names: str, deaths: list[tuple[str, Phase, int]], **tables: Any
) -> dict[str, Ending]:
    """How a federation ends in which each site of ``deaths`` dies in a phase of a round."""
    async with memory_federation(directory, names, **SETTINGS, **tables) as federation:
        for name, phase, round_number in deaths:
            node = federation.nodes[name]
            await federation.until(lambda n=node, p=phase, r=round_number: n.is_in(p, r))
            await federation.kill(name)
            await federation.start(name)
        return await finish(federation)


@pytest.mark.parametrize(
    "rule", ["start_clipping", pytest.param("median_clipping", marks=pytest.mark.slow)]
)
async def test_whoever_dies_in_whatever_phase_all_end_as_if_nobody_had(
    rule: str, state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    tables = {"aggregation": {"rule": rule}, "codec": {"name": "int8"}}
    expected = await with_deaths(state_path / "undisturbed", "abcd", [], **tables)
    assert [number for number, _ in expected["a"].models] == list(range(ROUNDS))
    for round_number in (0, 2):
        for phase in RESUMED:
            directory = state_path / f"{phase}-{round_number}"
            found = await with_deaths(directory, "abcd", [("b", phase, round_number)], **tables)
            assert found == expected, f"killed while {phase} in round {round_number}"


async def test_a_death_in_every_round_changes_nothing(
    state_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    tables = {"aggregation": {"rule": "start_clipping"}, "codec": {"name": "int8"}}
    expected = await with_deaths(state_path / "undisturbed", "abc", [], **tables)
    deaths = [("abc"[number % 3], phase, number) for number, phase in enumerate(RESUMED)]
    assert await with_deaths(state_path / "storm", "abc", deaths, **tables) == expected
