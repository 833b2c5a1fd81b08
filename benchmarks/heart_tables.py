"""Tables of the four hospitals for every target that a table task tells."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from real_data import HEART

from p2pfed.settings import read_toml
from p2pfed.shipped import shipped
from p2pfed.training.tasks.tabular.task import Tabular

RAW_NAMES = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,num"
HEART_RATE = {"label": "thalach", "label_centre": 138.0, "label_scale": 25.0}
NARROWED_VESSELS = {"label": "num", "classes": [0, 1, 2, 3, 4]}
FOLLOWED = {"time": "days", "event": "died"}
# Logarithm of the hazard for one scale of the heart demo's file, or for exang = 1.
LOG_HAZARDS: Mapping[str, float] = {"age": 0.6, "oldpeak": 0.8, "exang": 0.7}
STANDING = {"age": (54.0, 9.0), "oldpeak": (0.9, 1.1), "exang": (0.0, 1.0)}
BASELINE_DAYS = 100.0
LONGEST_DAYS = 300


def hospital_files() -> list[Path]:
    """The hospitals' tables as the heart demo has them."""
    return sorted((shipped("demos") / "heart").glob("*.csv"))


def heart_options(without: str | None = None) -> dict[str, Any]:
    """``[task.options]`` of the heart demo, which say nothing of a target; one column less where
    that is what is told."""
    options = read_toml(shipped("demos") / "heart" / "heart.toml")["task"]["options"]
    del options["label"]
    options["columns"] = [column for column in options["columns"] if column["name"] != without]
    return dict(options)


def task_of(path: Path, options: Mapping[str, Any], seed: int = 0) -> Tabular:
    data = {"path": str(path), "extra_columns": "ignore", "split_seed": seed}
    return Tabular(options, data)


def raw_tables(folder: Path) -> list[Path]:
    """The original tables with a header, whose ``num`` counts narrowed vessels from 0 to 4; a
    cholesterol or blood pressure of 0 was not measured and is left empty, as in the demo."""
    written = []
    for raw in sorted(HEART.glob("*.data")):
        frame = pd.read_csv(raw, header=None, names=RAW_NAMES.split(","), na_values="?")
        for name in ("chol", "trestbps"):
            frame[name] = frame[name].where(frame[name] != 0)
        written.append(folder / f"{raw.stem}.csv")
        frame.to_csv(written[-1], index=False)
    return written


def heart_rate_tables(folder: Path) -> list[Path]:
    """The patients whose highest heart rate was measured."""
    written = []
    for file in hospital_files():
        written.append(folder / file.name)
        pd.read_csv(file).dropna(subset=["thalach"]).to_csv(written[-1], index=False)
    return written


def synthetic_survival_tables(folder: Path, seed: int) -> list[Path]:
    """Real patients with made-up days to an event, of a known hazard.

    Days are exponential with hazard exp(sum of ``LOG_HAZARDS`` times the standardised columns) /
    ``BASELINE_DAYS``, rounded up so that they tie, and cut off at a day drawn at random up to
    ``LONGEST_DAYS``.
    """
    written = []
    for place, file in enumerate(hospital_files()):
        generator = np.random.default_rng([seed, place])
        frame = pd.read_csv(file)
        log_hazard = np.zeros(len(frame))
        for name, coefficient in LOG_HAZARDS.items():
            centre, scale = STANDING[name]
            log_hazard += coefficient * ((frame[name].fillna(centre) - centre) / scale)
        days = np.ceil(generator.exponential(BASELINE_DAYS / np.exp(log_hazard)))
        last = generator.integers(1, LONGEST_DAYS + 1, len(frame))
        frame["days"], frame["died"] = np.minimum(days, last), (days <= last).astype(int)
        written.append(folder / file.name)
        frame.to_csv(written[-1], index=False)
    return written
