"""What the federation is worth: its models, each site's own, and one trained on all records
together, on the same hold-outs. Possible only because the demo's data are public.

    python -m p2pfed.demo.comparison SITE_FILE... prints JSON; each site's exported model lies
    beside its site file as model.safetensors.
"""

import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import TensorDataset

from p2pfed.config import load_site
from p2pfed.demo.layout import MODEL_NAME
from p2pfed.topology import load_topology
from p2pfed.training.baseline import predict, train_baseline
from p2pfed.training.binary import accuracy, auc
from p2pfed.training.export import read_model
from p2pfed.training.regions import Vector
from p2pfed.training.schema import schema_of
from p2pfed.training.tabular import Predictions, Tabular


def compare(site_files: list[Path]) -> dict[str, Any]:
    """AUC and accuracy for each site and overall, as ``sites`` and ``overall`` of the report.

    Overall, each site's model is judged on all hold-outs together and the mean is given.
    """
    torch.set_num_threads(1)
    sites = [load_site(path) for path in site_files]
    settings = load_topology(sites[0].topology_path).file
    options, seed = settings.task.options, settings.task.seed
    steps = settings.round.rounds * settings.round.local_steps
    tasks = [Tabular(options, site.data) for site in sites]
    data = [task.datasets() for task in tasks]
    training = [cast(TensorDataset, one.training) for one in data]
    holdouts = [cast(TensorDataset, one.holdout) for one in data]
    # Training sets class weights on its task, so the baselines get one that nobody else uses.
    judge = Tabular(options, sites[0].data)

    def train(records: list[TensorDataset], name: str) -> Vector:
        return train_baseline(judge, records, total_steps=steps, seed=seed, name=name)

    models: dict[str, list[Vector]] = {
        "local": [train([own], site.file.name) for own, site in zip(training, sites, strict=True)],
        "federated": [
            read_model(path.with_name(MODEL_NAME), schema_of(judge.build_model()))
            for path in site_files
        ],
        "pooled": [train(training, "pooled")] * len(sites),
    }
    rows = []
    for index, (site, holdout) in enumerate(zip(sites, holdouts, strict=True)):
        figures = {
            kind: _figures([predict(judge, each[index], holdout)]) for kind, each in models.items()
        }
        rows.append({"name": site.file.name, "test_rows": len(holdout), **figures})
    overall = {
        kind: _mean([_figures([predict(judge, model, h) for h in holdouts]) for model in each])
        for kind, each in models.items()
    }
    return {"sites": rows, "overall": overall}


def _figures(predictions: list[Predictions]) -> dict[str, float]:
    labels = np.concatenate([p.labels for p in predictions])
    scores = np.concatenate([p.scores for p in predictions])
    return {"auc": auc(labels, scores), "accuracy": accuracy(labels, scores)}


def _mean(figures: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([figure[key] for figure in figures])) for key in figures[0]}


if __name__ == "__main__":
    print(json.dumps(compare([Path(argument) for argument in sys.argv[1:]])))  # noqa: T201
