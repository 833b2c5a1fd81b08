"""Where real data lie that are too large for the project: for benchmarks and for tests."""

import os
from pathlib import Path

DATA = Path(os.environ.get("P2PFED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
"""``P2PFED_DATA``, or ``shared/data`` beside the checkout."""

HEART = DATA / "heart"
"""The four ``processed.*.data`` files of UCI Heart Disease, doi 10.24432/C52P4X."""

PNEUMONIA = DATA / "pneumoniamnist" / "pneumoniamnist.npz"
"""PneumoniaMNIST, 28 x 28 (Yang et al., MedMNIST v2, Scientific Data 2023)."""

REASON = "real data are not here; set P2PFED_DATA to the directory that holds them"
