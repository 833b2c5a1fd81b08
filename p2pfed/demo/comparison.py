"""What the federation is worth: its models, each site's own, and one trained on all records
together, on the same hold-outs. Possible only because the demo's data are public.

    python -m p2pfed.demo.comparison SITE_FILE... prints JSON; each site's exported model lies
    beside its site file as model.safetensors.

    python -m p2pfed.demo.comparison --runs '{"RUN": ["SITE_FILE", ...], ...}' does so for
    several runs of the same sites.
"""

import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from p2pfed.config import Site, load_site
from p2pfed.daemon.daemon import trainer_request
from p2pfed.demo.layout import MODEL_NAME
from p2pfed.topology import load_topology
from p2pfed.training.baseline import ComparableTask, learner_of, predict, train_baseline
from p2pfed.training.evaluation.binary import Predictions, accuracy, auc
from p2pfed.training.export import read_model
from p2pfed.training.loading import load_task
from p2pfed.training.loop import Learner
from p2pfed.training.records import record_count
from p2pfed.training.site_state import SiteModel

Figures = dict[str, float]  # by name of the metric


class Hospitals:
    """The records of some sites of a demo, and models judged on them."""

    def __init__(self, site_files: list[Path]) -> None:
        self._sites = [load_site(path) for path in site_files]
        self._settings = load_topology(self._sites[0].topology_path).file
        self._tasks = [self._task(site) for site in self._sites]
        data = [task.datasets() for task in self._tasks]
        self.names = [site.file.name for site in self._sites]
        self.training = [one.training for one in data]
        self.holdouts = [one.holdout for one in data]
        self.test_rows = [record_count(one.holdout) for one in data]

    def _task(self, site: Site) -> ComparableTask:
        return cast(
            ComparableTask, load_task(trainer_request(site, load_topology(site.topology_path)))
        )

    @cached_property
    def local(self) -> list[SiteModel]:
        """Each site's own model, trained on its own records alone."""
        return [
            self._train([own], name) for own, name in zip(self.training, self.names, strict=True)
        ]

    @cached_property
    def pooled(self) -> list[SiteModel]:
        """For each site the one model trained on the records of all of them."""
        return [self._train(self.training, "pooled")] * len(self._sites)

    def _train(self, records: list[Dataset[Any]], name: str) -> SiteModel:
        settings = self._settings
        # Training sets class weights on its task, so each gets one that nobody else uses.
        return train_baseline(
            self._task(self._sites[0]),
            records,
            total_steps=settings.round.rounds * settings.round.local_steps,
            seed=settings.task.seed,
            name=name,
        )

    def federated(self, site_files: list[Path]) -> list[SiteModel]:
        """What each site exported after a run."""
        return [read_model(path.with_name(MODEL_NAME), self._judge) for path in site_files]

    @cached_property
    def _judge(self) -> Learner:
        return learner_of(self._tasks[0], self._settings.task.seed, sites=1)

    def by_site(self, models: list[SiteModel]) -> list[Figures]:
        """AUC and accuracy of each site's model on that site's hold-out."""
        return [
            _figures([predict(self._tasks[0], model, holdout)])
            for model, holdout in zip(models, self.holdouts, strict=True)
        ]

    def overall(self, models: list[SiteModel]) -> Figures:
        """Each site's model is judged on all hold-outs together; their mean.

        A model of which a part is a site's own is made for that site's patients: then the mean of
        what each is on its own hold-out.
        """
        if self._judge.parts.local:
            figures = self.by_site(models)
        else:
            figures = [
                _figures([predict(self._tasks[0], model, holdout) for holdout in self.holdouts])
                for model in models
            ]
        return {key: float(np.mean([one[key] for one in figures])) for key in figures[0]}


def compare(site_files: list[Path]) -> dict[str, Any]:
    """AUC and accuracy for each site and overall, as ``sites`` and ``overall`` of the report."""
    hospitals = Hospitals(site_files)
    models = {
        "local": hospitals.local,
        "federated": hospitals.federated(site_files),
        "pooled": hospitals.pooled,
    }
    figures = {kind: hospitals.by_site(each) for kind, each in models.items()}
    rows = [
        {"name": name, "test_rows": rows, **{kind: figures[kind][at] for kind in models}}
        for at, (name, rows) in enumerate(zip(hospitals.names, hospitals.test_rows, strict=True))
    ]
    overall = {kind: hospitals.overall(each) for kind, each in models.items()}
    return {"sites": rows, "overall": overall}


def compare_runs(runs: dict[str, list[Path]]) -> dict[str, Any]:
    """AUC and accuracy for each site and overall, for each of several runs of the same sites on
    the same data, and what the sites reach without a federation: alone, and pooled."""
    hospitals = Hospitals(next(iter(runs.values())))
    report = {}
    for run, site_files in runs.items():
        models = hospitals.federated(site_files)
        rows = zip(hospitals.names, hospitals.test_rows, hospitals.by_site(models), strict=True)
        report[run] = {
            "sites": [
                {"name": name, "test_rows": count, **figures} for name, count, figures in rows
            ],
            "overall": hospitals.overall(models),
        }
    reference = {
        "local": hospitals.overall(hospitals.local),
        "pooled": hospitals.overall(hospitals.pooled),
    }
    return {"runs": report, "reference": reference}


def _figures(predictions: list[Predictions]) -> Figures:
    labels = np.concatenate([p.labels for p in predictions])
    scores = np.concatenate([p.scores for p in predictions])
    return {"auc": auc(labels, scores), "accuracy": accuracy(labels, scores)}


def _report(arguments: list[str]) -> dict[str, Any]:
    if arguments[0] == "--runs":
        runs = json.loads(arguments[1])
        return compare_runs({run: [Path(file) for file in files] for run, files in runs.items()})
    return compare([Path(argument) for argument in arguments])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_report(sys.argv[1:])))  # noqa: T201
