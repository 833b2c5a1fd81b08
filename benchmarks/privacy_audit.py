"""What a neighbour can learn of real patients from a site's deltas, with and without privacy.

    OMP_NUM_THREADS=1 python benchmarks/privacy_audit.py [--data heart,xray] [--quick] [--seed 0]
        [--noise-multiplier 4] [--epsilon 8] [--pneumonia PATH] [--json FILE]

The four hospitals of the heart demo as it sets them up, and one hospital with 60 chest X-rays of
PneumoniaMNIST and a small convolutional network. Each is audited as ``p2pfed privacy-audit`` does
it. Brackets hold the 95 % interval of a figure; "above" marks one that lies above what it is held
against by more than chance explains: something was learned. A site whose controls do not all come
out is marked, for there nothing is proved.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from real_data import PNEUMONIA
from torch.utils.data import TensorDataset

from p2pfed.cli.privacy_audit import audit_request
from p2pfed.config import load_site
from p2pfed.demo.layout import DemoOptions, write_layout
from p2pfed.settings import read_toml
from p2pfed.shipped import demo_folder
from p2pfed.topology import load_topology
from p2pfed.training.audit.report import Control, Finding, SiteReport
from p2pfed.training.audit.request import AuditedPrivacy, AuditRequest
from p2pfed.training.audit.site import audit_site
from p2pfed.training.evaluation.binary import auc
from p2pfed.training.frames import Open
from p2pfed.training.task import Datasets

DELTA = 1e-5
CLIP_NORM = 1.0
IMAGES = 60  # of the hospital with X-rays
STRANGERS = 200  # images that it keeps from training
XRAY_ROUNDS = 40
XRAY_STEPS = 3
XRAY_OPTIONS = {"batch_size": 16, "learning_rate": 0.05, "momentum": 0.9}


class Xrays:
    """Chest X-rays of 28 x 28 pixels, pneumonia or not; group norm, for privacy allows no other."""

    def __init__(self, _options: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        self._path = Path(data["path"])

    def build_model(self) -> torch.nn.Module:
        def block(inputs: int, outputs: int) -> list[torch.nn.Module]:
            return [
                torch.nn.Conv2d(inputs, outputs, 3, padding=1),
                torch.nn.GroupNorm(4, outputs),
                torch.nn.ReLU(),
                torch.nn.MaxPool2d(2),
            ]

        return torch.nn.Sequential(  # (B, 1, 28, 28) -> (B, 1)
            *block(1, 8), *block(8, 16), torch.nn.Flatten(), torch.nn.Linear(16 * 7 * 7, 1)
        )

    def datasets(self) -> Datasets:
        with np.load(self._path, allow_pickle=False) as bundle:
            images, labels = bundle["train_images"], bundle["train_labels"].reshape(-1)
        healthy, ill = (np.flatnonzero(labels == kind) for kind in (0, 1))
        order = np.random.default_rng(0)
        wanted = IMAGES + STRANGERS
        paired = np.stack([order.permutation(kind)[:wanted] for kind in (healthy, ill)])
        rows = paired.T.reshape(-1)  # half of each part is ill
        return Datasets(
            training=_images(images, labels, rows[:IMAGES]),
            holdout=_images(images, labels, rows[IMAGES : IMAGES + STRANGERS]),
        )

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        images, labels = batch  # (B, 1, 28, 28), (B,)
        return torch.nn.functional.binary_cross_entropy_with_logits(model(images)[:, 0], labels)

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        pairs = [(model(images)[:, 0], labels) for images, labels in batches]
        scores = torch.cat([scores for scores, _ in pairs]).double().numpy()
        return {"auc": auc(torch.cat([labels for _, labels in pairs]).double().numpy(), scores)}


def _images(images: Any, labels: Any, rows: Any) -> TensorDataset:
    pixels = images[rows].astype(np.float32)[:, None] / 255.0 - 0.5
    return TensorDataset(
        torch.from_numpy(pixels), torch.from_numpy(labels[rows].astype(np.float32))
    )


def heart_requests(arguments: argparse.Namespace, directory: Path) -> Iterator[AuditRequest]:
    layout = write_layout(demo_folder("heart"), directory, DemoOptions(seed=arguments.seed))
    for site in layout.sites:
        privacy = {
            "differential_privacy": True,
            "noise_multiplier": arguments.noise_multiplier,
            "epsilon": arguments.epsilon,
            "delta": DELTA,
            "clip_norm": CLIP_NORM,
        }
        document = {**read_toml(site.path), "privacy": privacy}
        site.path.write_text(tomli_w.dumps(document), encoding="utf-8")
        yield audit_request(
            load_site(site.path),
            load_topology(layout.topology),
            seed=arguments.seed,
            quick=arguments.quick,
        )


def xray_request(arguments: argparse.Namespace) -> AuditRequest:
    return AuditRequest(
        opening=Open(
            task_kind="python",
            task_class="privacy_audit:Xrays",
            task_path=str(Path(__file__).parent),
            site="x-ray",
            options=dict(XRAY_OPTIONS),
            data={"path": str(arguments.pneumonia)},
            seed=arguments.seed,
            device="cpu",
            minimum_records=20,
        ),
        rounds=XRAY_ROUNDS,
        local_steps=XRAY_STEPS,
        privacy=AuditedPrivacy(
            in_force=True,
            epsilon=arguments.epsilon,
            delta=DELTA,
            noise_multiplier=arguments.noise_multiplier,
            clip_norm=CLIP_NORM,
        ),
        seed=arguments.seed,
        quick=arguments.quick,
    )


def print_tables(reports: list[SiteReport]) -> None:
    print(
        "| site | records | parameters | rounds without, with | q | accounted epsilon | controls |"
        "\n|---|---|---|---|---|---|---|"
    )
    for report in reports:
        terms = report.terms
        with_privacy = (
            (str(terms.rounds), f"{terms.sampling_rate:.2f}", f"{terms.accounted_epsilon:.2f}")
            if terms
            else ("-", "-", "-")
        )
        passed = sum(control.passed for control in report.controls)
        print(
            f"| {report.site} | {report.training_records} | {report.parameters} | "
            f"{report.rounds}, {with_privacy[0]} | {with_privacy[1]} | {with_privacy[2]} | "
            f"{passed} of {len(report.controls)}{'' if report.conclusive else ': PROVES NOTHING'} |"
        )
    print(
        "\n| site | attack | against | figure | without | with privacy | held against |"
        "\n|---|---|---|---|---|---|---|"
    )
    for report in reports:
        for key, pair in _pairs(report.findings).items():
            attack, against, figure = key
            held = ", ".join(dict.fromkeys(f"{one.reference:.2f}" for one in pair.values()))
            print(
                f"| {report.site} | {attack} | {against} | {figure} | {_cell(pair.get(False))} | "
                f"{_cell(pair.get(True))} | {held} |"
            )
    print("\n| site | control | value | needed | |\n|---|---|---|---|---|")
    for report in reports:
        for control in report.controls:
            must = "succeed" if control.positive else "fail"
            print(
                f"| {report.site} | {control.attack}, must {must}: {control.what} | "
                f"{_cell(control)} | {control.needed} | "
                f"{'passed' if control.passed else 'FAILED'} |"
            )


def _pairs(findings: Iterable[Finding]) -> dict[tuple[str, str, str], dict[bool, Finding]]:
    """Findings without and with privacy that belong in one row."""
    rows: dict[tuple[str, str, str], dict[bool, Finding]] = {}
    for one in findings:
        # The budget may end training earlier than the federation does.
        against = "the last model" if one.attack == "membership" else one.setting
        rows.setdefault((one.attack, against, one.figure), {})[one.privacy] = one
    return rows


def _cell(one: Finding | Control | None) -> str:
    if one is None:
        return "-"
    above = " **above**" if isinstance(one, Finding) and one.exceeds else ""
    if one.high is None:
        return f"{one.value:.2f}{above}"
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]{above}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="heart,xray")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise-multiplier", type=float, default=4.0)
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--pneumonia", type=Path, default=PNEUMONIA)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    requests: list[AuditRequest] = []
    with tempfile.TemporaryDirectory() as directory:
        if "heart" in arguments.data:
            requests += heart_requests(arguments, Path(directory))
        if "xray" in arguments.data:
            requests.append(xray_request(arguments))
        reports = []
        for request in requests:
            reports.append(audit_site(request, lambda line: print(line, file=sys.stderr)))
            print(f"{reports[-1].site}: {reports[-1].seconds} s", file=sys.stderr)
    print_tables(reports)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([one.to_json() for one in reports], indent=2) + "\n")


if __name__ == "__main__":
    main()
