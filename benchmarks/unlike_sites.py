"""What helps where sites' data are unlike: corrections x data sets, several seeds.

    OMP_NUM_THREADS=1 python benchmarks/unlike_sites.py [--data heart,pneumonia,digits-0.1,
        digits-0.3] [--methods ...] [--seeds 3] [--graph complete] [--rule ...] [--uneven]
        [--pneumonia PATH] [--json FILE] [--show FILE]

Sites learn together over a complete graph with the default aggregation rule; --graph ring and
--rule take others. A figure is the mean over sites of each site's model on its own test (heart:
AUC of all hospitals' hold-outs together, as the demo has it), in percent, with the standard
deviation over the seeds; "worst" is the worst site's. "alone" is every site's own training,
"pooled" one model trained on all records together, with as many steps. Personal figures are those
of ``ditto``'s own models. --uneven lets every second site take one step where the others take all,
which is what normalised_steps is for.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from real_data import PNEUMONIA
from torch.utils.data import ConcatDataset, Dataset
from unlike_data import Site, digits, heart, pneumonia

from p2pfed.aggregation import Mixing, NeighbourModel
from p2pfed.rules_catalogue import DEFAULT_RULE, RULES
from p2pfed.topology.weights import mixing_weight
from p2pfed.training.evaluation.binary import auc
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.round_input import RoundInput
from p2pfed.training.schema import prepare
from p2pfed.training.settings import LoopSettings
from p2pfed.training.site_state import SiteModel
from p2pfed.training.tasks.tabular.task import Tabular

CPU = torch.device("cpu")

METHODS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"local_norm": "none"},
    "proximal .01": {"local_norm": "none", "proximal": 0.01},
    "proximal .1": {"local_norm": "none", "proximal": 0.1},
    "normalised_steps": {"local_norm": "none", "normalised_steps": True},
    "gradient_tracking": {"local_norm": "none", "gradient_tracking": True},
    "quasi_global_momentum": {
        "local_norm": "none", "quasi_global_momentum": 0.9, "momentum": 0.0,
    },
    "local_norm": {"local_norm": "batch"},
    "local_head": {"local_norm": "none", "local_head": "last"},
    "ditto": {"local_norm": "none", "ditto": 0.1},
    "local_norm + ditto": {"local_norm": "batch", "ditto": 0.1},
    "local_norm + gradient_tracking": {"local_norm": "batch", "gradient_tracking": True},
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """One data set: its sites for a seed, and how they train."""

    sites: Callable[[int], list[Site]]
    rounds: int
    local_steps: int
    options: Mapping[str, Any]
    metric: str
    last_layer: str
    batch_norm: bool = False


COLUMNS = {
    "mean": "mean",
    "worst": "worst site",
    "own_mean": "own patients, mean",
    "personal_mean": "personal, mean",
    "personal_worst": "personal, worst",
    "personal_own_mean": "personal, own patients",
}


class Participant:
    """One site as it stands: its learner, its model, and what it keeps."""

    def __init__(self, site: Site, options: Mapping[str, Any], seed: int, sites: int = 1) -> None:
        model = genesis_model(site.task, seed)
        prepare(model)
        settings = LoopSettings(**{**options, "batch_size": options["batch_size"] * sites})
        self.site = site
        self.seed = seed
        self.learner = Learner(site.task, model, settings, CPU)
        self.model = self.learner.fresh()

    def train(
        self, records: Dataset[Any], round_number: int, local_steps: int, steps: int | None = None
    ) -> None:
        given = RoundInput.at_site(
            self.model,
            seed=self.seed,
            site=self.site.name,
            round_number=round_number,
            local_steps=local_steps,
            steps=steps,
            noise_secret=self.noise_secret(round_number),
        )
        self.model, _ = self.learner.train_new(records, given)

    def noise_secret(self, round_number: int) -> bytes | None:  # noqa: ARG002 - not private
        """What a private round draws its noise from."""
        return None

    def figures(self) -> dict[str, float]:
        model = self.model
        return self.learner.evaluate(self.site.test, model.parameters, model.state)


def federate(
    data: Data, sites: Sequence[Site], options: Mapping[str, Any], graph: nx.Graph,
    seed: int, uneven: bool, rule: str = DEFAULT_RULE,
) -> list[Participant]:  # fmt: skip
    """Let the sites learn together, each round trained, then folded by ``rule``."""
    participants = [Participant(site, options, seed) for site in sites]
    learn_together(data, participants, graph, rule, uneven=uneven)
    return participants


def learn_together(
    data: Data, participants: Sequence[Participant], graph: nx.Graph, rule: str, *, uneven: bool
) -> None:
    """Train every round at each participant, and fold what its neighbours in ``graph`` have."""
    mixing = Mixing(rule, "benchmark")
    for round_number in range(data.rounds):
        for place, one in enumerate(participants):
            steps = 1 if uneven and place % 2 else None
            one.train(one.site.training, round_number, data.local_steps, steps)
        trained = [one.model.parameters for one in participants]
        for place, one in enumerate(participants):
            heard = [
                NeighbourModel(
                    participants[other].site.name,
                    trained[other],
                    mixing_weight(graph.degree[place], graph.degree[other]),
                )
                for other in graph[place]
            ]
            mixed = np.empty_like(trained[place])
            mixing.aggregate(round_number, data.rounds, trained[place], heard, mixed)
            one.model = SiteModel(mixed, one.model.state)


def alone(data: Data, sites: Sequence[Site], seed: int) -> list[Participant]:
    participants = [
        Participant(site, {**data.options, "local_norm": "none"}, seed) for site in sites
    ]
    for one in participants:
        one.train(one.site.training, 0, data.rounds * data.local_steps)
    return participants


def pooled(data: Data, sites: Sequence[Site], seed: int) -> list[Participant]:
    """One model of all records; a step draws as many as all sites together."""
    options = {**data.options, "local_norm": "none"}
    one = Participant(sites[0], options, seed, sites=len(sites))
    everything: ConcatDataset[Any] = ConcatDataset([site.training for site in sites])
    one.train(everything, 0, data.rounds * data.local_steps)
    participants = [Participant(site, options, seed) for site in sites]
    for participant in participants:
        participant.model = one.model
    return participants


def judged(data: Data, participants: Sequence[Participant]) -> dict[str, float]:
    """Figures in percent: over all, of the worst site, and personal ones where there are any."""
    each = [one.figures() for one in participants]
    found = {}
    for prefix in ("", "own_", "personal_", "personal_own_"):
        values = [
            100 * figures[prefix + data.metric]
            for figures in each
            if prefix + data.metric in figures
        ]
        if not values:
            continue
        together = _together(participants) if data.metric == "auc" and not prefix else None
        found[f"{prefix}mean"] = statistics.fmean(values) if together is None else together
        found[f"{prefix}worst"] = min(values)
        for one, value in zip(participants, values, strict=True):
            found[f"{prefix}{one.site.name}"] = value
    return found


def _together(participants: Sequence[Participant]) -> float | None:
    """For tables: every model on all hospitals' hold-outs together, the mean over models."""
    if not isinstance(participants[0].site.task, Tabular):
        return None
    scores = []
    for one in participants:
        task, learner = one.site.task, one.learner
        assert isinstance(task, Tabular)
        learner.load(one.model.parameters, one.model.state)
        learner.model.eval()
        with torch.no_grad():
            parts = [
                task.predictions(learner.model, learner.batches(other.site.test))
                for other in participants
            ]
        labels = np.concatenate([part.labels for part in parts])
        scores.append(100 * auc(labels, np.concatenate([part.scores for part in parts])))
    return statistics.fmean(scores)


def data_sets(pneumonia_path: Path) -> dict[str, Data]:
    sgd = {"optimiser": "sgd", "momentum": 0.9}
    return {
        "heart": Data(
            heart, 40, 3,
            {**sgd, "batch_size": 64, "learning_rate": 0.1, "weight_decay": 1e-3},
            "auc", "0",
        ),
        "pneumonia": Data(
            lambda seed: pneumonia(pneumonia_path, seed), 60, 5,
            {**sgd, "batch_size": 20, "learning_rate": 0.02, "weight_decay": 1e-3},
            "auc", "10", batch_norm=True,
        ),
        "digits-0.1": Data(
            lambda seed: digits(0.1, seed), 100, 5,
            {**sgd, "batch_size": 32, "learning_rate": 0.05}, "accuracy", "2",
        ),
        "digits-0.3": Data(
            lambda seed: digits(0.3, seed), 100, 5,
            {**sgd, "batch_size": 32, "learning_rate": 0.05}, "accuracy", "2",
        ),
    }  # fmt: skip


def fits(data: Data, method: Mapping[str, Any], uneven: bool) -> bool:
    """Whether a method has anything to act on."""
    if "normalised_steps" in method and not uneven:
        return False
    if method["local_norm"] == "batch" and not data.batch_norm:
        return False
    return not ("local_head" in method and data.last_layer == "0")


def run(name: str, data: Data, arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {}
    methods = {
        key: METHODS[key] for key in arguments.methods if fits(data, METHODS[key], arguments.uneven)
    }
    for seed in range(arguments.seeds):
        sites = data.sites(seed)
        graph = (
            nx.complete_graph(len(sites))
            if arguments.graph == "complete"
            else nx.cycle_graph(len(sites))
        )
        found.setdefault("alone", []).append(judged(data, alone(data, sites, seed)))
        found.setdefault("pooled", []).append(judged(data, pooled(data, sites, seed)))
        for key, method in methods.items():
            options = {**data.options, **method}
            if options.get("local_head") == "last":
                options["local_head"] = (data.last_layer,)
            started = time.perf_counter()
            participants = federate(
                data, sites, options, graph, seed, arguments.uneven, arguments.rule
            )
            found.setdefault(key, []).append(judged(data, participants))
            print(f"# {name} seed {seed} {key}: {found[key][-1]['mean']:.1f}"
                  f" ({time.perf_counter() - started:.0f} s)", flush=True)  # fmt: skip
    return found


def table(name: str, found: Mapping[str, list[dict[str, float]]]) -> str:
    lines = [
        f"\n{name}",
        "",
        f"| | {' | '.join(COLUMNS.values())} |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for key, runs in found.items():
        cells = []
        for column in COLUMNS:
            cells.append(_mean_and_spread([one[column] for one in runs if column in one]))
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines)


def site_table(found: Mapping[str, list[dict[str, float]]]) -> str:
    """The same for every site, where sites are the same in every run: of hospitals, by name."""
    named = [key for key in next(iter(found.values()))[0] if key not in COLUMNS and "_" not in key]
    lines = ["", f"| | {' | '.join(named)} |", "|---" * (1 + len(named)) + "|"]
    for key, runs in found.items():
        cells = [_mean_and_spread([one[name] for one in runs]) for name in named]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="heart,pneumonia,digits-0.1,digits-0.3")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--graph", choices=["complete", "ring"], default="complete")
    parser.add_argument("--rule", choices=sorted(RULES), default=DEFAULT_RULE)
    parser.add_argument("--uneven", action="store_true")
    parser.add_argument("--pneumonia", type=Path, default=PNEUMONIA)
    parser.add_argument("--json", type=Path, help="keep all figures in this file")
    parser.add_argument("--show", type=Path, help="print what such a file has, and run the rest")
    arguments = parser.parse_args()
    arguments.methods = arguments.methods.split(",")
    torch.set_num_threads(1)
    known = data_sets(arguments.pneumonia)
    earlier = json.loads(arguments.show.read_text()) if arguments.show else {}
    results = {}
    for name in arguments.data.split(","):
        results[name] = earlier.get(name) or run(name, known[name], arguments)
        print(table(name, results[name]), flush=True)
        if name == "heart":
            print(site_table(results[name]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
