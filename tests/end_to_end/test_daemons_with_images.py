"""Real daemons that learn from images, through an adapter of a backbone that stays at home."""

import hashlib
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation import Federation
from PIL import Image
from safetensors.torch import save_file

pytestmark = pytest.mark.daemons

CODE = """
    import torch

    def build():
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 1)
        )
"""
FROZEN = 64 * 1024 + 1024
TRAVELLING = 2 * (64 + 1024) + 1024 + 1  # two rows of A and columns of B, and the head


def write_images(folder: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for number, name in enumerate(("well", "ill")):
        (folder / name).mkdir(parents=True)
        for index in range(40):
            pixels = generator.integers(0, 200, (8, 8)) + 40 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")


@pytest.fixture
def pair(short_tmp: Path) -> Iterator[Federation]:
    backbone = torch.nn.Linear(64, 1024)
    weights = short_tmp / "backbone.safetensors"
    save_file({"1.weight": backbone.weight, "1.bias": backbone.bias}, weights)
    options: dict[str, Any] = {
        "base": "our_backbone:build",
        "backbone_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "rank": 2,
        "target_modules": ["1"],
        "head": ["3"],
        "of": "image_classification",
        "of_options": {
            "classes": ["well", "ill"],
            "spatial_size": [8, 8],
            "intensity": {"kind": "range", "low": 0.0, "high": 255.0},
        },
    }
    task = {"kind": "adapter", "options": options}
    with Federation(short_tmp, ["alpha", "beta"], task=task) as federation:
        for seed, hospital in enumerate(federation.hospitals):
            (hospital.directory / "code").mkdir()
            (hospital.directory / "code" / "our_backbone.py").write_text(textwrap.dedent(CODE))
            write_images(hospital.directory / "images", seed)
            hospital.write_site(
                task={"path": "code"},
                data={"path": "images", "backbone_path": "../backbone.safetensors"},
            )
        yield federation


@pytest.mark.slow
def test_only_adapters_cross_the_network(pair: Federation) -> None:
    pair.start()
    alpha, beta = pair.hospitals
    status = alpha.until_round(3)
    assert status.metrics_after["auc"] > 0.5
    # In the codec's one byte a number; the frozen layer would be fifteen times as much.
    assert 3 * TRAVELLING < status.totals.bytes_sent < status.round.number * FROZEN / 4
    beta.until_round(3)
    for hospital in pair.hospitals:
        hospital.send(signal.SIGTERM)
        assert hospital.wait() == 0
        assert "Traceback" not in hospital.log.read_text()
