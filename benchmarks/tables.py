"""Every target of a table task at the four hospitals: alone, together, and pooled.

    OMP_NUM_THREADS=1 python benchmarks/tables.py [--seeds 3] [--rounds 40] [--json FILE]

A figure is taken over all hospitals' hold-outs together: for "alone" and "together" of each
hospital's model, of which the mean is given; "pooled" is one model of all records, with as many
steps. Behind each stands the standard deviation over the seeds, which draw hold-outs and starting
models. The hospitals learn over a complete graph with the default aggregation rule.

The classes are the original number of narrowed vessels (0 to 4), the number is the highest heart
rate; the survival times are synthetic, of a known hazard of the real patients.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from heart_tables import (
    FOLLOWED,
    HEART_RATE,
    NARROWED_VESSELS,
    heart_options,
    heart_rate_tables,
    hospital_files,
    raw_tables,
    synthetic_survival_tables,
    task_of,
)
from torch.utils.data import TensorDataset
from unlike_data import Site
from unlike_sites import Data, federate

from p2pfed.training.baseline import predict, train_baseline
from p2pfed.training.settings import LoopSettings
from p2pfed.training.site_state import SiteModel
from p2pfed.training.tasks.tabular.task import Tabular

LOCAL_STEPS = 3
AGREEING_ROUNDS = 10
FEDERATED = {"standardise": "federated", "standardise_rounds": AGREEING_ROUNDS}


@dataclass(frozen=True)
class Case:
    """One row: the tables of the hospitals, and what is learned from them."""

    files: Sequence[Path]
    options: Mapping[str, Any]
    metric: str

    def sites(self, seed: int) -> list[Site]:
        sites = []
        for file in self.files:
            task = task_of(file, self.options, seed)
            data = task.datasets()
            assert isinstance(data.training, TensorDataset)
            assert isinstance(data.holdout, TensorDataset)
            sites.append(Site(file.stem, task, data.training, data.holdout))
        return sites


def cases(folder: Path, seed: int) -> dict[str, Case]:
    binary = {**heart_options(), "label": "disease"}
    unknown = [
        {key: value for key, value in column.items() if key not in ("centre", "scale")}
        for column in binary["columns"]
    ]
    noisy = {**FEDERATED, "standardise_noise_multiplier": 2.0}
    rate = {**heart_options(without="thalach"), "target": "regression", **HEART_RATE}
    survival = {**heart_options(), "target": "survival", **FOLLOWED, "batch_size": 256}
    folders = [folder / name for name in ("vessels", "rate", "survival")]
    for one in folders:
        one.mkdir(exist_ok=True)
    rows = {
        "binary": Case(hospital_files(), binary, "auc"),
        "binary, agreed": Case(hospital_files(), {**binary, **FEDERATED}, "auc"),
        "binary, agreed, none declared": Case(
            hospital_files(), {**binary, **FEDERATED, "columns": unknown}, "auc"
        ),
        "binary, agreed with noise 2": Case(hospital_files(), {**binary, **noisy}, "auc"),
        "regression": Case(heart_rate_tables(folders[1]), {**rate, "learning_rate": 0.05}, "r2"),
        "survival": Case(synthetic_survival_tables(folders[2], seed), survival, "c_index"),
    }
    vessels = {**heart_options(), "target": "multiclass", **NARROWED_VESSELS}
    files = raw_tables(folders[0])
    return rows | ({"five classes": Case(files, vessels, "auc")} if files else {})


def judged(case: Case, task: Tabular, models: Sequence[SiteModel], sites: list[Site]) -> float:
    figures = []
    for model in models:
        told = [predict(task, model, site.test) for site in sites]
        labels = np.concatenate([part.labels for part in told])
        scores = np.concatenate([part.scores for part in told])
        figures.append(task.target.metrics(labels, scores)[case.metric])
    return statistics.fmean(figures)


def row(case: Case, rounds: int, seed: int) -> dict[str, float]:
    sites = case.sites(seed)
    task = sites[0].task
    assert isinstance(task, Tabular)
    steps = rounds * LOCAL_STEPS
    own = {key: value for key, value in case.options.items() if key in LoopSettings.model_fields}
    data = Data(case.sites, rounds + task.preparation_rounds, LOCAL_STEPS, own, case.metric, "0")
    graph = nx.complete_graph(len(sites))
    together = [one.model for one in federate(data, sites, own, graph, seed, uneven=False)]
    alone = [
        train_baseline(task, [site.training], total_steps=steps, seed=seed, name=site.name)
        for site in sites
    ]
    records = [site.training for site in sites]
    pooled = train_baseline(task, records, total_steps=steps, seed=seed, name="pooled")
    return {
        "alone": judged(case, task, alone, sites),
        "together": judged(case, task, together, sites),
        "pooled": judged(case, task, [pooled], sites),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40, help="with local steps; default 40")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for name, case in cases(Path(folder), seed).items():
                for way, figure in row(case, arguments.rounds, seed).items():
                    report.setdefault(f"{name}, {case.metric}", {}).setdefault(way, []).append(
                        figure
                    )
    ways = ("alone", "together", "pooled")
    print(f"| {'hospitals':38} | " + " | ".join(f"{way:13}" for way in ways) + " |")
    print("|---|" + "---|" * len(ways))
    for name, figures in report.items():
        cells = [f"{statistics.fmean(one):.3f} ± {statistics.pstdev(one):.3f}" for one in (
            figures[way] for way in ways
        )]  # fmt: skip
        print(f"| {name:38} | " + " | ".join(cells) + " |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
