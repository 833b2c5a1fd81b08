"""topology/TASKS.md says of every key of these tasks what it does."""

from pathlib import Path

import pytest

from p2pfed.settings import Settings
from p2pfed.training.settings import LoopSettings
from p2pfed.training.tasks.adapter.task import AdapterData, AdapterOptions
from p2pfed.training.tasks.imaging.classification import ClassificationOptions
from p2pfed.training.tasks.imaging.options import Augmentation, ImageData, Intensity
from p2pfed.training.tasks.imaging.segmentation import SegmentationOptions
from p2pfed.training.tasks.signal.options import SignalData, SignalOptions
from p2pfed.training.tasks.tabular.columns import Column
from p2pfed.training.tasks.tabular.options import TabularData, TabularOptions

PAGE = (Path(__file__).parents[2] / "topology" / "TASKS.md").read_text()
SECTIONS = {
    "## tabular": (TabularOptions, TabularData, Column),
    "## image_classification and segmentation": (
        ClassificationOptions,
        SegmentationOptions,
        Augmentation,
        Intensity,
        ImageData,
    ),
    "## signal": (SignalOptions, SignalData),
    "## adapter": (AdapterOptions, AdapterData),
}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_explained(heading: str) -> None:
    section = PAGE[PAGE.index(heading) :].partition("\n## ")[0]
    tables: tuple[type[Settings], ...] = SECTIONS[heading]
    keys = {key for table in tables for key in table.model_fields} - set(LoopSettings.model_fields)
    assert [key for key in sorted(keys) if f"`{key}`" not in section] == []
