"""How many hostile neighbours a rule bears where two cliques are joined sparsely.

    python benchmarks/breakdown.py [--sites 10] [--links 4] [--rounds 60] [--seed 0] [--rules ...]

The two worlds of Gaucher, Dieuleveut, Hendrikx, "Unified Breakdown Analysis for Byzantine Robust
Gossip" (ICML 2025; before that "Achieving Optimal Breakdown for Byzantine Robust Gossip"): two
cliques of honest sites, each site with ``links`` neighbours in the other clique, so that the
algebraic connectivity mu2 of the honest sites' graph is 2 * links; and b hostile neighbours at
every site. No rule can have a guarantee from b = mu2 / 2 on; clipped gossip has one below mu2 / 4.

Nobody trains: the sites start around two unlike points and only gossip. A cell is the mean
squared distance of the honest models to the honest mean at the start, as a fraction of what it was:
towards 0 they agree on their mean; at 1 the cliques stay apart, or are led astray as far; above,
further. It is the worst over the attacks below, each of which knows everything and may tell every
neighbour something else.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pfed.aggregation import NeighbourModel, aggregate
from p2pfed.rules_catalogue import NO_PRE_AGGREGATION, PRE_AGGREGATIONS, RULES

Matrix = npt.NDArray[np.float32]  # of models, shape (n, d), or one of them, shape (d,)

DIMENSIONS = 5
GAP = 10.0  # between the cliques' centres, in standard deviations of a clique
HELD = 0.1  # a cell below it: the sites have come to agree, near their mean
LOST = 1e6  # a cell above it is not followed further


@dataclass(frozen=True)
class Worlds:
    """``neighbours``: of each honest site, the honest ones. ``side``: +1 or -1, shape (n,)."""

    neighbours: tuple[tuple[int, ...], ...]
    side: Matrix

    @property
    def algebraic_connectivity(self) -> float:
        count = len(self.neighbours)
        laplacian = np.zeros((count, count))
        for site, others in enumerate(self.neighbours):
            laplacian[site, list(others)] = -1.0
            laplacian[site, site] = len(others)
        return float(np.linalg.eigvalsh(laplacian)[1])


def two_worlds(sites: int, links: int) -> Worlds:
    """Two cliques of ``sites``, each site joined to ``links`` of the other clique's."""
    if not 1 <= links <= sites:
        raise ValueError("a site has between 1 and all of the other clique's sites as neighbours")
    here, there = range(sites), range(sites, 2 * sites)
    joined: list[tuple[int, ...]] = []
    for site in here:
        own = [other for other in here if other != site]
        joined.append((*own, *(sites + (site + step) % sites for step in range(links))))
    for site in there:
        own = [other for other in there if other != site]
        joined.append((*own, *((site - sites - step) % sites for step in range(links))))
    return Worlds(tuple(joined), np.repeat(np.array([1, -1], np.float32), sites))


# What a hostile neighbour tells a site, from the honest models, shape (n, d), before the round.
Attack = Callable[[Worlds, Matrix, int], Matrix]


def _echo(_: Worlds, models: Matrix, site: int) -> Matrix:
    """The site's own model: every distance it adds is zero, and thresholds fall."""
    own: Matrix = models[site]
    return own


def _apart(factor: float) -> Attack:
    """Along the weakest cut, away from the other clique, by a part of the cliques' distance
    (the spectral attack of the same paper: here the cut is known)."""

    def attack(worlds: Worlds, models: Matrix, site: int) -> Matrix:
        cut = models[worlds.side > 0].mean(axis=0) - models[worlds.side < 0].mean(axis=0)
        told: Matrix = models[site] + np.float32(factor) * worlds.side[site] * cut
        return told

    return attack


def _dissensus(worlds: Worlds, models: Matrix, site: int) -> Matrix:
    """Against the sum of what the honest neighbours pull (He, Karimireddy, Jaggi 2022)."""
    pull = (models[list(worlds.neighbours[site])] - models[site]).sum(axis=0)
    told: Matrix = models[site] - pull
    return told


def _far_away(_: Worlds, models: Matrix, site: int) -> Matrix:
    """What any defence must catch."""
    return np.full_like(models[site], 1e6)


def _drift(worlds: Worlds, models: Matrix, site: int) -> Matrix:
    """Everybody the same way, as far as the honest neighbours are on average."""
    distances = np.linalg.norm(models[list(worlds.neighbours[site])] - models[site], axis=1)
    direction = np.ones(DIMENSIONS, np.float32) / np.float32(np.sqrt(DIMENSIONS))
    told: Matrix = models[site] + np.float32(distances.mean()) * direction
    return told


ATTACKS: Mapping[str, Attack] = {
    "echo": _echo,
    "apart 0.3": _apart(0.3),
    "apart 1": _apart(1.0),
    "dissensus": _dissensus,
    "drift": _drift,
    "far away": _far_away,
}


def remaining_error(
    worlds: Worlds,
    rule: str,
    byzantine_neighbours: int,
    attack: Attack | None,
    *,
    pre_aggregation: str = NO_PRE_AGGREGATION,
    rounds: int = 60,
    seed: int = 0,
) -> float:
    """What gossip leaves of the mean squared distance to the initial honest mean.

    :param attack: of each site's ``byzantine_neighbours`` hostile neighbours; without one there
        are none, but the rule is still told that number.
    """
    count = len(worlds.neighbours)
    generator = np.random.default_rng(seed)
    models = generator.normal(size=(count, DIMENSIONS)).astype(np.float32)
    models[:, 0] += np.float32(GAP / 2) * worlds.side
    centre = models.astype(np.float64).mean(axis=0)

    def error(of: Matrix) -> float:
        return float(((of - centre) ** 2).sum(axis=1).mean())

    at_first = error(models)
    hostile = byzantine_neighbours if attack is not None else 0
    for number in range(rounds):
        mixed = np.empty_like(models)
        for site, honest in enumerate(worlds.neighbours):
            weight = 1.0 / (1 + len(honest) + hostile)
            heard = [NeighbourModel(f"honest {other}", models[other], weight) for other in honest]
            if attack is not None:
                lie = attack(worlds, models, site)
                heard += [NeighbourModel(f"liar {one}", lie, weight) for one in range(hostile)]
            aggregate(
                rule,
                models[site],
                heard,
                mixed[site],
                byzantine_neighbours=byzantine_neighbours,
                pre_aggregation=pre_aggregation,
                progress=number / rounds,
                seed=number.to_bytes(8),
            )
        models = mixed
        if error(models) > LOST * at_first:
            break
    return error(models) / at_first


def worst(
    worlds: Worlds, rule: str, byzantine_neighbours: int, *, rounds: int, seed: int, before: str
) -> tuple[float, str]:
    """The largest remaining error over the attacks, and which it was."""
    if byzantine_neighbours == 0:
        error = remaining_error(
            worlds, rule, 0, None, pre_aggregation=before, rounds=rounds, seed=seed
        )
        return error, ""
    return max(
        (
            remaining_error(
                worlds,
                rule,
                byzantine_neighbours,
                attack,
                pre_aggregation=before,
                rounds=rounds,
                seed=seed,
            ),
            name,
        )
        for name, attack in ATTACKS.items()
    )


def _cell(error: float) -> str:
    mark = " " if error < HELD else "*"
    return f"{error:8.3f}{mark}" if error < 1e4 else f"{error:8.0e}{mark}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=10, help="in each clique")
    parser.add_argument("--links", type=int, default=4, help="of each site into the other clique")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument(
        "--pre-aggregation", choices=list(PRE_AGGREGATIONS), default=NO_PRE_AGGREGATION
    )
    given = parser.parse_args(arguments)
    worlds = two_worlds(given.sites, given.links)
    mu2 = worlds.algebraic_connectivity
    print(
        f"2 cliques of {given.sites}, {given.links} links a site into the other: mu2 = {mu2:.2f}; "
        f"no guarantee from b = {mu2 / 2:.2f} on, clipped gossip's below {mu2 / 4:.2f}"
    )
    print(f"{given.rounds} rounds of gossip; * not held (>= {HELD}), with the attack that did it")
    numbers = range(given.links + 2)
    print(f"{'rule':28}" + "".join(f"{f'b = {b}':>9} {'':10}" for b in numbers).rstrip())
    for rule in given.rules:
        cells = []
        for b in numbers:
            error, name = worst(
                worlds,
                rule,
                b,
                rounds=given.rounds,
                seed=given.seed,
                before=given.pre_aggregation,
            )
            cells.append(f"{_cell(error)} {name if error >= HELD else '':10}")
        print(f"{rule:28}" + "".join(cells).rstrip(), flush=True)


if __name__ == "__main__":
    main()
