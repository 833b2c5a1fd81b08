"""What differential privacy costs in accuracy: budgets x data sets, several seeds.

    OMP_NUM_THREADS=1 python benchmarks/privacy_accuracy.py [--data heart,pneumonia]
        [--budgets 1,2,4,8] [--seeds 3] [--pneumonia PATH] [--png FILE] [--json FILE]

Sites learn together over a complete graph with the default aggregation rule, each with the loop
of the trainer and the least noise with which its whole training spends the budget: a site with
fewer records needs more. A figure is the AUC in percent, mean over the seeds with its standard
deviation: of each site's model on all hospitals' hold-outs together (heart), or on the data set's
own test images (pneumonia). "alone" is each site's own training under the same budget, "none" the
same training without noise and clipping. Secrets follow from the seed here, so that the table can
be had again; a site's own never do.
"""

import argparse
import hashlib
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
from torch.utils.data import TensorDataset
from unlike_data import Images, Site, heart
from unlike_sites import Data, Participant, judged, learn_together

from p2pfed.rules_catalogue import DEFAULT_RULE
from p2pfed.topology.file import MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER
from p2pfed.training.privacy.accountant import epsilon_of
from p2pfed.training.privacy.sampling import sampling_rate
from p2pfed.training.privacy.settings import PrivateSettings

HOSPITALS = 6
IMAGES_A_HOSPITAL = 700
BISECTIONS = 30
NO_BUDGET = "none"


class PooledPixels(Images):
    """Logistic regression on 14 x 14 means of pixels: noise is dear in every parameter. Its
    settings were chosen on the data set's validation images."""

    def build_model(self) -> torch.nn.Module:
        return torch.nn.Sequential(  # (B, 1, 28, 28) -> (B, 1)
            torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(196, 1)
        )


def pneumonia(path: Path, seed: int) -> list[Site]:
    """PneumoniaMNIST dealt out to six hospitals at random; sites of 60 images have no room for
    privacy.

    :param path: of ``pneumoniamnist.npz`` (Yang et al., MedMNIST v2, Scientific Data 2023).
    """

    def dataset(images: Any, labels: Any) -> TensorDataset:
        pixels = torch.from_numpy(images.astype(np.float32))[:, None] / 255.0 - 0.5
        return TensorDataset(pixels, torch.from_numpy(labels.reshape(-1).astype(np.float32)))

    with np.load(path, allow_pickle=False) as bundle:
        test = dataset(bundle["test_images"], bundle["test_labels"])
        order = np.random.default_rng([seed, 7]).permutation(len(bundle["train_labels"]))
        parts = order[: HOSPITALS * IMAGES_A_HOSPITAL].reshape(HOSPITALS, -1)
        images, labels = bundle["train_images"], bundle["train_labels"]
        return [
            Site(f"hospital {n + 1}", PooledPixels(), dataset(images[p], labels[p]), test)
            for n, p in enumerate(parts)
        ]


@dataclass(frozen=True)
class Setting:
    """One data set, trained so that the noise averages out: few steps over many records."""

    data: Data
    delta: float
    clip_norm: float


def settings(pneumonia_path: Path) -> dict[str, Setting]:
    sgd = {"optimiser": "sgd", "momentum": 0.9, "local_norm": "none"}
    return {
        "heart": Setting(
            Data(heart, 10, 3, {**sgd, "batch_size": 256, "learning_rate": 0.2}, "auc", "0"),
            delta=1e-3,
            clip_norm=1.0,
        ),
        "pneumonia": Setting(
            Data(
                lambda seed: pneumonia(pneumonia_path, seed), 20, 3,
                {**sgd, "batch_size": 350, "learning_rate": 0.3}, "auc", "2",
            ),
            delta=1e-4,
            clip_norm=1.0,
        ),
    }  # fmt: skip


def least_noise(rate: float, steps: int, epsilon: float, delta: float) -> float:
    """The noise multiplier with which ``steps`` steps spend ``epsilon``, found by bisection."""
    low, high = MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        if epsilon_of([(rate, middle, steps)], delta) > epsilon:
            low = middle
        else:
            high = middle
    return high


class PrivateParticipant(Participant):
    """A site that keeps within a budget over ``steps`` local steps; without one where None."""

    def __init__(self, site: Site, setting: Setting, seed: int, epsilon: float | None) -> None:
        super().__init__(site, setting.data.options, seed)
        self.noise_multiplier: float | None = None
        if epsilon is None:
            return
        batch_size, records = self.learner.settings.batch_size, len(site.training)
        self.noise_multiplier = least_noise(
            sampling_rate(batch_size, records),
            setting.data.rounds * setting.data.local_steps,
            epsilon,
            setting.delta,
        )
        self.learner.privacy = PrivateSettings(
            self.noise_multiplier, setting.clip_norm, batch_size, records
        )

    def noise_secret(self, round_number: int) -> bytes | None:
        if self.learner.privacy is None:
            return None
        return hashlib.sha256(f"{self.seed}/{self.site.name}/{round_number}".encode()).digest()


def train(
    setting: Setting, sites: Sequence[Site], seed: int, epsilon: float | None, *, together: bool
) -> list[PrivateParticipant]:
    participants = [PrivateParticipant(site, setting, seed, epsilon) for site in sites]
    graph = nx.complete_graph(len(sites)) if together else nx.empty_graph(len(sites))
    learn_together(setting.data, participants, graph, DEFAULT_RULE, uneven=False)
    return participants


@dataclass(frozen=True)
class Row:
    """AUC in percent by seed; noise multipliers of the sites with most and fewest records."""

    budget: str
    noise: tuple[float, float] | None
    together: list[float]
    alone: list[float]


def run(name: str, setting: Setting, budgets: Sequence[float], seeds: int) -> list[Row]:
    rows = []
    for budget in (*budgets, None):
        started = time.perf_counter()
        figures: dict[bool, list[float]] = {True: [], False: []}
        noise: tuple[float, float] | None = None
        for seed in range(seeds):
            sites = setting.data.sites(seed)
            for together in (True, False):
                participants = train(setting, sites, seed, budget, together=together)
                figures[together].append(judged(setting.data, participants)["mean"])
                used = [one.noise_multiplier for one in participants if one.noise_multiplier]
                noise = (min(used), max(used)) if used else None
        shown = NO_BUDGET if budget is None else f"{budget:g}"
        rows.append(Row(shown, noise, figures[True], figures[False]))
        print(
            f"# {name} epsilon {shown}: together {figure_words(figures[True])}, "
            f"alone {figure_words(figures[False])} ({time.perf_counter() - started:.0f} s)",
            flush=True,
        )
    return rows


def figure_words(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def table(name: str, setting: Setting, rows: Sequence[Row]) -> str:
    lines = [
        f"\n{name}, delta {setting.delta:g}", "",
        "| epsilon | noise multiplier | together | alone |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        if row.noise is None:
            noise = ""
        elif row.noise[1] - row.noise[0] < 0.005:
            noise = f"{row.noise[0]:.2f}"
        else:
            noise = f"{row.noise[0]:.2f} to {row.noise[1]:.2f}"
        lines.append(
            f"| {row.budget} | {noise} | {figure_words(row.together)} | {figure_words(row.alone)} |"
        )
    return "\n".join(lines)


def draw(results: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Accuracy against epsilon, one panel a data set; without privacy as a dashed line."""
    import matplotlib as mpl  # noqa: PLC0415 - only for the picture

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415 - after the choice above

    figure, panels = pyplot.subplots(1, len(results), figsize=(5 * len(results), 4), squeeze=False)
    kinds: list[tuple[str, str, Callable[[Row], list[float]]]] = [
        ("together", "tab:blue", lambda row: row.together),
        ("alone", "tab:orange", lambda row: row.alone),
    ]
    for panel, (name, rows) in zip(panels[0], results.items(), strict=True):
        private = [row for row in rows if row.budget != NO_BUDGET]
        for label, colour, values_of in kinds:
            panel.errorbar(
                [float(row.budget) for row in private],
                [statistics.fmean(values_of(row)) for row in private],
                [statistics.pstdev(values_of(row)) for row in private],
                label=label,
                color=colour,
                marker="o",
                capsize=3,
            )
            for row in rows:
                if row.budget == NO_BUDGET:
                    height = statistics.fmean(values_of(row))
                    panel.axhline(height, color=colour, linestyle="dashed")
        panel.set(title=name, xlabel="epsilon", ylabel="AUC, percent", xscale="log")
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="heart,pneumonia")
    parser.add_argument("--budgets", default="1,2,4,8")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pneumonia", type=Path, default=PNEUMONIA)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = settings(arguments.pneumonia)
    budgets = [float(budget) for budget in arguments.budgets.split(",")]
    results: dict[str, list[Row]] = {}
    for name in arguments.data.split(","):
        results[name] = run(name, known[name], budgets, arguments.seeds)
        print(table(name, known[name], results[name]), flush=True)
    if arguments.png:
        draw(results, arguments.png)
    if arguments.json:
        document = {name: [row.__dict__ for row in rows] for name, rows in results.items()}
        arguments.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
